"""The core: one step that absorbs events and says what to do. It has no clock, no I/O and no randomness.

Rules that hold whatever a dispatcher decides: every request gets exactly one of Answer, Reject, Drop and Fail; a gpulet
runs one batch at a time; a device is never over-cut; a batch holds one model and one shape class; with early drop on,
nothing starts at or after its deadline; queues are bounded. A dispatcher that asks for less is a bug: an assertion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import assert_never

from gpulet.application import Application
from gpulet.core.applications import Flows
from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import (
    Answer,
    Arrived,
    BatchId,
    Cancelled,
    Carve,
    Closed,
    Command,
    Drop,
    Event,
    Fail,
    Finished,
    GpuletDown,
    GpuletUp,
    Loaded,
    Opened,
    Reason,
    Reject,
    RequestId,
    RunFailed,
    Start,
    Stopping,
    Unloaded,
)
from gpulet.core.ports import Changed, Decision, Dispatcher, Run
from gpulet.model import Model
from gpulet.plan import GpuletId, Plan
from gpulet.request import Request
from gpulet.units import NEVER, Instant


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds the scheduler keeps by itself: `max_queue` requests wait per model, or what a model says; `early_drop` gives up at the deadline."""

    max_queue: int = 4096
    early_drop: bool = True


class _Running:
    __slots__ = ("on", "queue", "requests")

    def __init__(self, on: GpuletId | Carve, queue: Queue, requests: Sequence[Request]) -> None:
        self.on = on
        self.queue = queue
        self.requests = requests


