"""PLAN, BUILD, CHECK: everything a new plan needs on one GPU is made and proven while the old plan serves on.

Whatever fails on the way is given back, and the old plan has noticed nothing. Only a lost device is left as it is: its
process must end.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import NoReturn

from gpulet.errors import DeviceFull, DeviceLost, GpuletError, ModelError, PlanError, Unproven
from gpulet.executors.cuda.buddies import Menus, menus
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, SmLayout
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.executors.wire import WorkerModel
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import PLAIN, Duration, Instant

Clock = Callable[[], Instant]
Known = Mapping[str, WorkerModel]
Bad = Callable[[str, GpuletError], None]
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
class Arranged:
    """Where a plan stands on a layout: its gpulets' places, and those of residents' runs with the graphs on them."""

    places: Places
    menus: Menus
    runs: frozenset[GraphKey]

    @property
    def keys(self) -> frozenset[GraphKey]:
        """All graphs of the plan."""
        return self.runs.union(key for place in self.places.values() for key in place.keys)

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """All places of the plan, gpulets' first."""
        spots = (spot.interval for menu in self.menus.values() for spot in menu)
        return tuple(dict.fromkeys((*(place.interval for place in self.places.values()), *spots)))

    def run(self, model: str, rows: int, shape: str, interval: Interval) -> GraphKey | None:
        """The smallest graph for a resident's run there; None where there is none."""
        fits = (k for k in self.runs if (k.model, k.shape, k.interval) == (model, shape, interval) and k.bucket >= rows)
        return min(fits, key=lambda key: key.bucket, default=None)

    def without(self, models: Collection[str]) -> "Arranged":
        """The same less some models."""
        return Arranged(
            {gpulet: place.without(models) for gpulet, place in self.places.items()},
            {model: menu for model, menu in self.menus.items() if model not in models},
            frozenset(key for key in self.runs if key.model not in models),
        )


@dataclass(frozen=True, slots=True)
class Built:
    """A plan that could be swapped in now, and how long it took to get there."""

    arranged: Arranged
    took: Duration

    @property
    def places(self) -> Places:
        """Of its gpulets."""
        return self.arranged.places

    @property
    def keys(self) -> frozenset[GraphKey]:
        """All graphs of the plan."""
        return self.arranged.keys


def buckets(batch: int) -> tuple[int, ...]:
    """The batch sizes that graphs are captured for: powers of two, and the largest itself."""
    return (*(2**n for n in range(batch.bit_length()) if 2**n < batch), batch)


def arrange(plan: Plan, layout: SmLayout, device: int, models: Known | None) -> Arranged:
    """Where the plan stands on that device; raises `PlanError` where it cannot.

    `models` are those that there are; None: all that have turns, without shape classes.
    """
    violations = plan.violations()
    if violations:
        raise PlanError(violations[0])
    mine = [gpulet for gpulet in plan.gpulets if gpulet.device == device]
    where = [_interval(gpulet, layout, lane) for lane, gpulet in enumerate(mine)]
    for one, other in combinations(where if layout.is_cut else (), 2):
        assert not one.overlaps(other), "a plan that is not overcut overlaps"
    places = {g.id: Place(g, interval, _keys(g, interval, models)) for g, interval in zip(mine, where, strict=True)}
    names = dict.fromkeys(r.model for r in plan.residents if r.device == device and r.model in (models or {}))
    if mine and names:
        msg = f"device {device} has gpulets and residents: {len(mine)} places are cut, and {next(iter(names))} has none"
        raise PlanError(msg)
    offered = menus(layout, tuple(names))
    return Arranged(places, offered, frozenset(_run_keys(offered, models or {})))


def _run_keys(offered: Menus, models: Known) -> Iterator[GraphKey]:
    for name, menu in offered.items():
        for spot, bucket, shape in product(menu, buckets(models[name].max_batch), models[name].shapes or (PLAIN,)):
            yield GraphKey(name, bucket, spot.interval, shape)


