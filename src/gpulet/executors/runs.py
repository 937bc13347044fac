"""Batches on posts: their inputs into a slot, their outputs out of it, and what became of those that had none."""

import asyncio
from dataclasses import dataclass

from gpulet.core.messages import BatchId, Carve, Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.errors import ModelError
from gpulet.executors.base import Emit, Outputs, Payloads, Signature, Tell, Timer
from gpulet.executors.shelf import Shelf
from gpulet.executors.slots import Shapes, Slots
from gpulet.executors.stations import Running, Station, Suspects
from gpulet.executors.wire import Done, Failed, Returned, RunBatch


@dataclass(frozen=True, slots=True)
class _Finished:
    """A batch whose outputs stand in a slot, even if its worker has died since or another file of its model serves."""

    signature: Signature
    shapes: Shapes
    slots: Slots


class Runs:
    """All of a server. `ended` is set when a post runs one less; `suspects` are requests that ran when workers died."""

    def __init__(self, shelf: Shelf, timer: Timer, emit: Emit, payloads: Payloads, tell: Tell) -> None:
        self.ended = asyncio.Event()
        self.suspects = Suspects()
        self._shelf = shelf
        self._timer = timer
        self._emit = emit
        self._payloads = payloads
        self._tell = tell
        self._results: dict[BatchId, _Finished] = {}

    def begin(self, station: Station, command: Start) -> None:
        """Start a batch on a post that is up."""
        assert station.worker, "a post that is up has a worker"
        assert station.slots, "and its worker has slots"
        payloads = [self._payloads(request) for request in command.requests]
        if command.model not in station.loaded:
            self.fail(command, "it is not loaded there")
            return
        began = self._timer.now()
        try:
            is_batched = self._shelf.signatures[command.model].is_batched
            slot, shapes = station.slots.put(command.batch, payloads, command.rows, is_batched=is_batched)
        except ModelError as error:
            self.fail(command, str(error))
            return
        now = self._timer.now()
        station.running[command.batch] = Running(command, payloads, now, now - began)
        gpulet, sms = (0, command.on.size) if isinstance(command.on, Carve) else (command.on, 0)
        gpulet = 0 if station.post.is_alone else gpulet
        station.worker.send(RunBatch(command.batch, command.model, shapes, slot, command.shape, gpulet, sms))

    def outputs(self, batch: BatchId) -> Outputs:
        """Views into the slot; the next batch in it overwrites them."""
        done = self._results.pop(batch)
        return done.slots.results(batch, done.signature, done.shapes)

    def end(self, station: Station, message: Done | Failed) -> None:
        """Its worker has run it, or could not."""
        assert station.slots, "a worker has slots"
        batch = station.running.pop(message.batch)
        self.ended.set()
        if isinstance(message, Failed):
            station.slots.free(message.batch)
            self.fail(batch.start, message.error)
            return
        self.suspects.acquit(batch)
        self._results[message.batch] = _Finished(
            self._shelf.signatures[batch.start.model], message.shapes, station.slots
        )
        self._emit(Finished(message.batch, batch.copied, message.took))

    def take_back(self, station: Station, message: Returned) -> None:
        """Its worker runs these no more, and says whether their gpulet is still there."""
        assert station.slots, "a worker has slots"
        for batch in message.batches:
            del station.running[batch]
            station.slots.free(batch)
        self.ended.set()
        self._emit(GpuletUp(message.gpulet) if message.is_up else GpuletDown(message.gpulet))

    def fail(self, command: Start, error: str) -> None:
        """It has no outputs."""
        self._tell("run_failed", model=command.model, on=str(command.on), error=error)
        self._emit(RunFailed(command.batch))
