"""CPU gpulets: one worker process each, pinned to its cores, models in ONNX Runtime.

On a device of mechanism `cpu` a gpulet's cores are its own and verified: a worker whose threads may run elsewhere is
refused. On `whole` workers may use all of the device's cores and the system shares them out. A worker that dies is
replaced by the standby, whose runtime is imported already; repeated deaths are answered more and more slowly.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from mmap import mmap
from typing import assert_never

from gpulet.core.messages import BatchId, Carve, Finished, GpuletDown, GpuletUp, Load, RunFailed, Start, Unload
from gpulet.device import Mechanism
from gpulet.errors import ModelError, Unusable
from gpulet.executors.base import DATATYPE_SIZES, Emit, Outputs, Payloads, Result, Signature, Timer
from gpulet.executors.process import BLOCK_BYTES, WorkerProcess
from gpulet.executors.wire import ALIGNMENT, Assign, Done, Failed, FromWorker, Ready, RunBatch, WorkerModel, align
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import PLAIN, SECOND, Duration, Instant

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STABLE: Duration = 10 * SECOND
"""A worker that lived this long did not die of its own start."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where a model's ONNX file is, and the largest batch and the shape classes to warm it for."""

    name: str
    path: str
    max_batch: int
    shapes: tuple[str, ...] = (PLAIN,)


@dataclass(frozen=True, slots=True)
class _Finished:
    """A batch whose outputs stand in a block, even if its worker has died since."""

    model: str
    shapes: tuple[tuple[int, ...], ...]
    block: mmap


class Station:
    """One gpulet's place: the worker that holds it now, and the model whose batch is in its slot."""

    def __init__(self, gpulet: Gpulet, cores: tuple[int, ...]) -> None:
        self.gpulet = gpulet
        self.cores = cores
        self.worker: WorkerProcess | None = None
        self.places: dict[str, int] = {}
        self.model = ""
        self.up_since: Instant = 0
        self.pause_s = _FIRST_PAUSE_S


Tell = Callable[..., None]
"""A structured log line: a name and fields."""
GiveUp = Callable[[Exception], None]
"""Called when no plan can be carved here: the server cannot go on."""


