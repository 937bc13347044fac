"""Auto-scaling the number of devices (gpu-lets, ATC 2022, Algorithm 2): as many as last period, one more until it fits.

The planner is given. A plan that leaves devices unused gives them back next period, since what counts as last period's
number is how many it used. Where no plan is in force the planner may use all devices.
"""

from dataclasses import replace

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.plan import Plan


def autoscaled(problem: Problem, *, planner: Planner) -> Plan | Infeasible:
    """The plan on as few devices as will do, from the number in force up; the refusal of all where none fits."""
    for count in range(problem.in_force.devices_used or len(problem.devices), len(problem.devices)):
        outcome = planner(replace(problem, devices=problem.devices[:count]))
        if isinstance(outcome, Plan):
            return replace(outcome, devices=problem.devices)
    return planner(problem)
