"""Auto-scaling the number of devices (gpu-lets, ATC 2022, Algorithm 2): as many as last period, one more until it fits.

The planner is given. A plan that leaves devices unused gives them back next period, since what counts as last period's
number is how many it used.
"""

from dataclasses import replace

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.plan import Plan


def autoscaled(problem: Problem, *, planner: Planner) -> Plan | Infeasible:
    """The plan on the fewest devices, from the number in force up; the refusal of all devices where none fits."""
    for count in range(max(1, problem.in_force.devices_used), len(problem.devices)):
        outcome = planner(replace(problem, devices=problem.devices[:count]))
        if isinstance(outcome, Plan):
            return replace(outcome, devices=problem.devices)
    return planner(problem)
