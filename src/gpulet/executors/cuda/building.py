"""PLAN, BUILD, CHECK: everything a new plan needs on one GPU is made and proven while the old plan serves on.

Whatever fails on the way is given back, and the old plan has noticed nothing. Only a lost device is left as it is: its
process must end.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import combinations

from gpulet.errors import DeviceLost, PlanError
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, SmLayout
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import Duration, Instant

Clock = Callable[[], Instant]


@dataclass(frozen=True, slots=True)
class Place:
    """A gpulet of a plan on this GPU's layout, and the graphs it needs, ascending in bucket."""

    gpulet: Gpulet
    interval: Interval
    keys: tuple[GraphKey, ...]

    def key(self, model: str, rows: int) -> GraphKey | None:
        """The smallest graph that takes so many rows; None where there is none."""
        return next((key for key in self.keys if key.model == model and key.bucket >= rows), None)


Places = Mapping[GpuletId, Place]


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that could be swapped in now, and how long it took to get there."""

    places: Places
    took: Duration

    @property
    def keys(self) -> frozenset[GraphKey]:
        """All graphs of the plan."""
        return frozenset(key for place in self.places.values() for key in place.keys)


def buckets(batch: int) -> tuple[int, ...]:
    """The batch sizes that graphs are captured for: powers of two, and the largest itself."""
    return (*(2**n for n in range(batch.bit_length()) if 2**n < batch), batch)


def arrange(plan: Plan, layout: SmLayout, device: int) -> Places:
    """Where the plan's gpulets of that device stand; raises `PlanError` where they cannot."""
    violations = plan.violations()
    if violations:
        raise PlanError(violations[0])
    mine = [gpulet for gpulet in plan.gpulets if gpulet.device == device]
    places = {gpulet.id: _place(gpulet, layout) for gpulet in mine}
    for one, other in combinations(places.values(), 2):
        assert not one.interval.overlaps(other.interval), "a plan that is not overcut overlaps"
    return places


def _place(gpulet: Gpulet, layout: SmLayout) -> Place:
    if gpulet.processes > 1:
        msg = f"gpulet {gpulet.id}: {gpulet.processes} processes; a green gpulet runs in its GPU's one process"
        raise PlanError(msg)
    interval = layout.interval(gpulet.offset, gpulet.size.sms)
    keys = {GraphKey(turn.model, bucket, interval) for turn in gpulet.turns for bucket in buckets(turn.batch)}
    return Place(gpulet, interval, tuple(sorted(keys)))


class Builder:
    """Builds plans on one GPU; all its calls are made by one thread."""

    def __init__(self, cache: GraphCache, device: int, clock: Clock) -> None:
        self.cache = cache
        self._device = device
        self._clock = clock

    def build(self, plan: Plan, kept: Collection[GraphKey]) -> Built:
        """Make all that `plan` needs beside the graphs that are `kept` for the plan in force.

        Raises `PlanError`, `ModelError`, `DeviceError`, `Unproven`: then nothing of it is left.
        """
        began = self._clock()
        places = arrange(plan, self.cache.pool.layout, self._device)
        built = Built(places, 0)
        self.cache.make_room(built.keys, kept)
        before = frozenset(self.cache.keys)
        try:
            self._make(built, before)
        except DeviceLost:
            raise
        except Exception:
            self._undo(before)
            raise
        return Built(places, self._clock() - began)

    def _make(self, built: Built, before: Collection[GraphKey]) -> None:
        """Shares first: a stream that must be made anew is so before a graph is captured on it.

        Then the largest graphs: smaller ones fit into the pool that they leave, which else would grow in pieces.
        """
        pool = self.cache.pool
        for place in built.places.values():
            pool.share(place.interval)
        pool.prove_apart([place.interval for place in built.places.values()])
        for key in sorted(built.keys, key=lambda key: (-key.bucket, key)):
            self.cache.build(key)
        for key in sorted(built.keys.difference(before)):
            self.cache.check(key)

    def _undo(self, before: Collection[GraphKey]) -> None:
        for key in self.cache.keys:
            if key not in before:
                self.cache.drop(key)
        for interval in self.cache.pool.idle():
            self.cache.pool.drop(interval)
