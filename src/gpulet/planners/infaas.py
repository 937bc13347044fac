"""Replica scaling (INFaaS, Romero et al., ATC 2021; its worker's autoscaler, and the rule that Proteus took from it).

A model has as many replicas as its demand is times `slack` of what one replica carries alone, at least one, each on a
device of its own; several models share an uncut device. Replicas go to the least loaded device that has the memory,
with a GiB to spare. What the models of a device then carry beside each other is said by a given planner.

Departures: INFaaS starts with one replica and scales when the offered rate exceeds what there is; this plans for a rate
at once. Its choice among variants of a model is left out: here a model has one. `slack` is ours, no source gives it. That
a demand is refused is ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from gpulet.core.ports import Infeasible, Planner, Problem
from gpulet.device import Device
from gpulet.duty import Share, saturated_rate
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Promise
from gpulet.units import GIB, to_ms


def infaas(problem: Problem, *, beside: Planner, slack: float = 0.8, spare: int = GIB) -> Plan | Infeasible:
    """Replicas for every model, and what `beside` says of each device; its refusal where one cannot."""
    placing = _Placing(problem, slack, spare)
    for model in sorted(problem.models.values(), key=lambda m: -problem.demand.get(m.name, 0.0)):
        refusal = placing.place(model)
        if refusal:
            return refusal
    outcomes = [beside(placing.part(device)) for device in problem.devices if placing.tenants[device.index]]
    return _joined(problem, outcomes)


class _Placing:
    """Which models have a replica where, and how much of each device they take."""

    def __init__(self, problem: Problem, slack: float, spare: int) -> None:
        self._problem = problem
        self._slack = slack
        self._spare = spare
        self._replicas: dict[str, int] = {}
        self._load = {device.index: 0.0 for device in problem.devices}
        self.tenants: dict[int, list[Model]] = {device.index: [] for device in problem.devices}

    def place(self, model: Model) -> Infeasible | None:
        """Its replicas, as many as its demand asks for and the devices have room for; a refusal without any."""
        demand = self._problem.demand.get(model.name, 0.0)
        peak = min(self._peak(model, device) for device in self._problem.devices)
        able = [device for device in self._problem.devices if self._holds(device, model)]
        if not able or not peak:
            slo = f"a whole device does not run one row twice within its SLO of {to_ms(model.slo):g} ms: 0 of "
            why = f"{slo}{demand:.1f} rows/s" if able else f"no device has {model.memory} bytes of memory left"
            nearest = "raise its SLO" if able else "add a device"
            return Infeasible(model.name, why, nearest, {model.name: demand}, Plan(self._problem.devices))
        wanted = max(1, ceil(demand / (peak * self._slack)))
        chosen = sorted(able, key=lambda device: (self._load[device.index], device.index))[:wanted]
        self._replicas[model.name] = len(chosen)
        for device in chosen:
            self.tenants[device.index].append(model)
            self._load[device.index] += demand / len(chosen) / peak
        return None

    def part(self, device: Device) -> Problem:
        """The problem of one device: its models, and their part of the demand."""
        models = {model.name: model for model in self.tenants[device.index]}
        demand = {name: self._problem.demand.get(name, 0.0) / self._replicas[name] for name in models}
        return replace(self._problem, models=models, demand=demand, devices=(device,), in_force=Plan(()))

    def _peak(self, model: Model, device: Device) -> float:
        """Rows/s of a replica alone on the whole device."""
        curve = self._problem.profile.curve(model.name, device.kind.sms)
        return saturated_rate(Share(curve, model.slo, 0.0, model.max_batch))

    def _holds(self, device: Device, model: Model) -> bool:
        used = sum(tenant.memory for tenant in self.tenants[device.index])
        return not device.kind.memory or not model.memory or used + model.memory + self._spare <= device.kind.memory


def _joined(problem: Problem, outcomes: Sequence[Plan | Infeasible]) -> Plan | Infeasible:
    plans = [outcome.partial if isinstance(outcome, Infeasible) else outcome for outcome in outcomes]
    there = {device.index: device for plan in plans for device in plan.devices}
    gpulets: list[Gpulet] = []
    promises: dict[str, Promise] = {}
    for plan in plans:
        gpulets += [replace(g, id=len(gpulets) + place) for place, g in enumerate(plan.gpulets)]
        for name, promise in plan.promises.items():
            before = promises.get(name, replace(promise, throughput=0.0))
            throughput, worst = before.throughput + promise.throughput, max(before.worst_latency, promise.worst_latency)
            promises[name] = Promise(problem.demand.get(name, 0.0), throughput, worst, promise.slo)
    whole = Plan(tuple(there.get(d.index, d) for d in problem.devices), tuple(gpulets), promises=promises)
    missing: dict[str, float] = {}
    for refusal in (outcome for outcome in outcomes if isinstance(outcome, Infeasible)):
        for name, rate in refusal.unserved.items():
            missing[name] = missing.get(name, 0.0) + rate
    if not missing:
        return whole
    name = max(missing, key=lambda n: missing[n])
    demand, left = problem.demand[name], missing[name]
    constraint = f"{len(whole.hosts(name))} replicas beside others carry {demand - left:.1f} of {demand:.1f} rows/s"
    return Infeasible(name, constraint, f"lower its rate by {left:.1f}/s", missing, whole)
