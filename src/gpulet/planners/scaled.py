"""Static spatial sharing: GSLICE without its tuner (Dhakal et al., SoCC 2020), as D-STACK compares with it (TCC 2024).

Every model has a gpulet on every device, as large as its knee; where the knees do not fit together, all are scaled by
100 / (their sum). Models run independently, one batch at a time. Departures: sizes are whole SMs, those that rounding
leaves go to whom it took most from; a scaled share may be too small for an objective, which the original does not look
at and we refuse.
"""

from collections.abc import Mapping

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, Size
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.efficacy import OperatingPoint, knee_point
from gpulet.errors import PlanError
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import SECOND, to_ms


def scaled(problem: Problem, *, points: Mapping[str, OperatingPoint] | None = None) -> Plan | Infeasible:
    """Cut every device alike. `points` are somebody's published knees.

    Raises `PlanError` on devices that are not shared by mps or cores.
    """
    gpulets: list[Gpulet] = []
    carried = dict.fromkeys(problem.models, 0.0)
    worst = dict.fromkeys(problem.models, 0)
    for device in problem.devices:
        if len(problem.models) > device.kind.sms:
            msg = f"device {device.index}: {len(problem.models)} models cannot share {device.kind.sms} SMs"
            raise PlanError(msg)
        if device.mechanism not in {Mechanism.MPS, Mechanism.CPU}:
            msg = f"device {device.index}: gslice-static sets shares of mps and cpu devices, not of {device.mechanism}"
            raise PlanError(msg)
        offset = 0
        for name, sms in shares(_knees(problem, device, points or {}), device.kind.sms).items():
            gpulet = _gpulet(problem, len(gpulets), device, offset, name, sms)
            gpulets.append(gpulet)
            carried[name] += saturated_rate(_share(problem, name, sms))
            worst[name] = max(worst[name], 2 * gpulet.duty_cycle)
            offset += sms
    promises = {
        name: Promise(problem.demand.get(name, 0.0), rate, worst[name], problem.models[name].slo)
        for name, rate in carried.items()
        if rate
    }
    plan = Plan(problem.devices, tuple(gpulets), promises=promises)
    missing = {name: rate - carried[name] for name, rate in problem.demand.items() if rate > carried[name]}
    return _refusal(problem, plan, missing) if missing else problem.within_memory(plan)


def shares(knees: Mapping[str, int], sms: int) -> dict[str, int]:
    """Whole SMs of each model: its knee, or what scaling leaves of it; the SMs left go to the largest remainders."""
    whole = sum(knees.values())
    if whole <= sms:
        return dict(knees)
    found = {name: max(1, knee * sms // whole) for name, knee in knees.items()}
    rounded = sorted(knees, key=lambda name: -(knees[name] * sms % whole))
    for name in rounded[: max(0, sms - sum(found.values()))]:
        found[name] += 1
    for _ in range(sum(found.values()) - sms):  # SMs that nobody can do without were taken from nobody yet
        found[max(found, key=lambda name: found[name])] -= 1
    return found


def _knees(problem: Problem, device: Device, points: Mapping[str, OperatingPoint]) -> dict[str, int]:
    found = {n: points.get(n) or knee_point(problem.profile, model, device) for n, model in problem.models.items()}
    return {name: point.size.sms for name, point in found.items()}


def _share(problem: Problem, name: str, sms: int) -> Share:
    """What the model has of so many SMs; too few to have been measured are none."""
    model = problem.models[name]
    curve = problem.profile.curve(name, sms) if sms >= problem.profile.sizes(name)[0] else ()
    return Share(curve, model.slo, problem.demand.get(name, 0.0), model.max_batch)


def _gpulet(problem: Problem, place: int, device: Device, offset: int, name: str, sms: int) -> Gpulet:
    share, whole = _share(problem, name, sms), device.kind.sms
    cycle = saturated(share)
    most = cycle.batches[0] if cycle.batches else max(1, min(share.max_batch, len(share.curve)))
    latency = share.curve[most - 1] if share.curve else SECOND
    start = offset * 100 // whole if device.mechanism is Mechanism.MPS else offset
    size = Size(sms, 100 * sms / whole, f"{sms} of {whole}")
    turn = Turn(name, most, problem.demand.get(name, 0.0) / len(problem.devices), latency)
    return Gpulet(place, device.index, size, start, latency, (turn,))


def _refusal(problem: Problem, plan: Plan, missing: dict[str, float]) -> Infeasible:
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    sms = next((g.size.sms for g in plan.gpulets if name in g.models), 0)
    if left == demand:
        slo = to_ms(problem.models[name].slo)
        constraint = f"its share of {sms} SMs runs no row twice within its SLO of {slo:g} ms"
        return Infeasible(name, f"{constraint}: 0 of {demand:.1f} rows/s", "raise its SLO", missing, plan)
    constraint = f"its shares of {sms} SMs carry {demand - left:.1f} of {demand:.1f} rows/s"
    return Infeasible(name, constraint, f"lower its rate by {left:.1f}/s", missing, plan)
