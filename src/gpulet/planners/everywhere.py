"""Every model on every device and nothing cut in advance: for dispatchers that carve a knee for each run (D-STACK, TCC 2024).

The baselines of D-STACK's evaluation that choose who runs beside whom plan nothing. That a demand beyond what they could
carry is refused is ours: runs of full batches at the knees must not take more than all SMs all the time. It holds on the
mean alone, and only if batches fill and knees leave no gaps, so it promises little.
"""

from collections.abc import Mapping

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.errors import PlanError
from gpulet.operating import OperatingPoint, knee_point
from gpulet.plan import Plan, Promise, Resident
from gpulet.units import SECOND, to_ms


def everywhere(problem: Problem, *, points: Mapping[str, OperatingPoint] | None = None) -> Plan | Infeasible:
    """Who lives where: all everywhere. `points` are somebody's published knees.

    Raises `PlanError` on devices whose SMs cannot be shared freely from run to run.
    """
    for device in problem.devices:
        if device.mechanism not in {Mechanism.MPS, Mechanism.CPU}:
            msg = f"device {device.index}: knees are carved from mps and cpu devices, not from {device.mechanism}"
            raise PlanError(msg)
    models = problem.models.values()
    here = {n: points[n] if points and n in points else _point(problem, n) for n in problem.models}
    used = sum(_area(point) * problem.demand.get(name, 0.0) for name, point in here.items())
    part = used / sum(device.kind.sms for device in problem.devices)
    late = [name for name, point in here.items() if problem.demand.get(name) and not _in_time(problem, name, point)]
    promises = {
        name: Promise(rate, rate / max(part, 1.0) if part > 1 else rate / part, 2 * here[name].latency, model.slo)
        for name, model in problem.models.items()
        if (rate := problem.demand.get(name, 0.0)) and name not in late
    }
    residents = tuple(Resident(d.index, m.name, m.memory) for d in problem.devices for m in models)
    plan = Plan(problem.devices, residents=residents, promises=promises)
    if late:
        return _too_slow(problem, plan, late)
    return _crowded(problem, plan, part) if part > 1 else plan


def _point(problem: Problem, name: str) -> OperatingPoint:
    """Its knee on the largest device."""
    device: Device = max(problem.devices, key=lambda device: device.kind.sms)
    return knee_point(problem.profile, problem.models[name], device)


def _area(point: OperatingPoint) -> float:
    """SM-seconds of one row."""
    return point.size.sms * point.latency / SECOND / point.batch


def _in_time(problem: Problem, name: str, point: OperatingPoint) -> bool:
    return 2 * point.latency <= problem.models[name].slo


def _too_slow(problem: Problem, plan: Plan, late: list[str]) -> Infeasible:
    name, slo = late[0], to_ms(problem.models[late[0]].slo)
    why = f"no row of it runs twice within its SLO of {slo:g} ms: 0 of {problem.demand[name]:.1f} rows/s"
    return Infeasible(name, why, "raise its SLO", {n: problem.demand[n] for n in late}, plan)


def _crowded(problem: Problem, plan: Plan, part: float) -> Infeasible:
    unserved = {name: rate * (1 - 1 / part) for name, rate in problem.demand.items() if rate}
    name = max(unserved, key=lambda n: unserved[n])
    why = f"runs at the knees would take {100 * part:.0f} % of {len(problem.devices)} devices: "
    why += f"{problem.demand[name] / part:.1f} of {problem.demand[name]:.1f} rows/s fit"
    return Infeasible(name, why, f"lower its rate by {unserved[name]:.1f}/s", unserved, plan)
