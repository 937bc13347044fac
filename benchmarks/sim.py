"""Simulated requests per second, arrivals and metrics included: the workloads of `step.py`.

Beside it, in the same run, a bare loop: the same arrivals through a heap and nothing else, so that a slow minute of the
machine shows in both.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from statistics import median
from time import perf_counter

from common import BoundOnArrival, batched, half_devices, record

from gpulet.core.ports import MakeDispatcher, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.sim import simulate
from gpulet.plan import Plan
from gpulet.units import MS
from gpulet.workload import drawn, poisson

REQUESTS = 60_000
REPEATS = 5


def measure(make: MakeDispatcher, gpulets: int, batch: int) -> dict[str, float]:
    """Median and spread, and the ratio to the bare loop."""
    problem, plan, duration = half_devices(gpulets, batch, REQUESTS)
    rates = [rate_of(lambda: whole(make, problem, plan, duration)) for _ in range(REPEATS)]
    bare = [rate_of(lambda: loop(problem, duration)) for _ in range(REPEATS)]
    return {
        "simulated_per_second": median(rates),
        "least": min(rates),
        "most": max(rates),
        "bare_loop_per_second": median(bare),
        "share_of_bare_loop": median(rates) / median(bare),
    }


def rate_of(run: Callable[[], int]) -> float:
    """Requests per second of one run that returns how many there were."""
    before = perf_counter()
    count = run()
    return count / (perf_counter() - before)


def whole(make: MakeDispatcher, problem: Problem, plan: Plan, duration: int) -> int:
    """Draw the arrivals, simulate, report."""
    arrivals = drawn(tuple(problem.models.values()), problem.demand, duration, 1, poisson)
    scheduler = Scheduler(problem.models, plan, make(problem, plan), Limits())
    simulate(scheduler, problem.profile, plan, arrivals).report(duration)
    return len(arrivals)


def loop(problem: Problem, duration: int) -> int:
    """The same arrivals, each finished 10 ms later through a heap."""
    arrivals = drawn(tuple(problem.models.values()), problem.demand, duration, 1, poisson)
    heap: list[tuple[int, int]] = []
    done = 0
    for request in arrivals.requests():
        while heap and heap[0][0] <= request.arrival:
            heappop(heap)
            done += 1
        heappush(heap, (request.arrival + 10 * MS, request.id))
    return done + len(heap)


if __name__ == "__main__":
    record(
        "sim",
        {
            "batched over 8 gpulets": measure(batched, 8, 8),
            "bound on arrival over 16 gpulets": measure(BoundOnArrival, 16, 1),
        },
    )
