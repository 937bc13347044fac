"""Unpartitioned sharing of CPU devices: workers that may use all cores, and the tighter objective goes first.

Better than disjoint cores where there are fewer cores than models, or where one model needs all cores for a moment.
Priorities are fixed, by objective (deadline-monotonic: Leung and Whitehead, Performance Evaluation 1982). The price is
in the latencies. Models of tighter objectives take rho of the C cores in the mean, and at once no more than sigma, a
run of each of their workers: what they leave is the service curve (C - rho) t - sigma (Cruz, IEEE Trans. Inf. Theory
1991). The w threads of those of one objective share it, and the plan counts on all of them running: a run of t takes
max(t, (w t + sigma) / (C - rho)), times 1 + contention x (others that run). Devices that are not a CPU stay unused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, Size
from gpulet.duty import IMPOSSIBLE, Cycle, Share, residual, saturated, saturated_rate
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import SECOND, Duration

_SHARABLE = (Mechanism.CPU, Mechanism.WHOLE)
_ENOUGH = 1.5
"""Times the demand: a tighter model takes no more threads than that needs, since others want them."""


def shared(problem: Problem) -> Plan | Infeasible:
    """All models on the first CPU device: the tightest with few threads, the rest with those that carry most."""
    hosts = [d for d in problem.devices if d.mechanism in _SHARABLE and d.kind.name == "cpu"]
    wanted = sorted(
        (m for m in problem.models.values() if problem.demand.get(m.name, 0.0) > 0), key=lambda m: (m.slo, m.name)
    )
    if not hosts or not wanted:
        unserved = {m.name: problem.demand[m.name] for m in wanted}
        first = next(iter(problem.models))
        return Infeasible(first, "no CPU device to share", "add a device of kind cpu", unserved, Plan(problem.devices))
    device = replace(hosts[0], mechanism=Mechanism.WHOLE)
    tiers: list[_Tier] = []
    for _, models in groupby(wanted, key=lambda m: m.slo):
        tiers.append(_best(problem, device, list(models), tiers))
    devices = tuple(device if d is hosts[0] else d for d in problem.devices)
    plan = Plan(
        devices, tuple(_gpulets(device, tiers)), promises={h.model.name: h.promise for t in tiers for h in t.hosted}
    )
    short = {h.model.name: h.demand - h.affords for t in tiers for h in t.hosted if h.affords < h.demand}
    if not short:
        return plan
    name = next(iter(short))
    constraint = f"{len(wanted)} models on {device.kind.sms} shared cores leave {short[name]:.1f} rows/s unserved"
    nearest = f"lower its rate by {short[name]:.1f}/s"
    promises = {n: p for n, p in plan.promises.items() if p.throughput}
    return Infeasible(name, constraint, nearest, short, replace(plan, promises=promises))


@dataclass(frozen=True)
class _Hosted:
    """A model on `workers` of `threads` each. `curve` is its latency beside everybody else, `alone` without them."""

    model: Model
    demand: float
    threads: int
    workers: int
    alone: tuple[Duration, ...]
    curve: tuple[Duration, ...]

    @cached_property
    def affords(self) -> float:
        return self.workers * saturated_rate(self._share)

    @cached_property
    def cycle(self) -> Cycle:
        """Of each worker."""
        cycle = residual(self._share) if self.affords > self.demand else IMPOSSIBLE
        return cycle if cycle.batches else saturated(self._share)

    @property
    def promise(self) -> Promise:
        return Promise(self.demand, self.affords, self.cycle.worst, self.model.slo)

    @property
    def used(self) -> float:
        """Cores in the mean, should rows come one by one."""
        return self.threads * min(self.workers, self.demand * self.alone[0] / SECOND)

    @property
    def burst(self) -> float:
        """Core-time of a run of each worker."""
        run = self.alone[self.cycle.batches[0] - 1] if self.cycle.batches else 0
        return self.threads * self.workers * run

    @property
    def _share(self) -> Share:
        return Share(self.curve, self.model.slo, self.demand / self.workers, self.model.max_batch)


@dataclass(frozen=True, slots=True)
class _Tier:
    """Models of one objective."""

    hosted: tuple[_Hosted, ...]

    @property
    def threads(self) -> int:
        """Of all workers."""
        return sum(h.threads * h.workers for h in self.hosted)

    @property
    def carries(self) -> float:
        """Times the demand, of the model that is worst off."""
        return min(h.affords / h.demand for h in self.hosted)


def _best(problem: Problem, device: Device, models: Sequence[Model], before: Sequence[_Tier]) -> _Tier:
    """The fewest threads that carry enough, else the most that can be carried."""
    cores = device.kind.sms
    shapes = [(threads, workers) for threads in range(1, cores + 1) for workers in range(1, cores // threads + 1)]
    tiers = (_tier(problem, device, models, before, *shape) for shape in sorted(shapes, key=lambda s: (s[0] * s[1], s)))
    best = next(tiers)
    for tier in tiers:
        if best.carries >= _ENOUGH:
            break
        best = max(best, tier, key=lambda t: t.carries)
    return best


def _tier(
    problem: Problem, device: Device, models: Sequence[Model], before: Sequence[_Tier], threads: int, workers: int
) -> _Tier:
    """The models, with so many workers of so many threads each, beside those that go first."""
    used = sum(h.used for tier in before for h in tier.hosted)
    burst = sum(h.burst for tier in before for h in tier.hosted)
    left = device.kind.sms - used
    others = len(problem.demand) - 1 + workers - 1
    toll = 1 + device.contention * min(others, max(1, device.kind.sms - threads))
    wanted = threads * workers * len(models)

    def slowed(latency: Duration) -> Duration:
        return round(max(latency, (wanted * latency + burst) / left) * toll)

    hosted = []
    for model in models:
        alone = problem.profile.curve(model.name, max(threads, problem.profile.sizes(model.name)[0]))
        curve = tuple(map(slowed, alone)) if left > 0 else ()
        hosted.append(_Hosted(model, problem.demand[model.name], threads, workers, alone, curve))
    return _Tier(tuple(hosted))


def _gpulets(device: Device, tiers: Sequence[_Tier]) -> Iterator[Gpulet]:
    hosted = [(priority, h) for priority, tier in enumerate(tiers) for h in tier.hosted if h.cycle.batches]
    workers = [(priority, h) for priority, h in hosted for _ in range(h.workers)]
    for place, (priority, h) in enumerate(workers):
        size = Size(h.threads, 100 * h.threads / device.kind.sms, f"{h.threads} threads")
        turn = Turn(h.model.name, h.cycle.batches[0], h.demand / h.workers, h.cycle.latencies[0])
        yield Gpulet(place, device.index, size, 0, h.cycle.duty, (turn,), priority=priority)
