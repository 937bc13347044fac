"""Self-tuned shares and batches (GSLICE, Dhakal et al., SoCC 2020, as its platform's code implements it).

Every model runs one batch at a time on its share of its device. After each batch it learns how large the next may be
(a linear jump to the objective, with a dead band) and what share its arrival rate, service rate and latency ask for.
When several batches in turn have asked for another share, it is recommended to the manager, who once a second grants
one recommendation a device, as far as there are SMs left. Until the standby process is ready the old share serves on.

Departures, all towards the evident intent. Of the shares that rates and latency ask for, always the larger is taken;
the code's choice can shrink an overloaded model, and shrinks a lightly loaded one until it collapses. The service rate
is that of a batch as long as allowed, on the line through the batches seen: small batches, run because little waits,
say nothing of how much could be served. No grant over-subscribes a device. Our SLO counts from arrival where GSLICE's
counts from the start of the batch: the cap keeps a batch within half of it, since a request may just miss a batch, and
lateness is that of the batch's oldest request, or a queue that has built up would never be seen. Both batch jumps start
from the rows that were measured. Late requests are served late.
"""

from dataclasses import dataclass, field
from math import ceil

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Carve, Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.device import Device
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.units import NEVER, SECOND, Duration, Instant


@dataclass(frozen=True, slots=True)
class Tuning:
    """The constants of GSLICE's code; `standby` is how long a process with a new share takes to be ready.

    The weights are those of a new sample in the running means: of batches, and of the gaps between arrivals.
    """

    most_rows: int = 64
    tolerance: float = 0.10
    late_band: float = 0.90
    early_band: float = 0.85
    least_share: float = 0.05
    least_change: float = 0.03
    batches: int = 5
    weight: float = 0.1
    arrival_weight: float = 0.01
    period: Duration = SECOND
    standby: Duration = 2 * SECOND


TUNING = Tuning()
_SPREAD = 0.01
"""Below this variance of rows there is no line to be drawn."""


def next_cap(cap: int, rows: int, latency: Duration, objective: Duration, tolerance: float) -> int:
    """How many rows the next batch may have, after one of `rows` took `latency`; a cap of 0 is none yet."""
    excess, dead, per_row = latency - objective, tolerance * objective, latency / rows
    if excess > dead:
        return max(1, rows - max(1, int(excess / per_row)))
    if excess >= 0:
        return rows
    if rows < cap:
        return cap  # a small batch because little waited tells nothing
    return rows + max(1, int(-excess / per_row)) if -excess >= dead else rows


def next_share(share: float, arrivals: float, service: float, lateness: float, tuning: Tuning = TUNING) -> float:
    """The share that would do, from the rates at the present one; `lateness` is latency over SLO."""
    band = tuning.late_band if lateness > 1 else tuning.early_band
    is_off = band * arrivals > service or band * service > arrivals
    by_rate = share * arrivals / (band * service) if is_off else share
    by_latency = share * (2 - 1 / lateness if lateness > 1 else lateness)
    return max(by_rate, by_latency)


@dataclass(slots=True)
class Line:
    """Running means of the rows and latencies of batches at one share, and the line through them."""

    weight: float
    rows: float = 0.0
    latency: float = 0.0
    squares: float = 0.0
    products: float = 0.0

    def add(self, rows: int, latency: Duration) -> None:
        """One more batch; the first counts in full."""
        weight = self.weight if self.rows else 1.0
        self.rows += weight * (rows - self.rows)
        self.latency += weight * (latency - self.latency)
        self.squares += weight * (rows * rows - self.squares)
        self.products += weight * (rows * latency - self.products)

    def service(self, objective: Duration, most: int) -> float:
        """Rows per nanosecond in batches that take `objective`, at most `most` rows; at least what was seen."""
        seen = self.rows / self.latency
        spread = self.squares - self.rows**2
        slope = (self.products - self.rows * self.latency) / spread if spread > _SPREAD else 0.0
        if slope <= 0:
            return seen
        rows = min(most, self.rows + (objective - self.latency) / slope)
        return max(seen, rows / (self.latency + slope * (rows - self.rows)))


