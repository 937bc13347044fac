"""Every model on every device and nothing cut in advance: for dispatchers that carve a knee for each run (D-STACK, TCC 2024).

The baselines of D-STACK's evaluation that choose who runs beside whom plan nothing. That a demand beyond what they could
carry is refused is ours: runs of full batches at the knees must not take more than all SMs all the time. It holds on the
mean alone, and only if batches fill and knees leave no gaps, so it promises little.
"""

from collections.abc import Mapping

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.efficacy import OperatingPoint, knee_point
from gpulet.errors import PlanError
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
    here = {n: points[n] if points and n in points else _point(problem, n) for n in problem.models}
    used = sum(_area(point) * problem.demand.get(name, 0.0) for name, point in here.items())
    part = used / sum(device.kind.sms for device in problem.devices)
    carried = {name: _carried(problem, name, point, part) for name, point in here.items()}
    promises = {
        name: Promise(problem.demand[name], rate, 2 * here[name].latency, problem.models[name].slo)
        for name, rate in carried.items()
        if rate and problem.demand.get(name)
    }
    residents = tuple(Resident(d.index, m.name, m.memory) for d in problem.devices for m in problem.models.values())
    plan = Plan(problem.devices, residents=residents, promises=promises)
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried[name]}
    return _refusal(problem, plan, missing, part) if missing else plan


def _carried(problem: Problem, name: str, point: OperatingPoint, part: float) -> float:
    """Rows/s of a model: its part of all SMs, at most batches back to back on every device; 0 where none is in time."""
    if 2 * point.latency > problem.models[name].slo:
        return 0.0
    alone = len(problem.devices) * point.batch * SECOND / point.latency
    return min(alone, problem.demand.get(name, 0.0) / part) if part else alone


def _point(problem: Problem, name: str) -> OperatingPoint:
    """Its knee on the largest device."""
    device: Device = max(problem.devices, key=lambda device: device.kind.sms)
    return knee_point(problem.profile, problem.models[name], device)


def _area(point: OperatingPoint) -> float:
    """SM-seconds of one row."""
    return point.size.sms * point.latency / SECOND / point.batch


def _refusal(problem: Problem, plan: Plan, missing: dict[str, float], part: float) -> Infeasible:
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    if left == demand:
        slo = to_ms(problem.models[name].slo)
        why = f"no row of it runs twice within its SLO of {slo:g} ms: 0 of {demand:.1f} rows/s"
        return Infeasible(name, why, "raise its SLO", missing, plan)
    why = (
        f"runs at the knees would take {100 * part:.0f} % of {len(problem.devices)} devices, one of a model at a time: "
    )
    why += f"{demand - left:.1f} of {demand:.1f} rows/s fit"
    return Infeasible(name, why, f"lower its rate by {left:.1f}/s", missing, plan)
