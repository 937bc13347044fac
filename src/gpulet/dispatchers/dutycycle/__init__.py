"""Turns within a duty cycle (gpu-lets, ATC 2022, section 4; Nexus, SOSP 2019, section 6.3).

Requests wait centrally by model. An idle gpulet goes round its models; each turn is one batch of at most the planned
rows. `Hold.DUTY` builds a batch until it is full or its oldest request has waited one duty cycle, as gpu-lets does;
`Hold.NONE` starts with whatever waits, which is never later (a turn is no longer than planned) and usually sooner.
Several gpulets of one model share it by credit: the idle one that has served least of its planned throughput is next.

Under `Hold.NONE` a model's `max_queue_delay` lets an idle gpulet wait for a fuller batch, never longer than one duty cycle, so
that the plan's promise still holds: one duty cycle and one round of runs. It waits for nothing that a deadline forbids: all
that waits would still be in time after the other models' turns here and a full batch, with the run of another to spare,
since alarms ring late. Meanwhile the gpulet is idle, for its other models too. An arrival that changes nothing of such a wait
costs one look at its queue.

Early drop is Nexus': the oldest request may shrink the batch to what it can still wait for, but not below half of what
waits; else it is dropped, so that overload does not shrink batches. A request that is predicted late is refused.

With `learns` predictions follow what runs take: in overload everything that is served is served just in time, so a device
that is slower than its profile says would serve nearly everything late. Clockwork (OSDI 2020) predicts from the last runs
of each batch size; here each turn has two numbers: how much longer than planned its runs take in the mean, which says who
is refused on arrival, and which one run in ten exceeds, which says who is dropped when it could start.
"""

from bisect import bisect_right
from collections.abc import Iterator
from enum import StrEnum

from gpulet.core.fleet import CENTRAL, Fleet, GpuletState, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.dispatchers.dutycycle.hosts import Host
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.profile import Curve
from gpulet.request import Request
from gpulet.units import NEVER, Duration, Instant


class Hold(StrEnum):
    """How long an idle gpulet waits for a fuller batch."""

    NONE = "none"
    DUTY = "duty"