class Scheduler:
    """Queues, gpulet states and dispatch. `wake_at` is when `step` must be called even without an event."""

    def __init__(
        self,
        models: Mapping[str, Model],
        plan: Plan,
        dispatcher: Dispatcher,
        limits: Limits,
        applications: Sequence[Application] = (),
    ) -> None:
        self.fleet = Fleet(models, plan)
        self.applications = {application.name: application for application in applications}
        self.wake_at: Instant = NEVER
        self._dispatcher = dispatcher
        self._limits = limits
        self._running: dict[BatchId, _Running] = {}
        self._last_batch: BatchId = 0
        self._depth = dict.fromkeys(models, 0)
        self._deadlines: list[tuple[Instant, RequestId]] = []
        self._retried: set[RequestId] = set()
        self._alarm: Instant = NEVER
        self._is_stopping = False
        self._flows = Flows(applications, models)
        self._parts = self._flows.parts
        self._abandoned = self._flows.abandoned

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nothing runs, and no application request is in progress."""
        return not self._running and not self.fleet.waiting and self._flows.is_idle

    def holds(self, model: str) -> bool:
        """Whether anything waits or runs for it."""
        return bool(self._depth[model]) or any(run.requests[0].model == model for run in self._running.values())

    def step(self, now: Instant, *events: Event) -> list[Command]:
        """Absorb events, then say what to do. Call it also, empty-handed, at `wake_at`."""
        commands: list[Command] = []
        changed = Changed()
        for event in events:
            self._absorb(now, event, changed, commands)
        if self._deadlines and self._deadlines[0][0] <= now:
            self._expire(now, changed, commands)
        if self._abandoned:
            self._abandon(changed, commands)
        if self._alarm <= now:
            changed.alarm = True
        if events or changed.alarm or changed.queues:
            self._dispatch(now, changed, commands)
        self.wake_at = self._next_wake()
        assert self.wake_at > now, f"asked to be woken at {self.wake_at}, which is not after {now}"
        return commands

    def _absorb(self, now: Instant, event: Event, changed: Changed, commands: list[Command]) -> None:  # noqa: C901
        match event:
            case Arrived():
                self._arrive(now, event.request, changed, commands)
            case Finished():
                self._finish(now, event.batch, changed, commands)
            case RunFailed():
                for request in self._release(event.batch, changed).requests:
                    self._fail(request.id, Reason.RUN_FAILED, commands)
            case Cancelled():
                self._give_up(event.request, Reason.CANCELLED, changed, commands)
                self._flows.cancel(event.request, commands)
            case GpuletUp():
                self.fleet.gpulets[event.gpulet].is_up = True
                changed.gpulets.append(self.fleet.gpulets[event.gpulet])
            case GpuletDown():
                self._lose(now, event.gpulet, changed, commands)
            case Loaded() | Unloaded():
                self.fleet.settle(event)
                changed.devices.append(event.device)
            case Opened():
                self.fleet.closed.discard(event.model)
            case Closed():
                self.fleet.closed.add(event.model)
            case Stopping():
                self._is_stopping = self._flows.is_stopping = True
            case _:
                assert_never(event)

    def _arrive(self, now: Instant, request: Request, changed: Changed, commands: list[Command]) -> None:
        model = self.fleet.models.get(request.model)
        if model is None:
            return self._flows.begin(now, request, self._taking_in(now, changed, commands), commands)
        if request.rows > model.max_batch:
            return commands.append(Reject(request.id, Reason.TOO_LARGE))
        if (self._is_stopping or request.model in self.fleet.closed) and request.id not in self._parts:
            return commands.append(Reject(request.id, Reason.STOPPED if self._is_stopping else Reason.NOT_LOADED))
        if self._depth[request.model] >= (model.max_queue or self._limits.max_queue):
            return commands.append(Reject(request.id, Reason.QUEUE_FULL))
        place = self._dispatcher.bind(now, request, self.fleet)
        if place is CENTRAL:
            queue = self.fleet.queue(request.model, request.shape)
        elif isinstance(place, Reason):
            return commands.append(Reject(request.id, place))
        else:
            queue = self.fleet.gpulets[place].queue
        queue.append(request)
        self._depth[request.model] += 1
        self.fleet.waiting[request.id] = queue
        if self._limits.early_drop or request.hard:
            heappush(self._deadlines, (request.deadline, request.id))
        changed.queues.append(queue)
        return None

    def _taking_in(self, now: Instant, changed: Changed, commands: list[Command]) -> Callable[[Request], None]:
        return partial(self._arrive, now, changed=changed, commands=commands)

    def _finish(self, now: Instant, batch: BatchId, changed: Changed, commands: list[Command]) -> None:
        requests = self._release(batch, changed).requests
        if self._retried:
            self._retried.difference_update(r.id for r in requests)
        commands.append(Answer(batch, tuple([r.id for r in requests])))
        if self._parts:
            self._flows.go_on(now, requests, batch, self._taking_in(now, changed, commands), commands)

    def _fail(self, request_id: RequestId, reason: Reason, commands: list[Command]) -> None:
        commands.append(Fail(request_id, reason))
        self._flows.lose(request_id, Fail, reason, commands)

    def _release(self, batch: BatchId, changed: Changed) -> _Running:
        """Free what the batch ran on."""
        running = self._running.pop(batch)
        on = running.on
        if isinstance(on, Carve):
            self.fleet.devices[on.device].free_sms += on.size
            changed.devices.append(on.device)
            changed.ended.append(running.requests)
        else:
            gpulet = self.fleet.gpulets[on]
            gpulet.running = 0
            changed.gpulets.append(gpulet)
        return running

    def _lose(self, now: Instant, lost: GpuletId, changed: Changed, commands: list[Command]) -> None:
        """A worker died: its batch is tried once more if deadlines allow, else failed."""
        gpulet = self.fleet.gpulets[lost]
        gpulet.is_up = False
        if not gpulet.running:
            return
        running = self._release(gpulet.running, changed)
        again = [
            r
            for r in running.requests
            if r.deadline > now and r.id not in self._retried and not self._flows.is_abandoned(r.id)
        ]
        for request in running.requests:
            if request not in again:
                self._retried.discard(request.id)
                self._fail(request.id, Reason.WORKER_LOST, commands)
        queue = running.queue
        if queue.owner is CENTRAL:
            queue = self.fleet.queue(queue.model, queue.shape)  # it may have been forgotten while it was empty
        queue.restore(again)
        for request in again:
            self._retried.add(request.id)
            self._depth[request.model] += 1
            self.fleet.waiting[request.id] = queue
            heappush(self._deadlines, (request.deadline, request.id))
        changed.queues.append(queue)

    def _expire(self, now: Instant, changed: Changed, commands: list[Command]) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            self._give_up(heappop(self._deadlines)[1], Reason.EXPIRED, changed, commands)

    def _give_up(self, request_id: RequestId, reason: Reason, changed: Changed, commands: list[Command]) -> None:
        """Drop a request that waits; one that runs or is answered is left alone. What stood behind it may now start."""
        queue = self.fleet.waiting.get(request_id)
        if queue is not None:
            request = next(r for r in queue if r.id == request_id)
            self._unqueue(queue, (request,))
            self._retried.discard(request_id)
            commands.append(Drop(request_id, reason))
            changed.queues.append(queue)
            self._flows.lose(request_id, Drop, reason, commands)

    def _abandon(self, changed: Changed, commands: list[Command]) -> None:
        """What waits of application requests that have ended; behind it something may stand that can start."""
        while self._abandoned:
            self._give_up(self._abandoned.pop(0), Reason.ABANDONED, changed, commands)

    def _unqueue(self, queue: Queue, requests: Sequence[Request]) -> None:
        queue.remove(requests)
        self._depth[requests[0].model] -= len(requests)
        waiting = self.fleet.waiting
        for request in requests:
            del waiting[request.id]

    def _dispatch(self, now: Instant, changed: Changed, commands: list[Command]) -> None:
        while True:
            decision = self._dispatcher.decide(now, changed, self.fleet)
            self._carry_out(now, decision, changed, commands)
            if self._abandoned:
                self._abandon(changed, commands)
            elif not decision.more:
                break
        self._alarm = decision.wake_at

    def _carry_out(self, now: Instant, decision: Decision, changed: Changed, commands: list[Command]) -> None:
        for request in decision.drop:
            self._give_up(request.id, Reason.EXPIRED, changed, commands)
        commands.extend([self._start(now, run) for run in decision.start])
        for unload in decision.unload:
            self.fleet.unload(unload)
            commands.append(unload)
        for load in decision.load:
            self.fleet.load(load)
            commands.append(load)

    def _start(self, now: Instant, run: Run) -> Start:
        requests, on = run.requests, run.on
        assert requests, "a batch without requests"
        first = requests[0]
        queue = self.fleet.waiting[first.id]
        rows = first.rows
        if len(requests) > 1:
            model, shape = first.model, first.shape
            rows = 0
            for request in requests:
                assert request.model == model, f"a batch of {model} holds {request.model}"
                assert request.shape == shape, f"a batch of shape {shape!r} holds {request.shape!r}"
                rows += request.rows
        assert rows <= self.fleet.models[first.model].max_batch, f"a batch of {rows} rows of {first.model}"
        self._unqueue(queue, requests)
        self._last_batch = batch = self._last_batch + 1
        if isinstance(on, Carve):
            device = self.fleet.devices[on.device]
            assert 0 < on.size <= device.free_sms, f"{on.size} SMs wanted of {device.free_sms} free"
            device.free_sms -= on.size
        else:
            gpulet = self.fleet.gpulets[on]
            assert gpulet.is_up, f"gpulet {on} is down"
            assert not gpulet.running, f"gpulet {on} runs batch {gpulet.running}"
            gpulet.running = batch
            gpulet.busy_until = now + run.expected
        self._running[batch] = _Running(on, queue, requests)
        ids = tuple([r.id for r in requests])
        return Start(batch, on, first.model, first.shape, rows, ids, run.expected)

    def _next_wake(self) -> Instant:
        """Deadlines of requests that no longer wait are forgotten: they must not wake anybody."""
        waiting, deadlines = self.fleet.waiting, self._deadlines
        while deadlines and deadlines[0][1] not in waiting:
            heappop(deadlines)
        return deadlines[0][0] if deadlines and deadlines[0][0] < self._alarm else self._alarm
