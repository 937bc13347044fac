"""The session plan and the opportunistic pass of D-STACK (Dhakal, Kulkarni and Ramakrishnan, IEEE TCC 2024).

Pass 1: each device repeats its timeline (planners/dstack.py); at a planned start the model runs what waits, up to the
planned batch. Pass 2: whatever is free then goes to models that wait and do not run there, the least served first: the
scoreboard counts what each took in the last ten sessions, of equals the tighter SLO goes first. Such a run may be smaller
than the knee where only that is free; it must be over before a planned run needs its SMs, before the model's own next
planned start, before its oldest request is due, and before the session ends.

What the paper leaves open is ours. The scoreboard counts area, SMs times predicted time, where the paper speaks of
runtime. A share below the knee is at least half of it. A planned run whose queue is empty is given up at once: what
comes later goes through pass 2. A planned run that finds its SMs or its model still busy goes before pass 2 until the
model's next one, with as many rows as fit without delaying another planned run. Requests that a full
batch would make late are passed over by a planned run, rather than that it shrinks for their sake. A request that could not be in time even
if it started now at its knee is dropped. A model that the plan does not mention runs by pass 2 alone, at its point of
highest efficacy.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Carve, Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.efficacy import points_of, sizes_of, within
from gpulet.model import Model
from gpulet.plan import Plan, TimelineRun
from gpulet.profile import Curve, Profile
from gpulet.request import Request
from gpulet.units import NEVER, Duration, Instant

SESSIONS = 10
"""How far back the scoreboard looks."""


class _Tenant:
    """One model on one device: its sizes from the knee down to half of it, its batch, its latencies.

    `until` is when its run is predicted to end, 0 when it does not run.
    """

    __slots__ = ("_curves", "_profile", "batch", "model", "on", "sizes", "slo", "until")

    def __init__(self, model: Model, sizes: tuple[int, ...], batch: int, profile: Profile) -> None:
        self.model = model.name
        self.slo = model.slo
        self.sizes = sizes
        self.batch = batch
        self.until: Instant = 0
        self.on = 0
        self._profile = profile
        self._curves: dict[tuple[int, str], Curve] = {}

    def curve(self, sms: int, shape: str) -> Curve:
        found = self._curves.get((sms, shape))
        if found is None:
            found = self._curves[sms, shape] = self._profile.curve(self.model, sms, shape)
        return found

    def least(self, sms: int, head: Request) -> Duration:
        """How long the first request takes by itself; never where no batch holds it."""
        curve = self.curve(sms, head.shape)
        return curve[head.rows - 1] if head.rows <= len(curve) else NEVER

    def prefix(self, now: Instant, sms: int, batch: int, queue: Queue, allowed: Duration) -> list[Request]:
        """As many from the front as are over in the time allowed and before the first is due.

        The first goes even beyond the batch. None where not even it fits.
        """
        head = queue.head
        most = bisect_right(self.curve(sms, queue.shape), min(allowed, head.deadline - now))
        return queue.take(max(head.rows, min(most, batch))) if most >= head.rows else []

    def timely(self, now: Instant, run: TimelineRun, queue: Queue, allowed: Duration) -> list[Request]:
        """As many as a planned run holds in the time allowed, but for those that such a batch would make late."""
        curve = self.curve(run.size.sms, queue.shape)
        most = min(run.batch, queue.rows, bisect_right(curve, allowed))
        if not most:
            return []
        end = now + curve[most - 1]
        if queue.head.deadline >= end:
            return queue.take(most)
        return _first([request for request in queue if request.deadline >= end], most)


class _Scores:
    """SM-nanoseconds of each model in the last sessions."""

    __slots__ = ("_session", "_sessions", "total")

    def __init__(self, names: Iterable[str]) -> None:
        self.total = dict.fromkeys(names, 0)
        self._sessions: deque[dict[str, int]] = deque([{}])
        self._session = 0

    def add(self, model: str, area: int) -> None:
        self.total[model] += area
        this = self._sessions[-1]
        this[model] = this.get(model, 0) + area

    def advance(self, session: int) -> None:
        """Forget what is too long ago."""
        for _ in range(min(session - self._session, SESSIONS)):
            self._sessions.append({})
            if len(self._sessions) > SESSIONS:
                for model, area in self._sessions.popleft().items():
                    self.total[model] -= area
        self._session = session


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a session still plans behind its first `place` runs: SMs planned at each start, and each model's next start."""

    used: tuple[tuple[Duration, int], ...]
    starts: dict[str, Duration]