class Cpu:
    """Carries out commands on this machine's cores."""

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, ModelFile],
        cores: Sequence[int],
        timer: Timer,
        emit: Emit,
        payloads: Payloads,
        tell: Tell,
        give_up: GiveUp,
    ) -> None:
        self.signatures: dict[str, Signature] = {}
        self.refused: dict[str, str] = {}
        self._models = models
        self._timer = timer
        self._emit = emit
        self._payloads = payloads
        self._tell = tell
        self._give_up = give_up
        self._stations = {g.id: Station(g, _cores(plan, g, cores)) for g in plan.gpulets}
        self._results: dict[BatchId, _Finished] = {}
        self._standby: WorkerProcess | None = None
        self._is_closing = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> dict[GpuletId, int]:
        """The worker process of each gpulet that has one."""
        return {g: s.worker.pid for g, s in self._stations.items() if s.worker}

    def carve(self) -> None:
        """Start a worker for each gpulet, and one to stand by."""
        for station in self._stations.values():
            self._man(station)
        self._standby = self._idle_worker()

    def start(self, command: Start) -> None:
        """Put the batch's inputs together in the gpulet's slot and tell its worker."""
        assert not isinstance(command.on, Carve), "CPU workers have the cores of their gpulet"
        station = self._stations[command.on]
        station.model = command.model
        if station.worker is None:  # died in this turn; GpuletDown is on its way
            return
        try:
            shapes = self._fill(station, station.worker, command)
        except ModelError as error:
            self._tell("run_failed", gpulet=command.on, error=str(error))
            self._emit(RunFailed(command.batch))
            return
        station.worker.send(RunBatch(command.batch, station.places[command.model], shapes))

    def outputs(self, batch: BatchId) -> Outputs:
        """Views into the slot; the next batch on the gpulet overwrites them."""
        done = self._results.pop(batch)
        view = memoryview(done.block)
        results: list[Result] = []
        offset = BLOCK_BYTES // 2
        for tensor, shape in zip(self.signatures[done.model].outputs, done.shapes, strict=True):
            size = prod(shape) * DATATYPE_SIZES[tensor.datatype]
            results.append(Result(tensor, shape, view[offset : offset + size]))
            offset = align(offset + size)
        return results

    def load(self, command: Load) -> None:
        """CPU workers hold the models of their gpulet from the start."""
        msg = f"load of {command.model}: the cpu executor loads models with their gpulet"
        raise AssertionError(msg)

    def unload(self, command: Unload) -> None:
        """As `load`."""
        msg = f"unload of {command.model}: the cpu executor unloads models with their gpulet"
        raise AssertionError(msg)

    async def close(self) -> None:
        """Stop every worker and the standby."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        workers = [s.worker for s in self._stations.values() if s.worker]
        workers += [self._standby] if self._standby else []
        await asyncio.gather(*(worker.close() for worker in workers))

    def _fill(self, station: Station, worker: WorkerProcess, command: Start) -> tuple[tuple[int, ...], ...]:
        """Copy the requests' rows one after the other; the shapes of the joined inputs.

        Raises `ModelError` where this batch cannot be run here, whatever a plan says.
        """
        if command.model not in station.places:
            msg = f"model {command.model} is not loaded on gpulet {station.gpulet.id}"
            raise ModelError(msg)
        payloads = [self._payloads(request) for request in command.requests]
        is_batched = self.signatures[command.model].is_batched
        if not is_batched and len(payloads) > 1:
            msg = f"model {command.model} runs one request at a time, the plan joined {len(payloads)}"
            raise ModelError(msg)
        size = sum(len(data) + ALIGNMENT for payload in payloads for data in payload.inputs)
        if size > BLOCK_BYTES // 2:
            msg = f"inputs of {size} bytes do not fit a gpulet's {BLOCK_BYTES // 2}"
            raise ModelError(msg)
        block, offset = worker.block, 0
        shapes: list[tuple[int, ...]] = []
        for place, dims in enumerate(payloads[0].dims):
            for payload in payloads:
                data = payload.inputs[place]
                block[offset : offset + len(data)] = data
                offset += len(data)
            offset = align(offset)
            shapes.append((command.rows, *dims[1:]) if is_batched else dims)
        return tuple(shapes)

    def _man(self, station: Station) -> None:
        """Give the station a worker: the standby where there is one."""
        worker, self._standby = self._standby or self._idle_worker(), None
        worker.hear = lambda message: self._hear(station, message)
        worker.gone = lambda: self._gone(station)
        station.worker = worker
        files = [self._models[name] for name in station.gpulet.models]
        models = tuple(WorkerModel(f.name, f.path, f.max_batch, f.shapes) for f in files)
        worker.send(Assign(station.cores, station.gpulet.size.sms, models, BLOCK_BYTES // 2))

    def _idle_worker(self) -> WorkerProcess:
        return WorkerProcess(lambda _: None, self._standby_gone)

    def _standby_gone(self) -> None:
        self._standby = None
        self._tell("standby_died")

    def _hear(self, station: Station, message: FromWorker) -> None:
        match message:
            case Done():
                assert station.worker is not None
                self._results[message.batch] = _Finished(station.model, message.shapes, station.worker.block)
                self._emit(Finished(message.batch))
            case Failed():
                self._tell("run_failed", gpulet=station.gpulet.id, error=message.error)
                self._emit(RunFailed(message.batch))
            case Ready():
                self._admit(station, message)
            case _:
                assert_never(message)

    def _admit(self, station: Station, ready: Ready) -> None:
        """A gpulet is up once its models are loaded and every thread is shown to stay on its cores."""
        astray = [cores for cores in ready.allowed if not set(cores) <= set(station.cores)]
        if astray:
            msg = f"gpulet {station.gpulet.id}: a thread may run on cores {astray[0]}, not only on {station.cores}"
            self._give_up(Unusable(msg))
            return
        loaded = [m for m in ready.models if not m.error]
        missing = {m.name: m.error for m in ready.models if m.error}
        if self._must_retry(station, missing):
            return
        station.places = {m.name: place for place, m in enumerate(loaded)}
        self.signatures.update({m.name: m.signature for m in loaded})
        self._settle_refusals(station, missing)
        station.up_since = self._timer.now()
        pid = station.worker.pid if station.worker else 0
        self._tell("gpulet_up", gpulet=station.gpulet.id, pid=pid, cores=station.cores, models=list(station.places))
        if loaded:
            self._emit(GpuletUp(station.gpulet.id))

    def _must_retry(self, station: Station, missing: Mapping[str, str]) -> bool:
        """A worker without a model that loads elsewhere, or did before, is killed and replaced: a few times, then kept."""
        lost = [name for name in missing if name in self.signatures]
        if not lost or station.worker is None or station.pause_s >= _LONGEST_PAUSE_S:
            return False
        self._tell("reload_failed", gpulet=station.gpulet.id, model=lost[0], error=missing[lost[0]])
        station.worker.kill()
        return True

    def _settle_refusals(self, station: Station, missing: Mapping[str, str]) -> None:
        """A model is refused by name while no gpulet has it; one that came up without it when it does load tries again."""
        for name in station.places:
            self.refused.pop(name, None)
        for name, error in missing.items():
            if not any(name in other.places for other in self._stations.values()):
                self.refused[name] = error
                self._tell("model_refused", model=name, error=error)
        for other in self._stations.values():
            wants = set(other.gpulet.models) & set(station.places) - set(other.places)
            if wants and other.up_since and other.worker and other.pause_s < _LONGEST_PAUSE_S:
                other.worker.kill()

    def _gone(self, station: Station) -> None:
        """Take a dead worker's batch back at once and man the station again."""
        assert station.worker is not None
        self._tell("worker_died", gpulet=station.gpulet.id, pid=station.worker.pid)
        station.worker = None
        self._emit(GpuletDown(station.gpulet.id))
        if not self._is_closing:
            task = asyncio.get_running_loop().create_task(self._replace(station))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _replace(self, station: Station) -> None:
        lived = self._timer.now() - station.up_since if station.up_since else 0
        station.up_since = 0
        if lived >= _STABLE:
            station.pause_s = _FIRST_PAUSE_S
        else:
            await asyncio.sleep(station.pause_s)
            station.pause_s = min(2 * station.pause_s, _LONGEST_PAUSE_S)
        self._man(station)
        self._standby = self._standby or self._idle_worker()


def _cores(plan: Plan, gpulet: Gpulet, cores: Sequence[int]) -> tuple[int, ...]:
    """The OS's numbers of a gpulet's cores; devices follow one another, `whole` gives all of its device's."""
    before = sum(d.kind.sms for d in plan.devices if d.index < gpulet.device)
    device = next(d for d in plan.devices if d.index == gpulet.device)
    if device.mechanism is Mechanism.WHOLE:
        return tuple(cores[before : before + device.kind.sms])
    first = before + gpulet.offset
    return tuple(cores[first : first + gpulet.size.sms])
