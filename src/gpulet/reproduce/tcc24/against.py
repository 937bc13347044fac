"""Ours against every other system on the same Poisson arrivals, at parts of what ours holds.

A mix's capacity is the largest load that `gpulet` accepts and then keeps for every model (99 %, 10 s). Each system is asked
for each load, and serves what it would hold where it refuses. All see the same arrivals. Whoever is below nine tenths of
ours over the first 15 s is not run for longer: the ratio is then that of 15 s.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpulet.core.ports import Problem
from gpulet.parallel import Advance, Job, run_all
from gpulet.reproduce.kept import keep, read_kept
from gpulet.reproduce.tcc24.cases import find_mix
from gpulet.reproduce.tcc24.comparing import Outcome, Stream, capacity, outcome, random_mix
from gpulet.reproduce.tcc24.data import MEASURED_BATCHES, mixed

OURS = "gpulet"
MIXES = ("C-2", "C-3", "C-4", "C-7", *(str(seed) for seed in range(20)))
"""The paper's, and the seeds of random ones."""
LOADS = (0.6, 0.8, 0.95)
SECONDS = 120.0
_SCREENING = 15.0
_CLOSE = 0.9
_SEARCH = Stream(10.0, seed=2, load=4.0)
_KEPT = "against.json"


def against(
    mixes: Sequence[str], rivals: Sequence[str], workers: int, kept: Path | None, advance: Advance
) -> list[Any]:
    """One JSON value for each mix, in their order."""
    path = kept / _KEPT if kept else None
    found = read_kept(path)
    keys = {json.dumps([mix, list(rivals), LOADS, SECONDS]): mix for mix in mixes}
    jobs = [Job(key, _mix, (mix, tuple(rivals))) for key, mix in keys.items() if key not in found]
    for key, value in run_all(jobs, workers, advance):
        found[key] = value
        keep(path, found)
    return [found[key] for key in keys]


def _problem(mix: str) -> Problem:
    """Smaller batches are as the analytical model has them."""
    return random_mix(int(mix)) if mix.isdigit() else mixed(find_mix(mix), batches=MEASURED_BATCHES)


def _mix(mix: str, rivals: Sequence[str]) -> dict[str, Any]:
    problem = _problem(mix)
    held = capacity(problem, OURS, _SEARCH)
    return {
        "mix": mix if not mix.isdigit() else f"random {mix}",
        "models": list(problem.models),
        "capacity_per_s": held * sum(problem.demand.values()),
        "loads": [_load(problem, held, part, rivals) for part in LOADS],
    }


def _load(problem: Problem, held: float, part: float, rivals: Sequence[str]) -> dict[str, Any]:
    brief, long = (Stream(seconds, seed=1, load=held * part) for seconds in (_SCREENING, SECONDS))
    ours, first = outcome(problem, OURS, long), outcome(problem, OURS, brief)
    return {
        "load": part,
        **_value(ours, long.seconds),
        "rivals": {name: _rival(problem, name, (brief, long), (first, ours)) for name in rivals},
    }


def _rival(
    problem: Problem, name: str, streams: tuple[Stream, Stream], ours: tuple[Outcome, Outcome]
) -> dict[str, Any]:
    """Over the short stream, and over the long one where it comes close."""
    found = outcome(problem, name, streams[0])
    if found.goodput < _CLOSE * ours[0].goodput:
        return {**_value(found, streams[0].seconds), "ratio": _ratio(ours[0], found)}
    found = outcome(problem, name, streams[1])
    return {**_value(found, streams[1].seconds), "ratio": _ratio(ours[1], found)}


def _ratio(ours: Outcome, theirs: Outcome) -> float | None:
    """Goodput over theirs; none where they have none."""
    return ours.goodput / theirs.goodput if theirs.goodput else None


def _value(found: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "goodput_per_s": found.goodput,
        "least_attained": min(found.attainment.values()),
        "starved": list(found.starved),
        "seconds": seconds,
        "refusal": found.refusal,
    }
