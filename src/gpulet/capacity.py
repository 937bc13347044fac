"""How much a fleet holds: the largest factor on its rates, and the fewest devices for them."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import fmean

from gpulet.bounded import Unit, guess, largest_rate, late_source, unit_requests
from gpulet.core.control import Controlled
from gpulet.core.decisions import ChangeRow, change_row
from gpulet.core.metrics import RunReport
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.drivers.sim import Changes, simulate
from gpulet.errors import ConfigError
from gpulet.fleetfile import Site
from gpulet.parallel import Advance, Job, run_all
from gpulet.plan import Plan
from gpulet.problems import front_end_share, make_problem
from gpulet.profile import Profile
from gpulet.replanning import Replanner
from gpulet.steering import make_core, spares_of
from gpulet.systems import find_system, make_scheduler
from gpulet.units import SECOND, from_ms
from gpulet.useful import useful_sizes
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
    """A simulated run, how fast it was simulated (requests per second of real time), and what live control decided."""

    simulated_per_second: float
    changes: list[ChangeRow]


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
    """What a workload is worth under a plan, and those that follow it where live control is on."""
    control = site.config.control
    plan = spares_of(site).added(plan, problem.models)
    core = make_core(control, site.system, problem, plan, site.limits)
    changes = None
    if isinstance(core, Controlled):
        replanner = Replanner(site.system, site.limits, spares_of(site))
        times = from_ms(control.plan_ms), from_ms(control.build_ms)
        changes = Changes(lambda asked: replanner.answer(core.problem, asked), *times)
    before = time.perf_counter()
    metrics = simulate(
        core,
        problem.profile,
        plan,
        arrivals,
        interference=problem.interference,
        knees=useful_sizes(problem),
        changes=changes,
    )
    took = time.perf_counter() - before
    rows = [change_row(*entry) for entry in core.history] if isinstance(core, Controlled) else []
    speed = len(arrivals) / took if took else 0.0
    return {**metrics.report(arrivals.duration), "simulated_per_second": speed, "changes": rows}


@dataclass(frozen=True, slots=True)
class Asked:
    """`percentile` percent of `requests` requests must be in time; searched once for each seed, in so many processes."""

    percentile: float
    requests: int
    seeds: Sequence[int]
    workers: int


@dataclass(frozen=True, slots=True)
class Held:
    """The factors on all rates that one plan holds, by seed, and what most often is too late beyond them."""

    factors: tuple[float, ...]
    limiting: str

    @property
    def factor(self) -> float:
        """Their mean."""
        return fmean(self.factors)


def held_factor(site: Site, problem: Problem, outcome: Plan | Infeasible, asked: Asked, advance: Advance) -> Held:
    """Latency-bounded throughput as in `bounded`, under the site's limits and dispatcher.

    It is that of one plan; what there is of it counts even if the planner refuses the rates.
    """
    plan = outcome.partial if isinstance(outcome, Infeasible) else outcome
    homeless = next((name for name in problem.models if problem.demand.get(name) and not plan.serves(name)), "")
    if homeless:
        return Held((0.0,) * len(asked.seeds), homeless)
    served = _Served(site.dispatcher_name, site.limits, problem, plan, front_end_share(site, problem))
    jobs = [Job(seed, _held, (served, asked, seed)) for seed in asked.seeds]
    found = dict(run_all(jobs, asked.workers, advance))
    limiting = Counter(name for _, name in found.values()).most_common(1)[0][0]
    return Held(tuple(found[seed][0] for seed in asked.seeds), limiting)


@dataclass(frozen=True, slots=True)
class _Served:
    """A plan and who serves it, fit to be sent to another process; `share` is the front-end's part of the cores."""

    system: str
    limits: Limits
    problem: Problem
    plan: Plan
    share: float

    def late(self, unit: Unit, factor: float, percentile: float) -> str:
        """What is too late at `factor` times the rates; empty when nothing is."""
        problem, plan = self.problem, self.plan
        if factor * self.share >= 1:
            return FRONT_END
        scheduler = make_scheduler(find_system(self.system), problem, plan, self.limits)
        arrivals = unit.at(problem, factor * sum(problem.rates.values()))
        # The more the front-end takes, the slower the workers beside it: the profile has what it takes at factor 1.
        times = problem.profile.stretched((1 - self.share) / (1 - factor * self.share)) if self.share else None
        return late_source(scheduler, problem, plan, arrivals, percentile=percentile, times=times)


def _held(served: _Served, asked: Asked, seed: int) -> tuple[float, str]:
    """The largest factor that holds for the requests of one seed, and what is too late at the least that does not."""
    unit = unit_requests(served.problem, asked.requests, seed)
    limiting = ""

    def holds_at(factor: float) -> bool:
        nonlocal limiting
        late = served.late(unit, factor, asked.percentile)
        limiting = late or limiting
        return not late

    return largest_rate(holds_at, guess(served.plan)), limiting


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
