"""The size and batch that use SMs best within an objective: D-STACK's efficacy (Dhakal et al., TCC 2024, Eq. 7-12).

    efficacy = throughput / (latency x size) = rows / (latency^2 x size)

is largest over rows b and size S subject to 1 <= b <= the model's batch limit (Eq. 10), latency + b / rate <= SLO, since a
batch takes b / rate to assemble (Eq. 11), and latency <= SLO / 2, since a request that just misses a batch waits for a
whole one (Eq. 12). The equations are as remembered, the paper's text was not at hand. The paper solves a fit with
MATLAB's fmincon; a profile has a few hundred points, so they are enumerated (inferred), every number of rows between
measured ones included, as the profile interpolates them.

Ours: a batch of one is there when its row is, else rows that come seldom could not be served at all; and runs back to
back must carry the rate. A rate of 0 is one that nobody knows: it binds nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpulet.device import Device, Size
from gpulet.errors import ProfileError
from gpulet.model import Model
from gpulet.profile import Profile
from gpulet.units import PLAIN, SECOND, Duration, to_ms


class Bound(StrEnum):
    """What keeps a model from a point of its profile."""

    BATCH = "batch limit"
    ASSEMBLY = "latency and assembly within the SLO"
    HALF = "latency within half the SLO"
    RATE = "the rate by runs back to back"


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How a model may be run: `batch` rows on `size`, `latency` long."""

    size: Size
    batch: int
    latency: Duration

    def breaks(self, model: Model, rate: float = 0.0) -> tuple[Bound, ...]:
        """The constraints of `model` at `rate` rows/s that this point breaks, in the paper's order."""
        broken = (
            (Bound.BATCH, self.batch > model.max_batch),
            (Bound.ASSEMBLY, self.latency + assembly(self.batch, rate) > model.slo),
            (Bound.HALF, 2 * self.latency > model.slo),
            (Bound.RATE, self.batch * SECOND < rate * self.latency),
        )
        return tuple(bound for bound, is_broken in broken if is_broken)


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best point within the objective; `binds` is what the best point of the whole profile breaks, () if this is it."""

    point: OperatingPoint
    binds: tuple[Bound, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No point is within the objective; `nearest` breaks the fewest constraints and, of those, has the shortest wait."""

    binds: tuple[Bound, ...]
    nearest: OperatingPoint
    assembly: Duration

    def __str__(self) -> str:
        n = self.nearest
        took = f"{to_ms(n.latency):g} ms at size {n.size.sms} and {to_ms(self.assembly):g} ms to assemble"
        return f"no point has {' nor '.join(self.binds)}; the nearest is a batch of {n.batch}: {took}"


def efficacy(sms: int, batch: int, latency: Duration) -> float:
    """Rows per second, per second of latency and SM; two of equal worth are equal to the last bit."""
    return batch * SECOND * SECOND / (max(1, latency) ** 2 * sms)


def assembly(batch: int, rate: float) -> Duration:
    """Until so many rows have come."""
    return round(batch * SECOND / rate) if batch > 1 and rate > 0 else 0


def sizes_of(profile: Profile, model: str, device: Device, shape: str = PLAIN) -> list[Size]:
    """What a run may have of the device and somebody has measured; raises `ProfileError` where that is nothing.

    A shape class without measurements of its own counts as the plain one.
    """
    least = profile.sizes(model, shape if profile.has(model, shape) else PLAIN)[0]
    sizes = [size for size in device.run_sizes() if size.sms >= least]
    if not sizes:
        msg = f"model {model} is profiled from {least} SMs up, and device {device.index} has no gpulet of so many"
        raise ProfileError(msg)
    return sizes


def points_of(profile: Profile, model: str, sizes: Iterable[Size]) -> list[OperatingPoint]:
    """Every point, the highest efficacy first; of equals the larger batch (ours), then the smaller size.

    Raises `ProfileError` for a model or a size that was not measured.
    """
    points = [
        OperatingPoint(size, batch, latency)
        for size in sizes
        for batch, latency in enumerate(profile.curve(model, size.sms), start=1)
    ]
    return sorted(points, key=lambda p: (-efficacy(p.size.sms, p.batch, p.latency), -p.batch, p.size.sms))


def within(points: Iterable[OperatingPoint], model: Model, rate: float = 0.0) -> Iterator[OperatingPoint]:
    """Those that break no constraint."""
    return (point for point in points if not point.breaks(model, rate))


def optimum(points: Sequence[OperatingPoint], model: Model, rate: float = 0.0) -> Optimum | Unreachable:
    """The first of `points_of` that is within the objective."""
    found = next(within(points, model, rate), None)
    if found:
        return Optimum(found, points[0].breaks(model, rate))

    def misses(point: OperatingPoint) -> tuple[int, Duration, int]:
        wait = point.latency + assembly(point.batch, rate)
        return len(point.breaks(model, rate)), wait, point.size.sms

    nearest = min(points, key=misses)
    return Unreachable(nearest.breaks(model, rate), nearest, assembly(nearest.batch, rate))


def knee_point(profile: Profile, model: Model, device: Device) -> OperatingPoint:
    """The point of highest efficacy at any rate; a model that no size runs in time takes the device, a row at a time."""
    sizes = sizes_of(profile, model.name, device)
    alone = OperatingPoint(sizes[-1], 1, profile.curve(model.name, sizes[-1].sms)[0])
    return next(within(points_of(profile, model.name, sizes), model), alone)
