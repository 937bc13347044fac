"""Clipper's adaptive batching (Crankshaw et al., NSDI 2017, section 4.3), and the batcher of its released code.

Every replica (gpulet) finds out for itself how large its batches may be; an idle one takes that many rows of what has
waited longest. `Aimd` is the paper's: one more after every full batch within the objective, a tenth less after one
beyond it. `Regression` is that of the code's second version: while the time left exceeds every latency seen it explores
larger batches, else it reads the batch for the time left off a line through what batches took. Models know nothing of
each other: what overlaps slows each other.

The paper's objective for a batch is the SLO less headroom for queueing; half the SLO is ours, since a request may just
miss a batch. Departures from the code: queues are in order of arrival, which is that of deadlines but for clients' own
timeouts; short batches are not padded with copies while exploring (a batch holds requests only), so a size is explored
when enough waits, and is known from the profile at first; the weight of its ridge is ours. Times are those from start to end as the core sees them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import sqrt
from random import Random
from typing import Protocol, TypeAlias

from gpulet.core.fleet import CENTRAL, Fleet, GpuletState, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.profile import Curve
from gpulet.request import Request
from gpulet.units import NEVER, PLAIN, Duration, Instant, to_ms


class Sizing(Protocol):
    """How large the batches of one model on one replica may be."""

    def limit(self, left: Duration) -> int:
        """The most rows of the next batch, whose first request has so much time `left`."""
        ...

    def add(self, rows: int, latency: Duration, *, is_full: bool) -> None:
        """A batch took so long; a full one had as many rows as it might."""
        ...


MakeSizing: TypeAlias = Callable[[Duration, Curve], Sizing]
"""Of a model's SLO and its latencies alone, by as many rows as a batch can have."""


class Aimd:
    """Additive increase, multiplicative decrease; batches that were not full tell nothing."""

    def __init__(self, slo: Duration, curve: Curve, *, part: float = 0.5, step: int = 1, backoff: float = 0.9) -> None:
        self._objective = round(part * slo)
        self._most = len(curve)
        self._step = step
        self._backoff = backoff
        self.size = 1

    def limit(self, left: Duration) -> int:
        return self.size

    def add(self, rows: int, latency: Duration, *, is_full: bool) -> None:
        if latency > self._objective and is_full:
            self.size = max(1, int(self._backoff * self.size))
        elif is_full:
            self.size = min(self._most, self.size + self._step)


@dataclass(slots=True)
class _Seen:
    """The latencies of one batch size, in ms: how many, their mean, and the sum of squares around it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, ms: float) -> None:
        self.count += 1
        off = ms - self.mean
        self.mean += off / self.count
        self.squares += off * (ms - self.mean)


@dataclass(frozen=True, slots=True)
class Exploring:
    """The constants of the code; `ridge`, in ms squared, is ours."""

    safety: float = 0.92
    samples: int = 5
    careful_below: int = 10
    growth: float = 0.10
    growth_deviation: float = 0.05
    deviations: float = 3.0
    ridge: float = 1e-3


EXPLORING = Exploring()


class Regression:
    """Explores batch sizes, then estimates them from the time left. `random` draws how fast it explores.

    With `is_warm` it has explored every size before: started under load, when little time is left from the first second
    on, it would never explore, and run single rows for ever.
    """

    def __init__(
        self,
        slo: Duration,
        curve: Curve,
        *,
        random: Random,
        exploring: Exploring = EXPLORING,
        is_warm: bool = True,
    ) -> None:
        self._most = len(curve)
        self._random = random
        self._asked = exploring
        known = curve if is_warm else ()
        self._seen = {n: _Seen(exploring.samples, to_ms(latency)) for n, latency in enumerate(known, start=1)}
        self._slowest = max(map(to_ms, known), default=0.0)
        self._top = max(1, len(known))

    def limit(self, left: Duration) -> int:
        budget = self._asked.safety * to_ms(left)
        return self._explore() if budget > self._slowest else self._estimate(budget)

    def add(self, rows: int, latency: Duration, *, is_full: bool) -> None:
        ms = to_ms(latency)
        self._seen.setdefault(rows, _Seen()).add(ms)
        self._slowest = max(self._slowest, ms)

    def _explore(self) -> int:
        """The largest size so far until it is known well enough, then a larger one."""
        asked, top = self._asked, self._top
        if self._seen.get(top, _Seen()).count >= asked.samples:
            growth = max(0.0, self._random.gauss(asked.growth, asked.growth_deviation))
            larger = top + 1 if top < asked.careful_below else int(top * (1 + growth))
            self._top = min(self._most, larger)
        return self._top

    def _estimate(self, budget: float) -> int:
        """Rows by latency: a ridge regression on each size's mean and `deviations` of them all; the first size unseen."""
        sizes = sorted(self._seen)
        if not sizes:
            return self._top
        degrees = sum(self._seen[n].count - 1 for n in sizes)
        pooled = sqrt(sum(self._seen[n].squares for n in sizes) / degrees) if degrees else 0.0
        upper = [self._seen[n].mean + self._asked.deviations * pooled for n in sizes]
        middle, rows = sum(upper) / len(upper), sum(sizes) / len(sizes)
        spread = sum((x - middle) ** 2 for x in upper) + self._asked.ridge
        slope = sum((x - middle) * (n - rows) for x, n in zip(upper, sizes, strict=True)) / spread
        return max(1, min(self._most, int(rows + slope * (budget - middle))))


