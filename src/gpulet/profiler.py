"""Measures models on real workers: latency by (model, cores, batch), how much shared cores slow each other.

What is timed is what the core sees: from the message to the worker to its answer. A p99 needs 300 runs; where the time
budget of a point allows fewer, the largest is kept in its place and `samples` tells (`Point.samples < P99_SAMPLES`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter_ns

import numpy as np

from gpulet.errors import ModelError, Unusable
from gpulet.executors.base import DATATYPE_SIZES, Signature
from gpulet.executors.process import BLOCK_BYTES, WorkerProcess
from gpulet.executors.wire import Assign, Done, Failed, FromWorker, Ready, RunBatch, WorkerModel, align
from gpulet.profile import Point
from gpulet.units import SECOND, Duration

P99_SAMPLES = 300
_LEAST_SAMPLES = 5
_WARM_RUNS = 3
_PATIENCE_S = 60.0
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Grid:
    """What to measure: core counts, batches ascending, `budget` per point; a batch above `limit` ends its row."""

    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    budget: Duration
    limit: Duration


def default_sizes(cores: int) -> tuple[int, ...]:
    """1, 2, 4, ... and all cores: latency between them is interpolated."""
    return tuple(sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores}))


def default_batches(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the largest."""
    return tuple(sorted({2**n for n in range(largest.bit_length()) if 2**n <= largest} | {largest}))


class Bench:
    """One worker on a set of cores with one model, asked one batch at a time."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[FromWorker | None] = asyncio.Queue()
        self._worker = WorkerProcess(self._heard.put_nowait, lambda: self._heard.put_nowait(None))
        self.signature = Signature((), ())

    async def load(self, model: WorkerModel, cores: Sequence[int], threads: int) -> None:
        """Become a worker of this model; raises `ModelError` when it cannot be loaded."""
        self._worker.send(Assign(tuple(cores), threads, (model,), BLOCK_BYTES // 2))
        ready = await self._hear()
        assert isinstance(ready, Ready)
        if ready.models[0].error:
            msg = f"model {model.name}: {ready.models[0].error}"
            raise ModelError(msg)
        self.signature = ready.models[0].signature

    def fill(self, rows: int) -> tuple[tuple[int, ...], ...]:
        """Put random inputs of `rows` rows into the slot; their shapes. Free dimensions are 1."""
        random = np.random.default_rng(rows)
        offset = 0
        shapes: list[tuple[int, ...]] = []
        for tensor in self.signature.inputs:
            known = tuple(max(1, n) for n in tensor.shape)
            shape = (rows, *known[1:]) if self.signature.is_batched else known
            count = int(np.prod(shape))
            data = random.random(count, np.float32).astype(_dtype(tensor.datatype)).tobytes()
            self._worker.block[offset : offset + len(data)] = data
            offset = align(offset + count * DATATYPE_SIZES[tensor.datatype])
            shapes.append(shape)
        return tuple(shapes)

    async def run(self, shapes: tuple[tuple[int, ...], ...]) -> Duration:
        """Time one batch; raises `ModelError` when the runtime refuses it."""
        before = perf_counter_ns()
        self._worker.send(RunBatch(1, 0, shapes))
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

    async def _hear(self) -> FromWorker:
        heard = await asyncio.wait_for(self._heard.get(), _PATIENCE_S)
        if heard is None:
            msg = "the profiling worker died"
            raise Unusable(msg)
        return heard


def _dtype(datatype: str) -> str:
    return {"BOOL": "bool", "FP16": "float16", "FP32": "float32", "FP64": "float64"}.get(datatype, datatype.lower())


async def measure_model(
    model: WorkerModel, cores: Sequence[int], grid: Grid, known: Sequence[Point], keep: Callable[[Point], None]
) -> None:
    """Measure what is not `known` yet; `keep` gets each point as it is done, so that a run can be resumed.

    Raises `ModelError` when the model cannot be loaded.
    """
    done = {(p.size, p.rows): p for p in known}
    for size in grid.sizes:
        missing = [b for b in grid.batches if (size, b) not in done]
        if not missing or _is_slow(done, size, grid):
            continue
        bench = Bench()
        try:
            await bench.load(model, cores[:size], size)
            for rows in missing if bench.signature.is_batched else [b for b in missing if b == 1]:
                point = _point(model.name, size, rows, await _samples(bench, rows, grid.budget))
                keep(point)
                if point.mean > grid.limit:
                    break
        finally:
            await bench.close()


def _is_slow(done: dict[tuple[int, int], Point], size: int, grid: Grid) -> bool:
    """A row that ended at a batch above the limit is complete."""
    return any(p.mean > grid.limit for (s, _), p in done.items() if s == size)


async def _samples(bench: Bench, rows: int, budget: Duration) -> list[Duration]:
    """Runs within the budget, at least a few, at most what a p99 needs."""
    shapes = bench.fill(rows)
    for _ in range(_WARM_RUNS):
        await bench.run(shapes)
    samples: list[Duration] = []
    while len(samples) < _LEAST_SAMPLES or (sum(samples) < budget and len(samples) < P99_SAMPLES):
        samples.append(await bench.run(shapes))
    return samples


def _point(model: str, size: int, rows: int, samples: Sequence[Duration]) -> Point:
    ordered = sorted(samples)
    enough = len(ordered) >= P99_SAMPLES
    p95, p99 = (ordered[-1 - int(len(ordered) * (100 - p) / 100)] for p in (95, 99))
    return Point(model, size, rows, round(fmean(ordered)), p95, p99 if enough else ordered[-1], len(ordered))


async def _slowdown(benches: Sequence[Bench], budget: Duration) -> float:
    """One comparison of all workers at once with one alone, both from the same minute: machines drift."""
    alone = median(await _samples(benches[0], 1, budget))
    together = await asyncio.gather(*(_samples(bench, 1, budget) for bench in benches))
    return median([median(samples) for samples in together]) / alone


async def measure_contention(model: WorkerModel, cores: Sequence[int], budget: Duration = SECOND // 2) -> float:
    """How much slower one-thread workers on all cores get when there is one for each core: 0 where they do not."""
    benches = [Bench() for _ in cores]
    try:
        for bench in benches:
            await bench.load(model, cores, 1)
        slowdown = median([await _slowdown(benches, budget) for _ in range(_ROUNDS)])
        return max(0.0, (slowdown - 1) / max(1, len(cores) - 1))
    finally:
        await asyncio.gather(*(bench.close() for bench in benches))
