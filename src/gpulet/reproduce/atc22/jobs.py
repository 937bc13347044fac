"""The whole reproduction as independent jobs over worker processes, with the results put together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gpulet.parallel import Advance, Job, run_all
from gpulet.reproduce.atc22 import fluctuating, mixes, parts
from gpulet.reproduce.atc22.data import Measurements, load
from gpulet.reproduce.atc22.workloads import WORKLOADS, scenarios

PARTS = ("saturation", "schedulable", "peaks", "interference", "fluctuating", "mixes")
ON_REQUEST = {"mixes"}
"""Parts that only run when `--only` names them: the paper has nothing like them."""
SYSTEMS = ("sbp", "greedy", "glet", "glet-int", "ideal", "elastic", "elastic-int", "nexus", "gpulet")
"""What is compared unless other systems are asked for."""
SCALED = ("glet-int", "gpulet")
"""Systems under fluctuating load."""
_CHUNK = 32
Place = tuple[str, ...]
"""Where a job's result goes: the part, then its keys."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to reproduce. `only`: the parts that are wanted."""

    data: Path
    levels: tuple[float, ...]
    systems: tuple[str, ...]
    only: tuple[str, ...]
    workers: int


@cache
def _measurements(folder: Path) -> Measurements:
    """Read once in each process."""
    return load(folder)


def _run(folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return work(_measurements(folder), *arguments)


def reproduce(asked: Asked, advance: Advance) -> dict[str, Any]:
    """Everything that was asked for, as one JSON value; `advance(done, of)` is told after each job."""
    measured = load(asked.data)  # what is missing is said before anything starts
    wanted = [job for part in PARTS if part in asked.only for job in _JOBS[part](asked, measured)]
    jobs = [Job(job.place, _run, (asked.data, job.work, job.arguments)) for job in wanted]
    results = run_all(jobs, asked.workers, advance)
    order = {job.place: number for number, job in reversed(list(enumerate(jobs)))}
    return _assembled(asked, sorted(results, key=lambda result: order[result[0]]))


def _saturation(_asked: Asked, _measured: Measurements) -> Iterator[Job[Place]]:
    yield Job(("saturation",), parts.saturation, ())


def _schedulable(asked: Asked, _measured: Measurements) -> Iterator[Job[Place]]:
    every = scenarios(asked.levels)
    for system in asked.systems:
        for start in range(0, len(every), _CHUNK):
            yield Job(("schedulable", system), count_schedulable, (system, every[start : start + _CHUNK]))


def _peaks(asked: Asked, _measured: Measurements) -> Iterator[Job[Place]]:
    for workload in WORKLOADS:
        for system in asked.systems:
            yield Job(("peaks", workload.name, system), both_peaks, (system, workload.name))


def _interference(_asked: Asked, _measured: Measurements) -> Iterator[Job[Place]]:
    yield Job(("interference",), parts.interference, ())


def _fluctuating(asked: Asked, measured: Measurements) -> Iterator[Job[Place]]:
    periods = fluctuating.rates_by_period(measured)
    for system in SCALED:
        if system in asked.systems:
            yield Job(("fluctuating", system), fluctuating.fluctuating, (system, periods))


def _mixes(asked: Asked, _measured: Measurements) -> Iterator[Job[Place]]:
    for seed in mixes.SEEDS:
        yield Job(("mixes", str(seed)), mixes.mix, (asked.systems, seed))


_JOBS: dict[str, Callable[[Asked, Measurements], Iterator[Job[Place]]]] = {
    "saturation": _saturation,
    "schedulable": _schedulable,
    "peaks": _peaks,
    "interference": _interference,
    "fluctuating": _fluctuating,
    "mixes": _mixes,
}


def count_schedulable(measured: Measurements, system: str, some: Sequence[dict[str, float]]) -> int:
    """How many of these scenarios a system accepts."""
    return sum(parts.is_schedulable(measured, system, rates) for rates in some)


def both_peaks(measured: Measurements, system: str, name: str) -> dict[str, float]:
    """Predicted and simulated peak of a workload, and the violations at the predicted one."""
    workload = next(w for w in WORKLOADS if w.name == name)
    predicted = parts.predicted_peak(measured, system, workload)
    if not predicted:
        return {"predicted": 0, "simulated": 0, "violation_at_predicted": 0.0}
    simulated, violated = parts.simulated_peak(measured, system, workload, predicted)
    return {"predicted": predicted, "simulated": simulated, "violation_at_predicted": violated}


def _assembled(asked: Asked, results: Sequence[tuple[Place, Any]]) -> dict[str, Any]:
    """Results at their places; counts of one place add up."""
    whole: dict[str, Any] = {"levels": list(asked.levels), "total": len(scenarios(asked.levels))}
    for place, result in results:
        inner = whole
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = inner[place[-1]] + result if place[0] == "schedulable" and place[-1] in inner else result
    return whole
