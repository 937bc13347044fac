"""How one GPU is laid out: one split into groups of eight SMs when the worker starts, and gpulets as intervals of them.

Where nothing is to be cut, all of it is one place, on which gpulets stand beside one another in lanes.

The SMs that the split leaves over stand behind the last group, as a place of their own: an interval that reaches the
last group takes them along, so a prefix and the suffix behind it are disjoint and waste nothing. No gpulet stands on
them alone, since they promise no clusters. Two intervals are disjoint exactly if their SMs are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gpulet.device import GREEN_GROUP, Size
from gpulet.errors import DeviceError, DeviceFull, DeviceLost, PlanError, Unusable
from gpulet.executors.cuda.ports import CudaDriver, SmSet


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """Places [start, stop) of a layout. On an uncut GPU several share them, each in a `lane` of its own."""

    start: int
    stop: int
    lane: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.start < self.stop, f"[{self.start}, {self.stop}) is no interval"

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two have a place in common, whatever their lanes."""
        return self.start < other.stop and other.start < self.stop

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})" + (f" lane {self.lane}" if self.lane else "")


@dataclass(frozen=True, slots=True)
class SmLayout:
    """The groups of one split in order, what was left over (None where it cannot be merged), and the GPU's SMs.

    Without groups it is uncut.
    """

    groups: tuple[SmSet, ...]
    remainder: SmSet | None
    whole: int

    @property
    def group(self) -> int:
        """SMs of one group, as the CUDA driver made it: it may be more than was asked for."""
        return self.groups[0].sms if self.groups else self.whole

    @property
    def is_cut(self) -> bool:
        """Whether gpulets have SMs of their own here."""
        return bool(self.groups)

    def is_everything(self, interval: Interval) -> bool:
        """Whether that interval is all of the GPU."""
        return (interval.start, interval.stop) == (self.everything.start, self.everything.stop)

    @property
    def everything(self) -> Interval:
        """All places."""
        return Interval(0, max(1, len(self.groups) + (self.remainder is not None)))

    def sizes(self) -> tuple[Size, ...]:
        """The sizes that gpulets can have here, ascending; one that ends the layout has the remainder on top."""
        steps = range(self.group, len(self.groups) * self.group + 1, self.group)
        return tuple(Size(n, 100 * n / self.whole, f"{n // GREEN_GROUP} groups") for n in steps)

    def unachievable(self, offered: Sequence[Size]) -> tuple[Size, ...]:
        """Which of the sizes that a planner counts on this die does not have."""
        real = {size.sms for size in self.sizes()}
        return tuple(size for size in offered if size.sms not in real)

    def interval(self, offset: int, sms: int) -> Interval:
        """Where a gpulet of `sms` SMs from `offset` stands; raises `PlanError` where this die has no such place."""
        start, stop = offset // self.group, (offset + sms) // self.group
        if offset % self.group or sms % self.group or sms < 1 or offset < 0:
            msg = f"{sms} SMs at {offset} do not begin and end with groups of {self.group} SMs"
            raise PlanError(msg)
        if stop > len(self.groups):
            left = self.whole - len(self.groups) * self.group
            what = f"{len(self.groups)} groups of {self.group} SMs and {left} over"
            msg = f"{sms} SMs at {offset} reach group {stop}; this GPU was split into {what}"
            raise PlanError(msg)
        return Interval(start, self.everything.stop if stop == len(self.groups) else stop)

    def sets(self, interval: Interval) -> tuple[SmSet, ...]:
        """What a context on that interval is made of."""
        assert self.is_cut, "an uncut GPU has no sets"
        assert interval.start < len(self.groups), (
            "the remainder promises no clusters: it serves with a group or not at all"
        )
        places = (*self.groups, *((self.remainder,) if self.remainder else ()))
        assert interval.stop <= len(places), f"{interval} of {len(places)} places"
        return places[interval.start : interval.stop]

    def sms(self, interval: Interval) -> int:
        """How many SMs that interval must have."""
        return self.whole if self.is_everything(interval) else sum(s.sms for s in self.sets(interval))


def lay_out(driver: CudaDriver) -> SmLayout:
    """Split the GPU, once in a worker's life. Whether the remainder can be merged with groups is tried, not assumed."""
    whole = driver.whole()
    split = driver.split(whole, GREEN_GROUP)
    if not split.groups:
        msg = f"{driver.name}: {whole.sms} SMs split into no groups of {GREEN_GROUP}"
        raise Unusable(msg)
    remainder = split.remainder if split.remainder and _merge(driver, split.groups[-1], split.remainder) else None
    return SmLayout(split.groups, remainder, whole.sms)


def uncut(driver: CudaDriver) -> SmLayout:
    """All of what this process sees as one place: a MIG device, a share of MPS, or a GPU that models share as it comes."""
    return SmLayout((), None, driver.whole().sms)


def _merge(driver: CudaDriver, group: SmSet, remainder: SmSet) -> bool:
    try:
        driver.destroy_context(driver.make_context([group, remainder]))
    except (DeviceFull, DeviceLost):
        raise
    except DeviceError:
        return False
    return True
