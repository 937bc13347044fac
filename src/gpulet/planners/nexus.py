"""Squishy bin packing (Nexus, Shen et al., SOSP 2019, section 6.1), on whole devices.

Each model first saturates whole devices: the largest batch with 2 L(b) <= SLO, as often as the rate fills it. What is
left of its rate is a residue: the largest batch with L(b) + b/r <= SLO and duty cycle b/r. Residues are packed in
decreasing occupancy L/duty: two share a device at the shorter duty d, with b = ceil(d r) rows each, when the runs fit d
and L(b) + d fits every SLO; of the devices that take a residue the fullest afterwards wins, else a new one is opened.

Departures: devices are finite, so a demand may be refused; a residue for which even b = 1 misses the rule, or whose
every batch is slower than its rate, gets a duty cycle of SLO - L(1), or a whole device. A request waits one duty cycle
at most and then runs, so L(b) + d is what a model is promised. The artifact's margins are `ARTIFACT`, off by default.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Size
from gpulet.duty import Cycle, Share, saturated, saturated_rate
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Profile
from gpulet.units import MS, SECOND, Duration, to_ms

_ROUNDING = 1e-12
_P95_DEVIATIONS = 1.645
"""Standard deviations from the mean to the 95th percentile of a normal distribution; profiles keep no deviation."""


@dataclass(frozen=True, slots=True)
class Margins:
    """Latency counts as (mean + `deviations` x deviation) x `ratio`; `network` is taken off every SLO."""

    deviations: float = 0.0
    ratio: float = 1.0
    network: Duration = 0


NO_MARGINS = Margins()
ARTIFACT = Margins(1.0, 1.15, 2 * MS)
"""What Nexus' own code uses (src/nexus/common/model_db.cpp)."""


@dataclass(frozen=True, slots=True)
class _Node:
    """One device in the making: `rates[i]` of the i-th of `models` in every duty cycle."""

    models: tuple[Model, ...]
    rates: tuple[float, ...]
    cycle: Cycle

    @property
    def occupancy(self) -> float:
        return sum(self.cycle.latencies) / self.cycle.duty

    @property
    def is_open(self) -> bool:
        """A device that one model fills back to back takes no other."""
        return sum(self.cycle.latencies) < self.cycle.duty


def nexus(problem: Problem, *, margins: Margins = NO_MARGINS) -> Plan | Infeasible:
    """Saturated devices first, then the packed residues, all or nothing. Raises `PlanError` for unequal devices."""
    return _Packing(_tightened(problem, margins), problem, margins.network).outcome()


def _tightened(problem: Problem, margins: Margins) -> Problem:
    if margins == NO_MARGINS:
        return problem
    points = problem.profile.points
    slower = [p.mean + margins.deviations * (p.p95 - p.mean) / _P95_DEVIATIONS for p in points]
    profile = Profile(tuple(replace(p, mean=round(t * margins.ratio)) for p, t in zip(points, slower, strict=True)))
    models = {name: replace(m, slo=max(1, m.slo - margins.network)) for name, m in problem.models.items()}
    return replace(problem, profile=profile, models=models)


