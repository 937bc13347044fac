"""Measures models on real workers: latency by (model, size, batch), how much shared cores slow each other.

What is timed is what the core sees: from the message to the worker to its answer. A p99 needs 300 runs; where the time
budget of a point allows fewer, the largest is kept in its place and `samples` tells (`Point.samples < P99_SAMPLES`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from time import perf_counter_ns
from typing import Protocol

import numpy as np

from gpulet.errors import ModelError, Unusable
from gpulet.executors.base import Signature
from gpulet.executors.process import CPU, Program, WorkerProcess
from gpulet.executors.tensors import drawn, filled
from gpulet.executors.wire import (
    Assign,
    Done,
    Failed,
    FromWorker,
    Ready,
    Recutted,
    Refused,
    RunBatch,
    Told,
    ToWorker,
    WorkerModel,
    align,
)
from gpulet.profile import Point
from gpulet.units import PLAIN, SECOND, Duration

P99_SAMPLES = 300
_LEAST_SAMPLES = 5
_WARM_RUNS = 3
_PATIENCE_S = 60.0
_LOADING_S = 600.0
"""Many graphs of a large model take minutes."""
_ROUNDS = 3
_MOST_CONTENDERS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure: sizes, batches ascending, `budget` per point; a batch above `limit` ends its row.

    `shapes` are the model's shape classes: free dimensions beyond the rows, in the order of the inputs. `pads`: a batch runs
    as one of the next larger of `batches`, so that it takes as long.
    """

    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    budget: Duration
    limit: Duration
    shapes: tuple[str, ...] = (PLAIN,)
    pads: bool = False

    def missing(self, known: Sequence[Point]) -> list[tuple[int, str, int]]:
        """(size, shape, rows) that is not `known` and not beyond a row's end."""
        done = {(p.size, p.shape, p.rows) for p in known}
        ended = {(p.size, p.shape) for p in known if p.is_last or p.mean > self.limit}
        rows = [(size, shape) for size in self.sizes for shape in self.shapes if (size, shape) not in ended]
        return [(*row, batch) for row in rows for batch in self.batches if (*row, batch) not in done]


