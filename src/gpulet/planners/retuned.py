"""Ours: the gpulets of the plan in force, with other turns: models take turns wherever they are loaded already.

Such a plan is in force at once, since nothing is to be built. Rates are poured in, the largest load first, each model over
as few gpulets as hold it at a level that is the same for all (McNaughton's wrap-around rule, 1959); a gpulet's turns are then
a squishy duty cycle (Nexus, SOSP 2019). Whether the result holds is for somebody else to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gpulet.core.ports import Infeasible, Problem
from gpulet.duty import Share, saturated_rate, squishy
from gpulet.plan import Gpulet, GpuletId, Plan, Promise, Turn
from gpulet.units import PLAIN, SECOND

_HALVINGS = 10
_FIRST = (1.0, 0.98, 0.95, 0.9, 0.8, 0.65, 0.5)
"""Levels that are tried first: at a full one batches are rounded beyond what fits, and what fits at one need not at a higher."""
_LEAST = 1e-3
"""Rows/s: what is left of a rate by rounding is no turn."""


def retuned(problem: Problem) -> Plan | Infeasible:
    """The plan in force with turns for this demand; refused where some model is not loaded anywhere, or nothing fits."""
    in_force = problem.in_force
    rates = {name: rate for name, rate in problem.demand.items() if rate > _LEAST}
    speeds = {name: _speeds(problem, name) for name in problem.demand}
    homeless = [name for name in rates if not speeds[name]]
    if homeless:
        name = homeless[0]
        return Infeasible(name, "no gpulet has it loaded", "build one", {name: rates[name]}, in_force)
    tried = ((level, _tuned(problem, rates, speeds, level)) for level in _FIRST)
    high, best = next(((level, found) for level, found in tried if found), (0.0, None))
    if best is None:
        name = max(rates, key=lambda n: rates[n] / max(speeds[n].values()))
        return Infeasible(name, "the gpulets there are do not hold it", "cut anew", {name: rates[name]}, in_force)
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _tuned(problem, rates, speeds, middle)
        low, high, best = (middle, high, best) if found is None else (low, middle, found)
    return best


def _speeds(problem: Problem, name: str) -> dict[GpuletId, float]:
    """Rows/s that each gpulet with the model affords of it alone."""
    found = {}
    for g in problem.in_force.gpulets:
        if name in g.held:
            speed = saturated_rate(_share(problem, g, name, 1.0))
            if speed:
                found[g.id] = speed
    return found


def _share(problem: Problem, g: Gpulet, name: str, rate: float) -> Share:
    curve = problem.profile.curve(name, g.size.sms, PLAIN, g.processes)
    return Share(curve, problem.models[name].slo, rate, problem.models[name].max_batch)


def _poured(
    rates: Mapping[str, float], speeds: Mapping[str, Mapping[GpuletId, float]], level: float
) -> Mapping[GpuletId, Mapping[str, float]] | None:
    """Each gpulet up to that part of its time; None where something is left. Who has least choice comes first."""
    room: dict[GpuletId, float] = {}
    for mine in speeds.values():
        room |= dict.fromkeys(mine, level)
    poured: dict[GpuletId, dict[str, float]] = {number: {} for number in room}
    for name in sorted(rates, key=lambda n: (len(speeds[n]), -rates[n] / max(speeds[n].values()))):
        left, mine = rates[name], speeds[name]
        for number in sorted(mine, key=lambda n: (-room[n] * mine[n], n)):
            taken = min(left, room[number] * mine[number])
            if taken > _LEAST:
                poured[number][name] = taken
                room[number] -= taken / mine[number]
                left -= taken
        if left > _LEAST:
            return None
    return poured


def _tuned(
    problem: Problem, rates: Mapping[str, float], speeds: Mapping[str, Mapping[GpuletId, float]], level: float
) -> Plan | None:
    poured = _poured(rates, speeds, level)
    if poured is None:
        return None
    gpulets: list[Gpulet] = []
    for g in problem.in_force.gpulets:
        turned = _turned(problem, g, poured.get(g.id, {}))
        if turned is None:
            return None
        gpulets.append(turned)
    return replace(problem.in_force, gpulets=tuple(gpulets), promises=_promises(problem, gpulets, level), dispatcher="")


def _turned(problem: Problem, g: Gpulet, rates: Mapping[str, float]) -> Gpulet | None:
    """With a duty cycle of these; without any turn where nothing is asked of it."""
    spare = tuple(sorted(g.held - rates.keys()))
    if not rates:
        return replace(g, turns=(), spare=spare)
    cycle = squishy([_share(problem, g, name, rate) for name, rate in rates.items()])
    if not cycle.batches:
        return None
    parts = zip(rates.items(), cycle.batches, cycle.latencies, strict=True)
    turns = tuple(Turn(name, batch, rate, latency) for (name, rate), batch, latency in parts)
    return replace(g, turns=turns, duty_cycle=cycle.duty, spare=spare)


def _promises(problem: Problem, gpulets: Sequence[Gpulet], level: float) -> dict[str, Promise]:
    """All gpulets go at one level, so each model has as much room as that leaves."""
    promises = {}
    for name, rate in problem.demand.items():
        hosts = [(g, t) for g in gpulets for t in g.turns if t.model == name]
        worst = max((g.duty_cycle + sum(t.latency for t in g.turns) for g, _ in hosts), default=0)
        throughput = sum(t.batch * SECOND / g.duty_cycle for g, t in hosts)
        promises[name] = Promise(
            rate if hosts else 0.0, max(throughput, rate / level if hosts else 0.0), worst, problem.models[name].slo
        )
    return promises
