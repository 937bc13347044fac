"""One device under D-STACK's dispatcher: its session, who runs, and what may start."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

from gpulet.core.fleet import Queue
from gpulet.core.messages import Carve
from gpulet.core.ports import Run
from gpulet.device import Device
from gpulet.dispatchers.dstack.tenant import Scores, Tenant, prefix, timely
from gpulet.plan import TimelineRun
from gpulet.profile import Curve
from gpulet.request import Request
from gpulet.units import NEVER, Duration, Instant

JITTER = 50
"""Clocks and runs may be late by this part of a session before exact fits come apart: a live server's by 0.2 to 2 ms."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """What a session still plans behind its first `place` runs: each start, the SMs planned then, each model's next."""

    starts: tuple[Duration, ...]
    used: tuple[int, ...]
    own: dict[str, Duration]


class Board:
    """One device: its session, who runs, what is planned next. `late` are planned runs that could not start yet."""

    def __init__(self, device: Device, runs: tuple[TimelineRun, ...], period: Duration, tenants: list[Tenant]) -> None:
        self.device = device.index
        self._sms = device.kind.sms
        self.tenants = {tenant.model: tenant for tenant in tenants}
        self._runs = tuple(sorted(runs, key=lambda run: run.start))
        self._ahead = [_ahead(self._runs[place:]) for place in range(len(runs) + 1)]
        self._period = period
        self._scores = Scores(self.tenants)
        self._session = 0
        self._place = 0
        self._late: dict[str, TimelineRun] = {}
        self._room: list[int] = []
        """SMs free at each start ahead; empty until somebody asks."""
        self._free = 0
        self._lag: Duration = 0
        """How much later than expected this decision comes, so much later its runs may end."""

    @property
    def next_start(self) -> Instant:
        """When the next planned run begins."""
        if not self._runs:
            return NEVER
        if self._place < len(self._runs):
            return self._session * self._period + self._runs[self._place].start
        return (self._session + 1) * self._period + self._runs[0].start

    def least(self, request: Request) -> Duration:
        """How long the request takes by itself at its knee; never where no batch of a model here holds it."""
        tenant = self.tenants.get(request.model)
        curve = tenant.curve(tenant.sizes[0], request.shape) if tenant else ()
        return curve[request.rows - 1] if request.rows <= len(curve) else NEVER

    def end(self, now: Instant, model: str) -> None:
        """The model's run here is over."""
        self.foresaw(now, self.tenants[model].until)
        self.tenants[model].until = 0

    def foresaw(self, now: Instant, instant: Instant) -> None:
        """What happens now was expected at that instant."""
        self._lag = max(self._lag, min(now - instant, self._period // JITTER))

    def starts(self, now: Instant, free: int, grown: set[str] | None, queues: dict[str, list[Queue]]) -> Iterator[Run]:
        """Planned runs that are due, then extra runs; `grown` are the only models to look at, where nothing else changed."""
        is_due = self._advance(now)
        self._free = free
        if not queues or not free:
            self._forget(queues)
            self._lag = 0
            return
        self._room = []
        if self._late:
            yield from self._planned(now, queues)
            self._keep_clear(now)
        yield from self._extra(now, queues if is_due or grown is None else queues.keys() & grown, queues)
        self._lag = 0

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
        for run in sorted(self._late.values(), key=attrgetter("start"), reverse=True):
            tenant, queue = self.tenants[run.model], _oldest(queues[run.model])
            if queue is None:
                continue
            curve, allowed = tenant.curve(run.size.sms, queue.shape), self._hole(now, run.size.sms)
            requests = timely(now, curve, run.batch, queue, allowed) or prefix(
                curve, run.batch, queue, min(allowed, queue.head.deadline - now)
            )
            if requests and (tenant.until or run.size.sms > self._free):
                continue
            del self._late[run.model]
            if requests:
                yield self._start(now, tenant, requests, run.size.sms, curve)

    def _keep_clear(self, now: Instant) -> None:
        """No extra run takes the SMs that planned runs still wait for: those of whoever is about to end."""
        held = sum([tenant.on for tenant in self.tenants.values() if tenant.until > now])
        for run in self._late.values():
            self._look_ahead()
            held += run.size.sms
            self._take(now + run.length, run.size.sms)
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

    def _squeezed(self, now: Instant, tenant: Tenant, queue: Queue) -> Iterator[Run]:
        own = self._ahead[self._place].own.get(tenant.model)
        head = queue.head
        allowed = head.deadline - now
        if own is not None:
            allowed = min(allowed, self._session * self._period + own - now + self._lag)
        for sms, curve in tenant.options(head.shape):
            if sms <= self._free:
                if head.rows > len(curve) or curve[head.rows - 1] > allowed:
                    return  # and smaller sizes are slower
                requests = prefix(curve, tenant.batch, queue, min(allowed, self._hole(now, sms)))
                if requests:
                    yield self._start(now, tenant, requests, sms, curve)
                    return

    def _hole(self, now: Instant, sms: int) -> Duration:
        """How long so many SMs stay free of planned and running batches, at most until the session ends."""
        if not self._runs:
            return NEVER
        self._look_ahead()
        base = self._session * self._period - now + self._lag
        for place, room in enumerate(self._room):
            if room < sms:
                return base + self._ahead[self._place].starts[place]
        return base + self._period

    def _look_ahead(self) -> None:
        """Count once a decision what is free at the planned starts to come."""
        if self._room:
            return
        held = [tenant for tenant in self.tenants.values() if tenant.until]
        sms = self._free + sum([tenant.on for tenant in held])
        self._room = [sms - used for used in self._ahead[self._place].used]
        for tenant in held:
            self._take(tenant.until, tenant.on)

    def _take(self, until: Instant, sms: int) -> None:
        """So many SMs are somebody's until then."""
        starts = self._ahead[self._place].starts
        before = bisect_left(starts, until - self._session * self._period)
        self._room[:before] = [room - sms for room in self._room[:before]]

    def _start(self, now: Instant, tenant: Tenant, requests: list[Request], sms: int, curve: Curve) -> Run:
        expected = curve[sum([request.rows for request in requests]) - 1]
        tenant.until, tenant.on = now + expected - self._lag, sms
        self._free -= sms
        self._take(tenant.until, sms)
        self._scores.add(tenant.model, sms * expected)
        return Run(Carve(self.device, sms), requests, expected)


def _oldest(queues: list[Queue]) -> Queue | None:
    """Of a model's shape classes, the one whose head has waited longest."""
    if len(queues) == 1:
        return queues[0]
    return min(queues, key=lambda queue: queue.head.arrival, default=None)


def _ahead(runs: tuple[TimelineRun, ...]) -> _Ahead:
    used = [sum(r.size.sms for r in runs[: n + 1] if r.start + r.length > run.start) for n, run in enumerate(runs)]
    return _Ahead(tuple(run.start for run in runs), tuple(used), {run.model: run.start for run in reversed(runs)})
