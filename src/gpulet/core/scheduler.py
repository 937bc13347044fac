"""The core: one step that absorbs events and says what to do. It has no clock, no I/O and no randomness.

Rules that hold whatever a dispatcher decides: every request gets exactly one of Answer, Reject, Drop and Fail; a gpulet
runs one batch at a time; a device is never over-cut; a batch holds one model and one shape class; with early drop on,
nothing starts at or after its deadline; queues are bounded. A dispatcher that asks for less is a bug: an assertion.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from gpulet.application import Application
from gpulet.core.applications import Flows
from gpulet.core.fleet import CENTRAL, Fleet, GpuletState
from gpulet.core.handover import Handover
from gpulet.core.messages import (
    Answer,
    Arrived,
    BatchId,
    Built,
    Cancelled,
    Carve,
    Closed,
    Command,
    DeviceIn,
    DeviceOut,
    Drop,
    Enlist,
    Event,
    Fail,
    Finished,
    Force,
    Freeze,
    GpuletDown,
    GpuletUp,
    Hint,
    Loaded,
    NotBuilt,
    Opened,
    Reason,
    Reject,
    Replanned,
    RequestId,
    Retire,
    Revise,
    RunFailed,
    Start,
    Stopping,
    Unloaded,
)
from gpulet.core.ports import Changed, Decision, Dispatcher, Run
from gpulet.core.running import Running, RunningBatch
from gpulet.core.waiting import Waiting
from gpulet.model import Model
from gpulet.plan import GpuletId, Plan
from gpulet.request import Request
from gpulet.units import NEVER, Instant


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds the scheduler keeps by itself: `max_queue` requests wait per model, or what a model says; `early_drop` gives up at the deadline."""

    max_queue: int = 4096
    early_drop: bool = True


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
        self._waiting = Waiting(self.fleet)
        self._deadlines = self._waiting.deadlines
        self._running = Running(self.fleet)
        self._retried: set[RequestId] = set()
        self._alarm: Instant = NEVER
        self._is_stopping = False
        self._flows = Flows(applications, models)
        self._parts = self._flows.parts
        self._abandoned = self._flows.abandoned
        self._handover = Handover(self.fleet)
        self._next: tuple[Plan, Dispatcher] | None = None
        self._retired: list[GpuletId] = []
        self._unserved = self.fleet.unserved(plan)
        self._introduced: frozenset[str] = frozenset()
        self._foreign: frozenset[BatchId] = frozenset()

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nothing runs, and no application request is in progress."""
        return not self._running and not self.fleet.waiting and self._flows.is_idle

    @property
    def is_changing(self) -> bool:
        """Whether gpulets of an earlier plan still run, or a plan waits for what runs to end."""
        return bool(self._handover.leaving) or self._next is not None

    def holds(self, model: str) -> bool:
        """Whether anything waits or runs for it."""
        return bool(self._waiting.depth[model]) or self._running.holds(model)

    def adopt(self, plan: Plan, dispatcher: Dispatcher) -> None:
        """From the next step on this plan is in force, and its dispatcher asked; not while the fleet `is_changing`.

        A gpulet that has a number of the plan in force stays, another begins once its place is free. Where runs have sizes of
        their own, the next ones wait until nothing runs.
        """
        assert not self.is_changing, "a plan is just being adopted"
        self._next = plan, dispatcher
        self._introduced = frozenset(self.fleet.newcomers)

    def step(self, now: Instant, *events: Event) -> list[Command]:
        """Absorb events, then say what to do. Call it also, empty-handed, at `wake_at`."""
        commands: list[Command] = []
        changed = Changed()
        for event in events:
            self._absorb(now, event, changed, commands)
        if self._next:
            self._hand_over(now, changed, commands)
        deadlines = self._deadlines
        if deadlines and deadlines[0][0] <= now:
            self._expire(now, changed, commands)
        if self._abandoned:
            self._abandon(changed, commands)
        if self._alarm <= now:
            changed.alarm = True
        if (events or changed.alarm or changed.queues or changed.gpulets) and not self._next:
            self._dispatch(now, changed, commands)
        if self._retired:
            commands.extend(map(Retire, self._retired))
            self._retired.clear()
        self.wake_at = self._waiting.soonest(self._alarm) if deadlines else self._alarm
        assert self.wake_at > now, f"asked to be woken at {self.wake_at}, which is not after {now}"
        return commands

    def _absorb(self, now: Instant, event: Event, changed: Changed, commands: list[Command]) -> None:  # noqa: C901, PLR0912 (one case each)
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
                self._handover.built(event.gpulet)
                changed.gpulets.extend(self._handover.rise())
            case GpuletDown():
                self._lose(now, event.gpulet, changed, commands)
            case Loaded() | Unloaded():
                self.fleet.settle(event)
                changed.devices.append(event.device)
            case Opened() | Closed():
                self.fleet.shut(event.model, is_shut=isinstance(event, Closed))
            case Enlist():
                self.fleet.enlist(event.model)
                self._waiting.depth[event.model.name] = 0
            case Stopping():
                self._is_stopping = self._flows.is_stopping = True
            case NotBuilt():
                self._handover.forget()
            case Replanned() | Built() | Force() | Freeze() | DeviceOut() | DeviceIn() | Hint() | Revise():
                pass  # whoever steers says what becomes of it
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
        if self._waiting.depth[request.model] >= (model.max_queue or self._limits.max_queue):
            return commands.append(Reject(request.id, Reason.QUEUE_FULL))
        reason = self._queue(now, request, changed)
        if reason is not None:
            commands.append(Reject(request.id, reason))
        elif self._limits.early_drop or request.hard or request.model in self._unserved:
            self._waiting.watch((request,))
        return None

    def _queue(self, now: Instant, request: Request, changed: Changed) -> Reason | None:
        """Where the dispatcher says; or why nowhere."""
        place = self._dispatcher.bind(now, request, self.fleet)
        if place is CENTRAL:
            queue = self.fleet.queue(request.model, request.shape)
        elif isinstance(place, Reason):
            return place
        else:
            queue = self.fleet.gpulets[place].queue
        self._waiting.join(request, queue)
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

    def _release(self, batch: BatchId, changed: Changed) -> RunningBatch:
        """Free what the batch ran on."""
        ended = self._running.end(batch)
        if isinstance(ended.on, Carve):
            changed.devices.append(ended.on.device)
            changed.ended.append(ended.requests)
        elif ended.on.is_leaving:
            self._leave(ended.on, changed)
        else:
            changed.gpulets.append(ended.on)
        return ended

    def _leave(self, gpulet: GpuletState, changed: Changed) -> None:
        """It runs nothing any more: whoever waits for its place may begin."""
        self._handover.left(gpulet)
        self._retired.append(gpulet.id)
        changed.gpulets.extend(self._handover.rise())

    def _hand_over(self, now: Instant, changed: Changed, commands: list[Command]) -> None:
        """The plan that waits comes into force, and its dispatcher is told of everything that there is.

        One of another kind may look for it elsewhere, so that all that waits is bound anew.
        Where runs have sizes of their own it waits until nothing runs: the new plan knows nothing of them.
        """
        assert self._next, "a plan waits"
        plan, dispatcher = self._next
        if self._running and (not plan.gpulets or not self.fleet.gpulets or self._running.has_carves):
            self._alarm = NEVER
            return
        is_alike = type(dispatcher) is type(self._dispatcher)
        self._next, self._dispatcher, self._alarm = None, dispatcher, NEVER
        self._foreign = self._foreign if is_alike else self._running.batches()
        self.fleet.introduce(self._introduced)
        gone = self._handover.begin(plan)
        self.fleet.settle_in(plan)
        for state in gone:
            if not state.running:
                self._handover.left(state)
                self._retired.append(state.id)
        changed.gpulets = [state for state in self.fleet.gpulets.values() if state.is_up]
        changed.gpulets.extend(self._handover.rise())
        self._unserved = self.fleet.unserved(plan)
        changed.devices, changed.ended = list(self.fleet.devices), []
        waiting = [request for queue in self.fleet.filled() for request in queue]
        astray = [r for r in waiting if not self.fleet.may_wait(r)] if is_alike else waiting
        astray += [request for state in gone for request in state.queue]
        self._rebind(now, sorted(astray, key=lambda r: (r.arrival, r.id)), changed, commands)
        for name in self._unserved:  # nobody may wait for ever
            for queue in self.fleet.central(name):
                self._waiting.watch(queue)
        changed.queues = [*self.fleet.filled()]

    def _rebind(self, now: Instant, requests: Sequence[Request], changed: Changed, commands: list[Command]) -> None:
        """What waited where it cannot any longer waits where the dispatcher says; what can wait nowhere is given up."""
        for request in requests:
            self._waiting.leave(self.fleet.waiting[request.id], (request,))
        for request in requests:
            reason = self._queue(now, request, changed)
            if reason is not None:
                self._retried.discard(request.id)
                commands.append(Drop(request.id, reason))
                self._flows.lose(request.id, Drop, reason, commands)

    def _lose(self, now: Instant, lost: GpuletId, changed: Changed, commands: list[Command]) -> None:
        """A worker died: its batch is tried once more if deadlines allow, else failed."""
        gpulet = self._handover.find(lost)
        self._handover.fell(lost)
        if gpulet is None:
            return
        gpulet.is_up = False
        if not gpulet.running:
            return
        lost_batch = gpulet.running
        running = self._release(lost_batch, changed)
        again = [
            r
            for r in running.requests
            if r.deadline > now and r.id not in self._retried and not self._flows.is_abandoned(r.id)
        ]
        for request in running.requests:
            if request not in again:
                self._retried.discard(request.id)
                self._fail(request.id, Reason.WORKER_LOST, commands)
        self._retried.update(r.id for r in again)
        queue = self._waiting.rejoin(running.queue, again)
        if lost_batch in self._foreign or (queue is gpulet.queue and not gpulet.may_run(again)):
            self._rebind(now, again, changed, commands)
        else:
            changed.queues.append(queue)

    def _expire(self, now: Instant, changed: Changed, commands: list[Command]) -> None:
        for request in self._waiting.due(now):
            self._give_up(request, Reason.EXPIRED, changed, commands)

    def _give_up(self, request_id: RequestId, reason: Reason, changed: Changed, commands: list[Command]) -> None:
        """Drop a request that waits; one that runs or is answered is left alone. What stood behind it may now start."""
        queue = self.fleet.waiting.get(request_id)
        if queue is not None:
            request = next(r for r in queue if r.id == request_id)
            self._waiting.leave(queue, (request,))
            self._retried.discard(request_id)
            commands.append(Drop(request_id, reason))
            changed.queues.append(queue)
            self._flows.lose(request_id, Drop, reason, commands)

    def _abandon(self, changed: Changed, commands: list[Command]) -> None:
        """What waits of application requests that have ended; behind it something may stand that can start."""
        while self._abandoned:
            self._give_up(self._abandoned.pop(0), Reason.ABANDONED, changed, commands)

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
        queue, start = self._running.start(now, run)
        self._waiting.leave(queue, run.requests)
        return start