class _Packing:
    """The nodes of a problem whose margins are taken; promises are made against the real objectives."""

    def __init__(self, problem: Problem, asked: Problem, network: Duration) -> None:
        self._problem = problem
        self._asked = asked
        self._network = network
        self._size = _common_size(problem.devices)
        self._memory = problem.devices[0].kind.memory
        self._nodes: list[_Node] = []
        self._unserved: dict[str, float] = {}

    def outcome(self) -> Plan | Infeasible:
        """The plan, or what stands in its way."""
        residues = [residue for model in self._problem.models.values() for residue in self._saturate(model)]
        for residue in sorted(residues, key=lambda node: -node.occupancy):
            self._pack(residue)
        plan = self._plan()
        return self._refusal(plan) if self._unserved else plan

    def _share(self, model: Model, rate: float) -> Share:
        return Share(self._problem.profile.curve(model.name, self._size.sms), model.slo, rate, model.max_batch)

    def _saturate(self, model: Model) -> Iterator[_Node]:
        """Open the devices that the model fills alone; what is left is a residue."""
        rate = self._problem.demand.get(model.name, 0.0)
        share = self._share(model, rate)
        whole = saturated_rate(share)
        if not whole:
            self._miss(model, rate)
            return
        count = floor(rate / whole + _ROUNDING)
        for _ in range(count):
            self._open(_Node((model,), (whole,), saturated(share)))
        left = rate - count * whole
        if left > _ROUNDING * rate:
            cycle = _residue(replace(share, rate=left))
            yield _Node((model,), (left,), cycle if cycle.batches else saturated(share))

    def _open(self, node: _Node) -> None:
        """Take a device for it, when there is one left."""
        if len(self._nodes) < len(self._problem.devices):
            self._nodes.append(node)
        else:
            self._miss(node.models[0], node.rates[0])

    def _miss(self, model: Model, rate: float) -> None:
        if rate > 0:
            self._unserved[model.name] = self._unserved.get(model.name, 0.0) + rate

    def _pack(self, residue: _Node) -> None:
        """Best fit: the fullest device afterwards, or a new one."""
        merged = {place: self._merged(node, residue) for place, node in enumerate(self._nodes) if node.is_open}
        fitting = {place: node for place, node in merged.items() if node.cycle.batches}
        if not fitting:
            self._open(residue)
            return
        best = max(fitting, key=lambda place: fitting[place].occupancy)
        self._nodes[best] = fitting[best]

    def _merged(self, node: _Node, residue: _Node) -> _Node:
        """Both at the shorter duty cycle; no batches when that cannot be."""
        models, rates = node.models + residue.models, node.rates + residue.rates
        duty = min(node.cycle.duty, residue.cycle.duty)
        shares = [self._share(model, rate) for model, rate in zip(models, rates, strict=True)]
        fits = not self._memory or sum(model.memory for model in models) <= self._memory
        return _Node(models, rates, _together(shares, duty) if fits else Cycle())

    def _plan(self) -> Plan:
        gpulets = tuple(
            Gpulet(place, device.index, self._size, 0, node.cycle.duty, _turns(node))
            for place, (device, node) in enumerate(zip(self._problem.devices, self._nodes, strict=False))
        )
        promises = {name: self._promise(model, gpulets) for name, model in self._asked.models.items()}
        return Plan(self._problem.devices, gpulets, promises=promises)

    def _promise(self, model: Model, gpulets: Sequence[Gpulet]) -> Promise:
        mine = [(g, t) for g in gpulets for t in g.turns if t.model == model.name]
        throughput = sum(t.batch * SECOND / g.duty_cycle for g, t in mine)
        worst = max((g.duty_cycle + t.latency + self._network for g, t in mine), default=0)
        return Promise(self._problem.demand.get(model.name, 0.0), throughput, worst, model.slo)

    def _refusal(self, plan: Plan) -> Infeasible:
        name = next(iter(self._unserved))
        model, left, demand = self._problem.models[name], self._unserved[name], self._problem.demand[name]
        whole = saturated_rate(self._share(model, demand))
        if not whole:
            constraint = f"a whole device does not run even one row twice within its SLO of {to_ms(model.slo):g} ms"
            return Infeasible(name, f"{constraint}: 0 of {demand:.1f} rows/s", "raise its SLO", self._unserved, plan)
        constraint = f"{demand - left:.1f} of {demand:.1f} rows/s fit on {len(self._problem.devices)} whole devices"
        nearest = f"lower its rate by {left:.1f}/s, or add a device (one carries {whole:.1f}/s)"
        return Infeasible(name, constraint, nearest, self._unserved, plan)


def _common_size(devices: Sequence[Device]) -> Size:
    wholes = {device.sizes()[-1] for device in devices}
    if len(wholes) != 1:
        msg = f"nexus packs equal devices, not {len(wholes)} kinds of them"
        raise PlanError(msg)
    return wholes.pop()


def _residue(share: Share) -> Cycle:
    """The largest batch with L(b) + b/r <= SLO, or single rows every SLO - L(1); no batches when neither keeps up."""
    for batch in range(min(share.max_batch, len(share.curve)), 0, -1):
        latency, build = share.curve[batch - 1], int(batch * SECOND / share.rate)
        if latency + build <= share.slo and latency <= build:
            return Cycle(build, (batch,), (latency,))
    return _together((share,), share.slo - share.curve[0])


def _together(shares: Sequence[Share], duty: Duration) -> Cycle:
    """ceil(d r) rows of each in every duty cycle; no batches when runs or objectives do not allow it."""
    batches = tuple(ceil(duty * share.rate / SECOND * (1 - _ROUNDING)) for share in shares)
    if any(b > min(s.max_batch, len(s.curve)) for b, s in zip(batches, shares, strict=True)):
        return Cycle()
    latencies = tuple(s.curve[b - 1] for b, s in zip(batches, shares, strict=True))
    in_time = all(t + duty <= s.slo for t, s in zip(latencies, shares, strict=True))
    return Cycle(duty, batches, latencies) if in_time and sum(latencies) <= duty else Cycle()


def _turns(node: _Node) -> tuple[Turn, ...]:
    shared = zip(node.models, node.cycle.batches, node.rates, node.cycle.latencies, strict=True)
    return tuple(Turn(model.name, batch, rate, latency) for model, batch, rate, latency in shared)
