"""Dispatching as in gpu-lets' prototype (ATC 2022, section 5, and its artifact's batch builder and load balancer).

Every gpulet builds one batch of each of its models while it runs another. A request goes to the builder with the least
credit (1 / throughput for each row taken); a batch is ready when it is full or when its first request has been in it
for one duty cycle; ready batches run first in, first out. What waits unbuilt for `drop_ratio` x SLO is dropped.

Departures: instants are exact where the prototype polls every 0.5 ms (batches) and 5 ms (drops).
"""

from collections import deque
from collections.abc import Iterator

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profile import Curve
from gpulet.request import Request
from gpulet.units import NEVER, PLAIN, SECOND, Instant


class _Builder:
    """One model's batch that is being built on one gpulet; `due` is when it is ready at the latest."""

    __slots__ = (
        "_curves",
        "batch",
        "credit",
        "due",
        "duty",
        "gpulet",
        "model",
        "per_row",
        "processes",
        "profile",
        "requests",
        "rows",
        "sms",
    )

    def __init__(self, problem: Problem, gpulet: Gpulet, turn: Turn) -> None:
        self.gpulet = gpulet.id
        self.model = turn.model
        self.sms = gpulet.size.sms
        self.processes = gpulet.processes
        self.profile = problem.profile
        self._curves: dict[str, Curve] = {}
        self.batch = min(turn.batch, len(self.curve(PLAIN)))
        self.duty = max(1, gpulet.duty_cycle)
        self.per_row = self.duty / (self.batch * SECOND)
        self.credit = 0.0
        self.requests: list[Request] = []
        self.rows = 0
        self.due: Instant = NEVER

    def curve(self, shape: str) -> Curve:
        """Latency by rows of a shape class here."""
        if shape not in self._curves:
            self._curves[shape] = self.profile.curve(self.model, self.sms, shape, self.processes)
        return self._curves[shape]

    def has_room(self, request: Request) -> bool:
        """Whether the request may join the batch: rows, and one shape class."""
        most = len(self.curve(request.shape))
        if not self.requests:
            return request.rows <= most
        return self.rows + request.rows <= min(self.batch, most) and self.requests[0].shape == request.shape

    def take(self, now: Instant, request: Request) -> None:
        """Add a request; the first one starts the clock."""
        if not self.requests:
            self.due = now + self.duty
        self.requests.append(request)
        self.rows += request.rows
        self.credit += request.rows * self.per_row
        if self.rows >= min(self.batch, len(self.curve(request.shape))):
            self.due = min(self.due, now)

    def keep(self, waiting: dict[int, Queue]) -> None:
        """Forget requests that were given up."""
        if all(r.id in waiting for r in self.requests):
            return
        self.requests = [r for r in self.requests if r.id in waiting]
        self.rows = sum(r.rows for r in self.requests)
        self.due = self.due if self.requests else NEVER

    def clear(self) -> None:
        """The batch has started."""
        self.requests, self.rows, self.due = [], 0, NEVER


class GletDispatcher:
    """Batch full or duty cycle over; pull by credit; drop after `drop_ratio` x SLO (0 never drops)."""

    def __init__(self, problem: Problem, plan: Plan, *, drop_ratio: float = 1.0) -> None:
        self._drop_ratio = drop_ratio
        self._of_gpulet = {g.id: [_Builder(problem, g, turn) for turn in g.turns] for g in plan.gpulets}
        self._of_model: dict[str, list[_Builder]] = {name: [] for name in problem.models}
        for builder in (b for builders in self._of_gpulet.values() for b in builders):
            self._of_model[builder.model].append(builder)
        self._unbuilt: dict[str, deque[Request]] = {name: deque() for name in problem.models}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally, until a builder takes it."""
        if not any(request.rows <= len(b.curve(request.shape)) for b in self._of_model[request.model]):
            return Reason.TOO_LARGE
        self._unbuilt[request.model].append(request)
        return CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Build, start what is ready on idle gpulets, drop what is too old."""
        for builders in self._of_gpulet.values():
            self._release_lost(builders, fleet)
        for model in dict.fromkeys(queue.model for queue in changed.queues):
            self._recount(model, fleet)
        for model in self._unbuilt:
            self._build(now, model, fleet)
        starts = [run for builders in self._of_gpulet.values() for run in self._ready(now, builders, fleet)]
        if starts:
            for model in {run.requests[0].model for run in starts}:
                self._build(now, model, fleet)
        drops = [r for waiting in self._unbuilt.values() for r in waiting if self._expiry(r) <= now]
        for request in drops:
            self._unbuilt[request.model].remove(request)
        return Decision(starts, drop=drops, wake_at=self._next(now))

    def _release_lost(self, builders: list[_Builder], fleet: Fleet) -> None:
        """What was being built for a gpulet that is down goes to the others."""
        if builders and not fleet.gpulets[builders[0].gpulet].is_up:
            for builder in builders:
                self._unbuilt[builder.model].extendleft(reversed(builder.requests))
                builder.clear()

    def _recount(self, model: str, fleet: Fleet) -> None:
        """Forget requests that were given up, and find those that were put back after their worker died."""
        builders, unbuilt = self._of_model[model], self._unbuilt[model]
        for builder in builders:
            builder.keep(fleet.waiting)
        while unbuilt and unbuilt[0].id not in fleet.waiting:
            unbuilt.popleft()
        if sum(len(q) for q in fleet.central(model)) == len(unbuilt) + sum(len(b.requests) for b in builders):
            return
        built = {r.id for b in builders for r in b.requests}
        requests = (r for queue in fleet.central(model) for r in queue if r.id not in built)
        self._unbuilt[model] = deque(sorted(requests, key=lambda r: r.arrival))

    def _build(self, now: Instant, model: str, fleet: Fleet) -> None:
        unbuilt = self._unbuilt[model]
        while unbuilt:
            if unbuilt[0].id not in fleet.waiting:
                unbuilt.popleft()
                continue
            open_ = [b for b in self._of_model[model] if fleet.gpulets[b.gpulet].is_up and b.has_room(unbuilt[0])]
            if not open_:
                return
            min(open_, key=lambda b: b.credit).take(now, unbuilt.popleft())

    def _ready(self, now: Instant, builders: list[_Builder], fleet: Fleet) -> Iterator[Run]:
        """The batch of this gpulet that has been ready longest, if the gpulet is idle."""
        ready = [b for b in builders if b.due <= now]
        if ready and fleet.gpulets[ready[0].gpulet].is_idle:
            first = min(ready, key=lambda b: b.due)
            yield Run(first.gpulet, first.requests, first.curve(first.requests[0].shape)[first.rows - 1])
            first.clear()

    def _expiry(self, request: Request) -> Instant:
        if not self._drop_ratio:
            return NEVER
        return request.arrival + round((request.deadline - request.arrival) * self._drop_ratio)

    def _next(self, now: Instant) -> Instant:
        """The next batch that becomes ready, the next request that becomes too old."""
        due = (b.due for builders in self._of_model.values() for b in builders if b.due > now)
        old = (self._expiry(waiting[0]) for waiting in self._unbuilt.values() if waiting)
        return min((t for t in (*due, *old) if t > now), default=NEVER)
