"""Ours: ask several planners for more than is needed and keep the safest plan that holds.

A plan that just holds the mean rate misses objectives whenever arrivals bunch. So the planners are asked for what
Poisson arrivals need within an objective (`duty.bunched`) and more; if nobody can serve that, for less and less of the
allowance, down to the bare rates. Of the plans of one level the one wins whose tightest model has the most headroom,
then the one that takes least of the fleet. Neighbours are counted in where an interference model is given.

A plan is valid when `judge` says so (judge.py: a simulation in which everything attains 99.5 %). The planners and the
judge are given, since planners know neither each other nor a simulator.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, log

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.duty import bunched
from gpulet.errors import PlanError, ProfileError
from gpulet.neighbours import beside_neighbours
from gpulet.plan import Plan, Promise
from gpulet.units import SECOND


class Care(StrEnum):
    """How closely a plan is looked at: where there is little room, one short run says little."""

    QUICK = "quick"
    THOROUGH = "thorough"


Judge = Callable[[Problem, Plan, Care], bool]
"""Whether a plan keeps its promises under the demand that was asked."""


@dataclass(frozen=True, slots=True)
class Level:
    """How much more than the demand is asked for: `factor` times, with `allowance` (0 to 1) of what bunching needs."""

    factor: float
    allowance: float


LEVELS = (
    Level(4.0, 1.0),
    Level(2.5, 1.0),
    Level(1.5, 1.0),
    Level(1.25, 1.0),
    Level(1.0, 1.0),
    Level(1.0, 0.7),
    Level(1.0, 0.4),
    Level(1.15, 0.0),
    Level(1.1, 0.0),
    Level(1.05, 0.0),
)
LOSS = 0.01
"""The part of the arrivals of half an objective that may find no room in it."""
LATE = 0.001
"""The part of the requests that may wait longer than there is time at nearly full load."""
MOST_ROOM = 0.1
LEAST_ROOM = 0.05
"""Nothing with less is even judged."""
MOST_JUDGED = 4
_ROUNDS = 4


def best(
    problem: Problem,
    *,
    candidates: Sequence[Planner],
    judge: Judge | None = None,
    levels: Sequence[Level] = LEVELS,
) -> Plan | Infeasible:
    """The first plan that the judge accepts, safest level first; without a judge, the first with room for its queues.

    At most `MOST_JUDGED` plans are judged. Where none of them holds, the roomiest of those with less room than the
    heavy-traffic limit wants is judged with care. A candidate that cannot plan such devices at all (`PlanError`,
    `ProfileError`) is passed over.
    """
    bare = [*_outcomes(candidates, problem, problem)]
    doubted: list[Plan] = []
    tight: list[Plan] = []
    for plan in _in_order(problem, candidates, levels, bare):
        if not _has_room(plan):
            tight.append(plan)
        elif not any(_worth(plan)[0] <= _worth(other)[0] for other in doubted):  # one with more headroom did not hold
            if judge is None or judge(problem, plan, Care.QUICK):
                return plan
            doubted.append(plan)
            if len(doubted) == MOST_JUDGED:
                break
    roomiest = sorted(tight, key=_worth, reverse=True)[:1]
    for plan in roomiest:
        if _worth(plan)[0] >= LEAST_ROOM and judge and judge(problem, plan, Care.THOROUGH):
            return plan
    return _refusal(problem, bare, [*doubted, *roomiest])


def _refusal(problem: Problem, bare: Sequence[Plan | Infeasible], doubted: Sequence[Plan]) -> Infeasible:
    """What stands in the way: bunching, where there are plans; else the least of the candidates' refusals."""
    if doubted:
        return _doubtful(problem, doubted[0])
    refusals = [o for o in bare if isinstance(o, Infeasible)]
    if not refusals:
        return _doubtful(problem, next(o for o in bare if isinstance(o, Plan)))
    return min(refusals, key=lambda refusal: sum(refusal.unserved.values()) or inf)


def _in_order(
    problem: Problem, candidates: Sequence[Planner], levels: Sequence[Level], bare: Sequence[Plan | Infeasible]
) -> Iterator[Plan]:
    """Valid plans, the safest level first. What was made for less may turn out to leave more, so it competes too."""
    for level in levels:
        outcomes = [*_outcomes(candidates, problem, _asked(problem, level))]
        if any(isinstance(outcome, Plan) for outcome in outcomes):
            yield from _sorted([*outcomes, *bare])
    yield from _sorted(bare)


