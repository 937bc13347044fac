"""Ours: ask several planners for more than is needed and keep the plan with the most headroom.

A plan that just holds the mean rate misses objectives whenever arrivals bunch, so the planners are asked for 1.5, 1.3,
... 1 times the demand until one of them can. Among the plans of that factor the one wins whose tightest model has the
most headroom, then the one that takes least of the fleet. The planners are given, since planners do not know each other.
"""

from collections.abc import Sequence
from dataclasses import replace

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.plan import Plan

HEADROOM = (1.5, 1.3, 1.2, 1.1, 1.05, 1.0)


def best(problem: Problem, *, candidates: Sequence[Planner], factors: Sequence[float] = HEADROOM) -> Plan | Infeasible:
    """The best of the candidates' plans; `factors` on the demand are tried in turn, ties go to the earlier candidate."""
    for factor in factors:
        asked = replace(problem, demand={name: rate * factor for name, rate in problem.demand.items()})
        outcomes = [candidate(asked) for candidate in candidates]
        plans = [plan for plan in outcomes if isinstance(plan, Plan) and not plan.violations()]
        if plans:
            return max((_restated(plan, problem) for plan in plans), key=_worth)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Infeasible)]
    return min(refusals, key=lambda refusal: sum(refusal.unserved.values()))


def _restated(plan: Plan, problem: Problem) -> Plan:
    """The same plan with the demand that was really asked."""
    asked = {name: (problem.demand.get(name, 0.0), p) for name, p in plan.promises.items()}
    part = {name: demand / p.demand if p.demand else 1.0 for name, (demand, p) in asked.items()}
    gpulets = tuple(
        replace(g, turns=tuple(replace(t, rate=t.rate * part[t.model]) for t in g.turns)) for g in plan.gpulets
    )
    promises = {name: replace(p, demand=demand) for name, (demand, p) in asked.items()}
    return replace(plan, gpulets=gpulets, promises=promises)


def _worth(plan: Plan) -> tuple[float, int, int]:
    tightest = min((promise.headroom for promise in plan.promises.values()), default=0.0)
    return round(tightest, 6), -plan.devices_used, -sum(g.size.sms for g in plan.gpulets)
