"""A profile: measured latency by (model, shape, size, processes, rows), interpolated so that it never runs the wrong way.

Raw measurements have odd points (a larger batch that was faster, a larger size that was slower). What planners and
dispatchers read is the smallest function above them that rises with rows and with processes and falls with size; between
measured rows and between measured sizes it is linear, between numbers of processes there is nothing. Beyond the largest
measured batch, and for a number of processes that nobody measured, there is no answer: `ProfileError`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate, pairwise
from operator import itemgetter

import numpy as np

from gpulet.errors import ProfileError
from gpulet.units import PLAIN, Duration

_USED = ("l2", "dram", "host", "busy")
Curve = tuple[Duration, ...]
"""Latency by rows: `curve[rows - 1]`."""


class Statistic(StrEnum):
    """Which number of a measured point counts as its latency."""

    MEAN = "mean"
    P95 = "p95"
    P99 = "p99"


@dataclass(frozen=True, slots=True)
class Point:
    """One measured point. `p95` and `p99` repeat the mean where only the mean is known (`samples` 0).

    `is_last`: the model cannot run more rows than this at once. `host` is the part of the mean that is spent on the host,
    which neighbours on the device do not slow; `l2` and `dram` are fractions of peak, 0 where nobody measured them.
    `busy` is the part of the time in which the compute engine did anything (DCGM's graphics engine active), 0 unknown.
    `processes` of the model ran such batches side by side at that size (MPS inside a MIG instance).
    """

    model: str
    size: int
    rows: int
    mean: Duration
    p95: Duration
    p99: Duration
    samples: int = 0
    shape: str = PLAIN
    is_last: bool = False
    host: Duration = 0
    l2: float = 0.0
    dram: float = 0.0
    processes: int = 1
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """What a batch takes that a cut does not divide: L2 and DRAM use as fractions of peak, and time on the host.

    `busy` is the part of the time in which the gpulet's compute engine did anything.
    """

    l2: float
    dram: float
    host: float
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """Latency by (model, shape, size in SMs or cores, processes, rows); `statistic` says which of a point's numbers counts.

    Where `processes` of a model share a gpulet, each runs a batch at a time, and the latency is that of one such batch.
    `analytic` says how its points were computed where nobody measured them; a measured profile leaves it empty.
    With `is_monotone` off the curves go the wrong ways that were measured: what a device takes, not what to plan with.
    """

    points: tuple[Point, ...]
    statistic: Statistic = Statistic.MEAN
    is_monotone: bool = True
    analytic: str = ""
    _curves: dict[tuple[str, str, int], dict[int, Curve]] = field(default_factory=dict, compare=False, repr=False)
    _interpolated: dict[tuple[str, str, int, int], Curve] = field(default_factory=dict, compare=False, repr=False)
    _uses: dict[tuple[str, int, int], tuple[Use, ...]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        own: dict[tuple[str, str, int], list[Point]] = {}
        unshaped: dict[tuple[str, str, int], list[Point]] = {}
        for p in self.points:
            own.setdefault((p.model, p.shape, p.processes), []).append(p)
            unshaped.setdefault((p.model, PLAIN, p.processes), []).append(p)
        fewer: dict[tuple[str, str], dict[int, Curve]] = {}
        for key, mine in sorted({**unshaped, **own}.items(), key=itemgetter(0)):
            curves = _raw_curves(mine, self.statistic)
            if self.is_monotone:
                curves = _monotone(curves, fewer.get(key[:2], {}))
            self._curves[key] = curves
            fewer[key[:2]] = {**fewer.get(key[:2], {}), **curves}

    @property
    def models(self) -> tuple[str, ...]:
        """The models that were measured, in the order of their first point."""
        return tuple(dict.fromkeys(p.model for p in self.points))

    def has(self, model: str, shape: str = PLAIN) -> bool:
        """Whether this shape class of the model was measured by itself."""
        return (model, shape, 1) in self._curves

    def sizes(self, model: str, shape: str = PLAIN, processes: int = 1) -> tuple[int, ...]:
        """The sizes at which `model` was measured, ascending; raises `ProfileError` when it was not."""
        return tuple(self._measured(model, shape, processes))

    def processes(self, model: str, size: int) -> tuple[int, ...]:
        """The numbers of processes for which there is a curve at `size`, ascending; none when nobody measured it."""
        known = ((n, curves) for (name, shape, n), curves in self._curves.items() if (name, shape) == (model, PLAIN))
        return tuple(sorted(n for n, curves in known if min(curves) <= size))

    def curve(self, model: str, size: int, shape: str = PLAIN, processes: int = 1) -> Curve:
        """Latency by rows at `size`, of one batch while every other of the `processes` runs one as well.

        A shape class without measurements of its own counts as the plain one; the plain one of a model that was only
        measured by shape is the slowest of its shapes.

        Raises `ProfileError` below the smallest measured size, and for a number of processes that nobody measured.
        """
        shape = shape if (model, shape, processes) in self._curves else PLAIN
        curves = self._measured(model, shape, processes)
        if size in curves:
            return curves[size]
        key = (model, shape, size, processes)
        if key not in self._interpolated:
            self._interpolated[key] = _between(model, curves, size)
        return self._interpolated[key]

    def latency(self, model: str, size: int, rows: int, shape: str = PLAIN, processes: int = 1) -> Duration:
        """Latency of a batch of `rows` at `size`; raises `ProfileError` beyond what was measured."""
        curve = self.curve(model, size, shape, processes)
        if not 1 <= rows <= len(curve):
            msg = f"model {model} is profiled for 1 to {len(curve)} rows at size {size}, not for {rows}"
            raise ProfileError(msg)
        return curve[rows - 1]

    def max_batch(self, model: str, size: int, shape: str = PLAIN, processes: int = 1) -> int:
        """The largest batch that was measured at `size`."""
        return len(self.curve(model, size, shape, processes))

    def largest_batch(self, model: str, size: int, budget: Duration, shape: str = PLAIN, processes: int = 1) -> int:
        """The most rows whose latency is within `budget`; 0 when even one row is too slow."""
        curve = self.curve(model, size, shape, processes)
        low, high = 0, len(curve)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if curve[middle - 1] <= budget else (low, middle - 1)
        return low

    def uses(self, model: str, size: int, processes: int = 1) -> tuple[Use, ...]:
        """L2, DRAM, host time, busy part by rows at the measured size nearest to `size`; zeros where nobody measured them."""
        key = (model, size, processes)
        if key not in self._uses:
            mine = [p for p in self.points if (p.model, p.processes) == (model, processes)]
            nearest = min((p.size for p in mine), key=lambda s: (abs(s - size), s))
            at_size = {p.rows: p for p in mine if p.size == nearest}
            rows = sorted(at_size)
            dense = np.arange(1, rows[-1] + 1)
            columns = (np.interp(dense, rows, [getattr(at_size[n], name) for n in rows]) for name in _USED)
            self._uses[key] = tuple(map(Use, *(column.tolist() for column in columns)))
        return self._uses[key]

    def measured(self, model: str, size: int) -> Curve:
        """What one process takes by rows as it was measured, wrong ways included, linear between the points.

        At other sizes it is `curve`.
        """
        mine = [p for p in self.points if (p.model, p.size, p.processes) == (model, size, 1)]
        return _raw_curves(mine, self.statistic)[size] if mine else self.curve(model, size)

    def as_measured(self) -> "Profile":
        """The same points, wrong ways included."""
        return Profile(self.points, self.statistic, is_monotone=False, analytic=self.analytic)

    def of(self, statistic: Statistic) -> "Profile":
        """The same points read by another statistic."""
        return Profile(self.points, statistic, self.is_monotone, self.analytic)

    def stretched(self, factor: float) -> "Profile":
        """Every latency times `factor`: a margin, or a processor shared with somebody else."""
        points = tuple(_stretched(p, factor) for p in self.points)
        return Profile(points, self.statistic, self.is_monotone, self.analytic)

    def joined(self, points: Iterable[Point]) -> "Profile":
        """With those of other models; they are taken as they are."""
        return Profile((*self.points, *points), self.statistic, self.is_monotone, self.analytic)

    def _measured(self, model: str, shape: str, processes: int) -> dict[int, Curve]:
        curves = self._curves.get((model, shape, processes))
        if curves is None:
            raise ProfileError(self._unmeasured(model, shape, processes))
        return curves

    def _unmeasured(self, model: str, shape: str, processes: int) -> str:
        which = f"model {model}" + (f" with shape {shape}" if shape else "")
        counts = sorted(n for name, of, n in self._curves if (name, of) == (model, shape))
        if counts:
            there = ", ".join(map(str, counts))
            return f"{which} is profiled with {there} processes sharing a gpulet, not with {processes}"
        return f"{which} has no profile; profiled are {', '.join(self.models) or 'no models'}"


def _stretched(point: Point, factor: float) -> Point:
    mean, p95, p99, host = (round(t * factor) for t in (point.mean, point.p95, point.p99, point.host))
    return replace(point, mean=mean, p95=p95, p99=p99, host=host)


def _raw_curves(points: list[Point], statistic: Statistic) -> dict[int, Curve]:
    """By ascending size, linear between what was measured; of a point that was measured twice, the slower."""
    by_size: dict[int, dict[int, Duration]] = {}
    for point in points:
        row = by_size.setdefault(point.size, {})
        row[point.rows] = max(row.get(point.rows, 0), _statistic(point, statistic))
    return {size: tuple(_dense(by_size[size])) for size in sorted(by_size)}


def _monotone(raw: Mapping[int, Curve], fewer: Mapping[int, Curve]) -> dict[int, Curve]:
    """From the largest size down, each curve is at least its own running maximum and the curve of the size above.

    It is also at least what `fewer` processes take at its size.
    """
    curves: dict[int, Curve] = {}
    above: Curve = ()
    for size in sorted(raw, reverse=True):
        own, less = raw[size], fewer.get(size, ())
        least = (max(latency, *above[i : i + 1], *less[i : i + 1], 0) for i, latency in enumerate(own))
        above = tuple(accumulate(least, max))
        curves[size] = above
    return dict(sorted(curves.items()))


def _statistic(point: Point, statistic: Statistic) -> Duration:
    return {Statistic.MEAN: point.mean, Statistic.P95: point.p95, Statistic.P99: point.p99}[statistic]


def _dense(measured: Mapping[int, Duration]) -> list[Duration]:
    """Latency for each number of rows, linear between the measured ones; below the first, the first."""
    rows = sorted(measured)
    dense = [measured[rows[0]]] * rows[0]
    for low, high in pairwise(rows):
        rise = measured[high] - measured[low]
        dense += [measured[low] + round(rise * (n - low) / (high - low)) for n in range(low + 1, high + 1)]
    return dense


def _between(model: str, curves: Mapping[int, Curve], size: int) -> Curve:
    known = sorted(curves)
    if size > known[-1]:
        return curves[known[-1]]
    if size < known[0]:
        msg = f"model {model} is profiled from {known[0]} SMs up, not at {size}"
        raise ProfileError(msg)
    right = bisect_left(known, size)
    low, high = known[right - 1], known[right]
    part = (size - low) / (high - low)
    return tuple(round(a + (b - a) * part) for a, b in zip(curves[low], curves[high], strict=False))
