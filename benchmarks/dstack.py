"""Microseconds that a decision of D-STACK's dispatcher takes, and milliseconds of its planning, by models on one device.

D-STACK's table of models, the longest SLO first and twice over for sixteen, on a V100 cut by 5 %: a row takes a quarter
of a batch's time. The demand is the largest part of a batch of each model in each of its SLOs that the planner places;
arrivals are Poisson. A run's steps are fed to fresh cores; of a decision the least of the repeats counts, since it is
the same one each time. Planning: a session of 100 ms placed from needs that are known, and the whole planner.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import mean, quantiles
from time import perf_counter_ns
from typing import Any

from common import record

from gpulet.core.fleet import Fleet
from gpulet.core.messages import Event
from gpulet.core.ports import Changed, Decision, Place, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.device import Device, Mechanism
from gpulet.dispatchers.dstack import Dstack
from gpulet.drivers.sim import simulate
from gpulet.efficacy import OperatingPoint
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.dstack import Need, dstack, place
from gpulet.profile import Point, Profile
from gpulet.reproduce.tcc24.data import BATCH, KIND, TABLE, profile
from gpulet.request import Request
from gpulet.units import SECOND, Instant, from_ms
from gpulet.workload import drawn, poisson

COUNTS = (1, 2, 4, 8, 16)
DURATION = 20 * SECOND
REPEATS = 7
PERCENT = 5
"""Demands are tried in such steps."""
Step = tuple[Instant, Sequence[Event]]


class Timed:
    """D-STACK, with the nanoseconds of every decision and what brought it about."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._asked = Dstack(problem, plan)
        self.took: list[int] = []
        self.causes: list[str] = []

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        return self._asked.bind(now, request, fleet)

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        self.causes.append("finish" if changed.ended else "alarm" if changed.alarm else "arrival")
        before = perf_counter_ns()
        decision = self._asked.decide(now, changed, fleet)
        self.took.append(perf_counter_ns() - before)
        if decision.start:
            self.causes[-1] += " with a start"
        return decision


def measured(name: str, rows: int, part: float) -> Iterator[Point]:
    """The table's model at all sizes, at a part of the latency of a batch."""
    for point in profile((name.partition("+")[0],)).points:
        latency = round(point.mean * part)
        yield replace(point, model=name, rows=rows, mean=latency, p95=latency, p99=latency)


def problem_of(count: int, percent: int) -> Problem:
    """So many models at so much of a batch in each SLO."""
    names = [*reversed(TABLE), *(f"{name}+" for name in reversed(TABLE))][:count]
    models = {name: Model(name, from_ms(TABLE[name.rstrip("+")].slo_ms), BATCH) for name in names}
    demand = {name: percent / 100 * BATCH * SECOND / model.slo for name, model in models.items()}
    points = [p for name in names for rows, part in ((1, 0.25), (BATCH, 1.0)) for p in measured(name, rows, part)]
    return Problem(models, demand, (Device(0, KIND, Mechanism.MPS),), Profile(tuple(points)))


def fullest(count: int) -> tuple[int, Problem, Plan]:
    """The largest demand that is placed, in percent."""
    for percent in range(100, 0, -PERCENT):
        problem = problem_of(count, percent)
        plan = dstack(problem)
        if isinstance(plan, Plan):
            return percent, problem, plan
    message = f"{count} models do not fit at {PERCENT} %"
    raise SystemExit(message)


def decisions(problem: Problem, plan: Plan) -> dict[str, Any]:
    """Microseconds by what brought a decision about."""
    arrivals = drawn(tuple(problem.models.values()), problem.demand, DURATION, 1, poisson)
    steps: list[Step] = []
    scheduler = Scheduler(problem.models, plan, Dstack(problem, plan), Limits())
    observe = [lambda now, events, _: steps.append((now, tuple(events)))]
    report = simulate(scheduler, problem.profile, plan, arrivals, observe).report(DURATION)["total"]
    assert isinstance(report, dict)
    runs = [feed(problem, plan, steps) for _ in range(REPEATS)]
    least = [min(took) / 1000 for took in zip(*(run.took for run in runs), strict=True)]
    by_cause = {cause: [] for cause in sorted(set(runs[0].causes))}
    for cause, took in zip(runs[0].causes, least, strict=True):
        by_cause[cause].append(took)
    return {"attainment": report["attainment"], "us": {n: spread(v) for n, v in {"all": least, **by_cause}.items()}}


def feed(problem: Problem, plan: Plan, steps: Sequence[Step]) -> Timed:
    """All steps on a fresh core."""
    timed = Timed(problem, plan)
    step = Scheduler(problem.models, plan, timed, Limits()).step
    for now, events in steps:
        step(now, *events)
    return timed


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count, mean and percentiles."""
    cuts = quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    named = {"mean": mean(values), "p50": cuts[49], "p95": cuts[94], "p99": cuts[98]}
    return {"decisions": len(values), **{name: round(value, 1) for name, value in named.items()}}


def needs_of(plan: Plan) -> tuple[list[Need], int]:
    """What a plan's session holds, to be placed again."""
    (line,) = plan.timelines
    by_model = {run.model: [other for other in line.runs if other.model == run.model] for run in line.runs}
    points = {name: OperatingPoint(runs[0].size, runs[0].batch, runs[0].length) for name, runs in by_model.items()}
    return [Need(name, len(by_model[name]), point) for name, point in points.items()], line.period


def least_ms(call: Callable[[], object]) -> float:
    """The least of the repeats."""
    took = []
    for _ in range(REPEATS):
        before = perf_counter_ns()
        call()
        took.append(perf_counter_ns() - before)
    return round(min(took) / 1e6, 3)


def measure(count: int) -> dict[str, Any]:
    """Everything for so many models."""
    percent, problem, plan = fullest(count)
    needs, session = needs_of(plan)
    assert place(needs, session, KIND.sms)
    return {
        "demand_percent": percent,
        "session_ms": session / 1e6,
        "runs": len(plan.timelines[0].runs),
        "place_ms": least_ms(lambda: place(needs, session, KIND.sms)),
        "planner_ms": least_ms(lambda: dstack(problem)),
        **decisions(problem, plan),
    }


if __name__ == "__main__":
    record("dstack", {f"{count} models": measure(count) for count in COUNTS})
