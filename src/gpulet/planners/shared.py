"""Unpartitioned sharing of CPU devices: every model has workers that may use all cores, and the system shares them.

Better than disjoint cores where there are fewer cores than models, or where one model needs all cores for a moment.
The price is in the latencies: while k workers of s_1..s_k threads run on C cores, each goes max(1, sum s / C) x
(1 + contention x (k - 1)) slower, and the plan counts on all of them running. Devices that are not a CPU stay unused.
"""

from dataclasses import replace

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.duty import Share, residual, saturated, saturated_rate
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise, Turn

_SHARABLE = (Mechanism.CPU, Mechanism.WHOLE)


def shared(problem: Problem) -> Plan | Infeasible:
    """All models on the first CPU device, with the number of threads that leaves the tightest model most headroom."""
    hosts = [d for d in problem.devices if d.mechanism in _SHARABLE and d.kind.name == "cpu"]
    wanted = [m for m in problem.models.values() if problem.demand.get(m.name, 0.0) > 0]
    if not hosts or not wanted:
        unserved = {m.name: problem.demand[m.name] for m in wanted}
        first = next(iter(problem.models))
        return Infeasible(first, "no CPU device to share", "add a device of kind cpu", unserved, Plan(problem.devices))
    device = replace(hosts[0], mechanism=Mechanism.WHOLE)
    devices = tuple(device if d is hosts[0] else d for d in problem.devices)
    plans = [_plan(problem, wanted, devices, device, threads) for threads in range(1, device.kind.sms + 1)]
    return max(plans, key=_tightest)


def _tightest(outcome: Plan | Infeasible) -> float:
    if isinstance(outcome, Infeasible):
        return -sum(outcome.unserved.values())
    return min(promise.headroom for promise in outcome.promises.values())


def _plan(
    problem: Problem, wanted: list[Model], devices: tuple[Device, ...], device: Device, threads: int
) -> Plan | Infeasible:
    slowdown = max(1.0, threads * len(wanted) / device.kind.sms) * (1 + device.contention * (len(wanted) - 1))
    size = replace(
        device.sizes()[0], sms=threads, share_pct=100 * threads / device.kind.sms, label=f"{threads} threads"
    )
    gpulets: list[Gpulet] = []
    promises: dict[str, Promise] = {}
    unserved: dict[str, float] = {}
    for model in wanted:
        demand = problem.demand[model.name]
        threads_measured = max(threads, problem.profile.sizes(model.name)[0])
        alone = problem.profile.curve(model.name, threads_measured)
        share = Share(tuple(round(t * slowdown) for t in alone), model.slo, demand, model.max_batch)
        affords = saturated_rate(share)
        if affords < demand:
            unserved[model.name] = demand - affords
        if affords <= 0:
            continue
        cycle = residual(share)
        cycle = cycle if cycle.batches and affords > demand else saturated(share)
        turn = Turn(model.name, cycle.batches[0], demand, cycle.latencies[0])
        gpulets.append(Gpulet(len(gpulets), device.index, size, 0, cycle.duty, (turn,)))
        promises[model.name] = Promise(demand, affords, cycle.worst, model.slo)
    plan = Plan(devices, tuple(gpulets), promises=promises)
    if unserved:
        name = next(iter(unserved))
        constraint = (
            f"{len(wanted)} models on {device.kind.sms} shared cores leave {unserved[name]:.1f} rows/s unserved"
        )
        return Infeasible(name, constraint, f"lower its rate by {unserved[name]:.1f}/s", unserved, plan)
    return plan
