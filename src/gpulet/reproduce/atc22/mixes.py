"""Random mixes of the paper's models: what each system accepts, and whether ours keeps what it accepts."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from gpulet.plan import Plan
from gpulet.reproduce.atc22.data import Measurements
from gpulet.reproduce.atc22.parts import accepts, run
from gpulet.reproduce.atc22.workloads import SCHEDULABILITY_SLO_MS, SLO_MS, problem

SEEDS = tuple(range(50))
_SECONDS = 20
_PRECISION = 0.01
_GRID = tuple(100.0 * 1.25**power for power in range(20))
"""Total rates (requests/s) that are tried first: margins refuse some low rates that they accept when higher."""


class Mix(TypedDict):
    """One mix: the share of each model, each system's peak (total requests/s), and our attainment at ours."""

    shares: dict[str, float]
    peaks: dict[str, float]
    attainment: float


def mix(measured: Measurements, systems: tuple[str, ...], seed: int) -> Mix:
    """The mix of this seed: two to five models, random shares; LeNet with its own objective, the others of ATC 2022."""
    random = np.random.default_rng(seed)
    names = list(SCHEDULABILITY_SLO_MS)
    chosen = random.choice(names, size=random.integers(2, len(names) + 1), replace=False)
    weights = random.uniform(0.2, 1.0, size=len(chosen))
    shares = {str(n): float(w) for n, w in zip(chosen, weights / weights.sum(), strict=True)}
    peaks = {system: _peak(measured, system, shares) for system in systems}
    attained = _attained(measured, shares, peaks["gpulet"], seed + 1000) if peaks.get("gpulet") else 0.0
    return {"shares": shares, "peaks": peaks, "attainment": attained}


def _rates(shares: Mapping[str, float], total: float) -> dict[str, float]:
    return {name: share * total for name, share in shares.items()}


def _slos() -> dict[str, float]:
    return {**SCHEDULABILITY_SLO_MS, **SLO_MS}


def _peak(measured: Measurements, system: str, shares: Mapping[str, float]) -> float:
    """The largest total rate that the planner accepts, to 1 %: on a grid, then by halving above it."""

    def is_accepted(total: float) -> bool:
        return isinstance(accepts(system, problem(measured, _slos(), _rates(shares, total))), Plan)

    low = max((total for total in _GRID if is_accepted(total)), default=0.0)
    if not low:
        return 0.0
    high = 1.25 * low
    while high - low > _PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if is_accepted(middle) else (low, middle)
    return low


def _attained(measured: Measurements, shares: Mapping[str, float], total: float, seed: int) -> float:
    """What the worst model attains under our plan, on arrivals that the planner has not seen."""
    asked = problem(measured, _slos(), _rates(shares, total))
    plan = accepts("gpulet", asked)
    assert isinstance(plan, Plan), "what was accepted a moment ago is accepted again"
    rows = run("gpulet", asked, plan, _SECONDS, seed)["models"]
    return min(row["attainment"] for row in rows.values())