def default_sizes(cores: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all cores: latency between them is interpolated."""
    return tuple(sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores}))


def default_batches(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the largest."""
    return tuple(sorted({2**n for n in range(largest.bit_length()) if 2**n <= largest} | {largest}))


class Bench:
    """One worker with one model, asked one batch at a time."""

    def __init__(self, program: Program = CPU) -> None:
        self._heard: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._worker = WorkerProcess(self._heard.put_nowait, lambda: self._heard.put_nowait(None), program)
        self._model = ""
        self.signature = Signature((), ())

    @property
    def pid(self) -> int:
        """The worker's."""
        return self._worker.pid

    async def load(self, task: ToWorker) -> Ready | Recutted:
        """Take on a task of one model; raises `ModelError` when it cannot be loaded, `Unusable` when nothing can be."""
        self._worker.send(task)
        ready = await self._hear(_LOADING_S)
        if isinstance(ready, Refused):
            raise Unusable(ready.error) if ready.is_final else ModelError(ready.error)
        assert isinstance(ready, Ready | Recutted)
        (model,) = ready.models
        if model.error:
            msg = f"model {model.name}: {model.error}"
            raise ModelError(msg)
        self._model, self.signature = model.name, model.signature
        return ready

    def fill(self, rows: int, shape_class: str) -> tuple[tuple[int, ...], ...]:
        """Put random inputs of `rows` rows into the slot; their shapes. Free dimensions are the class's, else 1."""
        random = np.random.default_rng(rows)
        offset = 0
        shapes = filled(self.signature, rows, shape_class)
        for tensor, shape in zip(self.signature.inputs, shapes, strict=True):
            count = int(np.prod(shape))
            data = drawn(random, tensor.datatype, count)
            self._worker.block[offset : offset + len(data)] = data
            offset = align(offset + len(data))
        return tuple(shapes)

    async def run(self, shapes: tuple[tuple[int, ...], ...], shape_class: str = PLAIN) -> Duration:
        """Time one batch; raises `ModelError` when the runtime refuses it."""
        before = perf_counter_ns()
        self._worker.send(RunBatch(1, self._model, shapes, shape=shape_class))
        answer = await self._hear()
        took = perf_counter_ns() - before
        if isinstance(answer, Failed):
            msg = f"a batch of shape {shapes} failed: {answer.error}"
            raise ModelError(msg)
        assert isinstance(answer, Done)
        return took

    async def close(self) -> None:
        """Stop the worker."""
        await self._worker.close()

    async def _hear(self, patience_s: float = _PATIENCE_S) -> FromWorker:
        """The next message that is an answer."""
        while True:
            try:
                heard = await asyncio.wait_for(self._heard.get(), patience_s)
            except TimeoutError:
                msg = f"no answer within {patience_s:g} s"
                raise ModelError(msg) from None
            if heard is None:
                msg = "its worker died (out of memory?)"
                raise ModelError(msg)
            if not isinstance(heard, Told):
                return heard


class Seats(Protocol):
    """Where a model is measured: workers that have so much of a device to themselves."""

    async def take(self, model: WorkerModel, size: int) -> Bench:
        """A worker of that size with the model; it stands until the next is asked for."""
        ...

    async def close(self) -> None:
        """Stop the worker, if there is one."""
        ...


class CoreSeats:
    """Workers on the first of these cores."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = tuple(cores)
        self._bench: Bench | None = None

    async def take(self, model: WorkerModel, size: int) -> Bench:
        """A fresh worker, pinned to `size` cores."""
        await self.close()
        self._bench = Bench()
        await self._bench.load(Assign(self._cores[:size], size, (model,)))
        return self._bench

    async def close(self) -> None:
        """Stop the worker, if there is one."""
        if self._bench:
            await self._bench.close()
        self._bench = None


async def measure_model(
    model: WorkerModel, seats: Seats, grid: Grid, known: Sequence[Point], keep: Callable[[Point], None]
) -> None:
    """Measure what is not `known` yet; `keep` gets each point as it is done, so that a run can be resumed.

    Raises `ModelError` when the model cannot be loaded, `Unusable` where a worker cannot have its share.
    """
    missing = grid.missing(known)
    try:
        for size in dict.fromkeys(size for size, _, _ in missing):
            bench = await seats.take(model, size)
            for shape in grid.shapes:
                rows = [b for s, c, b in missing if (s, c) == (size, shape)]
                await _measure_row(bench, model.name, size, shape, rows, grid, keep)
    finally:
        await seats.close()


async def _measure_row(
    bench: Bench, model: str, size: int, shape: str, batches: Sequence[int], grid: Grid, keep: Callable[[Point], None]
) -> None:
    """Batches of one size and shape, until one is beyond the limit; models without rows to batch are run as they are."""
    is_batched = bench.signature.is_batched
    for rows in batches if is_batched else [b for b in batches if b == 1]:
        point = _point(model, size, shape, rows, await _samples(bench, rows, grid.budget, shape))
        keep(point if is_batched else replace(point, is_last=True))
        least = max((b for b in grid.batches if b < rows), default=0) + 1
        if grid.pads and is_batched and least < rows:
            keep(replace(point, rows=least))
        if point.mean > grid.limit:
            break


async def _samples(bench: Bench, rows: int, budget: Duration, shape: str = PLAIN) -> list[Duration]:
    """Runs within the budget, at least a few, at most what a p99 needs."""
    shapes = bench.fill(rows, shape)
    for _ in range(_WARM_RUNS):
        await bench.run(shapes, shape)
    samples: list[Duration] = []
    while len(samples) < _LEAST_SAMPLES or (sum(samples) < budget and len(samples) < P99_SAMPLES):
        samples.append(await bench.run(shapes, shape))
    return samples


def _point(model: str, size: int, shape: str, rows: int, samples: Sequence[Duration]) -> Point:
    ordered = sorted(samples)
    enough = len(ordered) >= P99_SAMPLES
    p95, p99 = (ordered[-1 - int(len(ordered) * (100 - p) / 100)] for p in (95, 99))
    return Point(model, size, rows, round(fmean(ordered)), p95, p99 if enough else ordered[-1], len(ordered), shape)


async def _slowdown(benches: Sequence[Bench], budget: Duration) -> float:
    """One comparison of all workers at once with one alone, both from the same minute: machines drift."""
    alone = median(await _samples(benches[0], 1, budget))
    together = await asyncio.gather(*(_samples(bench, 1, budget) for bench in benches))
    return median([median(samples) for samples in together]) / alone


async def measure_contention(model: WorkerModel, cores: Sequence[int], budget: Duration = SECOND // 2) -> float:
    """How much slower one-thread workers that share cores get when there is one for each: 0 where they do not.

    A few cores tell: each worker loads the model anew.
    """
    cores = cores[:_MOST_CONTENDERS]
    benches = [Bench() for _ in cores]
    try:
        for bench in benches:
            await bench.load(Assign(tuple(cores), 1, (model,)))
        slowdown = median([await _slowdown(benches, budget) for _ in range(_ROUNDS)])
        return max(0.0, (slowdown - 1) / max(1, len(cores) - 1))
    finally:
        await asyncio.gather(*(bench.close() for bench in benches))
