"""Green gpulets of one GPU: threads of the process that holds it. The worker process will run this; nobody else may.

The builder's thread makes contexts, streams and graphs; each place has a thread of its own, which replays one batch at a
time and sleeps until its mark is reached. The loop's thread owns the `Cut`: who runs, who drains, what is parked. What
is made of CUDA and of a model runtime comes in by `open_gpu`, called on the builder's thread.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeAlias, TypeVar

from gpulet.core.messages import BatchId, Carve, Finished, GpuletDown, GpuletUp, Load, RunFailed, Start, Unload
from gpulet.device import Mechanism
from gpulet.errors import DeviceLost, GpuletError, ModelError, Unusable
from gpulet.executors.base import Emit, GiveUp, Outputs, Payloads, Result, Signature, Tell, Times
from gpulet.executors.cuda.building import Builder, Built, Clock, Known
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.cut import Cut, Replay, Resumed
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, lay_out, uncut
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.executors.cuda.runtime import Answered, Graph, ModelRuntime, Tensors
from gpulet.plan import GpuletId, Plan
from gpulet.units import SECOND, Duration

OpenGpu: TypeAlias = Callable[[], tuple[CudaDriver, ModelRuntime]]
"""Holds the GPU, current to the calling thread; raises `Unusable`."""
Made = TypeVar("Made")


class Green:
    """Carries out commands on one GPU. A lost GPU takes every gpulet down and gives this process up."""

    def __init__(
        self,
        plan: Plan,
        device: int,
        open_gpu: OpenGpu,
        clock: Clock,
        emit: Emit,
        payloads: Payloads,
        tell: Tell,
        give_up: GiveUp,
        models: Known | None = None,
    ) -> None:
        self.signatures: dict[str, Signature] = {}
        self._plan = plan
        self._device = device
        self._open_gpu = open_gpu
        self._models = models
        self._clock = clock
        self._emit = emit
        self._payloads = payloads
        self._tell = tell
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._cut = Cut(clock)
        self._driver: CudaDriver | None = None
        self._builder: Builder | None = None
        self._building = ThreadPoolExecutor(1, "builder")
        self._threads: dict[Interval, ThreadPoolExecutor] = {}
        self._results: dict[BatchId, tuple[str, Sequence[Answered]]] = {}
        self._batch_ended = asyncio.Event()
        self._is_recutting = False
        self._is_over = False
        self._carving: asyncio.Task[None] | None = None

    @property
    def models(self) -> frozenset[str]:
        """Those of the plan in force."""
        return self._cut.models

    @property
    def refused(self) -> dict[str, str]:
        """Models that could not be loaded or captured when the first plan was carved, and why."""
        return self._builder.refused if self._builder else {}

    @property
    def sms(self) -> int:
        """On how many SMs blocks ran: of the widest gpulet on an uncut GPU, else those that were cut."""
        if self._builder is None:
            return 0
        layout = self._builder.cache.pool.layout
        return layout.whole if layout.is_cut else max(self._builder.cache.pool.widths(), default=layout.whole)

    def bytes_of(self, model: str) -> int:
        """What a model of the plan in force takes of the GPU's memory."""
        return self._builder.cache.bytes_of(model) if self._builder else 0

    @property
    def is_draining(self) -> bool:
        """Whether a re-cut waits for running batches."""
        return not self._cut.is_drained

    @property
    def _mechanism(self) -> Mechanism:
        return next(d.mechanism for d in self._plan.devices if d.index == self._device)

    async def carved(self) -> None:
        """Wait until what `carve` began has ended, well or not."""
        assert self._carving, "nothing is carved"
        await asyncio.wait((self._carving,))

    def carve(self) -> None:
        """Lay the GPU out and build the plan; a plan that cannot be built or proven here gives up."""
        self._carving = self._loop.create_task(self._carve())

    def start(self, command: Start) -> None:
        """Replay the batch's graph on its gpulet's thread; while that is re-cut it waits for what comes after."""
        if self._is_over:  # GpuletDown is on its way
            return
        if isinstance(command.on, GpuletId) and command.on not in self._cut.stations:  # a re-cut has taken it away
            self._emit(GpuletDown(command.on))
            return
        try:
            replay = self._cut.start(command)
        except ModelError as error:
            self._fail(command.batch, error)
            return
        if replay:
            self._launch(replay)

    def outputs(self, batch: BatchId) -> Outputs:
        """Views into the graph's output buffers; its next replay overwrites them."""
        model, answered = self._results.pop(batch)
        tensors = self.signatures[model].outputs
        return [Result(tensor, a.shape, a.data) for tensor, a in zip(tensors, answered, strict=True)]

    def load(self, command: Load) -> None:
        """A plan's models are loaded with it."""
        msg = f"load of {command.model}: the green executor loads models with their gpulet"
        raise AssertionError(msg)

    def unload(self, command: Unload) -> None:
        """As `load`."""
        msg = f"unload of {command.model}: the green executor unloads models with their gpulet"
        raise AssertionError(msg)

    async def recut(self, plan: Plan, patience: Duration = SECOND) -> Times:
        """Bring another plan of this GPU into force while the one in force serves on.

        Raises `PlanError`, `ModelError`, `DeviceError`, `Unproven`, and `Unusable` where a running batch outlasts
        `patience`: the plan in force is then still in force.
        """
        assert self._builder, "nothing is carved yet"
        assert not self._is_recutting, "one re-cut at a time"
        self._is_recutting = True
        try:
            built = await self._in_builder(partial(self._builder.build, plan, self._cut.keys))
            self._adopt(built)
            self._cut.drain(built)
            return await self._swap_when_drained(patience)
        except DeviceLost as error:
            self._lose(error)
            raise
        finally:
            self._is_recutting = False

    async def close(self) -> None:
        """Wait for what runs and give everything back, unless the GPU is lost: then only its process's end does."""
        was_over, self._is_over = self._is_over, True
        self._batch_ended.set()
        if self._carving:
            await asyncio.wait((self._carving,))
        for thread in self._threads.values():
            await asyncio.to_thread(thread.shutdown)
        if not was_over:
            await self._in_builder(self._give_back)
        await asyncio.to_thread(self._building.shutdown)

    async def _carve(self) -> None:
        try:
            built = await self._in_builder(self._open)
        except Exception as error:  # noqa: BLE001 (a bug of ours or a runtime's: nothing may hang)
            self._is_over = True
            self._give_up(error)
            return
        self._adopt(built)
        self._cut.drain(built)
        self._cut.swap()
        for gpulet, place in built.places.items():
            self._tell("gpulet_carved", gpulet=gpulet, place=str(place.interval), graphs=len(place.keys))
            self._emit(GpuletUp(gpulet))

    def _open(self) -> Built:
        """On the builder's thread."""
        self._driver, runtime = self._open_gpu()
        is_cut = self._mechanism is not Mechanism.WHOLE
        pool = ContextPool(self._driver, lay_out(self._driver) if is_cut else uncut(self._driver))
        cache = GraphCache(pool, runtime, open_ledger(self._driver))
        self._builder = Builder(cache, self._device, self._clock, self._models)
        return self._builder.build_first(self._plan)

    def _give_back(self) -> None:
        """On the builder's thread."""
        if self._builder:
            self._builder.cache.close()
            for interval in self._builder.cache.pool.idle():
                self._builder.cache.pool.drop(interval)
        if self._driver:
            self._driver.close()

    async def _swap_when_drained(self, patience: Duration) -> Times:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._drained(), patience / SECOND)
        if self._is_over:
            msg = "re-cut given up: the GPU was lost or the server stopped"
            raise Unusable(msg)
        is_drained = self._cut.is_drained
        resumed = self._cut.swap() if is_drained else self._cut.abort()
        self._resume(resumed)
        if not is_drained:
            msg = f"re-cut given up: a running batch did not end within {patience / SECOND:g} s"
            raise Unusable(msg)
        return resumed.times

    async def _drained(self) -> None:
        while not self._cut.is_drained and not self._is_over:
            self._batch_ended.clear()
            await self._batch_ended.wait()

    def _resume(self, resumed: Resumed) -> None:
        """Parked batches that no gpulet takes any more go back to the core, as those of a gpulet that went down."""
        for replay in resumed.replays:
            self._launch(replay)
        for start in resumed.returned:
            if isinstance(start.on, Carve):
                self._fail(start.batch, ModelError("the plan in force has no place for it"))
                continue
            self._emit(GpuletDown(start.on))
            if start.on in self._cut.stations:
                self._emit(GpuletUp(start.on))

    def _adopt(self, built: Built) -> None:
        assert self._builder
        self.signatures.update(self._builder.cache.signatures)
        for interval in built.arranged.intervals:
            if interval not in self._threads:
                assert self._driver
                enter = self._driver.enter
                self._threads[interval] = ThreadPoolExecutor(1, f"gpulet {interval}", initializer=enter)

    def _launch(self, replay: Replay) -> None:
        assert self._builder
        payloads = [self._payloads(request) for request in replay.start.requests]
        inputs = list(zip(*(payload.inputs for payload in payloads), strict=True))
        graph = self._builder.cache.graph(replay.key)
        thread = self._threads[replay.key.interval]
        running = self._loop.run_in_executor(thread, self._run, graph, replay.start.rows, inputs)
        running.add_done_callback(partial(self._ended, replay.start))

    def _run(self, graph: Graph, rows: int, inputs: Tensors) -> Sequence[Answered]:
        """On the gpulet's thread."""
        assert self._driver
        self._driver.wait(graph.replay(rows, inputs))
        return graph.outputs(rows)

    def _ended(self, start: Start, running: asyncio.Future[Sequence[Answered]]) -> None:
        error = running.exception()
        if self._is_over:
            return
        if isinstance(error, DeviceLost):
            self._lose(error)
            return
        begun = self._cut.finish(start.batch)
        self._batch_ended.set()
        if isinstance(error, GpuletError):
            self._fail(start.batch, error)
        elif error:
            self._is_over = True
            self._give_up(error if isinstance(error, Exception) else RuntimeError(str(error)))
        else:
            self._results[start.batch] = (start.model, running.result())
            self._emit(Finished(start.batch))
        for replay in begun:  # only now: it may be of the same graph, whose outputs have been read
            self._launch(replay)

    def _fail(self, batch: BatchId, error: GpuletError) -> None:
        self._tell("run_failed", batch=batch, error=str(error))
        self._emit(RunFailed(batch))

    def _lose(self, error: DeviceLost) -> None:
        """One fault is every gpulet's: they are of one process."""
        if self._is_over:
            return
        self._is_over = True
        self._batch_ended.set()
        self._tell("device_lost", device=self._device, error=str(error))
        for gpulet in self._cut.stations:
            self._emit(GpuletDown(gpulet))
        self._give_up(error)

    def _in_builder(self, act: Callable[[], Made]) -> "asyncio.Future[Made]":
        return self._loop.run_in_executor(self._building, act)