def _interval(gpulet: Gpulet, layout: SmLayout, lane: int) -> Interval:
    if not layout.is_cut:
        return replace(layout.everything, lane=lane)
    if gpulet.processes > 1:
        msg = f"gpulet {gpulet.id}: {gpulet.processes} processes; a green gpulet runs in its GPU's one process"
        raise PlanError(msg)
    return layout.interval(gpulet.offset, gpulet.size.sms)


def _keys(gpulet: Gpulet, interval: Interval, models: Known | None) -> tuple[GraphKey, ...]:
    keys = {
        GraphKey(turn.model, bucket, interval, shape)
        for turn in gpulet.turns
        for bucket in buckets(turn.batch)
        if models is None or turn.model in models
        for shape in (models[turn.model].shapes if models else ()) or (PLAIN,)
    }
    return tuple(sorted(keys))


class Builder:
    """Builds plans on one GPU; all its calls are made by one thread. `models` as in `arrange`."""

    def __init__(self, cache: GraphCache, device: int, clock: Clock, models: Known | None = None) -> None:
        self.cache = cache
        self.refused: dict[str, str] = {}
        self._models = models
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
        arranged = arrange(plan, self.cache.pool.layout, self._device, self._models)
        before = frozenset(self.cache.keys)
        try:
            wanted = self._known(arranged.keys, bad)
            self.cache.make_room(wanted, kept)
            refused = self._make(arranged, wanted, bad)
        except DeviceLost:
            raise
        except Exception:
            self._undo(before)
            raise
        return Built(arranged.without(refused), self._clock() - began)

    def _known(self, keys: Collection[GraphKey], bad: Bad) -> frozenset[GraphKey]:
        """The graphs of models that some runtime takes at all."""
        known: set[GraphKey] = set()
        for key in sorted(keys):
            try:
                self.cache.runtime.need(key)
                known.add(key)
            except ModelError as error:
                bad(key.model, error)
        return frozenset(known)

    def _make(self, arranged: Arranged, wanted: Collection[GraphKey], bad: Bad) -> frozenset[str]:
        """Shares first: a stream that must be made anew is so before a graph is captured on it. The models left out.

        Then the largest graphs: smaller ones fit into the pool that they leave, which else would grow in pieces.
        """
        pool = self.cache.pool
        for interval in arranged.intervals:
            pool.share(interval)
        pool.prove_apart(arranged.intervals)
        refused = {key.model for key in arranged.keys} - {key.model for key in wanted}
        before = frozenset(self.cache.keys)
        for key in sorted(wanted, key=lambda key: (-key.bucket, key)):
            if key.model in refused:
                continue
            self._leave_out(key, partial(self.cache.build, key), bad, refused)
        for key in sorted(set(self.cache.keys).intersection(wanted).difference(before)):
            if key.model not in refused:
                self._leave_out(key, partial(self.cache.check, key), bad, refused)
        return frozenset(refused)

    def _leave_out(self, key: GraphKey, act: Callable[[], object], bad: Bad, refused: set[str]) -> None:
        """What one model cannot do, or cannot be shown to do right, or has no memory for, is its own affair."""
        try:
            act()
        except (ModelError, DeviceFull, Unproven) as error:
            bad(key.model, error)
            refused.add(key.model)
            self._drop([k for k in self.cache.keys if k.model == key.model])

    def _raise(self, model: str, error: GpuletError) -> NoReturn:
        raise error

    def _refuse(self, model: str, error: GpuletError) -> None:
        self.refused[model] = str(error).removeprefix(f"model {model}: ")

    def _drop(self, keys: Iterable[GraphKey]) -> None:
        for key in keys:
            self.cache.drop(key)

    def _undo(self, before: Collection[GraphKey]) -> None:
        self._drop([key for key in self.cache.keys if key not in before])
        for interval in self.cache.pool.idle():
            self.cache.pool.drop(interval)
