"""Homogeneous pools, the baselines of PARIS (DAC 2022, section 5): every gpulet has the same size. GPU(1), GPU(2), ...

GPU(max) is the one of them that holds the most in a simulation; the judge is given, since planners know no simulator.
"""

from collections.abc import Callable

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Size
from gpulet.errors import PlanError
from gpulet.plan import Plan
from gpulet.pools import group, pool_plan, usable

Worth = Callable[[Problem, Plan], float]
"""How much of the demand a plan holds."""


def homogeneous(problem: Problem, *, slices: int = 0, worth: Worth | None = None) -> Plan | Infeasible:
    """As many gpulets of `slices` compute slices (units of other cuts) as fit, each for every model.

    0: the size that holds the most, by `worth`, else by what it carries at most. Raises `PlanError` for a size that the
    devices cannot be cut into.
    """
    cutter = Cutter(problem.devices, problem.slices)
    sizes = [size for size in cutter.sizes if not slices or cutter.units(size) == slices]
    if not sizes:
        known = ", ".join(f"{cutter.units(size):g}" for size in cutter.sizes)
        msg = f"no size has {slices} slices; {problem.devices[0].kind.name} has sizes of {known}"
        raise PlanError(msg)
    outcomes = [_pool(problem, cutter, size) for size in sizes]
    return outcomes[0] if len(outcomes) == 1 else max(outcomes, key=lambda outcome: _rank(problem, outcome, worth))


def _pool(problem: Problem, cutter: Cutter, size: Size) -> Plan | Infeasible:
    count = next(n for n in range(int(cutter.room / cutter.units(size)), -1, -1) if cutter.fits({size: n}))
    small = next((name for name in problem.models if size not in usable(problem, name, [size])), "")
    if small or not count:
        constraint = f"nobody measured it on {size.label}" if small else f"{size.label} does not fit the budget"
        name = small or next(iter(problem.models))
        return Infeasible(name, constraint, "choose a larger size", dict(problem.demand), Plan(problem.devices))
    return pool_plan(problem, cutter, [group(problem, size, problem.models, count)])


def _rank(problem: Problem, outcome: Plan | Infeasible, worth: Worth | None) -> tuple[bool, float]:
    plan = outcome if isinstance(outcome, Plan) else outcome.partial
    carried = min((p.headroom for p in plan.promises.values()), default=-1.0)
    return isinstance(outcome, Plan), worth(problem, plan) if worth and plan.gpulets else carried
