"""Temporal sharing with slices in proportion to objectives: the baseline of D-STACK (Dhakal et al., TCC 2024, evaluation).

All models go round on every device, one at a time with all of it; in a cycle of T a model has T x SLO / (sum of SLOs). A
request that just misses its slice is in the first batch of the next, T + L(b) later, if a slice holds all that comes in
a cycle. Written from a summary: that slices go by SLO is recalled of the paper, the rest is ours. T is the one of 64
parts of the shortest SLO that leaves most headroom; b gives most rows a slice within the objective. Several devices do
the same side by side, each with its part of the demand. Where no cycle has a slice for every model, what is left to
serve with is `round_robin`: slices of nothing, one batch of each model in turn.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device
from gpulet.duty import Share, saturated, slices
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Curve
from gpulet.units import SECOND, Duration, to_ms

_PARTS = 64


@dataclass(frozen=True, slots=True)
class _Slice:
    """Batches of so many rows, each so long, and the rows of all that fit; no rows when nothing is in time."""

    batch: int = 1
    latency: Duration = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Cycle:
    """What a device repeats."""

    device: Device
    length: Duration
    slices: tuple[_Slice, ...]

    def rate(self, place: int) -> float:
        return self.slices[place].rows * SECOND / self.length


def temporal(problem: Problem) -> Plan | Infeasible:
    """The same models in turn on every device, or why that does not carry the demand."""
    models = [m for m in problem.models.values() if problem.demand.get(m.name, 0.0) > 0]
    models = models or list(problem.models.values())
    cycles = [_longest_headroom(problem, device, models) for device in problem.devices]
    carried = {m.name: sum(cycle.rate(place) for cycle in cycles) for place, m in enumerate(models)}
    gpulets = tuple(_gpulet(problem, place, cycle, models, carried) for place, cycle in enumerate(cycles))
    promises = {m.name: _promise(problem, m, place, cycles, carried) for place, m in enumerate(models)}
    plan = Plan(problem.devices, gpulets, promises=promises)
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried.get(name, 0.0)}
    if any(rate == 0 for rate in carried.values()):
        plan = _in_turn(problem, models)
    return _refusal(problem, plan, missing) if missing else problem.within_memory(plan)


def round_robin(problem: Problem) -> Plan | Infeasible:
    """One batch of each model in turn on every device, as long as it runs twice within its SLO, or why that is too slow.

    A request that just misses its turn is in the next, a cycle and a run later.
    """
    models = [m for m in problem.models.values() if problem.demand.get(m.name, 0.0) > 0]
    plan = _in_turn(problem, models or list(problem.models.values()))
    carried = {n: p.throughput if p.worst_latency <= p.slo else 0.0 for n, p in plan.promises.items()}
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried.get(name, 0.0)}
    return _refusal(problem, plan, missing) if missing else problem.within_memory(plan)


def _in_turn(problem: Problem, models: Sequence[Model]) -> Plan:
    gpulets: list[Gpulet] = []
    for place, device in enumerate(problem.devices):
        size = device.sizes()[-1]
        turns = tuple(_turn(problem, model, size.sms) for model in models)
        gpulets.append(Gpulet(place, device.index, size, 0, sum(turn.latency for turn in turns), turns))
    promises = {}
    for place, model in enumerate(models):
        turns_of_it = [(gpulet, gpulet.turns[place]) for gpulet in gpulets]
        rate = sum(turn.batch * SECOND / gpulet.duty_cycle for gpulet, turn in turns_of_it)
        worst = max(gpulet.duty_cycle + turn.latency for gpulet, turn in turns_of_it)
        promises[model.name] = Promise(problem.demand.get(model.name, 0.0), rate, worst, model.slo)
    return Plan(problem.devices, tuple(gpulets), promises=promises)


def _turn(problem: Problem, model: Model, sms: int) -> Turn:
    """The largest batch that runs twice within the objective, or once; a single row where none does."""
    curve = problem.profile.curve(model.name, sms)
    cycle = saturated(Share(curve, model.slo, 0.0, model.max_batch))
    within = bisect_right(curve[: model.max_batch], model.slo)
    batch = cycle.batches[0] if cycle.batches else max(1, within)
    rate = problem.demand.get(model.name, 0.0) / len(problem.devices)
    return Turn(model.name, batch, rate, curve[batch - 1])


def _longest_headroom(problem: Problem, device: Device, models: Sequence[Model]) -> _Cycle:
    shortest = min(model.slo for model in models)
    curves = [problem.profile.curve(model.name, device.sizes()[-1].sms) for model in models]
    cycles = [_cycle(device, shortest * part // _PARTS, models, curves) for part in range(1, _PARTS)]
    wanted = [problem.demand.get(model.name, 0.0) or 1.0 for model in models]
    return max(cycles, key=lambda cycle: min(cycle.rate(place) / rate for place, rate in enumerate(wanted)))


def _cycle(device: Device, length: Duration, models: Sequence[Model], curves: Sequence[Curve]) -> _Cycle:
    lengths = slices(max(1, length), [model.slo for model in models])
    found = (_slice(*each, max(1, length)) for each in zip(models, curves, lengths, strict=True))
    return _Cycle(device, max(1, length), tuple(found))


def _slice(model: Model, curve: Curve, length: Duration, cycle: Duration) -> _Slice:
    """The batch that gives most rows."""
    longest = min(length, model.slo - cycle)
    batches = [(n, t) for n, t in enumerate(curve[: model.max_batch], start=1) if t <= longest]
    each = (_Slice(n, t, n * (length // t)) for n, t in batches)
    return max(each, key=lambda found: found.rows, default=_Slice())


def _gpulet(problem: Problem, place: int, cycle: _Cycle, models: Sequence[Model], carried: dict[str, float]) -> Gpulet:
    turns = tuple(
        Turn(
            model.name,
            each.batch,
            problem.demand.get(model.name, 0.0) * cycle.rate(n) / (carried[model.name] or 1),
            each.latency,
        )
        for n, (model, each) in enumerate(zip(models, cycle.slices, strict=True))
    )
    return Gpulet(place, cycle.device.index, cycle.device.sizes()[-1], 0, cycle.length, turns)


def _promise(
    problem: Problem, model: Model, place: int, cycles: Sequence[_Cycle], carried: dict[str, float]
) -> Promise:
    worst = max(cycle.length + cycle.slices[place].latency for cycle in cycles)
    return Promise(problem.demand.get(model.name, 0.0), carried[model.name], worst, model.slo)


def _refusal(problem: Problem, plan: Plan, missing: dict[str, float]) -> Infeasible:
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    if left == demand:
        slo = to_ms(problem.models[name].slo)
        constraint = f"no row of it fits a slice within its SLO of {slo:g} ms beside {len(plan.promises) - 1} others"
        return Infeasible(name, f"{constraint}: 0 of {demand:.1f} rows/s", "raise its SLO", missing, plan)
    constraint = f"its slices on {len(problem.devices)} devices carry {demand - left:.1f} of {demand:.1f} rows/s"
    return Infeasible(name, constraint, f"lower its rate by {left:.1f}/s", missing, plan)
