"""The size and batch that use SMs best within an objective: D-STACK's efficacy (Dhakal et al., TCC 2024, Eq. 7-12).

    efficacy = throughput / (latency x size) = rows / (latency^2 x size)

is largest over rows b and size S subject to 1 <= b <= the model's batch limit (Eq. 10), latency + b / rate <= SLO, since a
batch takes b / rate to assemble (Eq. 11), and latency <= SLO / 2, since a request that just misses a batch waits for a
whole one (Eq. 12). The equations are as remembered, the paper's text was not at hand. The paper solves a fit with
MATLAB's fmincon; a profile has a few hundred points, so they are enumerated (inferred), every number of rows between
measured ones included, as the profile interpolates them. A batch of one waits 1 / rate too, as Eq. 11 is written.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from math import inf

from gpulet.errors import ConfigError
from gpulet.model import Model
from gpulet.profile import Profile
from gpulet.units import SECOND, Duration, to_ms


class Bound(StrEnum):
    """What keeps a model from a point of its profile."""

    BATCH = "batch limit"
    ASSEMBLY = "latency and assembly within the SLO"
    HALF = "latency within half the SLO"


@dataclass(frozen=True, slots=True)
class Operating:
    """A point of a profile: `latency` of `rows` at `size`, and the `assembly` of so many rows at the model's rate."""

    size: int
    rows: int
    latency: Duration
    assembly: Duration = 0

    @property
    def efficacy(self) -> float:
        """Rows per second, per second of latency and SM."""
        return float(self.exactly) * SECOND * SECOND

    @property
    def exactly(self) -> Fraction:
        """Efficacy in nanoseconds without rounding, so that ties are ties."""
        return Fraction(self.rows, max(1, self.latency) ** 2 * self.size)

    def breaks(self, model: Model) -> tuple[Bound, ...]:
        """The constraints of `model` that this point breaks, in the paper's order."""
        broken = {
            Bound.BATCH: self.rows > model.max_batch,
            Bound.ASSEMBLY: self.latency + self.assembly > model.slo,
            Bound.HALF: 2 * self.latency > model.slo,
        }
        return tuple(bound for bound, is_broken in broken.items() if is_broken)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best point within the objective; `binds` is what the best point of the whole profile breaks, () if this is it."""

    point: Operating
    binds: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No point is within the objective; `nearest` breaks the fewest constraints and, of those, has the shortest wait."""

    model: Model
    binds: tuple[Bound, ...]
    nearest: Operating

    def __str__(self) -> str:
        n = self.nearest
        limit = f"SLO {to_ms(self.model.slo):g} ms does not hold {' nor '.join(self.binds)}"
        took = f"{to_ms(n.latency):g} ms at size {n.size} and {to_ms(n.assembly):g} ms to assemble"
        return f"model {self.model.name}: {limit}; the nearest is a batch of {n.rows}: {took}"


def optimum(
    profile: Profile, model: Model, rate: float = inf, sizes: Sequence[int] | None = None
) -> Optimum | Unreachable:
    """The point of the largest efficacy for `rate` rows/s, at the measured sizes or at those given.

    An infinite rate assembles batches at once. Of equal points the larger batch wins (ours), then the smaller size.
    Raises `ProfileError` for a model or a size that was not measured, `ConfigError` for a rate that is not positive.
    """
    if not rate > 0:
        msg = f"model {model.name}: rate must be above 0, is {rate:g}"
        raise ConfigError(msg)
    points = tuple(_points(profile, model.name, rate, sizes or profile.sizes(model.name)))
    best = max(points, key=_worth)
    within = [point for point in points if not point.breaks(model)]
    if within:
        return Optimum(max(within, key=_worth), best.breaks(model))
    nearest = min(points, key=lambda p: (len(p.breaks(model)), p.latency + p.assembly, p.size))
    return Unreachable(model, nearest.breaks(model), nearest)


def _worth(point: Operating) -> tuple[Fraction, int, int]:
    return point.exactly, point.rows, -point.size


def _points(profile: Profile, name: str, rate: float, sizes: Sequence[int]) -> Iterator[Operating]:
    for size in sizes:
        for rows, latency in enumerate(profile.curve(name, size), start=1):
            yield Operating(size, rows, latency, round(rows * SECOND / rate))
