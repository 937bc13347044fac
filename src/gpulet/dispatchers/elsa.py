"""The smallest gpulet that is predicted to be in time, chosen on arrival (PARIS and ELSA, Kim et al., DAC 2022: ELSA).

Every gpulet has a queue of its own and runs one request at a time, in order of arrival; nothing moves once it is queued.
What a request would wait at a gpulet is what is left of the gpulet's run plus the estimates of all that is queued there,
and slack = (deadline - now) - alpha * (wait + beta * estimate). Sizes ascending, the gpulet of the size with the smallest
wait gets the request if its slack is above 0; if no size has slack, the gpulet that would answer it first does.

Written from a summary, not from the paper's text. Recalled of the paper: queues, estimator, slack, both steps. Inferred:
alpha = beta = 1; the choice within a size (`Within`); ties, which go to the smaller size; that a run has never less than
nothing left; that a request's age counts. `learns` is a suggested extension: the weight of a measured run in a factor
on the profile's latency by model and size; what is queued keeps the estimate with which it was queued.

Departures: a gpulet that is down gets nothing while another is up that could run the request. Urgent requests overtake
in the queue, as the core has it, but an estimate counts all that waits. Decisions of one step know of gpulets that have
gone down in it, but not of runs that ended in it sooner than predicted.

A decision looks at each size's first gpulets, not at all (`_Pool`); only `Within.FIRST_FIT` goes over a size's gpulets.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from heapq import heapify, heappop, heappush, heapreplace
from itertools import groupby
from typing import TypeAlias

from gpulet.core.fleet import Fleet, GpuletState, Queue
from gpulet.core.messages import Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.units import NEVER, Duration, Instant

BOUNDS = (0.5, 2.0)
"""Of one measured run, against its profile, in the learned factor: a profile that is further off is to be measured again."""


class Rule(StrEnum):
    """`SLACK` is ELSA; `SOONEST` its second step alone; `LEAST_WORK` goes to the smallest wait, whatever the size."""

    SLACK = "slack"
    SOONEST = "soonest"
    LEAST_WORK = "least work"


class Within(StrEnum):
    """Which gpulet of a size: the one with the smallest wait, or the first of the plan that has slack."""

    MIN_WAIT = "min wait"
    FIRST_FIT = "first fit"


class _Host:
    """One gpulet as it is predicted: `waiting` has the estimates of what is queued, `work` their sum, `rows` their rows.

    It runs `run` since `since`, until `until` by prediction. In its pools' heaps only entries with its `serial` are
    valid; `is_stale` says that they may be too late, or not there.
    """

    __slots__ = ("gpulet", "is_stale", "pools", "rows", "run", "serial", "since", "until", "waiting", "work")

    def __init__(self, gpulet: GpuletId) -> None:
        self.gpulet = gpulet
        self.pools: dict[str, _Pool] = {}
        self.waiting: dict[RequestId, Duration] = {}
        self.work: Duration = 0
        self.rows = 0
        self.run: Request | None = None
        self.since: Instant = 0
        self.until: Instant = 0
        self.serial = 0
        self.is_stale = True

    def take(self, request: Request, estimate: Duration) -> GpuletId:
        """The request is queued here."""
        self.waiting[request.id] = estimate
        self.work += estimate
        self.rows += request.rows
        return self.gpulet

    def start(self, now: Instant, request: Request) -> Duration:
        """The request is started here; its estimate."""
        estimate = self.waiting.pop(request.id)
        self.work -= estimate
        self.rows -= request.rows
        self.run, self.since, self.until = request, now, now + estimate
        return estimate

    def wait(self, now: Instant, state: GpuletState) -> Duration:
        """What a request that came now would wait."""
        return self.work + max(0, self.until - now) if state.running else self.work


_Entry: TypeAlias = tuple[int, int, _Host]
"""A key, the serial it was made with, and whose it is."""
_IDLE = -1
"""The key of a gpulet that neither runs nor has anything to run: before any that runs on beyond its prediction."""


class _Pool:
    """The gpulets of one size, shared by as many `processes`, that host one model; `factor` is measured over profiled latency, as learned.

    `due` has those whose predicted end is to come, by the instant at which they would be through with what they have;
    `ready` the others, idle or later than predicted, by what they have: that does not shrink as time passes. A key may be
    too small, since work that was added is noticed when the entry is first, but never too large: what makes a gpulet free
    sooner makes a new entry. Each run thus costs a few heap operations, however many gpulets there are.
    """

    __slots__ = ("_profile", "due", "factor", "hosts", "model", "most", "processes", "ready", "size")

    def __init__(self, profile: Profile, model: str, cut: tuple[int, int], hosts: Sequence[_Host]) -> None:
        self._profile = profile
        self.model = model
        self.size, self.processes = cut
        self.hosts = hosts
        self.factor = 1.0
        self.due: list[_Entry] = []
        self.ready: list[_Entry] = []
        self.most = 16 + 4 * len(hosts)

    def latency(self, rows: int, shape: str) -> Duration:
        """By the profile; 0 where so many rows do not fit."""
        curve = self._profile.curve(self.model, self.size, shape, self.processes)
        return curve[rows - 1] if rows <= len(curve) else 0

    def estimate(self, latency: Duration) -> Duration:
        """A profiled latency, corrected by what was learned."""
        return latency if self.factor == 1 else round(latency * self.factor)

    def soonest(self, now: Instant, gpulets: Mapping[GpuletId, GpuletState]) -> tuple[Duration, _Host] | None:
        """The smallest wait of those that are up, and whose it is."""
        due = self._first_due(now, gpulets)
        ready = self._first_ready(gpulets)
        if ready is None:
            return due and (due[0] - now, due[2])
        wait = ready[2].work
        return (wait, ready[2]) if due is None or wait <= due[0] - now else (due[0] - now, due[2])

    def _first_due(self, now: Instant, gpulets: Mapping[GpuletId, GpuletState]) -> _Entry | None:
        """Of those that run and are not late; others, down ones too, go to `ready`."""
        heap = self.due
        while heap:
            entry = free, serial, host = heap[0]
            if serial != host.serial:
                heappop(heap)
            elif host.until <= now or not gpulets[host.gpulet].running:
                heappop(heap)
                self.add(self.ready, (host.work or _IDLE, serial, host))
                host.is_stale = True
            elif free < host.until + host.work:
                heapreplace(heap, (host.until + host.work, serial, host))
            else:
                return entry
        return None

    def _first_ready(self, gpulets: Mapping[GpuletId, GpuletState]) -> _Entry | None:
        heap = self.ready
        while heap:
            entry = key, serial, host = heap[0]
            state = gpulets[host.gpulet]
            if serial != host.serial or not state.is_up:
                heappop(heap)
            elif key < host.work or (key == _IDLE and state.running):
                heapreplace(heap, (host.work, serial, host))
            else:
                return entry
        return None

    def add(self, heap: list[_Entry], entry: _Entry) -> None:
        """Add to one of the heaps; when most of it may be void, clear it out."""
        heappush(heap, entry)
        if len(heap) > self.most:
            heap[:] = [e for e in heap if e[1] == e[2].serial]
            heapify(heap)


_Rung: TypeAlias = tuple[_Pool, Duration]
_NOTHING = Decision()


class Elsa:
    """Binds each request on arrival to the smallest gpulet with slack. Its estimates are `Start.expected`."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        within: Within = Within.MIN_WAIT,
        rule: Rule = Rule.SLACK,
        learns: float = 0.0,
    ) -> None:
        self._alpha = alpha
        self._beta = beta
        self._is_first_fit = within is Within.FIRST_FIT
        self._has_slack_rule = rule is Rule.SLACK
        self._own = 0 if rule is Rule.LEAST_WORK else 1
        self._learns = learns
        self._hosts = {g.id: _Host(g.id) for g in plan.gpulets}
        self._pools = {name: self._pools_of(problem.profile, name, plan) for name in problem.models}
        self._rungs: dict[str, dict[tuple[int, str], list[_Rung]]] = {name: {} for name in problem.models}
        self._serial = 0

    def _pools_of(self, profile: Profile, model: str, plan: Plan) -> list[_Pool]:
        """Ascending by size; each of their gpulets is told of them."""
        pools = []
        for cut, gpulets in groupby(sorted(plan.hosts(model), key=_cut), key=_cut):
            pool = _Pool(profile, model, cut, [self._hosts[g.id] for g in gpulets])
            for host in pool.hosts:
                host.pools[model] = pool
            pools.append(pool)
        return pools

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """The smallest gpulet with slack, else the one that would answer first."""
        rungs = self._rungs[request.model].get((request.rows, request.shape))
        if rungs is None:
            rungs = self._find_rungs(request)
        left, gpulets = request.deadline - now, fleet.gpulets
        least, chosen = NEVER, None
        for pool, latency in rungs:
            soonest = pool.soonest(now, gpulets)
            if soonest is not None:
                wait, host = soonest
                estimate = pool.estimate(latency)
                if self._has_slack_rule and self._slack(left, wait, estimate) > 0:
                    host = self._first_fit(now, pool, left, estimate, fleet) if self._is_first_fit else host
                    return host.take(request, estimate)
                if wait + self._own * estimate < least:
                    least, chosen = wait + self._own * estimate, (host, estimate)
        return chosen[0].take(request, chosen[1]) if chosen else self._bind_down(request, rungs, fleet)

    def _find_rungs(self, request: Request) -> list[_Rung]:
        """The sizes that can run so many rows, ascending, with their latencies."""
        latencies = [(pool, pool.latency(request.rows, request.shape)) for pool in self._pools[request.model]]
        rungs = [(pool, latency) for pool, latency in latencies if latency]
        self._rungs[request.model][request.rows, request.shape] = rungs
        return rungs

    def _slack(self, left: Duration, wait: Duration, estimate: Duration) -> float:
        """Exact for the default factors: these are whole numbers below 2 ** 53."""
        return left - self._alpha * (wait + self._beta * estimate)

    def _first_fit(self, now: Instant, pool: _Pool, left: Duration, estimate: Duration, fleet: Fleet) -> _Host:
        """The first gpulet of the plan that has slack; one has."""
        up = ((host, fleet.gpulets[host.gpulet]) for host in pool.hosts)
        waits = ((host, host.wait(now, state)) for host, state in up if state.is_up)
        return next(host for host, wait in waits if self._slack(left, wait, estimate) > 0)

    def _bind_down(self, request: Request, rungs: Sequence[_Rung], fleet: Fleet) -> Place:
        """None was known to be up: one that came up in this very step, else that which will have the least to do."""
        if not rungs:
            return Reason.TOO_LARGE
        hosts = [(host, pool.estimate(latency)) for pool, latency in rungs for host in pool.hosts]
        host, estimate = min(hosts, key=lambda h: (not fleet.gpulets[h[0].gpulet].is_up, h[0].work + h[1]))
        return host.take(request, estimate)

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start the heads of idle gpulets' queues, each alone."""
        touched: dict[GpuletId, _Host] = {}
        for gpulet in changed.gpulets:
            if not gpulet.running:
                host = touched[gpulet.id] = self._hosts[gpulet.id]
                self._end(now, host, gpulet, fleet)
        for queue in changed.queues:
            assert isinstance(queue.owner, int), "nothing waits centrally"
            host = touched[queue.owner] = self._hosts[queue.owner]
            if queue.rows != host.rows:
                self._recount(host, queue)
        runs = []
        for place, host in touched.items():
            gpulet = fleet.gpulets[place]
            if host.rows and gpulet.is_idle:
                request = gpulet.queue.head
                runs.append(Run(place, (request,), host.start(now, request)))
            if host.is_stale:
                self._place(now, host, gpulet)
        return Decision(runs) if runs else _NOTHING

    def _end(self, now: Instant, host: _Host, gpulet: GpuletState, fleet: Fleet) -> None:
        """Its run is over, or it has come up. A lost run's request may wait again, and then at the front."""
        run, host.run = host.run, None
        if run is None or now < host.until:
            host.is_stale = True
        if run is not None and run.id in fleet.waiting:
            self._recount(host, gpulet.queue)
        elif run is not None and gpulet.is_up and self._learns:
            self._learn(host.pools[run.model], run, now - host.since)
        host.until = now

    def _recount(self, host: _Host, queue: Queue) -> None:
        """What was queued has been given up, or what ran waits again: estimates of what is there now."""
        host.waiting = {r.id: host.waiting.get(r.id) or self._estimate(host.pools[r.model], r) for r in queue}
        host.work = sum(host.waiting.values())
        host.rows = queue.rows
        host.is_stale = True

    def _estimate(self, pool: _Pool, request: Request) -> Duration:
        return pool.estimate(pool.latency(request.rows, request.shape))

    def _learn(self, pool: _Pool, run: Request, took: Duration) -> None:
        """A failed run counts as any other; the bounds keep it from counting for much."""
        low, high = BOUNDS
        measured = min(max(took / pool.latency(run.rows, run.shape), low), high)
        pool.factor += self._learns * (measured - pool.factor)

    def _place(self, now: Instant, host: _Host, gpulet: GpuletState) -> None:
        """Make the entries anew: where it runs they hold until it ends, and where it is idle until it starts."""
        self._serial = host.serial = self._serial + 1
        if not gpulet.is_up:
            return
        host.is_stale = host.run is None
        for pool in host.pools.values():
            if host.run is None:
                pool.add(pool.ready, (host.work or _IDLE, host.serial, host))
            else:
                pool.add(pool.due, (max(now, host.until) + host.work, host.serial, host))


def _cut(gpulet: Gpulet) -> tuple[int, int]:
    return gpulet.size.sms, gpulet.processes
