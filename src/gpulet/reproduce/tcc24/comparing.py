"""Random mixes of D-STACK's models, and any systems on the same Poisson arrivals with the table's objectives.

Every system is taken as it is: `find_system`, its own planner, its own knees. A system that refuses the demand serves with
the plan of what it would hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from random import Random

from gpulet.core.ports import Problem
from gpulet.core.scheduler import Limits
from gpulet.parallel import Advance, Job, run_all
from gpulet.reproduce.tcc24.data import MEASURED_BATCHES, ROWS, TABLE, mixed
from gpulet.reproduce.tcc24.runs import planned, serve
from gpulet.systems import find_system
from gpulet.units import SECOND, from_ms
from gpulet.workload import drawn, parse_process

FEWEST, MOST = 3, len(TABLE)
_SPREAD = 4.0
"""The heaviest weight drawn is at most so many times the mean one, the lightest at least that part of it."""

_PRECISION = 0.01
_LEAST_LOAD = 0.01


def random_mix(seed: int, batches: Sequence[int] = MEASURED_BATCHES) -> Problem:
    """Three to eight models of the table on one V100, drawn without replacement, with drawn weights.

    A model's weight, log-uniform from 1/4 to 4, is its part of the GPU: at load 1 all together ask for one whole GPU in
    runs of full batches at their knees, rates being rows/s. Smaller batches are as the analytical model has them
    (data.profile): where all took as long as 16, nearly nothing would hold 99 % of Poisson arrivals of four models.
    """
    random = Random(seed)
    names = random.sample(sorted(TABLE), random.randint(FEWEST, MOST))
    weights = {name: exp(random.uniform(-log(_SPREAD), log(_SPREAD))) for name in names}
    whole = sum(weights.values())
    return replace(mixed(names, batches=batches), demand={name: weights[name] / whole * _alone(name) for name in names})


def _alone(name: str) -> float:
    """Rows/s of as many full batches at the knee as fill a GPU."""
    row = ROWS[name]
    return row.batch * SECOND / from_ms(row.runtime_ms) * 100 / row.knee_pct


def loaded(problem: Problem, load: float) -> Problem:
    """The same at `load` times its demand."""
    return replace(problem, demand={name: rate * load for name, rate in problem.demand.items()})


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all models answers in time per second, and by model the share of requests in time; why a planner refused."""

    goodput: float
    attainment: Mapping[str, float]
    refusal: str = ""

    @property
    def starved(self) -> tuple[str, ...]:
        """Models of which nothing was in time."""
        return tuple(name for name, part in self.attainment.items() if part <= 0)


@dataclass(frozen=True, slots=True)
class Stream:
    """Arrivals of each model: `process` as in `--workload`, `load` times the problem's demand, in seconds."""

    seconds: float = 120.0
    seed: int = 0
    load: float = 1.0
    process: str = "poisson"


def outcome(problem: Problem, name: str, stream: Stream) -> Outcome:
    """One system on one stream; goodput is per second of arrivals."""
    problem, system = loaded(problem, stream.load), find_system(name)
    found = planned(system, problem)
    if not found.plan.devices:
        return Outcome(0.0, dict.fromkeys(problem.models, 0.0), found.refusal)
    duration = round(stream.seconds * SECOND)
    arrivals = drawn(problem.sources, problem.rates, duration, stream.seed, parse_process(stream.process))
    limits = Limits(early_drop=system.drops_early)
    report = serve(system, problem, found.plan, arrivals.requests(), limits).metrics.report(duration)
    rows = {model: report["models"][model]["attainment"] for model in problem.models}
    return Outcome(report["total"]["goodput"], rows, found.refusal)


def capacity(problem: Problem, name: str, stream: Stream, attained: float = 0.99) -> float:
    """The largest load at which the system's planner refuses nothing and every model attains so much, to 1 %.

    By halving, as if what holds at a load did at every lower one; `stream.load` is the largest that is tried.
    """
    low, high = 0.0, stream.load
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        found = outcome(problem, name, replace(stream, load=middle))
        holds = not found.refusal and min(found.attainment.values()) >= attained
        low, high = (middle, high) if holds else (low, middle)
        if high < _LEAST_LOAD:
            return 0.0
    return low


def jobs(problem: Problem, systems: Sequence[str], stream: Stream) -> list[Job[str]]:
    """One for each system; any place of more than one comparison is the caller's to add."""
    return [Job(name, outcome, (problem, name, stream)) for name in systems]


def quietly(done: int, of: int) -> None:
    """Nobody watches."""


def compare(
    problem: Problem, systems: Sequence[str], stream: Stream, workers: int = 1, advance: Advance = quietly
) -> dict[str, Outcome]:
    """Every system on the same arrivals, in the order of their names."""
    found = dict(run_all(jobs(problem, systems, stream), workers, advance))
    return {name: found[name] for name in systems}
