"""The design points that PARIS and ELSA compares, and the rate that each holds."""

from dataclasses import dataclass
from functools import partial
from random import Random

from gpulet.bounded import PERCENTILE, UNBOUNDED, Quick, guess, holds, largest_rate, unit_requests
from gpulet.core.ports import Infeasible, MakeDispatcher, Planner, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.elsa import Elsa
from gpulet.dispatchers.fifs import Fifs, Idle
from gpulet.executors.simulated import Noise
from gpulet.ours import ours
from gpulet.plan import Plan
from gpulet.planners.homogeneous import homogeneous
from gpulet.planners.paris import UTILIZATIONS, paris
from gpulet.planners.random_mig import random_mig
from gpulet.pools import carried, groups_in
from gpulet.profile import Profile
from gpulet.reproduce.dac22.cases import WHOLE, Case, planned, served, whole_gpus
from gpulet.systems import SYSTEMS

HOMOGENEOUS = {f"GPU({n})": n for n in (1, 2, 3, 7)}
RANDOM = ("Random+FIFS", "Random+ELSA")
OURS = "gpulet"
PAPER = (*HOMOGENEOUS, *RANDOM, "PARIS+FIFS", "PARIS+ELSA")
"""The paper's design points; GPU(n) is first idle first served."""
IDLES = ("Random+FIFS, largest idle", "PARIS+FIFS, largest idle")
"""The same where the largest idle gpulet is taken first: the paper's choice is not known, and it matters."""
DESIGNS = (*PAPER, *(f"{name}+ELSA" for name in HOMOGENEOUS), *IDLES, OURS)
"""All that can be compared."""
_NEVER_DROPS = Limits(10**9, early_drop=False)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long the search is: requests at each rate, the seed of their stream, the percentile that must be in time."""

    requests: int = 20_000
    seed: int = 1
    percentile: float = PERCENTILE


def throughput(profile: Profile, case: Case, design: str, effort: Effort, draw: int = 0) -> float:
    """The latency-bounded throughput in requests/s; `draw` is the seed of a random pool.

    Runs take what was measured, wrong ways included; planners and dispatchers know the profile that they always know.
    """
    problem = _problem(profile, case, design)
    outcome = _planner(case, design, effort, draw)(problem)
    plan = outcome.partial if isinstance(outcome, Infeasible) else outcome
    start = _start(problem, plan, design, effort)
    if not start:
        return 0.0
    asked = served(problem, case)
    unit = unit_requests(asked, effort.requests, effort.seed)
    make, limits = _dispatcher(case, design), UNBOUNDED if design == OURS else _NEVER_DROPS
    actual = profile.as_measured()

    def holds_at(rate: float) -> bool:
        scheduler = Scheduler(asked.models, plan, make(asked, plan), limits)
        noise = _noise(case.noise, effort.seed)
        arrivals = unit.at(asked, rate)
        return holds(scheduler, asked, plan, arrivals, percentile=effort.percentile, times=actual, noise=noise)

    return largest_rate(holds_at, start)


def _problem(profile: Profile, case: Case, design: str) -> Problem:
    """GPU(7) counts whole GPUs; everything else the same slices."""
    if HOMOGENEOUS.get(design.removesuffix("+ELSA")) != WHOLE:
        return planned(profile, case)
    gpus = whole_gpus(case.gpus)
    return planned(profile, case, gpus=gpus, slices=WHOLE * gpus)


def _planner(case: Case, design: str, effort: Effort, draw: int) -> Planner:
    if design == OURS:
        return partial(ours, quick=Quick(percentile=effort.percentile))
    if design.startswith("Random"):
        return partial(random_mig, seed=draw)
    if design.startswith("PARIS"):
        used = UTILIZATIONS[case.utilization]
        return partial(paris, theta=case.theta, rounding=case.rounding, utilization=used)
    return partial(homogeneous, slices=HOMOGENEOUS[design.removesuffix("+ELSA")])


def _dispatcher(case: Case, design: str) -> MakeDispatcher:
    if design == OURS:
        return SYSTEMS[OURS].dispatcher
    if design.endswith("+ELSA"):
        return partial(Elsa, alpha=case.alpha)
    return partial(Fifs, idle=Idle.LARGEST if design in IDLES else Idle.FIRST)


def _start(problem: Problem, plan: Plan, design: str, effort: Effort) -> float:
    """Half of what the pool carries at most; 0 where it cannot hold anything."""
    if design == OURS:
        return guess(plan)
    return carried(problem, groups_in(plan), spared=1 - effort.percentile / 100) / 2 if plan.gpulets else 0.0


def _noise(sigma: float, seed: int) -> Noise | None:
    """Runs vary by a log-normal factor around what was measured."""
    if not sigma:
        return None
    random = Random(seed)
    return lambda latency: round(latency * random.lognormvariate(0.0, sigma))
