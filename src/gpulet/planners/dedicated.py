"""One whole device per model: what teams without a scheduler run, and the baseline of every comparison."""

from gpulet.core.ports import Infeasible, Problem
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.units import SECOND


def dedicated(problem: Problem) -> Plan | Infeasible:
    """Give the models, in their order, one device each; the batch is the largest that runs twice within the SLO.

    A batch may just miss the one before it, so the worst latency is two runs.
    """
    gpulets: list[Gpulet] = []
    promises: dict[str, Promise] = {}
    unserved: dict[str, float] = {}
    for model, device in zip(problem.models.values(), problem.devices, strict=False):
        size = device.sizes()[-1]
        demand = problem.demand.get(model.name, 0.0)
        fits = problem.profile.largest_batch(model.name, size.sms, model.slo // 2)
        batch = min(max(1, fits), model.max_batch)
        latency = problem.profile.latency(model.name, size.sms, batch)
        throughput = batch * SECOND / latency
        turn = Turn(model.name, batch, demand, latency)
        gpulets.append(Gpulet(len(gpulets), device.index, size, 0, latency, (turn,)))
        promises[model.name] = Promise(demand, throughput, 2 * latency, model.slo)
        if not fits or throughput < demand:
            unserved[model.name] = demand if not fits else demand - throughput
    plan = Plan(problem.devices, tuple(gpulets), promises=promises)
    homeless = [name for name in problem.models if name not in promises]
    if homeless:
        short = {name: problem.demand.get(name, 0.0) for name in homeless}
        count = f"{len(problem.models)} models for {len(problem.devices)} devices"
        return Infeasible(homeless[0], count, f"add {len(homeless)} devices", unserved | short, plan)
    if unserved:
        worst = max(unserved, key=lambda name: unserved[name])
        promise = promises[worst]
        constraint = f"one device carries {promise.throughput:.1f} rows/s of {promise.demand:.1f} within its SLO"
        return Infeasible(worst, constraint, f"lower its rate by {unserved[worst]:.1f}/s", unserved, plan)
    return plan
