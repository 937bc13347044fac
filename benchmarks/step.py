"""Microseconds per request through `Scheduler.step`, and nothing else.

A simulation records every step's instant and events; they are fed to a fresh core, timed. Two workloads on the four
models of gpu-lets' figure 3 at 60 % load: batches over 8 gpulets, and single rows bound on arrival over 16.
"""

from statistics import median
from time import process_time_ns

from common import BoundOnArrival, batched, half_devices, record

from gpulet.core.messages import Event
from gpulet.core.ports import MakeDispatcher, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.sim import simulate
from gpulet.plan import Plan
from gpulet.workload import drawn, poisson

REQUESTS = 40_000
REPEATS = 7


def measure(make: MakeDispatcher, gpulets: int, batch: int) -> dict[str, float]:
    """Median and spread over the repeats, and the mean batch that came about."""
    problem, plan, duration = half_devices(gpulets, batch, REQUESTS)
    arrivals = drawn(tuple(problem.models.values()), problem.demand, duration, 1, poisson)
    steps: list[tuple[int, tuple[Event, ...]]] = []
    metrics = simulate(
        Scheduler(problem.models, plan, make(problem, plan), Limits()),
        problem.profile,
        plan,
        arrivals,
        [lambda now, events, _: steps.append((now, tuple(events)))],
    )
    took = [feed(make, problem, plan, steps) / len(arrivals) / 1000 for _ in range(REPEATS)]
    total = metrics.report(duration)["total"]
    assert isinstance(total, dict)
    return {
        "us_per_request": median(took),
        "least": min(took),
        "most": max(took),
        "mean_batch": total["mean_batch"],
        "attainment": total["attainment"],
        "requests": len(arrivals),
    }


def feed(make: MakeDispatcher, problem: Problem, plan: Plan, steps: list[tuple[int, tuple[Event, ...]]]) -> int:
    """CPU time of all steps on a fresh core."""
    scheduler = Scheduler(problem.models, plan, make(problem, plan), Limits())
    step = scheduler.step
    before = process_time_ns()
    for now, events in steps:
        step(now, *events)
    return process_time_ns() - before


if __name__ == "__main__":
    record(
        "step",
        {
            "batched over 8 gpulets": measure(batched, 8, 8),
            "bound on arrival over 16 gpulets": measure(BoundOnArrival, 16, 1),
        },
    )
