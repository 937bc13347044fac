"""Interference: how much slower a batch runs because of its neighbours on the same device.

A model of pairs gives the slowdown of a victim beside one co-runner, at least 1. Several co-runners combine by adding
what each of them costs: 1 + sum (slowdown - 1), since they take bandwidth side by side. Only the device's part of a
latency is slowed, not what is spent on the host.
"""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from io import StringIO
from typing import Any

from gpulet.errors import ConfigError
from gpulet.profile import Profile
from gpulet.units import MS, Duration

CEILING = 3.0
"""No slowdown beyond this is believed without having been measured."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a pair: L2 and DRAM use as fractions of peak at its share, the share, rows and latency alone."""

    l2: float
    dram: float
    share: float = 0.0
    batch: int = 1
    latency: float = 0.0
    model: str = ""


_LEAST = 1e-3
"""A utilisation that divides or whose logarithm is taken is at least this."""


def _misses(side: Side) -> float:
    """DRAM traffic for each L2 traffic."""
    return max(side.dram, _LEAST) / max(side.l2, _LEAST)


def _ms(side: Side) -> float:
    return max(side.latency, 1.0) / MS


def _share(side: Side) -> float:
    return max(side.share, _LEAST)


def _dissimilarity(victim: Side, corunner: Side) -> float:
    """How far apart the device time of one row is on the two sides: |ln ratio|."""
    work = (_share(side) * _ms(side) / side.batch for side in (victim, corunner))
    return abs(math.log(next(work) / next(work)))


def _relative_length(victim: Side, corunner: Side) -> float:
    part = _ms(victim) / (_ms(victim) + _ms(corunner))
    return math.log(_ms(victim) / _ms(corunner)) * part


def _length_share(victim: Side, corunner: Side) -> float:
    mine, theirs = (_ms(side) / side.batch for side in (victim, corunner))
    return mine / (mine + theirs) / corunner.batch


FEATURES: Mapping[str, Callable[[Side, Side], float]] = {
    "constant": lambda victim, corunner: 1.0,
    "l2_victim": lambda victim, corunner: victim.l2,
    "l2_corunner": lambda victim, corunner: corunner.l2,
    "dram_victim": lambda victim, corunner: victim.dram,
    "dram_corunner": lambda victim, corunner: corunner.dram,
    "relative_length": _relative_length,
    "launches_x_samples": lambda victim, corunner: corunner.batch / (_ms(victim) * _ms(corunner)),
    "misses_x_log_misses": lambda victim, corunner: _misses(victim) * math.log(_misses(corunner)),
    "log_batch_victim_x_l2_corunner": lambda victim, corunner: math.log2(victim.batch) * corunner.l2,
    "l2_density_victim_x_dissimilarity": lambda v, c: v.l2 / _share(v) * _dissimilarity(v, c),
    "dram_peak_x_dissimilarity": lambda v, c: max(v.dram, c.dram) * _dissimilarity(v, c),
    "log_batch_x_dram_density_corunner": lambda v, c: math.log2(c.batch) * c.dram / _share(c),
    "length_share_per_batch": _length_share,
}
"""What a slowdown may depend on: (victim, co-runner) to a number."""

CONSTANT = ("constant",)
LINEAR = ("l2_victim", "l2_corunner", "dram_victim", "dram_corunner", "constant")
"""gpu-lets' model (ATC'22, section 4.4): c1 L2_1 + c2 L2_2 + c3 mem_1 + c4 mem_2 + c5."""
OURS = (
    "constant",
    "relative_length",
    "launches_x_samples",
    "misses_x_log_misses",
    "log_batch_victim_x_l2_corunner",
    "l2_density_victim_x_dissimilarity",
    "dram_peak_x_dissimilarity",
    "log_batch_x_dram_density_corunner",
    "length_share_per_batch",
)
"""Nine numbers for the logarithm of the slowdown (docs/decisions/0008-interference-model.md)."""


class Link(StrEnum):
    """What the weighted features add up to: the slowdown, or its logarithm."""

    IDENTITY = "identity"
    LOG = "log"


