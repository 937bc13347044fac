"""The judge: whether a plan holds under the dispatcher that will serve it, said by short simulations."""

from gpulet.core.ports import MakeDispatcher, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.sim import simulate
from gpulet.plan import Plan
from gpulet.planners.best import Care
from gpulet.units import SECOND
from gpulet.workload import drawn, poisson

_ATTAINED = 0.995
_LONGEST_SECONDS = 10.0
_QUICK = ((1,), 1.5)
_THOROUGH = ((1, 2, 3), 10.0)
"""Seeds, and the seconds that are simulated at least."""
_JUDGED_REQUESTS = 12_000
_MOST_JUDGED_REQUESTS = 60_000


def holds(make_dispatcher: MakeDispatcher, problem: Problem, plan: Plan, care: Care) -> bool:
    """A short run; with care, three long ones."""
    seeds, shortest = _QUICK if care is Care.QUICK else _THOROUGH
    return all(_holds_once(make_dispatcher, problem, plan, seed, shortest) for seed in seeds)


def _holds_once(make_dispatcher: MakeDispatcher, problem: Problem, plan: Plan, seed: int, shortest: float) -> bool:
    """Whether everything that clients send attains 99.5 % in a short simulation of Poisson arrivals: 99 % in a long one."""
    rate = sum(problem.demand.values())
    if not rate:
        return True
    seconds = min(_LONGEST_SECONDS, max(shortest, _JUDGED_REQUESTS / rate), _MOST_JUDGED_REQUESTS / rate)
    arrivals = drawn(problem.sources, problem.rates, round(seconds * SECOND), seed, poisson, problem.rows)
    plan = plan.unfolded()
    scheduler = Scheduler(problem.models, plan, make_dispatcher(problem, plan), Limits(), problem.applications)
    metrics = simulate(scheduler, problem.profile, plan, arrivals, interference=problem.interference)
    rows = metrics.report(arrivals.duration)["models"]
    return all(rows[source.name]["attainment"] >= _ATTAINED for source in problem.sources)