def regression(seed: int = 0, *, is_warm: bool = True) -> MakeSizing:
    """Regressions that draw from one random stream."""
    return partial(Regression, random=Random(seed), is_warm=is_warm)


@dataclass(slots=True)
class _Replica:
    """One model on one gpulet; what it runs since when, 0 rows: nothing."""

    gpulet: Gpulet
    model: str
    sizing: Sizing
    rows: int = 0
    is_full: bool = False
    since: Instant = 0


@dataclass(slots=True)
class _Waits:
    """Queues that wait for a fuller batch, and until when."""

    due: dict[tuple[str, str], Instant] = field(default_factory=dict)

    def over(self, now: Instant) -> list[str]:
        return [model for (model, _), due in self.due.items() if due <= now]

    def next(self, now: Instant) -> Instant:
        self.due = {key: due for key, due in self.due.items() if due > now}
        return min(self.due.values(), default=NEVER)


class Clipper:
    """`sizing` makes the batchers; `wait` is how long a replica may wait for a full batch (2 ms in one of the paper's)."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        sizing: Callable[[], MakeSizing] = lambda: Aimd,
        wait: Duration = 0,
    ) -> None:
        self._problem = problem
        self._wait = wait
        self._waits = _Waits()
        make = sizing()
        self._replicas: dict[GpuletId, dict[str, _Replica]] = {}
        for gpulet in plan.gpulets:
            curves = {name: self._curve(gpulet, name) for name in gpulet.models}
            sizings = {name: make(problem.models[name].slo, curve) for name, curve in curves.items()}
            self._replicas[gpulet.id] = {name: _Replica(gpulet, name, sizing) for name, sizing in sizings.items()}
        self._hosts = {name: plan.hosts(name) for name in problem.models}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits in its model's queue; what no replica can run at once is refused."""
        hosts = self._hosts[request.model]
        largest = max((self._measured(g, request.model, request.shape) for g in hosts), default=0)
        return CENTRAL if request.rows <= largest else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Learn from what has ended; start one batch and be asked again, or say when a batch will not wait any longer."""
        for gpulet in changed.gpulets:
            self._learn(now, gpulet)
        for gpulet in self._touched(now, changed, fleet):
            found = min(self._waiting(gpulet, fleet), key=lambda found: found[0].arrival, default=None)
            run = found and self._run(now, gpulet, *found)
            if run:
                return Decision([run], more=True)
        return Decision(wake_at=self._waits.next(now))

    def _learn(self, now: Instant, gpulet: GpuletState) -> None:
        """A batch that its worker took down with it tells nothing."""
        for replica in self._replicas[gpulet.id].values():
            if replica.rows and not gpulet.running:
                if gpulet.is_up:
                    replica.sizing.add(replica.rows, now - replica.since, is_full=replica.is_full)
                replica.rows = 0

    def _touched(self, now: Instant, changed: Changed, fleet: Fleet) -> list[GpuletState]:
        names = [*(queue.model for queue in changed.queues if queue), *self._waits.over(now)]
        ids = dict.fromkeys(g.id for g in changed.gpulets) | dict.fromkeys(g.id for n in names for g in self._hosts[n])
        return [fleet.gpulets[g] for g in ids if fleet.gpulets[g].is_idle]

    def _waiting(self, gpulet: GpuletState, fleet: Fleet) -> Iterator[tuple[Request, Queue]]:
        """The first request of each queue that this replica can run at once."""
        for model in gpulet.planned.models:
            for queue in fleet.central(model):
                largest = self._measured(gpulet.planned, model, queue.shape)
                first = next((request for request in queue if request.rows <= largest), None)
                if first is not None:
                    yield first, queue

    def _run(self, now: Instant, gpulet: GpuletState, first: Request, queue: Queue) -> Run | None:
        """As many rows as the batcher says, unless there may be more of them soon."""
        planned, replica = gpulet.planned, self._replicas[gpulet.id][queue.model]
        limit = min(replica.sizing.limit(first.deadline - now), self._most(planned, queue.model, queue.shape))
        requests = queue.take(max(limit, first.rows)) if first is queue.head else [first]
        rows = sum(request.rows for request in requests)
        replica.is_full = rows >= limit or len(requests) < len(queue)
        if not replica.is_full and now < first.arrival + self._wait:
            self._waits.due[queue.model, queue.shape] = first.arrival + self._wait
            return None
        replica.rows, replica.since = rows, now
        curve = self._problem.profile.curve(queue.model, planned.size.sms, queue.shape, planned.processes)
        return Run(gpulet.id, requests, curve[rows - 1])

    def _curve(self, gpulet: Gpulet, model: str) -> Curve:
        curve = self._problem.profile.curve(model, gpulet.size.sms, PLAIN, gpulet.processes)
        return curve[: self._problem.models[model].max_batch]

    def _measured(self, gpulet: Gpulet, model: str, shape: str) -> int:
        return self._problem.profile.max_batch(model, gpulet.size.sms, shape, gpulet.processes)

    def _most(self, gpulet: Gpulet, model: str, shape: str) -> int:
        return min(self._problem.models[model].max_batch, self._measured(gpulet, model, shape))
