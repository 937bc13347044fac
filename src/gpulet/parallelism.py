"""How a network's latency falls with SMs: D-STACK's model of its kernels (Dhakal et al., TCC 2024; arXiv 2304.13541).

A network is a sequence of kernels. Kernel i has N_i operations that may run side by side, each t_p on one SM; every
launch costs t_np that no SM shortens, and d_i bytes must come from memory, whose bandwidth grows with the SMs. Eq. 1-5:

    E_t(S) = sum R_i t_np + b sum R_i d_i / (M S) + sum R_i N_i t_p / max(1, min(S, N_i))

Departures and gaps, since the paper's text was not at hand when this was specified:
- Eq. 4 as remembered multiplies t_np by the batch too; a launch is paid once whatever it carries, so here it is not.
- The paper's example (50 kernels, t_p = 40, t_np = 10) has knees 9, 24, 31 at N_1 = 20, 40, 60; this has 10, 21, 31
  with whole N_i and 10, 20, 30 with real ones. Shape and size agree, the paper's rounding is not known.
- The closed form, both calibrations and the search's numbers are inferred.

Times are real numbers of nanoseconds: fitted, never compared with instants. Sizes are SMs, data is bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, sqrt

import numpy as np

from gpulet.errors import ProfileError
from gpulet.knee import SLACK, efficient
from gpulet.units import Duration


@dataclass(frozen=True, slots=True)
class Kernel:
    """N `operations` side by side, t_p `each` on one SM, t_np `serial` per launch, R `launches`, `data` bytes a row."""

    operations: float
    each: float
    serial: float = 0.0
    launches: int = 1
    data: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bandwidth in bytes per nanosecond: M `per_sm`, and what the device has in all."""

    per_sm: float = inf
    whole: float = inf

    def wait(self, data: float, size: int) -> float:
        """D_i: the time in which `size` SMs fetch `data`; the paper (Eq. 3) knows no bound by the whole device."""
        return data / min(self.per_sm * size, self.whole)


UNBOUNDED = Memory()


def ramp(operations: float, kernels: int, each: float, serial: float, *, is_whole: bool = True) -> tuple[Kernel, ...]:
    """Eq. 1: kernels whose operations fall from N_1 = b p (`operations`) in equal steps to N_1 / K; whole ones round up."""
    counts = (operations * (kernels - i) / kernels for i in range(kernels))
    return tuple(Kernel(ceil(n - 1e-9) if is_whole else n, each, serial) for n in counts)


def divided(kernels: Iterable[Kernel], size: int, rows: int = 1, memory: Memory = UNBOUNDED) -> float:
    """E_t at `size` SMs as published: work divides evenly among SMs, and data is waited for before the work (Eq. 2-5)."""
    return sum(
        k.launches * (k.serial + rows * memory.wait(k.data, size) + k.operations * k.each / _busy(k, size))
        for k in kernels
    )


def _busy(kernel: Kernel, size: int) -> float:
    """The SMs that work at once."""
    return max(1, min(size, kernel.operations))


def waved(kernels: Iterable[Kernel], size: int, rows: int = 1, memory: Memory = UNBOUNDED) -> float:
    """The same for measured kernels (inferred): operations run in whole waves, and data flows while they do."""
    return sum(
        k.launches * (k.serial + max(ceil(k.operations / size) * k.each, rows * memory.wait(k.data, size)))
        for k in kernels
    )


def knee_of(latency: Callable[[int], float], sizes: Sequence[int]) -> int:
    """The size at which 1 / (E^2 S) is largest (Eq. 6, read as in `knee.efficient`)."""
    return sizes[efficient(sizes, [latency(size) for size in sizes])]


def closed_form(serial_ratio: float) -> float:
    """The knee as a part of the widest kernel, by r = t_np / t_p (inferred): (sqrt(r^2 + 3) - r) / 3, 58 % at most.

    It is the maximum of 1 / (E^2 S) of a real-valued ramp without data, whose kernels each launch once.
    """
    return (sqrt(serial_ratio * serial_ratio + 3) - serial_ratio) / 3


@dataclass(frozen=True, slots=True)
class Launched:
    """A kernel as a profiler shows it on a whole device: grid, blocks resident on an SM, duration of a launch, launches.

    All of the batch that was profiled: `data` are the bytes that a launch fetched, so `rows` of `waved` stays 1.
    """

    grid: int
    per_sm: int
    duration: Duration
    launches: int = 1
    data: float = 0.0


