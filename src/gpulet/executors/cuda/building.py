"""PLAN, BUILD, CHECK: everything a new plan needs on one GPU is made and proven while the old plan serves on.

Whatever fails on the way is given back, and the old plan has noticed nothing. Only a lost device is left as it is: its
process must end.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NoReturn

from gpulet.errors import DeviceLost, ModelError, PlanError
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, SmLayout
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import PLAIN, Duration, Instant

Clock = Callable[[], Instant]
Bad = Callable[[str, ModelError], None]
"""What is to be done about a model that cannot be captured: leave it out, or raise."""


@dataclass(frozen=True, slots=True)
class Place:
    """A gpulet of a plan on this GPU's layout, and the graphs it needs, ascending in bucket."""

    gpulet: Gpulet
    interval: Interval
    keys: tuple[GraphKey, ...]

    def key(self, model: str, rows: int, shape: str = PLAIN) -> GraphKey | None:
        """The smallest graph that takes so many rows of that shape class; None where there is none."""
        return next((k for k in self.keys if k.model == model and k.shape == shape and k.bucket >= rows), None)

    def without(self, models: Collection[str]) -> "Place":
        """The place less the graphs of some models."""
        return replace(self, keys=tuple(key for key in self.keys if key.model not in models))


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


def arrange(plan: Plan, layout: SmLayout, device: int, shapes: Mapping[str, Sequence[str]] | None) -> Places:
    """Where the plan's gpulets of that device stand; raises `PlanError` where they cannot.

    `shapes` are the shape classes of the models that there are; None: all that are planned, without classes.
    """
    violations = plan.violations()
    if violations:
        raise PlanError(violations[0])
    mine = [gpulet for gpulet in plan.gpulets if gpulet.device == device]
    where = [_interval(gpulet, layout, lane) for lane, gpulet in enumerate(mine)]
    for one, other in combinations(where if layout.is_cut else (), 2):
        assert not one.overlaps(other), "a plan that is not overcut overlaps"
    return {g.id: Place(g, interval, _keys(g, interval, shapes)) for g, interval in zip(mine, where, strict=True)}


def _interval(gpulet: Gpulet, layout: SmLayout, lane: int) -> Interval:
    if not layout.is_cut:
        return replace(layout.everything, lane=lane)
    if gpulet.processes > 1:
        msg = f"gpulet {gpulet.id}: {gpulet.processes} processes; a green gpulet runs in its GPU's one process"
        raise PlanError(msg)
    return layout.interval(gpulet.offset, gpulet.size.sms)


def _keys(gpulet: Gpulet, interval: Interval, shapes: Mapping[str, Sequence[str]] | None) -> tuple[GraphKey, ...]:
    keys = {
        GraphKey(turn.model, bucket, interval, shape)
        for turn in gpulet.turns
        for bucket in buckets(turn.batch)
        if shapes is None or turn.model in shapes
        for shape in (shapes or {}).get(turn.model) or (PLAIN,)
    }
    return tuple(sorted(keys))


class Builder:
    """Builds plans on one GPU; all its calls are made by one thread. `shapes` as in `arrange`."""

    def __init__(
        self, cache: GraphCache, device: int, clock: Clock, shapes: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.cache = cache
        self.refused: dict[str, str] = {}
        self._shapes = shapes
        self._device = device
        self._clock = clock

    def build(self, plan: Plan, kept: Collection[GraphKey]) -> Built:
        """Make all that `plan` needs beside the graphs that are `kept` for the plan in force.

        Raises `PlanError`, `ModelError`, `DeviceError`, `Unproven`: then nothing of it is left.
        """
        return self._build(plan, kept, self._raise)

    def build_first(self, plan: Plan) -> Built:
        """As `build`, for a server that starts: models that cannot be captured are `refused` by name, the others built."""
        return self._build(plan, (), self._refuse)

    def _build(self, plan: Plan, kept: Collection[GraphKey], bad: Bad) -> Built:
        began = self._clock()
        places = arrange(plan, self.cache.pool.layout, self._device, self._shapes)
        before = frozenset(self.cache.keys)
        try:
            wanted = self._known(places, bad)
            self.cache.make_room(wanted, kept)
            refused = self._make(places, wanted, bad)
        except DeviceLost:
            raise
        except Exception:
            self._undo(before)
            raise
        left = {gpulet: place.without(refused) for gpulet, place in places.items()}
        return Built(left, self._clock() - began)

    def _known(self, places: Places, bad: Bad) -> frozenset[GraphKey]:
        """The graphs of models that some runtime takes at all."""
        known: set[GraphKey] = set()
        for key in sorted({key for place in places.values() for key in place.keys}):
            try:
                self.cache.runtime.need(key)
                known.add(key)
            except ModelError as error:
                bad(key.model, error)
        return frozenset(known)

    def _make(self, places: Places, wanted: Collection[GraphKey], bad: Bad) -> frozenset[str]:
        """Shares first: a stream that must be made anew is so before a graph is captured on it. The models left out.

        Then the largest graphs: smaller ones fit into the pool that they leave, which else would grow in pieces.
        """
        pool = self.cache.pool
        for place in places.values():
            pool.share(place.interval)
        pool.prove_apart([place.interval for place in places.values()])
        refused = {key.model for place in places.values() for key in place.keys} - {key.model for key in wanted}
        before = frozenset(self.cache.keys)
        for key in sorted(wanted, key=lambda key: (-key.bucket, key)):
            if key.model in refused:
                continue
            try:
                self.cache.build(key)
            except ModelError as error:
                bad(key.model, error)
                refused.add(key.model)
                self._drop([k for k in self.cache.keys if k.model == key.model])
        for key in sorted(set(self.cache.keys).intersection(wanted).difference(before)):
            self.cache.check(key)
        return frozenset(refused)

    def _raise(self, model: str, error: ModelError) -> NoReturn:
        raise error

    def _refuse(self, model: str, error: ModelError) -> None:
        self.refused[model] = str(error).removeprefix(f"model {model}: ")

    def _drop(self, keys: Iterable[GraphKey]) -> None:
        for key in keys:
            self.cache.drop(key)

    def _undo(self, before: Collection[GraphKey]) -> None:
        self._drop([key for key in self.cache.keys if key not in before])
        for interval in self.cache.pool.idle():
            self.cache.pool.drop(interval)
