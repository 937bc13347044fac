"""Choosing who runs beside whom at every event: three baselines of D-STACK (Dhakal et al., TCC 2024, evaluation).

Every model runs one batch at a time at its knee. Whenever SMs are free, `Rule.MAX_THROUGHPUT` starts the set of models
with work that fits and gives most rows per second, which starves models of long runs; `Rule.MAX_MIN` starts them one
after the other, the smallest knee first, which suits light models; `Rule.LEAST_RUNTIME` starts whoever has had the least
GPU time so far, if it fits: max-min on runtime. Written from a summary, not from the paper's text;
ours is what that leaves open: the knee is that of the rate in batches that run twice within the SLO, as are the batches;
sets are found exactly for any number of models, over whole SMs; the max-min rule decides between knees, and nobody gets
less than its own. Late requests are served late. Where models live is the plan's matter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Carve, Reason, RequestId
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.efficacy import OperatingPoint
from gpulet.knee import knee
from gpulet.plan import Plan
from gpulet.profile import Curve
from gpulet.request import Request
from gpulet.units import PLAIN, Duration, Instant


class Rule(StrEnum):
    """Who is started when not all can be."""

    MAX_THROUGHPUT = "max-throughput"
    MAX_MIN = "max-min"
    LEAST_RUNTIME = "least runtime"


@dataclass(frozen=True, slots=True)
class Offer:
    """A batch that could start: its size in SMs, the rows per nanosecond it would give, its model's GPU time so far."""

    sms: int
    worth: float
    used: Duration = 0


def richest(offers: Sequence[Offer], room: int) -> list[int]:
    """The places of those offers that fit into `room` together and are worth most."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] * (room + 1)
    for place, offer in enumerate(offers):
        for sms in range(room, offer.sms - 1, -1):
            worth, chosen = best[sms - offer.sms]
            best[sms] = max(best[sms], (worth + offer.worth, (*chosen, place)), key=lambda found: found[0])
    return list(best[room][1])


def smallest_first(offers: Sequence[Offer], room: int) -> list[int]:
    """The places of the smallest offers, as many as fit."""
    chosen: list[int] = []
    for place in sorted(range(len(offers)), key=lambda place: offers[place].sms):
        if offers[place].sms > room:
            break
        chosen.append(place)
        room -= offers[place].sms
    return chosen


def least_used_first(offers: Sequence[Offer], room: int) -> list[int]:
    """The places of the offers in order of the time their models have had, each if it fits beside those before it."""
    chosen: list[int] = []
    for place in sorted(range(len(offers)), key=lambda place: offers[place].used):
        if offers[place].sms <= room:
            chosen.append(place)
            room -= offers[place].sms
    return chosen


_CHOICES: Mapping[Rule, Callable[[Sequence[Offer], int], list[int]]] = {
    Rule.MAX_THROUGHPUT: richest,
    Rule.MAX_MIN: smallest_first,
    Rule.LEAST_RUNTIME: least_used_first,
}


@dataclass(slots=True, eq=False)
class _Tenant:
    """A model on a device: its knee, its largest batch, whether it runs, and for how long it has run."""

    device: int
    model: str
    sms: int
    batch: int
    is_running: bool = False
    used: Duration = 0


class Greedy:
    """One queue for each model, and sizes carved for each run. `points` are knees that somebody has published."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        rule: Rule = Rule.MAX_THROUGHPUT,
        points: Mapping[str, OperatingPoint] | None = None,
    ) -> None:
        self._problem = problem
        self._choose = _CHOICES[rule]
        self._tenants: dict[int, list[_Tenant]] = {}
        for device in plan.devices:
            names = dict.fromkeys(
                [
                    *(n for g in plan.gpulets if g.device == device.index for n in g.models),
                    *(r.model for r in plan.residents if r.device == device.index),
                ]
            )
            self._tenants[device.index] = [_tenant(problem, device, name, points or {}) for name in names]
        self._homes = {
            name: [t for own in self._tenants.values() for t in own if t.model == name] for name in problem.models
        }
        self._runs: dict[RequestId, _Tenant] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what nobody serves, or nobody can run at once, is refused."""
        homes = self._homes[request.model]
        if not homes:
            return Reason.LATE
        can_run = any(request.rows <= len(self._curve(tenant, request.shape)) for tenant in homes)
        return CENTRAL if can_run else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Fill one device and be asked again for the next."""
        for requests in changed.ended:
            ended = self._runs.pop(requests[0].id, None)
            if ended:
                ended.is_running = False
        devices = [*changed.devices, *(t.device for q in changed.queues if q for t in self._homes[q.model])]
        for index in dict.fromkeys(devices):
            starts = self._fill(index, fleet)
            if starts:
                return Decision(starts, more=True)
        return Decision()

    def _fill(self, index: int, fleet: Fleet) -> list[Run]:
        """What the rule starts of all that could."""
        idle = [tenant for tenant in self._tenants[index] if not tenant.is_running]
        ready = [(tenant, run) for tenant in idle for run in self._ready(tenant, fleet)]
        offers = [Offer(t.sms, sum(r.rows for r in run.requests) / run.expected, t.used) for t, run in ready]
        chosen = [ready[place] for place in self._choose(offers, fleet.devices[index].free_sms)]
        for tenant, run in chosen:
            tenant.is_running = True
            tenant.used += run.expected
            self._runs[run.requests[0].id] = tenant
        return [run for _, run in chosen]

    def _ready(self, tenant: _Tenant, fleet: Fleet) -> Iterator[Run]:
        """The batch that it would run now, of the shape class that has waited longest; none without work."""
        found = [(first, queue) for queue in fleet.central(tenant.model) for first in self._first(tenant, queue)]
        if found:
            first, queue = min(found, key=lambda pair: pair[0].arrival)
            curve = self._curve(tenant, queue.shape)
            most = max(first.rows, min(tenant.batch, len(curve)))
            requests = queue.take(most) if first is queue.head else [first]
            yield Run(Carve(tenant.device, tenant.sms), requests, curve[sum(r.rows for r in requests) - 1])

    def _first(self, tenant: _Tenant, queue: Queue) -> list[Request]:
        most = len(self._curve(tenant, queue.shape))
        first = next((request for request in queue if request.rows <= most), None)
        return [first] if first is not None else []

    def _curve(self, tenant: _Tenant, shape: str) -> Curve:
        return self._problem.profile.curve(tenant.model, tenant.sms, shape)


def _tenant(problem: Problem, device: Device, name: str, points: Mapping[str, OperatingPoint]) -> _Tenant:
    """At its knee; a model that no size runs in time has the whole device."""
    if name in points:
        return _Tenant(device.index, name, points[name].size.sms, points[name].batch)
    model = problem.models[name]
    sizes = range(min(problem.profile.sizes(name)[0], device.kind.sms), device.kind.sms + 1)
    shares = [Share(problem.profile.curve(name, sms, PLAIN), model.slo, 0.0, model.max_batch) for sms in sizes]
    rates = [saturated_rate(share) for share in shares]
    if not any(rates):
        return _Tenant(device.index, name, device.kind.sms, 1)
    place = knee(sizes, rates)
    return _Tenant(device.index, name, sizes[place], saturated(shares[place]).batches[0])
