"""Round robin with slices in proportion to objectives: the temporal baseline of D-STACK (TCC 2024, evaluation).

Who has work has the whole gpulet for a slice of T x SLO / (sum of the SLOs that go round there), T being the plan's
cycle, and runs batches of at most the planned rows until the slice ends. Written from a summary; ours is what that
leaves open: a batch is cut to what the slice has left, unless it is the slice's first, and a slice ends early when its
model has nothing left to do. Nothing is dropped. Without slices it is round robin: one batch of each in turn.
"""

from bisect import bisect_right
from collections.abc import Iterator

from gpulet.core.fleet import CENTRAL, Fleet, GpuletState, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.duty import slices
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.units import Duration, Instant


class _Rota:
    """Whose slice it is on a gpulet, and until when."""

    def __init__(self, problem: Problem, gpulet: Gpulet, cycle: Duration) -> None:
        self.turns = gpulet.turns
        self.slices = slices(cycle, [problem.models[turn.model].slo for turn in gpulet.turns])
        self.place = 0
        self.end: Instant = 0

    def others(self) -> Iterator[int]:
        """Who may be next, from the one behind the present one to itself."""
        count = len(self.turns)
        return ((self.place + n) % count for n in range(1, count + 1))

    def begin(self, now: Instant, place: int) -> None:
        """A new slice."""
        self.place, self.end = place, now + self.slices[place]


class Temporal:
    """One model at a time on a gpulet, by slices or by turns of one batch."""

    def __init__(self, problem: Problem, plan: Plan, *, has_slices: bool = True) -> None:
        self._models = problem.models
        self._profile: Profile = problem.profile
        self._rotas = {g.id: _Rota(problem, g, g.duty_cycle * has_slices) for g in plan.gpulets}
        self._hosts = {name: plan.hosts(name) for name in problem.models}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what nobody serves, or no gpulet can run at once, is refused."""
        hosts = self._hosts[request.model]
        if not hosts:
            return Reason.LATE
        return CENTRAL if any(self._can_run(gpulet, request) for gpulet in hosts) else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch and be asked again."""
        ids = dict.fromkeys(g.id for g in changed.gpulets)
        ids |= dict.fromkeys(g.id for queue in changed.queues if queue for g in self._hosts[queue.model])
        for gpulet in (fleet.gpulets[g] for g in ids):
            run = self._next(now, gpulet, fleet) if gpulet.is_idle else None
            if run:
                return Decision([run], more=True)
        return Decision()

    def _next(self, now: Instant, gpulet: GpuletState, fleet: Fleet) -> Run | None:
        """More of the present slice, or the first batch of the next."""
        rota = self._rotas[gpulet.id]
        run = self._batch(gpulet, rota.turns[rota.place], fleet, now, rota.end) if now < rota.end else None
        if run:
            return run
        for place in rota.others():
            run = self._batch(gpulet, rota.turns[place], fleet, now, now)
            if run:
                rota.begin(now, place)
                return run
        return None

    def _batch(self, gpulet: GpuletState, turn: Turn, fleet: Fleet, now: Instant, end: Instant) -> Run | None:
        """What has waited longest, as much as ends by `end`; with `end` now, a slice's first batch, however long."""
        planned = gpulet.planned
        waiting = ((first, q) for q in fleet.central(turn.model) if (first := self._first(planned, q)) is not None)
        found = min(waiting, key=lambda found: found[0].arrival, default=None)
        if found is None:
            return None
        first, queue = found
        curve = self._profile.curve(queue.model, planned.size.sms, queue.shape, planned.processes)
        most = min(turn.batch, len(curve))
        if end > now:
            most = min(most, bisect_right(curve, end - now))
            if first.rows > most:
                return None
        requests = queue.take(max(most, first.rows)) if first is queue.head else [first]
        return Run(gpulet.id, requests, curve[sum(request.rows for request in requests) - 1])

    def _first(self, gpulet: Gpulet, queue: Queue) -> Request | None:
        """Mostly the head."""
        return next((request for request in queue if self._can_run(gpulet, request)), None)

    def _can_run(self, gpulet: Gpulet, request: Request) -> bool:
        sms, processes = gpulet.size.sms, gpulet.processes
        return request.rows <= self._profile.max_batch(request.model, sms, request.shape, processes)
