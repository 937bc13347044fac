"""Loads as they are typed: `--load`."""

import re
from dataclasses import dataclass
from typing import Final

from gpulet.errors import BadInput
from gpulet.model import Model
from gpulet.units import from_ms

_NO_SLO_MS: Final = 1e6
_LOAD: Final = re.compile(r"(?P<model>[^:]+):(?P<rate>\d+(\.\d+)?)(:(?P<slo>\d+(\.\d+)?))?")


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One model's load as typed: `MODEL:RATE[:SLO_MS]`."""

    model: Model
    rate: float


def parse_load(text: str) -> LoadSpec:
    """`MODEL:RATE[:SLO_MS]`; raises `BadInput` that shows the form."""
    found = _LOAD.fullmatch(text)
    if found is None or not float(found["rate"]):
        msg = f"--load {text!r}: give MODEL:RATE or MODEL:RATE:SLO_MS, with a rate above 0"
        raise BadInput(msg)
    return LoadSpec(Model(found["model"], from_ms(float(found["slo"] or _NO_SLO_MS))), float(found["rate"]))
