"""The parts of the report as functions of the measurements; each can run in a process of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from gpulet.application import Application
from gpulet.core.metrics import RunReport
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.drivers.sim import simulate
from gpulet.fitting import PREDICTORS, errors_of, held_back_mean, pair_left_out, percentiles, read_pairs
from gpulet.importing.table import Table
from gpulet.plan import Plan
from gpulet.planners.glet import saturation_table
from gpulet.reproduce.atc22.data import Measurements
from gpulet.reproduce.atc22.workloads import SCHEDULABILITY_SLO_MS, SLO_MS, at_rate, problem
from gpulet.systems import SYSTEMS, make_scheduler
from gpulet.units import SECOND
from gpulet.workload import drawn, poisson

STEP = 10
"""Rates are searched in steps of 10 req/s, as the artifact does."""
VIOLATED = 0.01
SIMULATED_SECONDS = 20
_COARSE_GIVE_UP, _GIVE_UP = 2, 10
"""Refusals in a row after which no higher rate is tried: the margins make acceptance not quite monotone."""


class Entry(TypedDict):
    """A saturated gpulet."""

    batch: int
    rate: float


def saturation(measured: Measurements) -> dict[str, dict[str, Entry]]:
    """Largest batch and rows/s by model and share."""
    table: dict[str, dict[str, Entry]] = {}
    for name in SLO_MS:
        asked = problem(measured, SLO_MS, {name: 1})
        entries = saturation_table(asked, asked.models[name])
        table[name] = {str(share): {"batch": e.batch, "rate": round(e.rate, 1)} for share, e in entries.items()}
    return table


def accepts(system: str, asked: Problem) -> Plan | Infeasible:
    """What a system's planner makes of it."""
    return SYSTEMS[system].planner(asked)


def is_schedulable(measured: Measurements, system: str, rates: Mapping[str, float]) -> bool:
    """Whether a system accepts a scenario; an idle system accepts anything."""
    return isinstance(accepts(system, problem(measured, SCHEDULABILITY_SLO_MS, rates)), Plan)


def predicted_peak(measured: Measurements, system: str, workload: Application) -> int:
    """The largest rate that the planner accepts: in steps of 100 req/s first, then of 10 above the last of them."""
    best = 0
    for step, give_up in ((10 * STEP, _COARSE_GIVE_UP), (STEP, _GIVE_UP)):
        rate, refused = best, 0
        while refused < give_up:
            rate += step
            is_accepted = isinstance(accepts(system, at_rate(measured, workload, rate)), Plan)
            best, refused = (rate, 0) if is_accepted else (best, refused + 1)
    return best


def simulated_peak(measured: Measurements, system: str, workload: Application, predicted: int) -> tuple[int, float]:
    """The largest accepted rate with at most 1 % violations in simulation, and the violations at the predicted peak."""
    at_peak = violations(measured, system, workload, predicted)
    low, high = (predicted, predicted) if at_peak <= VIOLATED else (0, predicted)
    while high - low > STEP:
        middle = (low + high) // 2 // STEP * STEP
        held = violations(measured, system, workload, middle) <= VIOLATED
        low, high = (middle, high) if held else (low, middle)
    return low, at_peak


def violations(measured: Measurements, system: str, workload: Application, rate: int, seed: int = 1) -> float:
    """The part of the requests that are late or unanswered under Poisson arrivals; 1 where there is no plan."""
    asked = at_rate(measured, workload, rate)
    outcome = accepts(system, asked)
    if isinstance(outcome, Infeasible):
        return 1.0
    return 1 - run(system, asked, outcome, SIMULATED_SECONDS, seed)["total"]["attainment"]


def run(system: str, asked: Problem, plan: Plan, seconds: float, seed: int) -> RunReport:
    """Poisson arrivals through a system's dispatcher, with neighbours slowing each other."""
    arrivals = drawn(asked.sources, asked.rates, round(seconds * SECOND), seed, poisson)
    chosen = SYSTEMS[system]
    scheduler = make_scheduler(chosen, asked, plan, Limits(early_drop=chosen.drops_early))
    metrics = simulate(scheduler, asked.profile, plan, arrivals, interference=asked.interference)
    return metrics.report(arrivals.duration)


def interference(measured: Measurements) -> dict[str, Any]:
    """The paper's error distribution as drawn, and every predictor's on V100 pairs it has not seen."""
    drawn_curve = measured.table("fig10_interference_error_cdf.csv")
    seen = read_pairs(measured.table("v100_igniter/pairs.csv"), measured.table("v100_igniter/solo.csv"))
    held = [s for s in seen if s.pair % 10 < 3]  # noqa: PLR2004 (30 % held back for the curves)
    fitted = {name: fit([s for s in seen if s.pair % 10 >= 3]) for name, fit in PREDICTORS.items()}  # noqa: PLR2004 (as above)
    return {
        "paper_pct": {str(level): _quantile(drawn_curve, level / 100) for level in (50, 75, 90, 95, 99)},
        "held_back": {name: asdict(held_back_mean(fit, seen)) for name, fit in PREDICTORS.items()},
        "pair_left_out": {name: asdict(pair_left_out(fit, seen)) for name, fit in PREDICTORS.items()},
        "curves": {
            "paper": [[line.not_negative("error_pct"), line.not_negative("cdf")] for line in drawn_curve.lines],
            **{name: _curve(errors_of(model, held)) for name, model in fitted.items()},
        },
        "curve_errors": {name: asdict(percentiles(errors_of(model, held))) for name, model in fitted.items()},
    }


def _quantile(curve: Table, level: float) -> float:
    return next(x.not_negative("error_pct") for x in curve.lines if x.not_negative("cdf") >= level)


def _curve(errors: Sequence[float]) -> list[list[float]]:
    ordered = sorted(errors)
    return [[error, (place + 1) / len(ordered)] for place, error in enumerate(ordered)]
