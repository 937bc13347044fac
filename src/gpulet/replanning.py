"""What becomes of `Replan`: a plan for the demand of now, and what it and the plan in force would serve of that in time.

It computes for as long as it takes: live servers ask a process of its own (`planning_process`), simulations at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from gpulet.application import models_of
from gpulet.core.messages import Replan, Replanned
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device
from gpulet.drivers.sim import simulate
from gpulet.plan import Plan
from gpulet.planners.pooled import MERGING
from gpulet.planners.retuned import retuned
from gpulet.shedding import shed
from gpulet.spares import Spares
from gpulet.system import System
from gpulet.systems import make_scheduler
from gpulet.units import SECOND
from gpulet.workload import drawn, poisson

GOOD = 0.98
"""What a planner had got to before it gave up is not improved upon when it serves as much."""
HOLDS = 0.995
"""A plan in force that is predicted to serve as much of the demand in time is good enough: no other is looked for."""
_LEAST_REQUESTS, _MOST_REQUESTS, _LEAST_S, _MOST_S = 2_000, 6_000, 0.5, 20.0
_MOST = 500_000
"""Requests, whatever the rate."""
_SEED = 7
_NO_TURNS = "no other turns hold it"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Replanner:
    """A system and what it plans for, as the demand changes. `limits` are those of the server."""

    system: System
    limits: Limits
    spares: Spares = field(default_factory=Spares)

    def answer(self, problem: Problem, asked: Replan) -> Replanned:
        """The best there is for this demand on these devices; `problem.in_force` serves now, but for what is down.

        A plan that holds is left alone where that was asked, if no model is asked for that has no place in it.
        """
        in_force = problem.in_force.without(asked.down)
        wanted = demanded(replace(problem, in_force=in_force), asked.demand)
        before = self._attained(wanted, wanted.in_force)
        usable = tuple(d for d in problem.devices if d.index in asked.devices)
        may_stay = wanted.in_force.in_use <= set(asked.devices)
        if before >= HOLDS and may_stay and asked.is_needed and not wanted.in_force.starved(wanted.demand):
            return Replanned(asked.number, None, f"the plan in force holds {before:.2%} of it", before, before)
        tuned = self._tuned(wanted, asked) if may_stay and asked.is_needed and self.system.retunes else None
        if tuned:
            after = self._attained(wanted, tuned)
            if after >= HOLDS and not tuned.starved(wanted.demand):
                return Replanned(asked.number, tuned, "", before, after)
        found, why = self._cut(replace(wanted, devices=usable), asked) if asked.builds else ([], _NO_TURNS)
        found = [tuned, *found] if tuned else found
        offers = [(self._attained(wanted, plan), place, plan) for place, plan in enumerate(found)]
        if not offers:
            return Replanned(asked.number, None, why, before, before)
        after, _, plan = max(offers, key=lambda o: (-len(o[2].starved(wanted.demand)), o[0], -o[1]))
        plan = self.spares.added(_on_all(plan, problem.devices), problem.models)
        return Replanned(asked.number, plan, why, before, after)

    def _cut(self, problem: Problem, asked: Replan) -> tuple[list[Plan], str]:
        """Plans that are cut anew; why none of them holds all, where none does."""
        outcome = (on_fewest if asked.fewest else _plainly)(self.system, problem)
        if isinstance(outcome, Plan):
            return [outcome], ""
        return self._nearest(problem, outcome), f"no plan: {outcome}"

    def _tuned(self, problem: Problem, asked: Replan) -> Plan | None:
        """The plan in force with other turns, where it has gpulets and those hold the models; for less where nothing else will be."""
        if not problem.in_force.gpulets or problem.in_force.dispatcher not in {"", MERGING}:
            return None
        return _turned(problem) or (None if asked.builds else _less(problem, _turned))

    def _nearest(self, problem: Problem, refusal: Infeasible) -> list[Plan]:
        """Plans for less: what the planner had got to, and one for what is left when the least important get less."""
        partial = reached(refusal.partial)
        if partial and not _is_fair(problem, partial):
            partial = None
        if partial and not partial.starved(problem.demand) and self._attained(problem, partial) >= GOOD:
            return [partial]

        def sketched(lesser: Problem) -> Plan | None:
            outcome = self.system.sketch(lesser)
            return outcome if isinstance(outcome, Plan) else None

        return [plan for plan in (partial, _less(problem, sketched)) if plan]

    def _attained(self, problem: Problem, plan: Plan) -> float:
        return attained(self.system, problem, plan, self.limits)


def _turned(problem: Problem) -> Plan | None:
    outcome = retuned(problem)
    return outcome if isinstance(outcome, Plan) and not outcome.violations() else None


def _less(problem: Problem, plan: Callable[[Problem], Plan | None]) -> Plan | None:
    """What can be planned where the least important get less."""
    if problem.applications:
        return None
    return shed(problem.models, problem.demand, lambda demand: plan(replace(problem, demand=demand, sent={})))


def on_fewest(system: System, problem: Problem) -> Plan | Infeasible:
    """A plan on as few of the devices as will do, the others beside them; the refusal of all where none does."""
    outcome: Plan | Infeasible = Infeasible("", "there are no devices", "add one", {}, Plan(()))
    counts = range(least_devices(problem), len(problem.devices) + 1) if problem.devices else ()
    for count in counts:
        outcome = system.planner(replace(problem, devices=problem.devices[:count]))
        if isinstance(outcome, Plan):
            return _on_all(outcome, problem.devices)
    return outcome


def _plainly(system: System, problem: Problem) -> Plan | Infeasible:
    return system.planner(problem)


def _on_all(plan: Plan, devices: tuple[Device, ...]) -> Plan:
    """With the devices that it was not to use; those that it uses may be cut another way than they were."""
    own = {device.index: device for device in plan.devices}
    return replace(plan, devices=tuple(own.get(device.index, device) for device in devices))


def _is_fair(problem: Problem, plan: Plan) -> bool:
    """Whether all are as important as one another, and each is promised its floor."""
    if len({problem.models[name].importance for name in problem.demand}) > 1:
        return False
    promised = {name: promise.throughput for name, promise in plan.promises.items()}
    return all(promised.get(n, 0.0) >= problem.models[n].floor * rate for n, rate in problem.demand.items())


def reached(plan: Plan) -> Plan | None:
    """A plan that promises less than was asked promises what it can; none where it still cannot be, or is nothing."""
    promises = {name: replace(p, demand=min(p.demand, p.throughput)) for name, p in plan.promises.items()}
    able = replace(plan, promises=promises)
    return able if able.in_use and not able.violations() else None


def demanded(problem: Problem, demand: Mapping[str, float]) -> Problem:
    """The same problem with another demand; what clients send follows from it, less what applications ask of models."""
    rates = {name: max(rate, 1e-6) for name, rate in demand.items() if name in problem.models}
    if not problem.applications:
        return replace(problem, demand=rates, sent={})
    wholes = {a.name: demand.get(a.name, 0.0) for a in problem.applications}
    own = dict(rates)
    for application in problem.applications:
        for stage, count in application.requests_per_request().items():
            model = next(s.model for s in application.stages if s.name == stage)
            own[model] = max(0.0, own[model] - count * wholes[application.name])
    inner = {model for application in problem.applications for model in models_of(application)}
    sent = {name: rate for name, rate in own.items() if name not in inner or problem.sent.get(name)}
    return replace(problem, demand=rates, sent={**sent, **wholes})


def attained(system: System, problem: Problem, plan: Plan, limits: Limits) -> float:
    """The share of all requests that a plan would serve in time, by a short simulation of Poisson arrivals."""
    rate = sum(problem.rates.values())
    if rate < 1e-3 * len(problem.rates):
        return 1.0
    seconds = min(_MOST_S, max(_LEAST_S, _LEAST_REQUESTS / rate), max(_MOST_REQUESTS / rate, _LEAST_S), _MOST / rate)
    arrivals = drawn(problem.sources, problem.rates, round(seconds * SECOND), _SEED, poisson, problem.rows)
    scheduler = make_scheduler(system, problem, plan, limits)
    metrics = simulate(scheduler, problem.profile, plan, arrivals, interference=problem.interference)
    return metrics.report(arrivals.duration)["total"]["attainment"]


def least_devices(problem: Problem) -> int:
    """No fewer devices can hold the demand: every row takes at least the cheapest run's part of a device, in SM time."""
    device = problem.devices[0]
    need = sum(rate * _cheapest(problem, name, device) for name, rate in problem.demand.items())
    return min(len(problem.devices), max(1, ceil(need / device.kind.sms / SECOND - _ROUNDING)))


def _cheapest(problem: Problem, name: str, device: Device) -> float:
    """SM-nanoseconds a row."""
    model = problem.models[name]
    runs = (
        sms * latency / rows
        for sms in {size.sms for size in device.sizes()} & {*problem.profile.sizes(name)}
        for rows, latency in enumerate(problem.profile.curve(name, sms)[: model.max_batch], start=1)
        if latency <= model.slo
    )
    return min(runs, default=0.0)
