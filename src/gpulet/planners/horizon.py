"""Ours: every model on every device that has the memory for it, and no cut: the rolling-horizon dispatcher chooses sizes.

The plan says what that carries: the area that all models take at their pace (pacing.py), against the SMs there are.
Replicas cost memory alone, since requests wait centrally: a model on several devices assembles its batches from all of
its rate, where D-STACK gives each replica an even part of it.
"""

from collections.abc import Mapping, Sequence

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.pacing import Pacing
from gpulet.plan import Plan, Promise, Resident
from gpulet.units import to_ms

HORIZON = "horizon"
"""The dispatcher's name in a plan."""
FLOOR = 0.25
"""Where more is asked for than there is, so much of everybody's part is guaranteed: refused demand starves nobody."""
SPREAD = 1.25
"""Guarantees are at most so many times what paces take in the mean: the rest is for whoever needs it."""


def horizon(problem: Problem) -> Plan | Infeasible:
    """Residents on the devices whose size can change from run to run, or why these do not carry the demand.

    Raises `PlanError` where there is no such device.
    """
    able = [device for device in problem.devices if device.resizes_runs]
    devices = [device for device in able if device.mechanism is able[0].mechanism]
    if not devices:
        msg = f"device {problem.devices[0].index}: a plan without a cut needs devices whose runs may each have their own size"
        raise PlanError(msg)
    pacing = Pacing(problem, devices)
    homes = _homes(problem, devices)
    residents = _guaranteed(problem, pacing, devices, homes)
    plan = Plan(problem.devices, residents=residents, promises=_promises(problem, pacing, devices), dispatcher=HORIZON)
    homeless = next((name for name in problem.models if not homes[name]), "")
    if homeless:
        why = f"its {problem.models[homeless].memory} bytes fit on no device beside the others"
        return Infeasible(homeless, why, "add a device", {homeless: problem.demand.get(homeless, 0.0)}, plan)
    return _refusal(problem, pacing, plan) or plan


def _promises(problem: Problem, pacing: Pacing, devices: Sequence[Device]) -> dict[str, Promise]:
    """All rates times what the SMs would carry of them: at full area nothing is left for arrivals that bunch.

    A model that nobody asks for is served, and promised nothing.
    """
    sms = sum(device.kind.sms for device in devices)
    factor = sms / pacing.area if pacing.area else 0.0
    promises: dict[str, Promise] = {}
    for name, demand in asked(problem).items():
        model, menu = problem.models[name], pacing.menu(name)
        worst = menu.limit if menu.is_in_time else menu.fastest
        promises[name] = Promise(demand, demand * factor if menu.is_in_time else 0.0, worst, model.slo)
    return promises


def asked(problem: Problem) -> dict[str, float]:
    """Rows/s of the models that anybody asks for."""
    return {name: problem.demand[name] for name in problem.models if problem.demand.get(name, 0.0) > 0}


def _refusal(problem: Problem, pacing: Pacing, plan: Plan) -> Infeasible | None:
    late = [name for name in asked(problem) if not pacing.menu(name).is_in_time]
    if late:
        menu = pacing.menu(late[0])
        slo = to_ms(menu.slo)
        why = f"its fastest run takes {to_ms(menu.fastest):g} ms, more than nine tenths of its SLO of {slo:g} ms"
        return Infeasible(late[0], why, "raise its SLO", {n: problem.demand[n] for n in late}, plan)
    short = {n: p.demand - p.throughput for n, p in plan.promises.items() if p.throughput < p.demand}
    if not short:
        return None
    name = max(short, key=lambda n: pacing.menu(n).pace.area)
    carried = plan.promises[name].throughput
    why = f"at any size {carried:.1f} of {problem.demand[name]:.1f} rows/s fit beside the others"
    part = carried / problem.demand[name]
    return Infeasible(name, why, f"lower all rates to {part:.0%}, or add a device", short, plan)


def _homes(problem: Problem, devices: Sequence[Device]) -> dict[str, list[int]]:
    """Each model once, the largest first where most memory is left; then everywhere else that it fits."""
    left = {device.index: device.kind.memory for device in devices}
    unbounded = {device.index for device in devices if not device.kind.memory}
    models = sorted(problem.models.values(), key=lambda model: (-model.memory, model.name))
    homes: dict[str, list[int]] = {model.name: [] for model in models}

    def settle(model: Model, places: Sequence[int]) -> None:
        for device in places:
            if device not in homes[model.name] and (device in unbounded or left[device] >= model.memory):
                homes[model.name].append(device)
                left[device] -= model.memory

    for model in models:
        settle(model, [max(left, key=lambda device: left[device])])
    for model in models:
        settle(model, list(left))
    return homes


def _guaranteed(
    problem: Problem, pacing: Pacing, devices: Sequence[Device], homes: Mapping[str, Sequence[int]]
) -> tuple[Resident, ...]:
    """Guarantees in proportion to the areas of the paces, each replica an equal part of its model's.

    Where the paces take more than a device has, most of it is left to those who make most rows of it.
    """
    parts = {name: pacing.menu(name).pace.area / max(1, len(homes[name])) for name in problem.models}
    totals = {d.index: sum(parts[name] for name in problem.models if d.index in homes[name]) for d in devices}
    factors = {device.index: _factor(device.kind.sms, totals[device.index]) for device in devices}
    return tuple(
        Resident(device, name, model.memory, factors[device] * parts[name])
        for name, model in problem.models.items()
        for device in sorted(homes[name])
    )


def _factor(sms: int, area: float) -> float:
    """What is guaranteed over what paces take."""
    if not area:
        return 0.0
    return FLOOR * sms / area if area > sms else min(SPREAD, sms / area)
