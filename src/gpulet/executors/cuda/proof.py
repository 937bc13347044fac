"""What green contexts do on one GPU, shown thing by thing with numbers: the proofs that a worker makes before it serves.

Nothing is kept: each share is given back before the next is made. A thing that cannot be shown is told and the next one
is tried, unless the GPU is lost.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import inf, isnan

from gpulet.device import Kind, Mechanism, sizes
from gpulet.errors import DeviceLost, GpuletError
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.graphs import TOLERANCE, GraphCache
from gpulet.executors.cuda.layout import Interval, SmLayout, lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.executors.green import OpenGpu
from gpulet.executors.wire import Prove, Shown, WorkerModel
from gpulet.units import MS, Instant

_ROWS = 4
"""A batch that is a batch, and quick."""


def prove(open_gpu: OpenGpu, asked: Prove, clock: Callable[[], Instant], alive: Callable[[], None]) -> Iterator[Shown]:
    """Everything, one by one, on the thread that is to hold the GPU. `alive` is called within what takes long."""
    began = clock()
    try:
        driver, runtime = open_gpu()
        layout = lay_out(driver)
    except GpuletError as error:
        yield _no("groups", error)
        return
    cache = GraphCache(ContextPool(driver, layout), runtime, open_ledger(driver))
    try:
        yield _groups(driver, layout, asked.kind, clock() - began)
        yield from _Proof(cache, asked, clock, alive).shown()
        driver.close()
    except DeviceLost as error:
        yield _no("device", error)


@dataclass(frozen=True, slots=True)
class _Proof:
    cache: GraphCache
    asked: Prove
    clock: Callable[[], Instant]
    alive: Callable[[], None]

    def shown(self) -> Iterator[Shown]:
        """All that comes after the split."""
        layout, pool = self.cache.pool.layout, self.cache.pool
        yield from _remainder(layout)
        if self.asked.kind.sms:
            yield _ladder(layout, self.asked.kind)
        last = layout.everything.stop
        for groups in range(1, len(layout.groups)):
            first, rest = Interval(0, groups), Interval(groups, last)
            yield self._timed(f"split {layout.sms(first)}|{layout.sms(rest)}", partial(self._split, first, rest))
            for interval in pool.idle():
                pool.drop(interval)
        for model in self.asked.models:
            yield self._timed(f"model {model.name}", partial(self._model, model))
            self.cache.close()

    def _timed(self, name: str, show: "Callable[[], _Told]") -> Shown:
        began = self.clock()
        try:
            told = show()
        except DeviceLost:
            raise
        except GpuletError as error:
            return _no(name, error)
        took = (self.clock() - began) / MS
        return Shown(name, told.is_shown, f"{told.says}; {took:.1f} ms", {**told.numbers, "ms": round(took, 3)})

    def _split(self, first: Interval, rest: Interval) -> "_Told":
        pool = self.cache.pool
        shares = [pool.share(first), pool.share(rest)]
        pool.prove_apart([first, rest])
        ids = len(frozenset().union(*(share.ids for share in shares)))
        says = f"{shares[0].sms} and {shares[1].sms} SMs, {ids} ids counted, disjoint, concurrent, graphs stay"
        return _Told(says, {"sms": [share.sms for share in shares], "ids": ids})

    def _model(self, model: WorkerModel) -> "_Told":
        """Each size beside a small graph that keeps the weights where they are."""
        cache, layout = self.cache, self.cache.pool.layout
        everything, shape = layout.everything, model.shapes[0]
        kept = GraphKey(model.name, 1, Interval(0, 1), shape)
        cache.make_room({kept}, ())
        cache.build(kept)
        rows = min(_ROWS, model.max_batch) if cache.signatures[model.name].is_batched else 1
        off: dict[int, float] = {}
        for groups in range(1, len(layout.groups) + 1):
            interval = everything if groups == len(layout.groups) else Interval(0, groups)
            key = GraphKey(model.name, rows, interval, shape)
            cache.make_room({key}, {kept})
            cache.build(key)
            off[layout.sms(interval)] = cache.error(key)
            if key != kept:
                cache.drop(key)
            self.alive()
        sms, worst = max(off.items(), key=lambda pair: inf if isnan(pair[1]) else pair[1])
        says = (
            f"{len(off)} sizes, worst {worst:.2g} off the whole GPU at {sms} SMs, {TOLERANCE:g} allowed, batch {rows}"
        )
        return _Told(says, {"sizes": len(off), "worst": worst, "at": sms, "batch": rows}, worst <= TOLERANCE)


@dataclass(frozen=True, slots=True)
class _Told:
    says: str
    numbers: Mapping[str, int | float | list[int]] = field(default_factory=dict)
    is_shown: bool = True


def _groups(driver: CudaDriver, layout: SmLayout, kind: Kind, took: int) -> Shown:
    left = layout.whole - len(layout.groups) * layout.group
    split = f"{len(layout.groups)} groups of {layout.group} SMs and {left} over"
    says = f"{driver.name}: {layout.whole} SMs, {split}; {took / MS:.1f} ms"
    is_shown = kind.sms in {0, layout.whole}
    if not is_shown:
        says = f"{driver.name}: {layout.whole} SMs, a {kind.name} is planned with {kind.sms}; {split}"
    numbers = {"sms": layout.whole, "groups": len(layout.groups), "group": layout.group, "over": left}
    return Shown("groups", is_shown, says, {**numbers, "cuda": driver.version, "ms": round(took / MS, 3)})


def _remainder(layout: SmLayout) -> Iterator[Shown]:
    """Without it a GPU serves well, on a few SMs less."""
    left = layout.whole - len(layout.groups) * layout.group
    merges = layout.remainder is not None
    says = (
        f"the {left} SMs over merge with the last group" if merges else f"the {left} SMs over do not merge: they idle"
    )
    if left:
        yield Shown("remainder", merges, says, {"sms": left}, is_needed=False)


def _ladder(layout: SmLayout, kind: Kind) -> Shown:
    planned = sizes(kind, Mechanism.GREEN)
    lacking = [size.sms for size in layout.unachievable(planned)]
    says = f"{len(planned)} planned, {planned[0].sms} to {planned[-1].sms} SMs, all there"
    if lacking:
        says = f"{len(planned)} planned, this die lacks {', '.join(map(str, lacking))} SMs"
    return Shown("sizes", not lacking, says, {"planned": len(planned), "lacking": lacking})


def _no(name: str, error: GpuletError) -> Shown:
    """A model's name is said once."""
    return Shown(name, is_shown=False, says=str(error).removeprefix(f"{name}: "), numbers={})