class _Board:
    """One device: its session, who runs, what is planned next. `late` are planned runs that could not start yet."""

    def __init__(self, device: Device, runs: tuple[TimelineRun, ...], period: Duration, tenants: list[_Tenant]) -> None:
        self.device = device.index
        self._sms = device.kind.sms
        self.tenants = {tenant.model: tenant for tenant in tenants}
        self._runs = tuple(sorted(runs, key=lambda run: run.start))
        self._ahead = [_ahead(self._runs[place:]) for place in range(len(runs) + 1)]
        self._period = period
        self._scores = _Scores(self.tenants)
        self._session = 0
        self._place = 0
        self._late: dict[str, TimelineRun] = {}
        self._room: list[list[int]] = []
        self._free = 0

    @property
    def next_start(self) -> Instant:
        """When the next planned run begins."""
        if not self._runs:
            return NEVER
        if self._place < len(self._runs):
            return self._session * self._period + self._runs[self._place].start
        return (self._session + 1) * self._period + self._runs[0].start

    def end(self, model: str) -> None:
        """The model's run here is over."""
        self.tenants[model].until = 0

    def starts(self, now: Instant, free: int, grown: set[str] | None, queues: dict[str, list[Queue]]) -> Iterator[Run]:
        """Planned runs that are due, then extra runs; `grown` are the only models to look at, where nothing else changed."""
        is_due = self._advance(now)
        self._free = free
        if not queues or not free:
            self._forget(queues)
            return
        self._room = []
        if self._late:
            yield from self._planned(now, queues)
            self._keep_clear(now)
        yield from self._extra(now, queues if is_due or grown is None else queues.keys() & grown, queues)

    def _advance(self, now: Instant) -> bool:
        """Take up the planned runs that are due; whether there are any."""
        session = now // self._period
        if session != self._session:
            self._session, self._place = session, 0
            self._late.clear()
            self._scores.advance(session)
        phase, place = now - session * self._period, self._place
        runs = self._runs
        while place < len(runs) and runs[place].start <= phase:
            if phase < runs[place].start + runs[place].length:
                self._late[runs[place].model] = runs[place]
            place += 1
        is_due, self._place = place > self._place, place
        return is_due

    def _forget(self, queues: dict[str, list[Queue]]) -> None:
        """A planned run whose queue is empty is given up at once."""
        for name in [name for name in self._late if name not in queues]:
            del self._late[name]

    def _planned(self, now: Instant, queues: dict[str, list[Queue]]) -> Iterator[Run]:
        """In the order of their planned starts from the last one back: who is in time goes before who is late."""
        self._forget(queues)
        for name, run in sorted(self._late.items(), key=lambda item: -item[1].start):
            tenant, queue = self.tenants[name], _oldest(queues[name])
            if queue is None:
                continue
            allowed = self._hole(now, run.size.sms)
            requests = tenant.timely(now, run, queue, allowed) or tenant.prefix(
                now, run.size.sms, run.batch, queue, allowed
            )
            if requests and (tenant.until or run.size.sms > self._free):
                continue
            del self._late[name]
            if requests:
                yield self._start(now, tenant, requests, run.size.sms)

    def _keep_clear(self, now: Instant) -> None:
        """No extra run takes the SMs that planned runs still wait for: those of whoever is about to end."""
        held = sum([tenant.on for tenant in self.tenants.values() if tenant.until > now])
        for run in self._late.values():
            if not self._room:
                self._room = self._look_ahead()
            held += run.size.sms
            for entry in self._room:
                if entry[0] < now + run.length:
                    entry[1] -= run.size.sms
        self._free = max(0, min(self._free, self._sms - held))

    def _extra(self, now: Instant, names: Iterable[str], queues: dict[str, list[Queue]]) -> Iterator[Run]:
        """The least served first, at the largest size that fits."""
        total = self._scores.total
        waiting = [t for t in map(self.tenants.get, names) if t and not t.until and t.sizes[-1] <= self._free]
        if len(waiting) > 1:
            waiting.sort(key=lambda tenant: (total[tenant.model], tenant.slo, tenant.model))
        for tenant in waiting:
            queue = _oldest(queues[tenant.model])
            if queue is not None and not tenant.until:
                yield from self._squeezed(now, tenant, queue)

    def _squeezed(self, now: Instant, tenant: _Tenant, queue: Queue) -> Iterator[Run]:
        own = self._ahead[self._place].starts.get(tenant.model)
        head = queue.head
        allowed = head.deadline - now
        if own is not None:
            allowed = min(allowed, self._session * self._period + own - now)
        for sms in tenant.sizes:
            if sms <= self._free:
                if tenant.least(sms, head) > allowed:
                    return  # and smaller sizes are slower
                requests = tenant.prefix(now, sms, tenant.batch, queue, min(allowed, self._hole(now, sms)))
                if requests:
                    yield self._start(now, tenant, requests, sms)
                    return

    def _hole(self, now: Instant, sms: int) -> Duration:
        """How long so many SMs stay free of planned and running batches, at most until the session ends."""
        if not self._runs:
            return NEVER
        if not self._room:
            self._room = self._look_ahead()
        for start, room in self._room:
            if room < sms:
                return start - now
        return (self._session + 1) * self._period - now

    def _look_ahead(self) -> list[list[int]]:
        """Instants of the planned starts to come, each with the SMs that are then free."""
        base = self._session * self._period
        held = [(tenant.until, tenant.on) for tenant in self.tenants.values() if tenant.until]
        sms = self._free + sum(on for _, on in held)
        return [
            [base + start, sms - used - sum([on for until, on in held if until > base + start])]
            for start, used in self._ahead[self._place].used
        ]

    def _start(self, now: Instant, tenant: _Tenant, requests: list[Request], sms: int) -> Run:
        expected = tenant.curve(sms, requests[0].shape)[sum([request.rows for request in requests]) - 1]
        tenant.until, tenant.on = now + expected, sms
        self._free -= sms
        for entry in self._room:
            if entry[0] < tenant.until:
                entry[1] -= sms
        self._scores.add(tenant.model, sms * expected)
        return Run(Carve(self.device, sms), requests, expected)