@dataclass(frozen=True, slots=True)
class Interference:
    """A slowdown linear in named features of both sides, kept between 1 and `ceiling`.

    `corrections` multiply what is predicted for a victim model, as measured batch times show it (core/correction.py).
    """

    features: tuple[str, ...]
    coefficients: tuple[float, ...]
    ceiling: float = CEILING
    link: Link = Link.IDENTITY
    corrections: Mapping[str, float] = field(default_factory=dict)
    _pairs: dict[tuple[Side, Side], float] = field(default_factory=dict, compare=False, repr=False)

    def pair(self, victim: Side, corunner: Side) -> float:
        """How many times slower than alone the victim runs beside one co-runner."""
        key = victim, corunner
        if key not in self._pairs:
            terms = zip(self.features, self.coefficients, strict=True)
            total = sum(c * FEATURES[name](victim, corunner) for name, c in terms)
            slowdown = total if self.link is Link.IDENTITY else math.exp(min(total, math.log(self.ceiling)))
            slowdown *= self.corrections.get(victim.model, 1.0)
            self._pairs[key] = min(max(slowdown, 1.0), self.ceiling)
        return self._pairs[key]

    def slowdown(self, victim: Side, corunners: Sequence[Side]) -> float:
        """The same beside any number of co-runners."""
        return min(1.0 + sum(self.pair(victim, other) - 1.0 for other in corunners), self.ceiling)


@dataclass(frozen=True, slots=True)
class Footprint:
    """A batch as the others see it, and the part of its latency that the others slow."""

    side: Side
    latency: Duration
    on_device: float

    def slowed(self, factor: float) -> float:
        """The latency (ns) when its device part goes `factor` times slower."""
        return self.latency + self.on_device * (factor - 1)


def footprint(profile: Profile, model: str, size: int, share: float, rows: int, processes: int = 1) -> Footprint:
    """What a batch of `rows` on `size` SMs (`share` of the device) takes; raises `ProfileError` beyond the profile."""
    latency = profile.latency(model, size, rows, processes=processes)
    uses = profile.uses(model, size, processes)
    use = uses[min(rows, len(uses)) - 1]
    return Footprint(Side(use.l2, use.dram, share, rows, latency, model), latency, max(0.0, latency - use.host))


def parse_interference(text: str, source: str) -> Interference:
    """What `gpulet interference fit` wrote (JSON), or the artifact's `coefficient,value` table.

    Raises `ConfigError` that names the source and what is wrong.
    """
    return _parse_table(text, source) if text.startswith("coefficient,value") else _parse_json(text, source)


def format_interference(model: Interference) -> dict[str, Any]:
    """The model as a JSON value."""
    return {
        "features": list(model.features),
        "coefficients": list(model.coefficients),
        "ceiling": model.ceiling,
        "link": model.link.value,
    }


_TABLE = tuple(f"c{place}_{name}" for place, name in enumerate(LINEAR, start=1))


def _parse_table(text: str, source: str) -> Interference:
    rows = {row["coefficient"]: row["value"] for row in csv.DictReader(StringIO(text))}
    if set(rows) != set(_TABLE):
        msg = f"{source}: coefficients {', '.join(rows)}; needed are {', '.join(_TABLE)}"
        raise ConfigError(msg)
    return Interference(LINEAR, tuple(_finite(rows[name], f"{source}: {name}") for name in _TABLE))


def _parse_json(text: str, source: str) -> Interference:
    try:
        document = json.loads(text)
        names, values = document["features"], document["coefficients"]
        blank = Interference(
            (), (), _ceiling(document.get("ceiling", CEILING), source), Link(document.get("link", "identity"))
        )
    except (ValueError, TypeError, KeyError) as error:
        msg = f"{source}: not an interference model (features, coefficients): {error}"
        raise ConfigError(msg) from None
    return _known(names, [_finite(v, f"{source}: coefficients") for v in values], blank, source)


def _ceiling(value: Any, source: str) -> float:
    number = _finite(value, f"{source}: ceiling")
    if number < 1:
        msg = f"{source}: ceiling must be at least 1, is {number:g}"
        raise ConfigError(msg)
    return number


def _finite(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        msg = f"{where}: must be a finite number, is {value!r}"
        raise ConfigError(msg)
    return number


def _known(names: Sequence[str], values: Sequence[float], blank: Interference, source: str) -> Interference:
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        msg = f"{source}: unknown feature {unknown[0]!r}; known are {', '.join(FEATURES)}"
        raise ConfigError(msg)
    if len(names) != len(values) or not names:
        msg = f"{source}: {len(names)} features, but {len(values)} coefficients"
        raise ConfigError(msg)
    return replace(blank, features=tuple(names), coefficients=tuple(values))
