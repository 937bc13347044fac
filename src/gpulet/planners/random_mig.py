"""Random pools, a baseline of PARIS (DAC 2022, section 5): sizes drawn one by one until nothing more fits.

How the paper drew is not known; here each draw picks uniformly among the sizes that still fit the devices and budget.
"""

from random import Random

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Size
from gpulet.plan import Plan
from gpulet.pools import group, pool_plan, usable


def random_mig(problem: Problem, *, seed: int = 0) -> Plan | Infeasible:
    """A random pool for all models; the same seed gives the same pool."""
    cutter = Cutter(problem.devices, problem.slices)
    draw = Random(seed)
    known = [usable(problem, name, cutter.sizes) for name in problem.models]
    sizes = [size for size in cutter.sizes if all(size in some for some in known)]
    counts: dict[Size, int] = {}
    while fitting := [size for size in sizes if cutter.fits({**counts, size: counts.get(size, 0) + 1})]:
        size = draw.choice(fitting)
        counts[size] = counts.get(size, 0) + 1
    if not counts:
        reason = "no size that every model was measured on fits"
        first = next(iter(problem.models))
        return Infeasible(first, reason, "measure more sizes", dict(problem.demand), Plan(problem.devices))
    groups = [group(problem, size, problem.models, counts[size]) for size in sorted(counts)]
    return pool_plan(problem, cutter, groups)