class Dstack:
    """Serves a plan's timelines and fills what they leave free."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._boards = [_board(problem, plan, device) for device in plan.devices]
        self._runs: dict[RequestId, tuple[_Board, str]] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no device holds in one batch is refused."""
        if request.rows > 1 and not any(self._holds(board, request) for board in self._boards):
            return Reason.TOO_LARGE
        return CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Drop what is hopeless; else start what is due, and what fits beside it."""
        for requests in changed.ended:
            board, model = self._runs.pop(requests[0].id, (None, ""))
            if board is not None:
                board.end(model)
        grown = None if changed.ended or changed.alarm or changed.devices else {q.model for q in changed.queues}
        queues = _waiting(fleet)
        hopeless = self._hopeless(now, queues if grown is None else {n: queues[n] for n in grown if n in queues})
        if hopeless:
            return Decision(drop=hopeless, more=True)
        starts: list[Run] = []
        for board in self._boards:
            for run in board.starts(now, fleet.devices[board.device].free_sms, grown, queues):
                first = run.requests[0]
                self._runs[first.id] = (board, first.model)
                queues[first.model] = [q for q in queues[first.model] if q.shape != first.shape]
                starts.append(run)
        is_more = bool(starts) and len(self._boards) > 1
        is_waiting = len(fleet.waiting) > sum(len(run.requests) for run in starts)
        wake_at = min(board.next_start for board in self._boards) if is_waiting else NEVER
        return Decision(starts, wake_at=wake_at, more=is_more)

    def _holds(self, board: _Board, request: Request) -> bool:
        tenant = board.tenants.get(request.model)
        return tenant is not None and request.rows <= len(tenant.curve(tenant.sizes[0], request.shape))

    def _hopeless(self, now: Instant, queues: dict[str, list[Queue]]) -> list[Request]:
        """Heads, and those right behind them, that are late even if they start now at their knee on any device."""
        return [request for some in queues.values() for queue in some for request in self._late_heads(now, queue)]

    def _late_heads(self, now: Instant, queue: Queue) -> Iterator[Request]:
        curves = [t.curve(t.sizes[0], queue.shape) for t in (b.tenants.get(queue.model) for b in self._boards) if t]
        for request in queue:
            rows = request.rows
            if any(rows <= len(curve) and now + curve[rows - 1] <= request.deadline for curve in curves):
                return
            yield request


def _waiting(fleet: Fleet) -> dict[str, list[Queue]]:
    """The queues that hold anything, by model."""
    waiting: dict[str, list[Queue]] = {}
    for name, shapes in fleet.queues.items():
        some = [queue for queue in shapes.values() if queue]
        if some:
            waiting[name] = some
    return waiting


def _first(requests: list[Request], most: int) -> list[Request]:
    """The longest prefix within so many rows."""
    rows = list(accumulate(request.rows for request in requests))
    return requests[: bisect_right(rows, most)]


def _oldest(queues: list[Queue]) -> Queue | None:
    """Of a model's shape classes, the one whose head has waited longest."""
    if len(queues) == 1:
        return queues[0]
    return min(queues, key=lambda queue: queue.head.arrival, default=None)