def _sorted(outcomes: Sequence[Plan | Infeasible]) -> list[Plan]:
    """Best first."""
    valid = (outcome for outcome in outcomes if isinstance(outcome, Plan) and not outcome.violations())
    return sorted(valid, key=_worth, reverse=True)


def _has_room(plan: Plan) -> bool:
    """Whether waits stay within half an objective at nearly full load, in the heavy-traffic limit.

    There P(wait > w) is about exp(-2 room rate w) for Poisson arrivals and regular service (Kingman, 1962), where w is
    half an objective less the wait for the next of k gpulets to end its batch. The limit asks too much of slow rates
    and of single gpulets, which `bunched` and the judge look after: hence `MOST_ROOM`.
    """
    hosts = {name: sum(g.replicas for g in plan.hosts(name)) for name in plan.promises}
    return all(p.headroom >= _room(p, hosts[name]) for name, p in plan.promises.items() if p.demand > 0)


def _room(promise: Promise, hosts: int) -> float:
    window = promise.slo / SECOND * (1 - 1 / hosts) if hosts else 0.0
    return min(MOST_ROOM, log(1 / LATE) / (promise.demand * window)) if window else MOST_ROOM


def _outcomes(candidates: Sequence[Planner], problem: Problem, asked: Problem) -> Iterator[Plan | Infeasible]:
    failures: list[PlanError | ProfileError] = []
    for candidate in candidates:
        try:
            yield _outcome(candidate, problem, asked)
        except (PlanError, ProfileError) as error:
            failures.append(error)
    if len(failures) == len(candidates):
        raise failures[0]


def _outcome(candidate: Planner, problem: Problem, asked: Problem) -> Plan | Infeasible:
    """What a candidate makes of it. What neighbours then cost a model is asked for on top, a few times."""
    for _ in range(_ROUNDS):
        outcome = candidate(asked)
        if isinstance(outcome, Infeasible):
            return outcome
        plan = _restated(outcome, problem)
        short = {n: p.demand / p.throughput for n, p in plan.promises.items() if 0 < p.throughput < p.demand}
        if not short:
            return plan
        asked = replace(asked, demand={n: rate * short.get(n, 1.0) for n, rate in asked.demand.items()})
    return plan


def _asked(problem: Problem, level: Level) -> Problem:
    """The demand with the allowance of this level."""
    demand = {}
    for name, rate in problem.demand.items():
        full = bunched(rate, problem.models[name].slo // 2, LOSS) if rate > 0 else 0.0
        demand[name] = level.factor * (rate + level.allowance * (full - rate))
    return replace(problem, demand=demand)


def _restated(plan: Plan, problem: Problem) -> Plan:
    """The same plan with the demand that was really asked, and with its neighbours counted in."""
    asked = {name: (problem.demand.get(name, 0.0), p) for name, p in plan.promises.items()}
    part = {name: demand / p.demand if p.demand else 1.0 for name, (demand, p) in asked.items()}
    gpulets = tuple(
        replace(g, turns=tuple(replace(t, rate=t.rate * part[t.model]) for t in g.turns)) for g in plan.gpulets
    )
    promises = {name: replace(p, demand=demand) for name, (demand, p) in asked.items()}
    stated = replace(plan, gpulets=gpulets, promises=promises)
    if problem.interference is None:
        return stated
    return beside_neighbours(stated, problem.profile, problem.interference)


def _worth(plan: Plan) -> tuple[float, int, int]:
    tightest = min((promise.headroom for promise in plan.promises.values()), default=0.0)
    return round(tightest, 6), -plan.devices_used, -sum(g.size.sms for g in plan.gpulets)


def _doubtful(problem: Problem, plan: Plan) -> Infeasible:
    """Plans exist, but arrivals that bunch break each of them: name the model with the least headroom."""
    name = min(plan.promises, key=lambda n: plan.promises[n].headroom)
    promise = plan.promises[name]
    needed = bunched(promise.demand, problem.models[name].slo // 2, LOSS)
    spare = max(1.0, needed - promise.throughput)
    constraint = (
        f"{promise.throughput:.1f} rows/s fit, but Poisson arrivals of {promise.demand:.1f}/s need {needed:.1f}"
    )
    return Infeasible(name, constraint, f"lower its rate by {spare:.1f}/s, or add a device", {name: spare}, plan)
