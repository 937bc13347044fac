"""What `--system gpulet` is: several planners asked, their plans judged by simulation, each served as it was made for."""

from collections.abc import Mapping
from functools import partial
from math import inf

from gpulet.bounded import Quick, worth
from gpulet.core.ports import Dispatcher, Infeasible, MakeDispatcher, Planner, Problem
from gpulet.device import Mechanism
from gpulet.dispatchers.dutycycle import DutyCycle
from gpulet.dispatchers.elsa import Elsa
from gpulet.dispatchers.fifs import Fifs, Idle
from gpulet.dispatchers.horizon import Horizon
from gpulet.judge import holds
from gpulet.plan import Plan
from gpulet.planners.best import Care, Judge, best
from gpulet.planners.elastic import elastic
from gpulet.planners.glet import NONE, glet
from gpulet.planners.homogeneous import homogeneous
from gpulet.planners.horizon import HORIZON, horizon
from gpulet.planners.nexus import nexus
from gpulet.planners.packing import packing
from gpulet.planners.paris import paris
from gpulet.planners.pooled import MERGING, pooled
from gpulet.planners.segments import segments
from gpulet.planners.shared import shared

_UNLIMITED = 10**6
_TURNS: MakeDispatcher = partial(DutyCycle, learns=True)
_JUDGE: Judge = partial(holds, _TURNS)
CANDIDATES: tuple[Planner, ...] = (
    packing,
    partial(packing, merges=False),
    partial(packing, spreads=True),
    elastic,
    partial(elastic, most_per_device=_UNLIMITED),
    partial(elastic, most_per_device=_UNLIMITED, shares_in_time=False),
    nexus,
    partial(glet, margins=NONE),
    shared,
)
"""What `gpulet` tries: the published planners and its own, all without margins, since it keeps its own allowance."""


def as_planned(problem: Problem, plan: Plan) -> Dispatcher:
    """The dispatcher that the plan was made for."""
    return _CHOSEN[plan.dispatcher](problem, plan)


_CHOSEN: Mapping[str, MakeDispatcher] = {
    "": _TURNS,
    MERGING: _TURNS,
    "elsa": Elsa,
    "fifs": partial(Fifs, idle=Idle.LARGEST),
    HORIZON: Horizon,
}
POOLS: tuple[Planner, ...] = (*(partial(homogeneous, slices=n) for n in (1, 2, 3, 4, 7)), paris)
"""What `gpulet` starts from where gpulets are counted by size."""


def ours(
    problem: Problem,
    *,
    quick: Quick = Quick(),  # noqa: B008 (frozen)
    enough: float = inf,
    judge: Judge | None = _JUDGE,
) -> Plan | Infeasible:
    """Instances of one model each, or pools, on MIG; elsewhere the safest plan of several planners'.

    Where no such plan holds: pools if requests bring several rows, then no cut at all if devices resize runs.

    With `enough` the first pool that holds so many times the demand is taken. Without a `judge` gpulets' turns are believed.
    """
    search = partial(pooled, starts=POOLS, worth=partial(worth, as_planned, quick), enough=enough)
    if all(device.mechanism is not Mechanism.MIG for device in problem.devices):
        turns = best(problem, candidates=CANDIDATES, judge=judge)
        pool = search(problem) if problem.rows and isinstance(turns, Infeasible) else turns
        if isinstance(pool, Plan):
            return pool
        return _sized_as_they_come(problem) if any(d.resizes_runs for d in problem.devices) else turns
    if all(point.processes == 1 for point in problem.profile.points):
        return search(problem)
    segmented = best(problem, candidates=(segments,), judge=judge)
    if isinstance(segmented, Plan):
        return segmented
    shared_out = search(problem)  # where there are more models than instances, say
    return shared_out if isinstance(shared_out, Plan) else segmented


def _sized_as_they_come(problem: Problem) -> Plan | Infeasible:
    """A plan without a cut if it holds, looked at the closer the fuller the devices are; refused, it is served all the same."""
    plan = horizon(problem)
    if isinstance(plan, Infeasible):
        return plan
    if problem.is_idle:
        return plan
    name = min(plan.promises, key=lambda n: plan.promises[n].headroom)
    promise = plan.promises[name]
    if holds(Horizon, problem, plan, Care.QUICK if promise.headroom > _ROOMY else Care.THOROUGH):
        return plan
    part = promise.demand / promise.throughput
    why = (
        f"its runs and the others' take {part:.0%} of the SMs in the mean, which Poisson arrivals do not leave in time"
    )
    nearest = f"lower all rates to {min(_HOLDS / part, _LESS):.0%}, or add a device"
    return Infeasible(name, why, nearest, {name: max(1.0, promise.demand * (1 - _LESS))}, plan)


_ROOMY = 0.4
_HOLDS = 0.75
"""Of the SMs in the mean, as experience has it."""
_LESS = 0.95