def _ahead(runs: tuple[TimelineRun, ...]) -> _Ahead:
    used = [sum(r.size.sms for r in runs[: n + 1] if r.start + r.length > run.start) for n, run in enumerate(runs)]
    starts = {run.model: run.start for run in reversed(runs)}
    return _Ahead(tuple(zip((run.start for run in runs), used, strict=True)), starts)


def _board(problem: Problem, plan: Plan, device: Device) -> _Board:
    line = next((line for line in plan.timelines if line.device == device.index), None)
    runs = line.runs if line else ()
    here = {r.model for r in plan.residents if r.device == device.index} if plan.residents else problem.models.keys()
    models = [model for name, model in problem.models.items() if name in here]
    tenants = [_tenant(problem, device, model, [run for run in runs if run.model == model.name]) for model in models]
    period = line.period if line else max((model.slo for model in models), default=NEVER)
    return _Board(device, runs, period, tenants)


def _tenant(problem: Problem, device: Device, model: Model, runs: list[TimelineRun]) -> _Tenant:
    """As planned; else at its best point, or on the largest size where none keeps its objective."""
    offered = sizes_of(problem.profile, model.name, device)
    if runs:
        knee, batch = runs[0].size.sms, runs[0].batch
    else:
        best = next(within(points_of(problem.profile, model.name, offered), model), None)
        knee, batch = (best.size.sms, best.batch) if best else (offered[-1].sms, model.max_batch)
    sizes = sorted({knee, *(size.sms for size in offered if knee <= 2 * size.sms <= 2 * knee)}, reverse=True)
    return _Tenant(model, tuple(sizes), batch, problem.profile)
