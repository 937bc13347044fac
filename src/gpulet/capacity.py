"""How much a fleet holds: the largest factor on its rates, and the fewest devices for them."""

import time
from dataclasses import replace
from math import inf

from gpulet.core.metrics import RunReport
from gpulet.core.ports import Infeasible, Problem
from gpulet.drivers.sim import simulate
from gpulet.errors import ConfigError
from gpulet.fleetfile import Site
from gpulet.plan import Plan
from gpulet.problems import make_problem
from gpulet.profile import Profile
from gpulet.systems import make_scheduler
from gpulet.units import SECOND
from gpulet.workload import Arrivals, drawn, poisson

ATTAINED = 0.99
"""At most 1 % late or unanswered: what the field's papers call holding a rate."""
FRONT_END = "(front-end)"
"""What limits a fleet whose front-end takes every core."""
_NO_BOUND = 1e6
_MOST_PROMISES = 6
"""So often is what a plan says it carries asked next: many planners are right about it, and some are slow."""
_HALVINGS = 10


class SimulationReport(RunReport):
    """A simulated run, and how fast it was simulated (requests per second of real time)."""

    simulated_per_second: float


def largest_factor(site: Site, profile: Profile, *, precision: float = 1e-3) -> tuple[float, str]:
    """The largest factor on all rates that the system's planner accepts, and the model that stops the next one."""
    low, high, limiting, asked = 0.0, inf, "", 1.0
    promises = _MOST_PROMISES
    while low < _NO_BOUND and (high == inf or high - low > precision * high):
        refused, promised = _refuses(site, profile, asked)
        if refused:
            high, limiting = asked, refused
        else:
            low = asked
        near = [promised * (1 - precision / 4), promised * (1 + precision / 2)]
        believed = [factor for factor in near if low < factor < high] if promises else []
        promises -= 1 if believed else 0
        asked = believed[0] if believed else 2 * low if high == inf else (low + high) / 2
    return low, limiting


def _refuses(site: Site, profile: Profile, factor: float) -> tuple[str, float]:
    """The model for which the planner refuses the scaled rates, empty when it does not; what its plan says it carries."""
    try:
        outcome = site.system.planner(make_problem(site, profile, factor=factor))
    except ConfigError:  # the front-end has no core left
        return FRONT_END, 0.0
    plan = outcome.partial if isinstance(outcome, Infeasible) else outcome
    carried = min((p.throughput / p.demand for p in plan.promises.values() if p.demand), default=0.0)
    return outcome.model if isinstance(outcome, Infeasible) else "", factor * carried


def simulated_factor(site: Site, profile: Profile, duration: float, seed: int) -> tuple[float, str]:
    """The largest factor that holds when it is planned for and simulated: every model attains 99 %."""
    low, high, limiting = 0.0, largest_factor(site, profile)[0], ""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        worst, attainment = _worst(site, make_problem(site, profile, factor=middle), duration, seed)
        if attainment < ATTAINED:
            high, limiting = middle, worst
        else:
            low = middle
    return low, limiting


def _worst(site: Site, problem: Problem, duration: float, seed: int) -> tuple[str, float]:
    """The model that attains least, and how much; 0 where there is no plan."""
    outcome = site.system.planner(problem)
    if isinstance(outcome, Infeasible):
        return outcome.model, 0.0
    arrivals = drawn(problem.sources, problem.rates, round(duration * SECOND), seed, poisson, problem.rows)
    report = simulated(site, problem, outcome, arrivals)["models"]
    worst = min(report, key=lambda name: report[name]["attainment"])
    return worst, report[worst]["attainment"]


def simulated(site: Site, problem: Problem, plan: Plan, arrivals: Arrivals) -> SimulationReport:
    """What a workload is worth under a plan."""
    scheduler = make_scheduler(site.system, problem, plan, site.limits)
    before = time.perf_counter()
    metrics = simulate(scheduler, problem.profile, plan, arrivals, interference=problem.interference)
    took = time.perf_counter() - before
    return {**metrics.report(arrivals.duration), "simulated_per_second": len(arrivals) / took if took else 0.0}


def fewest_devices(site: Site, problem: Problem) -> int | Infeasible:
    """How many of the devices are enough for the planner, by halving: more devices are taken to be no worse."""
    outcome = site.system.planner(problem)
    if isinstance(outcome, Infeasible):
        return outcome
    low, high = 0, len(problem.devices)
    while high - low > 1:
        middle = (low + high) // 2
        fits = isinstance(site.system.probe(replace(problem, devices=problem.devices[:middle])), Plan)
        low, high = (low, middle) if fits else (middle, high)
    return high
