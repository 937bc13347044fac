"""Load that comes and goes (figure 14): estimate the rates, re-plan every period on as few devices as will do.

The rates of figure 14 were never published: the curve is our own, with GoogLeNet in MobileNet's place. A period's plan
is made from what was measured before it and takes over one period later, as long as a reorganisation takes (sections
2.2 and 2.5 of the specification). Periods are simulated one by one, so nothing is carried from one to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

from gpulet.core.ports import Problem
from gpulet.plan import Plan
from gpulet.reproduce.atc22.data import Measurements
from gpulet.reproduce.atc22.parts import run
from gpulet.reproduce.atc22.workloads import SLO_MS, problem
from gpulet.systems import SYSTEMS
from gpulet.units import SECOND
from gpulet.workload import drawn, poisson

PERIOD_S = 20
DEVICES = 8
_SAMPLES = 40
"""Readings of the arrival counters in a period: one every 500 ms."""
_ALPHA = 2 / (_SAMPLES + 1)
_HEADROOM, _LOW_HEADROOM, _LOW_RATE = 1.2, 1.5, 125.0
"""Section 2.5: the target is 1.2 times the estimate, 1.5 times below 125 req/s."""


_GROWTH, _FALL = 1.05, 0.9


class Period(TypedDict):
    """What happened in one period."""

    second: int
    rate: float
    devices: int
    size_pct: float
    violation: float


@dataclass(slots=True)
class Estimate:
    """The EWMA of each model's arrivals, read every 500 ms."""

    rates: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)

    def read(self, name: str, counts: Sequence[int]) -> None:
        """A period's readings, each of so many arrivals in 500 ms."""
        for count in counts:
            rate = count * _SAMPLES / PERIOD_S
            before = self.rates.get(name, rate)
            self.rates[name] = before + _ALPHA * (rate - before)

    def has_moved(self) -> bool:
        """Whether some target grew by more than 5 % or fell by more than 10 % since the last plan (section 2.5)."""
        return any(
            not _FALL * self.planned.get(n, 0.0) <= target <= _GROWTH * self.planned.get(n, 0.0)
            for n, target in self.targets().items()
        )

    def targets(self) -> dict[str, float]:
        """What to plan for."""
        return {n: r * (_HEADROOM if r >= _LOW_RATE else _LOW_HEADROOM) for n, r in self.rates.items()}


def rates_by_period(measured: Measurements) -> list[dict[str, float]]:
    """The curve, a line for each period."""
    periods: dict[float, dict[str, float]] = {}
    for line in measured.table("fig14_like_rates.csv").lines:
        periods.setdefault(line.not_negative("second"), {})[line.text("model")] = line.not_negative("rate")
    return [periods[second] for second in sorted(periods)]


def fluctuating(measured: Measurements, system: str, periods: Sequence[dict[str, float]]) -> list[Period]:
    """Every period in turn: serve with the plan in force, measure, plan for the period after the next."""
    estimate = Estimate(dict(periods[0]))
    in_force = _planned(measured, system, estimate, Plan(()))
    coming = in_force
    report: list[Period] = []
    for number, rates in enumerate(periods):
        asked = problem(measured, SLO_MS, rates, DEVICES)
        attained = run(system, asked, in_force, PERIOD_S, number)["total"]["attainment"]
        sizes = sum(g.size.share_pct for g in in_force.gpulets)
        report.append(
            {
                "second": number * PERIOD_S,
                "rate": sum(rates.values()),
                "devices": in_force.devices_used,
                "size_pct": sizes,
                "violation": 1 - attained,
            }
        )
        _measure(asked, number, estimate)
        in_force, coming = coming, _planned(measured, system, estimate, coming)
    return report


def _measure(asked: Problem, seed: int, estimate: Estimate) -> None:
    """Count the same arrivals that were served."""
    arrivals = drawn(asked.sources, asked.rates, PERIOD_S * SECOND, seed, poisson)
    bins = arrivals.times * _SAMPLES // (PERIOD_S * SECOND)
    for place, model in enumerate(arrivals.models):
        mine = bins[arrivals.which == place]
        estimate.read(model.name, [int((mine == sample).sum()) for sample in range(_SAMPLES)])


def _planned(measured: Measurements, system: str, estimate: Estimate, before: Plan) -> Plan:
    """On the fewest devices that will do, one less than now at the least; else the plan in force stays (Algorithm 2)."""
    if not estimate.has_moved():
        return before
    estimate.planned = estimate.targets()
    asked = problem(measured, SLO_MS, estimate.targets(), DEVICES)
    for count in range(max(1, before.devices_used - 1), DEVICES + 1):
        outcome = SYSTEMS[system].planner(replace(asked, devices=asked.devices[:count], in_force=before))
        if isinstance(outcome, Plan):
            return outcome
    return before
