"""The GPU as experiments use it: the package's own driver, layout, pool of shares, runtime; on the CPU its imaginary ones."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import models
import torch
from kit import Context, NotHereError
from loops import Model

from gpulet.executors.cuda.contexts import ContextPool, Share
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.layout import Interval, SmLayout, lay_out
from gpulet.executors.cuda.ports import CudaDriver

if TYPE_CHECKING:
    from gpulet.executors.base import Signature
    from gpulet.executors.cuda.graphs import GraphCache
    from gpulet.executors.cuda.runtime import Graph, GraphKey, ModelRuntime


@dataclass(slots=True)
class Gpu:
    """One GPU, split once."""

    context: Context
    driver: CudaDriver
    pool: ContextPool

    @property
    def layout(self) -> SmLayout:
        """Its groups."""
        return self.pool.layout

    @property
    def places(self) -> int:
        """Groups, and what is left over where that can be merged."""
        return self.layout.everything.stop

    def prefix(self, sms: int) -> Interval:
        """The first `sms` SMs; everything where that is all of it. Raises `PlanError`."""
        return self.layout.everything if sms >= self.layout.whole else self.layout.interval(0, sms)

    def sizes(self, wanted: Iterable[int]) -> list[int]:
        """Those that this die has, ascending, the whole of it last."""
        most = len(self.layout.groups) * self.layout.group
        own = {n for n in wanted if n <= most and n % self.layout.group == 0}
        return sorted({*own, self.layout.whole})

    def halves(self, sms: int) -> tuple[Interval, Interval]:
        """The first `sms` SMs and all others."""
        first = self.prefix(sms)
        return first, Interval(first.stop, self.places)

    def parts(self, count: int) -> list[Interval]:
        """So many shares beside each other, as equal as groups allow."""
        groups = len(self.layout.groups)
        cuts = [groups * n // count for n in range(count)]
        return [Interval(a, b) for a, b in zip(cuts, [*cuts[1:], self.places], strict=True)]

    def shares(self, intervals: Sequence[Interval]) -> list[Share]:
        """Made, proven, and those that are disjoint shown to be apart in time too."""
        for interval in intervals:
            self.pool.share(interval)
        self.pool.prove_apart(intervals)
        return [self.pool.share(interval) for interval in intervals]

    @contextmanager
    def keeping(self, interval: Interval) -> Iterator[Share]:
        """A share that stays though graphs on it come and go."""
        share = self.pool.share(interval)
        self.pool.hold(interval)
        yield share
        self.pool.release(interval)
        if interval in self.pool.idle():
            self.pool.drop(interval)

    def drop(self, *intervals: Interval) -> None:
        """Give shares back."""
        for interval in dict.fromkeys(intervals):
            self.pool.drop(interval)


@contextmanager
def held(context: Context) -> Iterator[Gpu]:
    """The GPU without models."""
    driver = opened_driver(context)
    gpu = Gpu(context, driver, ContextPool(driver, lay_out(driver)))
    yield gpu
    for interval in gpu.pool.idle():
        gpu.pool.drop(interval)
    driver.close()


def opened_driver(context: Context) -> CudaDriver:
    """The real one holds the primary context that torch uses too."""
    if not context.is_real:
        return FakeCudaDriver()
    if not torch.cuda.is_available():
        msg = "torch sees no GPU"
        raise NotHereError(msg)
    torch.cuda.init()
    torch.zeros(1, device="cuda")
    from gpulet.executors.cuda.driver import open_cuda  # noqa: PLC0415 (needs CUDA's bindings)

    return open_cuda(0)


@dataclass(slots=True)
class Served:
    """A GPU with a runtime of models and a cache of graphs, as the green executor has them."""

    gpu: Gpu
    runtime: "ModelRuntime"
    cache: "GraphCache"

    def graph(self, model: str, rows: int, interval: Interval) -> "Graph":
        """Of exactly so many rows, built and kept."""
        from gpulet.executors.cuda.runtime import GraphKey  # noqa: PLC0415 (needs msgspec, as all below)

        return self.cache.build(GraphKey(model, rows, interval))

    def key(self, model: str, rows: int, interval: Interval) -> "GraphKey":
        """Of that graph."""
        from gpulet.executors.cuda.runtime import GraphKey  # noqa: PLC0415

        return GraphKey(model, rows, interval)

    def loop(self, model: str, rows: int, interval: Interval) -> Model:
        """That graph again and again, on its share."""
        graph, stream = self.graph(model, rows, interval), self.gpu.pool.share(interval).stream
        is_real = self.gpu.context.is_real
        return Model(self.gpu.driver, graph, stream, (rows, self.given(model, rows)), is_real=is_real)

    def given(self, model: str, rows: int, seed: int = 0) -> list[list[bytes]]:
        """Inputs of one request with so many rows."""
        signature: Signature = self.cache.signatures[model]
        assert len(signature.inputs) == 1, f"{model} has {len(signature.inputs)} inputs"
        context = self.gpu.context
        drawn = models.example(model, rows, tiny=context.tiny, dtype=dtype_of(context), seed=seed)
        return [[bytes(drawn.contiguous().view(torch.uint8).numpy())]]


@contextmanager
def serving(context: Context, names: Sequence[str], **options: bool) -> Iterator[Served]:
    """The GPU with these models; waits for those that are still exported. `options` choose kernels (`open_real`)."""
    from gpulet.executors.cuda.graphs import GraphCache  # noqa: PLC0415
    from gpulet.executors.cuda.ledger import open_ledger  # noqa: PLC0415

    driver, runtime = open_models(context, names, **options)
    gpu = Gpu(context, driver, ContextPool(driver, lay_out(driver)))
    cache = GraphCache(gpu.pool, runtime, open_ledger(driver))
    yield Served(gpu, runtime, cache)
    cache.close()
    for interval in gpu.pool.idle():
        gpu.pool.drop(interval)
    driver.close()


def open_models(context: Context, names: Sequence[str], **options: bool) -> "tuple[CudaDriver, ModelRuntime]":
    """What the green executor is given by its process."""
    from gpulet.executors.cuda.opening import open_real, open_rehearsal  # noqa: PLC0415
    from gpulet.executors.cuda.sources import ModelSource  # noqa: PLC0415

    sources = {name: ModelSource(str(path), ()) for name, path in exported(context, names).items()}
    return open_real(sources, **options) if context.is_real else open_rehearsal(sources)


def bare(context: Context, name: str, rows: int) -> Callable[[], object]:
    """A model with its weights and one input on the device, without a runtime: nothing is copied when it runs."""
    dtype = dtype_of(context)
    model = models.build(name, tiny=context.tiny, dtype=dtype).to(context.device, memory_format=torch.channels_last)
    given = models.example(name, rows, tiny=context.tiny, dtype=dtype).to(context.device)
    return partial(model, given)


def exported(context: Context, names: Sequence[str]) -> Mapping[str, Path]:
    """Where the models lie, once they do; one that nobody exports is exported here."""
    marker = context.models / models.EXPORTING
    paths = {name: models.place(name, context.models) for name in names}
    while marker.exists() and not all(path.exists() for path in paths.values()):
        if context.left < 0:
            msg = f"{', '.join(name for name, path in paths.items() if not path.exists())}: not exported in time"
            raise NotHereError(msg)
        time.sleep(0.1)
    for name in names:
        models.export(name, context.models, tiny=context.tiny, dtype=dtype_of(context))
    return paths


def dtype_of(context: Context) -> torch.dtype:
    """Of weights."""
    found = getattr(torch, context.dtype)
    assert isinstance(found, torch.dtype)
    return found
