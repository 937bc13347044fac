"""The ideal scheduler of D-STACK's evaluation, by calculation: every kernel at its own knee, at no cost.

A model is 50 kernels that narrow linearly (Eq. 1), as long together as the whole model at its knee, and as wide on average.
A kernel alone is most efficient at its full width, since 1 / (E^2 S) rises up to there; what is wider than the GPU takes
all of it, longer. Whenever a kernel ends, those that wait are looked at: the set whose next kernels fit into what is free
with the largest (sum of sizes) x (shortest time) starts, of equal ones that with the earliest deadlines; kernels are not
split. All of this is the specification's form (1.9) of what is remembered of the paper; queues are never empty. The rule
is greedy and bounds nobody: models fall into step, wide kernels beside wide ones. `bound` is what kernels at their own
knees cannot exceed.

Two readings of "same runtime": with `Kernels.AS_LONG`, the default, a kernel takes 1/50 of the model's runtime at its own
width: the paper's 95 % utilisation and its "D-STACK within 10 %" agree on that. With `Kernels.AS_WORK` the ramp's
work is kept: at their own widths kernels take 5/6 of the model's runtime at one knee for all, and 15 % less area.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from gpulet.efficacy import OperatingPoint
from gpulet.parallelism import ramp
from gpulet.reproduce.tcc24.data import KNEE_PART, SERIAL_RATIO
from gpulet.units import SECOND, Duration, Instant

KERNELS = 50


class Kernels(StrEnum):
    """What stays the same when a model is taken apart: its runtime or its work."""

    AS_LONG = "as long"
    AS_WORK = "as work"


@dataclass(frozen=True, slots=True)
class Kernel:
    """At its own knee: `size` in SMs, real-valued, for `length`."""

    size: float
    length: Duration


@dataclass(frozen=True, slots=True)
class Ideal:
    """Batches of each model that ended, parts of one included, and the SM-nanoseconds they took."""

    runs: Mapping[str, float]
    area: Mapping[str, float]


def kernels(point: OperatingPoint, sms: int, reading: Kernels = Kernels.AS_LONG) -> tuple[Kernel, ...]:
    """The kernels of one batch of a model with this knee and runtime, on a GPU of so many SMs."""
    widths = [kernel.operations for kernel in ramp(point.size.sms / KNEE_PART, KERNELS, 1.0, 0.0, is_whole=False)]
    at_knee = sum(SERIAL_RATIO + width / min(width, point.size.sms) for width in widths)
    alone = KERNELS * (SERIAL_RATIO + 1) if reading is Kernels.AS_LONG else at_knee
    unit = point.latency / alone
    return tuple(Kernel(min(width, sms), round(unit * (SERIAL_RATIO + width / min(width, sms)))) for width in widths)


def bound(
    points: Mapping[str, OperatingPoint], runs: Mapping[str, float], sms: int, reading: Kernels = Kernels.AS_LONG
) -> float:
    """How many times as many runs per second no scheduler of kernels at their own knees exceeds, in the same proportions.

    Ours. Whoever runs below knees needs less area and may do more.
    `runs` are batches per second on one GPU. Kernels take no more area than there is, and a model runs once at a time.
    """
    used, longest = 0.0, 0.0
    for name, rate in runs.items():
        used += rate / SECOND * area(points[name], sms, reading) / sms
        length = sum(kernel.length for kernel in kernels(points[name], sms, reading))
        longest = max(longest, rate / SECOND * length)
    return 1 / max(used, longest) if used else 0.0


def area(point: OperatingPoint, sms: int, reading: Kernels = Kernels.AS_LONG) -> float:
    """SM-nanoseconds of one batch, every kernel at its own knee."""
    return sum(kernel.size * kernel.length for kernel in kernels(point, sms, reading))


@dataclass(slots=True)
class _Lane:
    """A model: its kernels, the next one, until when the present one runs; its SLO counts runs as due."""

    model: str
    kernels: tuple[Kernel, ...]
    slo: Duration
    place: int = 0
    until: Instant = 0
    size: float = 0.0
    runs: float = 0.0
    area: float = 0.0

    @property
    def next(self) -> Kernel:
        return self.kernels[self.place]

    @property
    def due(self) -> Instant:
        return (int(self.runs + 1e-9) + 1) * self.slo

    def start(self, now: Instant, end: Instant) -> None:
        """One kernel; of one that the end of the count cuts, the part before it."""
        kernel = self.next
        part = min(1.0, (end - now) / kernel.length)
        self.until, self.size = now + kernel.length, kernel.size
        self.runs += part / len(self.kernels)
        self.area += part * kernel.size * kernel.length
        self.place = (self.place + 1) % len(self.kernels)


def ideal(
    points: Mapping[str, OperatingPoint],
    slos: Mapping[str, Duration],
    sms: int,
    end: Instant,
    reading: Kernels = Kernels.AS_LONG,
) -> Ideal:
    """Everything that the kernels' scheduler does until `end` on one GPU; ten models at most, sets are tried one by one."""
    lanes = [_Lane(name, kernels(point, sms, reading), slos[name]) for name, point in points.items()]
    now = 0
    while now < end:
        waiting = [lane for lane in lanes if lane.until <= now]
        free = sms - sum(lane.size for lane in lanes if lane.until > now)
        for lane in _chosen(waiting, free):
            lane.start(now, end)
        now = min(lane.until for lane in lanes if lane.until > now)
    return Ideal({lane.model: lane.runs for lane in lanes}, {lane.model: lane.area for lane in lanes})


def _chosen(waiting: Sequence[_Lane], free: float) -> tuple[_Lane, ...]:
    sets = [some for count in range(1, len(waiting) + 1) for some in combinations(waiting, count)]
    fitting = [some for some in sets if sum(lane.next.size for lane in some) <= free + _ROUNDING]
    return min(fitting, key=_rank, default=())


_ROUNDING = 1e-9


def _rank(lanes: tuple[_Lane, ...]) -> tuple[float, list[Instant]]:
    """The most area first, then the earliest deadlines."""
    area = sum(lane.next.size for lane in lanes) * min(lane.next.length for lane in lanes)
    return -round(area, 6), sorted(lane.due for lane in lanes)