def calibrated(measured: Iterable[Launched], sms: int, serial: Duration) -> tuple[Kernel, ...]:
    """Kernels for `waved` from a profile taken on `sms` SMs; `serial` is t_np, 3 to 8 us without CUDA graphs (inferred).

    Of a kernel N = ceil(grid / per_sm) operations the size of an SM run in ceil(N / sms) waves, so t_p = duration / waves.
    """
    kernels = []
    for m in measured:
        operations = -(-m.grid // m.per_sm)
        kernels.append(Kernel(operations, m.duration / -(-operations // sms), serial, m.launches, m.data))
    return tuple(kernels)


@dataclass(frozen=True, slots=True)
class Ramp:
    """A real-valued ramp: K t_np `serial`, K t_p `parallel` and p, the SMs that the widest kernel fills per row."""

    serial: float
    parallel: float
    per_row: float
    error: float = 0.0
    """Of the points it was fitted to: the root of the mean square of the relative error."""

    def latency(self, size: int, rows: int = 1) -> float:
        """K (t_np + t_p / 2 (s + 1/s)) at s = S / (b p), constant from s = 1 on (inferred from Eq. 1-5)."""
        return self.serial + self.parallel * _shape(size, rows * self.per_row)

    def knee(self, rows: int = 1) -> float:
        """The knee in SMs, by the closed form; it grows with the rows, and nothing bounds it by a device."""
        return closed_form(self.serial / self.parallel) * rows * self.per_row if self.parallel else 0.0


def _shape(size: float, widest: float) -> float:
    s = min(1.0, size / widest)
    return (s + 1 / s) / 2


def fitted(points: Sequence[tuple[int, int, Duration]]) -> Ramp:
    """The ramp through measured (size, rows, latency): least squares of the relative error, no negative time (inferred).

    For each p the two times are linear; p itself is searched on a grid that is refined around its best. A wait for data
    falls with SMs as work does, so a table cannot tell the two apart: p takes it in. Where no size is enough for the widest
    kernel only the product of p and t_p shows; p is then at most four times the most SMs per row. Raises `ProfileError` for fewer
    than three points.
    """
    if len(points) < _FEWEST:
        msg = f"{len(points)} points; a ramp has three parameters and needs {_FEWEST} points at least"
        raise ProfileError(msg)
    ratios = [size / rows for size, rows, _ in points]
    low, high = min(ratios) / 4, max(ratios) * 4
    best = _at(points, low)
    for _ in range(_REFINEMENTS):
        grid = np.geomspace(low, high, _GRID)
        tried = [_at(points, float(p)) for p in grid]
        i = min(range(_GRID), key=lambda i: tried[i].error)
        best = min(best, tried[i], key=lambda r: r.error)
        low, high = float(grid[max(0, i - 1)]), float(grid[min(_GRID - 1, i + 1)])
    return best


_FEWEST = 3
_GRID = 60
_REFINEMENTS = 6


def _at(points: Sequence[tuple[int, int, Duration]], per_row: float) -> Ramp:
    """The best times for one p: of the corners of what may be zero, the one with the least error."""
    known = ((size, rows, max(1, took)) for size, rows, took in points)
    columns = np.array([(1 / t, _shape(size, rows * per_row) / t) for size, rows, t in known])
    fits = []
    for mask in list(product((True, False), repeat=2))[:-1]:
        kept = [i for i in range(2) if mask[i]]
        times = np.zeros(2)
        times[kept] = np.linalg.lstsq(columns[:, kept], np.ones(len(points)), rcond=None)[0]
        if (times >= 0).all():
            error = sqrt(float(np.mean((columns @ times - 1) ** 2)))
            fits.append(Ramp(float(times[0]), float(times[1]), per_row, error))
    return min(fits, key=lambda r: r.error)


@dataclass(frozen=True, slots=True)
class Searched:
    """A knee found by measuring: its size, and the latency of every size that was measured, in order."""

    size: int
    measured: dict[int, Duration]


def searched(
    measure: Callable[[int], Duration], sizes: Sequence[int], slack: float = SLACK, first: float = 0.30
) -> Searched:
    """Bisect for the smallest size whose latency is within `slack` of the largest size's.

    Models start at a nominal 30 % of the device and are moved by binary search on measured latency (D-STACK, as
    remembered); the target, the resolution (the sizes that the mechanism allows, ascending) and that `measure` answers
    with the 95th percentile of 20 batches or more are inferred. What it returns was measured and is within the target,
    also where latencies do not fall with size. The largest size is measured first, each size at most once.
    """
    low, high = -1, len(sizes) - 1
    measured = {sizes[high]: measure(sizes[high])}
    target = measured[sizes[high]] * (1 + slack)
    i = min(range(len(sizes)), key=lambda i: abs(sizes[i] - first * sizes[-1]))
    i = min(i, high - 1)
    while high - low > 1:
        measured[sizes[i]] = measure(sizes[i])
        low, high = (low, i) if measured[sizes[i]] <= target else (i, high)
        i = (low + high) // 2
    return Searched(sizes[high], measured)