@dataclass(slots=True, eq=False)
class _Tenant:
    """What is known of one model: its share, its cap, what it runs (`rows` 0: nothing), and what it has seen.

    `gap` is the running mean of nanoseconds between rows, `line` what batches took at this share; `recommended` SMs wait
    for the manager (0: none). No batch exceeds `most` rows, no share falls below `least`.
    """

    device: int
    sms: int
    least: int
    most: int
    slo: Duration
    line: Line
    cap: int = 0
    rows: int = 0
    on: int = 0
    since: Instant = 0
    arrived: Instant = -1
    gap: float = 0.0
    asked: list[float] = field(default_factory=list)
    recommended: int = 0


@dataclass(slots=True)
class _Switch:
    """A standby process being prepared: from `due` on, `tenant` has `sms`."""

    tenant: _Tenant
    sms: int
    due: Instant


class Gslice:
    """Adjusts shares and batches while it serves. The plan says where each model lives and with which share it starts."""

    def __init__(self, problem: Problem, plan: Plan, *, tuning: Tuning = TUNING) -> None:
        self._tuning = tuning
        self._profile = problem.profile
        self._devices = {device.index: device for device in plan.devices}
        self._tenants = _tenants(problem, plan, tuning)
        self._turns = list(self._tenants.values())
        self._switches: dict[int, _Switch] = {}
        self._next_round: Instant = 0

    @property
    def shares(self) -> dict[str, int]:
        """The SMs each model has now."""
        return {name: tenant.sms for name, tenant in self._tenants.items()}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no batch can hold, or nobody serves, is refused."""
        tenant = self._tenants.get(request.model)
        if tenant is None:
            return Reason.LATE
        if request.rows > self._most(tenant, request.model, request.shape):
            return Reason.TOO_LARGE
        if tenant.arrived >= 0:
            gap = (now - tenant.arrived) / request.rows
            tenant.gap += (self._tuning.arrival_weight if tenant.gap else 1.0) * (gap - tenant.gap)
        tenant.arrived = now
        return CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Learn from what ended, let the manager act, and start whoever has something to do and SMs for it."""
        for requests in changed.ended:
            oldest = min(request.arrival for request in requests)
            self._learn(now, self._tenants[requests[0].model], oldest)
        self._manage(now)
        free = {index: state.free_sms for index, state in fleet.devices.items()}
        starts: list[Run] = []
        for name, tenant in self._tenants.items():
            queue = None if tenant.rows or tenant.sms > free[tenant.device] else _oldest(fleet, name)
            if queue:
                starts.append(self._run(now, tenant, queue))
                free[tenant.device] -= tenant.sms
        return Decision(starts, wake_at=self._next_act(now))

    def _run(self, now: Instant, tenant: _Tenant, queue: Queue) -> Run:
        """Whatever is there, up to the cap; the first request even beyond it."""
        most = self._most(tenant, queue.model, queue.shape)
        requests = queue.take(max(queue.head.rows, min(tenant.cap or most, most)))
        tenant.rows, tenant.on, tenant.since = sum(request.rows for request in requests), tenant.sms, now
        expected = self._profile.curve(queue.model, tenant.sms, queue.shape)[tenant.rows - 1]
        return Run(Carve(tenant.device, tenant.sms), requests, expected)

    def _most(self, tenant: _Tenant, model: str, shape: str) -> int:
        """The largest batch at any share that it may ever have."""
        return min(tenant.most, len(self._profile.curve(model, tenant.least, shape)))

    def _learn(self, now: Instant, tenant: _Tenant, oldest: Instant) -> None:
        """What the batch that has just ended tells of the cap and of the share."""
        rows, latency, tenant.rows = tenant.rows, max(1, now - tenant.since), 0
        if tenant.on != tenant.sms:
            return  # its share has changed on the way
        tenant.cap = min(tenant.most, next_cap(tenant.cap, rows, latency, tenant.slo // 2, self._tuning.tolerance))
        tenant.line.add(rows, latency)
        if not tenant.gap:
            return
        sms = self._devices[tenant.device].kind.sms
        share = tenant.sms / sms
        lateness = max(1, now - oldest) / tenant.slo
        service = tenant.line.service(tenant.slo // 2, tenant.most)
        wanted = next_share(share, 1 / tenant.gap, service, lateness, self._tuning)
        wanted = min(1.0, max(tenant.least / sms, wanted))
        if abs(wanted - share) < self._tuning.least_change:
            return
        tenant.asked.append(wanted)
        if len(tenant.asked) >= self._tuning.batches:
            tenant.recommended = max(tenant.least, ceil(sms * sum(tenant.asked) / len(tenant.asked) - 1e-9))
            tenant.asked.clear()

    def _manage(self, now: Instant) -> None:
        """Finish the switches that are due; once a period, begin one on every device that has none in progress."""
        for index, switch in list(self._switches.items()):
            if switch.due <= now:
                switch.tenant.sms = switch.sms
                switch.tenant.line = Line(self._tuning.weight)
                switch.tenant.asked.clear()
                del self._switches[index]
        if now < self._next_round:
            return
        self._next_round = now + self._tuning.period
        for tenant in list(self._turns):
            if tenant.recommended and tenant.device not in self._switches:
                self._grant(now, tenant)
                self._turns.remove(tenant)
                self._turns.append(tenant)

    def _grant(self, now: Instant, tenant: _Tenant) -> None:
        """The recommended share, or what is left."""
        others = sum(t.sms for t in self._tenants.values() if t.device == tenant.device and t is not tenant)
        granted = min(tenant.recommended, self._devices[tenant.device].kind.sms - others)
        tenant.recommended = 0
        if granted != tenant.sms:
            self._switches[tenant.device] = _Switch(tenant, granted, now + self._tuning.standby)

    def _next_act(self, now: Instant) -> Instant:
        """When a standby is ready, or the manager has something to grant."""
        due = min((switch.due for switch in self._switches.values()), default=NEVER)
        is_asked = any(tenant.recommended for tenant in self._tenants.values())
        return min(due, self._next_round if is_asked else NEVER)


def _oldest(fleet: Fleet, model: str) -> Queue | None:
    """Of a model's shape classes, the one whose head has waited longest."""
    return min(fleet.central(model), key=lambda queue: queue.head.arrival, default=None)


def _tenants(problem: Problem, plan: Plan, tuning: Tuning) -> dict[str, _Tenant]:
    """Each model at its first gpulet. Where a plan of another planner promises too much, shares shrink to fit."""
    tenants: dict[str, _Tenant] = {}
    for device in plan.devices:
        mine = {name: g.size.sms for g in plan.gpulets if g.device == device.index for name in g.models}
        mine = {name: sms for name, sms in mine.items() if name not in tenants}
        for name, sms in _fitted(device, mine).items():
            model = problem.models[name]
            least = _least(problem.profile, model, device, tuning)
            most = min(model.max_batch, tuning.most_rows)
            tenants[name] = _Tenant(device.index, sms, min(sms, least), most, model.slo, Line(tuning.weight))
    return tenants


def _least(profile: Profile, model: Model, device: Device, tuning: Tuning) -> int:
    return max(profile.sizes(model.name)[0], ceil(tuning.least_share * device.kind.sms))


def _fitted(device: Device, shares: dict[str, int]) -> dict[str, int]:
    scale = min(1.0, device.kind.sms / max(1, sum(shares.values())))
    return {name: max(1, int(sms * scale)) for name, sms in shares.items()}
