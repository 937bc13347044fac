"""Where models are resident at first (Clockwork, Gujarati et al., OSDI 2020). Its controller plans nothing: ours does.

A given planner of whole devices says whether the demand can be held and where models are needed; there they are loaded
first, then everywhere else, the most wanted first, as far as memory goes. From then on the dispatcher loads and evicts.
"""

from dataclasses import replace

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.plan import Plan, Resident


def clockwork(problem: Problem, *, place: Planner) -> Plan | Infeasible:
    """Residents instead of the gpulets of `place`, with its promises; its own refusal."""
    outcome = place(problem)
    if isinstance(outcome, Infeasible):
        return replace(outcome, partial=_residents(problem, outcome.partial))
    plan = _residents(problem, outcome)
    crowded = plan.violations()
    if not crowded:
        return plan
    name = max(problem.models.values(), key=lambda model: model.memory).name
    return Infeasible(name, crowded[0], "add a device", {name: problem.demand.get(name, 0.0)}, plan)


def _residents(problem: Problem, placed: Plan) -> Plan:
    wanted = sorted(problem.models, key=lambda name: -problem.demand.get(name, 0.0))
    residents: list[Resident] = []
    for device in problem.devices:
        needed = dict.fromkeys(n for g in placed.gpulets if g.device == device.index for n in g.models)
        room = device.kind.memory - sum(problem.models[name].memory for name in needed)
        for name in wanted:
            memory = problem.models[name].memory
            if name not in needed and (not device.kind.memory or memory <= room):
                needed[name] = None
                room -= memory
        residents += [Resident(device.index, name, problem.models[name].memory) for name in needed]
    return Plan(problem.devices, residents=tuple(residents), promises=placed.promises)
