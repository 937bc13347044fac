"""Homogeneous pools, the baselines of PARIS (DAC 2022, section 5): every gpulet has the same size. GPU(1), GPU(2), ...

GPU(max) is the one of them that holds the most in a simulation; the judge is given, since planners know no simulator.
"""

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Size
from gpulet.errors import PlanError
from gpulet.plan import Plan
from gpulet.pools import Worth, group, pool_plan, usable

MIG_SLICES = 7


def homogeneous(problem: Problem, *, slices: int) -> Plan | Infeasible:
    """GPU(slices): as many gpulets of that many compute slices as fit, each for every model.

    On devices that MIG does not cut it is the smallest size of at least `slices` sevenths, or the largest. Raises `PlanError` for slices
    that no MIG type has.
    """
    cutter = Cutter(problem.devices, problem.slices)
    return _pool(problem, cutter, _size(problem, cutter, slices))


def largest_homogeneous(problem: Problem, *, worth: Worth) -> Plan | Infeasible:
    """GPU(max): of the pools of every size, the one that holds the most; the largest size where none holds anything."""
    cutter = Cutter(problem.devices, problem.slices)
    outcomes = [_pool(problem, cutter, size) for size in cutter.sizes]
    best, chosen = 0.0, outcomes[-1]
    for outcome in outcomes:
        plan = outcome.partial if isinstance(outcome, Infeasible) else outcome
        factor = worth(problem, plan, least=best) if plan.gpulets else 0.0
        if factor > best:
            best, chosen = factor, outcome
    return chosen


def _size(problem: Problem, cutter: Cutter, slices: int) -> Size:
    if not cutter.is_mig:
        wanted = 100 * slices / MIG_SLICES - 1
        return next((size for size in cutter.sizes if size.share_pct >= wanted), cutter.sizes[-1])
    found = [size for size in cutter.sizes if cutter.units(size) == slices]
    if not found:
        known = ", ".join(f"{cutter.units(size):g}" for size in cutter.sizes)
        msg = f"no size has {slices} slices; {problem.devices[0].kind.name} has sizes of {known}"
        raise PlanError(msg)
    return found[0]


def _pool(problem: Problem, cutter: Cutter, size: Size) -> Plan | Infeasible:
    count = next(n for n in range(int(cutter.room / cutter.units(size)), -1, -1) if cutter.fits({size: n}))
    small = next((name for name in problem.models if size not in usable(problem, name, cutter.sizes)), "")
    if small or not count:
        constraint = f"nobody measured it on {size.label}" if small else f"{size.label} does not fit the budget"
        name = small or next(iter(problem.models))
        return Infeasible(name, constraint, "choose a larger size", dict(problem.demand), Plan(problem.devices))
    return pool_plan(problem, cutter, [group(problem, size, problem.models, count)])
