"""Which models with which SLO and rate: scenarios that others published, as fleet files.

The form is ParvaGPU's (SC 2024, `SLO/*.csv`): `model,slo_ms,rate`, the rate in rows/s, and where a file holds several
scenarios a column `scenario`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpulet.errors import ConfigError
from gpulet.importing.table import Line, Table
from gpulet.profile import Profile

COLUMN = "scenario"


@dataclass(frozen=True, slots=True)
class Wish:
    """One model of a scenario; `where` is the file and line it comes from."""

    model: str
    slo_ms: float
    rate: float
    where: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What a scenario is planned on, and by which system; `profile` is the path that the fleet file shall name."""

    kind: str
    count: int
    system: str
    profile: str


def read_scenario(table: Table, name: str) -> tuple[Wish, ...]:
    """The models of the scenario `name`; without a name, of the only one.

    Raises `ConfigError` or `ProfileError` with file, line and value: for a scenario that is not there, a column that is
    missing, a number that is none or not above 0, a model that is listed twice.
    """
    table.need(("model", "slo_ms", "rate"), "a scenario")
    first: dict[str, Wish] = {}
    for line in _lines(table, name):
        wish = Wish(line.text("model"), line.above_zero("slo_ms"), line.above_zero("rate"), line.where)
        earlier = first.setdefault(wish.model, wish)
        if earlier is not wish:
            msg = f"{wish.where}: model {wish.model} is listed twice, first in {earlier.where}"
            raise ConfigError(msg)
    return tuple(first.values())


def _lines(table: Table, name: str) -> Sequence[Line]:
    if COLUMN not in table.columns:
        if name:
            msg = f"{table.source}: no column {COLUMN}: the file is one scenario; leave --scenario out"
            raise ConfigError(msg)
        return table.lines
    known = list(dict.fromkeys(line.text(COLUMN) for line in table.lines))
    chosen = name or (known[0] if len(known) == 1 else "")
    if chosen not in known:
        asked = f"no scenario {name!r}" if name else "several scenarios; choose one with --scenario"
        msg = f"{table.source}: {asked}; there are {', '.join(known)}"
        raise ConfigError(msg)
    return [line for line in table.lines if line.text(COLUMN) == chosen]


def format_fleet(wishes: Sequence[Wish], profile: Profile, frame: Frame) -> str:
    """A fleet file (TOML) of emulated GPUs that MIG cuts; of every model the largest batch that was measured may run.

    Raises `ConfigError` that names the line of a model which the profile does not have.
    """
    return "\n".join([*_head(frame), *(line for wish in wishes for line in _model(wish, profile))]) + "\n"


def _head(frame: Frame) -> Iterator[str]:
    yield "[fleet]"
    yield f"system = {_quoted(frame.system)}"
    yield "\n[[devices]]"
    yield f"kind = {_quoted(frame.kind)}"
    yield f"count = {frame.count}"
    yield 'mechanism = "mig"'
    yield 'executor = "simulated"'
    yield f"profile = {_quoted(frame.profile)}"


def _model(wish: Wish, profile: Profile) -> Iterator[str]:
    if wish.model not in profile.models:
        msg = f"{wish.where}: model {wish.model} has no profile; profiled are {', '.join(profile.models)}"
        raise ConfigError(msg)
    yield "\n[[models]]"
    yield f"name = {_quoted(wish.model)}"
    yield f"slo_ms = {wish.slo_ms!r}"
    yield f"rate = {wish.rate!r}"
    yield f"max_batch = {max(profile.max_batch(wish.model, size) for size in profile.sizes(wish.model))}"


def _quoted(text: str) -> str:
    """A JSON string is a TOML string."""
    return json.dumps(text, ensure_ascii=False)