class DutyCycle:
    """Builds batches for planned gpulets, model by model. `drops_early` off: late requests are served late."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        hold: Hold = Hold.NONE,
        drops_early: bool = True,
        learns: bool = False,
    ) -> None:
        self._holds = hold is Hold.DUTY
        self._delays = {name: model.max_queue_delay for name, model in problem.models.items()}
        self._drops_early = drops_early
        self._learns = learns
        self._running: dict[GpuletId, tuple[Host, Instant, Duration]] = {}
        self._turns = {g.id: [self._host(problem, g, place) for place in range(len(g.turns))] for g in plan.gpulets}
        self._hosts: dict[str, list[Host]] = {name: [] for name in problem.models}
        for host in (host for turns in self._turns.values() for host in turns):
            self._hosts[host.model].append(host)
        self._waits: dict[tuple[str, str, GpuletId], Instant] = {}
        self._held: dict[Queue, tuple[int, Instant]] = {}
        self._waiting = Decision()

    @staticmethod
    def _host(problem: Problem, gpulet: Gpulet, place: int) -> Host:
        turn = gpulet.turns[place]
        return Host(gpulet, turn.model, turn.batch, problem.profile, problem.models[turn.model].slo)

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; with early drop, what is predicted late is refused."""
        if request.rows > 1 and not self._can_ever_run(request):
            return Reason.TOO_LARGE
        if self._drops_early and now + self._predicted(now, request, fleet) > request.deadline:
            if self._learns:
                self._relent(request, fleet)
            return Reason.LATE
        return CENTRAL

    def _relent(self, request: Request, fleet: Fleet) -> None:
        """What was refused beside an idle gpulet was so for what was learned: with no run at all that would stand for ever."""
        for host in self._hosts[request.model]:
            if fleet.gpulets[host.gpulet].is_idle:
                host.relent()

    def _can_ever_run(self, request: Request) -> bool:
        return any(request.rows <= len(host.curve(request.shape)) for host in self._hosts[request.model])

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch, or drop one hopeless head, and be asked again; or say when to be asked."""
        if not changed.gpulets and not changed.alarm and all(map(self._is_held, changed.queues)):
            return self._waiting
        if self._learns:
            self._learn(now, changed)
        for host, queue in self._candidates(changed, fleet):
            if fleet.gpulets[host.gpulet].is_idle and queue:
                decision = self._turn(now, host, queue, fleet)
                if decision is not _WAIT:
                    self._held.pop(queue, None)
                    return decision
        self._waiting = Decision(wake_at=self._next_wait(now, fleet))
        return self._waiting

    def _is_held(self, queue: Queue) -> bool:
        """Whether idle gpulets wait for this queue to grow, and what has come since changes nothing: asked at every arrival.

        What could be older comes back from a gpulet that died, which is a change of its own.
        """
        least, soonest = self._held.get(queue, _NOT_HELD)
        return 0 < queue.rows < least and queue.soonest == soonest

    def _learn(self, now: Instant, changed: Changed) -> None:
        for gpulet in changed.gpulets:
            if gpulet.is_idle and gpulet.id in self._running:
                host, started, planned = self._running.pop(gpulet.id)
                host.learn(now - started - planned)

    def _candidates(self, changed: Changed, fleet: Fleet) -> Iterator[tuple[Host, Queue]]:
        """Idle gpulets go round their turns; a queue that grew offers itself by credit."""
        for gpulet in changed.gpulets:
            if gpulet.is_idle:
                yield from self._round(gpulet, fleet)
        for queue in changed.queues:
            if queue:
                yield from self._by_credit(queue, fleet)
        if changed.alarm:
            for model, shape in dict.fromkeys((model, shape) for model, shape, _ in self._waits):
                yield from self._by_credit(fleet.queue(model, shape), fleet)

    def _round(self, gpulet: GpuletState, fleet: Fleet) -> Iterator[tuple[Host, Queue]]:
        for host in self._turns[gpulet.id]:
            queues = list(fleet.central(host.model))
            if len(queues) > 1:  # shape classes of one model take turns by age, or the first would starve the rest
                queues.sort(key=_age)
            for queue in queues:
                yield host, queue

    def _by_credit(self, queue: Queue, fleet: Fleet) -> list[tuple[Host, Queue]]:
        gpulets = fleet.gpulets
        idle = [host for host in self._hosts[queue.model] if gpulets[host.gpulet].is_idle]
        if len(idle) > 1:
            idle.sort(key=_credit)
        return [(host, queue) for host in idle]

    def _turn(self, now: Instant, host: Host, queue: Queue, fleet: Fleet) -> Decision:
        """A batch for this host from the front of the queue, a drop, or `_WAIT`."""
        head = queue.head
        curve = host.curve(queue.shape)
        most = host.full(queue.shape)
        if head.rows > len(curve):
            return self._pass_over(now, host, queue, curve)
        if self._drops_early:
            bearable = bisect_right(host.long(queue.shape), head.deadline - now)
            if bearable < head.rows and self._another_can(now, host, head, fleet):
                return _WAIT
            if bearable < head.rows or 2 * bearable < min(most, queue.rows):
                if self._learns and len(queue) == 1:
                    host.relent()
                return Decision(drop=(head,), more=True)
            most = min(most, bearable)
        most = max(most, head.rows)
        until = self._held_until(host, queue, curve)
        if now < until:
            self._waits[queue.model, queue.shape, host.gpulet] = until
            return _WAIT
        requests = queue.take(most)
        rows = len(requests) if len(queue) == queue.rows else sum(r.rows for r in requests)
        return self._run(now, host, requests, rows)

    def _held_until(self, host: Host, queue: Queue, curve: Curve) -> Instant:
        """When this host no longer waits for a fuller batch; the past where it is full or never waits."""
        if self._holds:
            return queue.head.arrival + host.duty if queue.rows < host.batch else _PAST
        delay, full = self._delays[host.model], host.full(queue.shape)
        if not delay or queue.rows >= full:
            return _PAST
        least = min(other.full(queue.shape) for other in self._hosts[host.model])
        self._held[queue] = least, queue.soonest
        return min(queue.oldest + min(delay, host.duty), queue.soonest - host.others - 2 * curve[full - 1])

    def _pass_over(self, now: Instant, host: Host, queue: Queue, curve: Curve) -> Decision:
        """The head has more rows than this gpulet ever runs at once: start the first request behind it that fits."""
        fits = next((r for r in queue if r.rows <= len(curve)), None)
        if fits is None or (self._drops_early and now + curve[fits.rows - 1] > fits.deadline):
            return _WAIT
        return self._run(now, host, [fits], fits.rows)

    def _another_can(self, now: Instant, host: Host, head: Request, fleet: Fleet) -> bool:
        """Whether a gpulet that must be faster, since this one cannot, can still serve the head in time once it is free."""
        for other in self._hosts[head.model]:
            gpulet, curve = fleet.gpulets[other.gpulet], other.long(head.shape)
            if other is not host and gpulet.is_up and head.rows <= len(curve):
                free = max(now, gpulet.busy_until) if gpulet.running else now
                if free + curve[head.rows - 1] <= head.deadline:
                    return True
        return False

    def _run(self, now: Instant, host: Host, requests: list[Request], rows: int) -> Decision:
        """Start them, credit the host and move its turn to the end of its gpulet's round."""
        shape = requests[0].shape
        if self._learns:
            self._running[host.gpulet] = host, now, host.planned(shape)[rows - 1]
        host.credit += rows / host.rate
        turns = self._turns[host.gpulet]
        if len(turns) > 1:
            turns.remove(host)
            turns.append(host)
        return Decision((Run(host.gpulet, requests, host.curve(shape)[rows - 1]),), more=True)

    def _next_wait(self, now: Instant, fleet: Fleet) -> Instant:
        """When the next held batch must start; queues that emptied or grew full are forgotten."""
        if not self._waits:
            return NEVER
        self._held = {queue: held for queue, held in self._held.items() if queue}
        self._waits = {key: at for key, at in self._waits.items() if at > now and fleet.queue(*key[:2])}
        return min(self._waits.values(), default=NEVER)

    def _predicted(self, now: Instant, request: Request, fleet: Fleet) -> Duration:
        """Until the request would be answered: the next free host, what waits before it, and its own batch."""
        queue = fleet.queue(request.model, request.shape)
        soonest, rate, run = NEVER, 0.0, NEVER
        for host in self._hosts[request.model]:
            gpulet = fleet.gpulets[host.gpulet]
            if gpulet.is_up:
                free = gpulet.busy_until if gpulet.running else now
                soonest = min(soonest, free)
                rate += host.throughput
                curve = host.curve(request.shape)
                run = min(run, curve[min(max(host.batch, request.rows), queue.rows + request.rows, len(curve)) - 1])
        if not rate:
            return 0
        return max(0, soonest - now) + int(queue.rows / rate) + run


def _age(queue: Queue) -> Instant:
    return queue.head.arrival


def _credit(host: Host) -> float:
    return host.credit


_WAIT = Decision()
_PAST: Instant = 0
_NOT_HELD = 0, 0
