"""Arrivals of the comparison (specification, 3.8): queues never empty, the link's rate split in two ways, models off in turn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from gpulet.core.ports import Problem
from gpulet.reproduce.tcc24.data import LINK, ROWS, saturated
from gpulet.request import Request
from gpulet.units import SECOND, Duration
from gpulet.workload import Arrivals, Draw, Times, drawn, poisson

_OVERLOAD = 1.5


class Kind(StrEnum):
    """`saturated`: nothing ever waits for work; `link`: 1,920/s in equal parts; `inverse`: in proportion to 1/runtime;
    `steps`: as `link`, with one model after the other off.
    """

    SATURATED = "saturated"
    LINK = "link"
    INVERSE = "inverse"
    STEPS = "steps"


class Process(StrEnum):
    """Evenly spaced, as a packet generator sends, or independent."""

    UNIFORM = "uniform"
    POISSON = "poisson"


def uniform(random: np.random.Generator, rate: float, duration: Duration) -> Times:
    """Evenly spaced arrivals at `rate` per second, from a random instant of the first gap on."""
    gap = SECOND / rate
    times: Times = np.floor(np.arange(random.random() * gap, duration, gap)).astype(np.int64)
    return times


_DRAWS: Mapping[Process, Draw] = {Process.UNIFORM: uniform, Process.POISSON: poisson}


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of arrivals with its process and seed."""

    kind: Kind = Kind.SATURATED
    process: Process = Process.UNIFORM
    seed: int = 1

    def asked(self, problem: Problem) -> Problem:
        """The problem that planners see: the rates that come, or one full batch in every SLO where queues are never empty."""
        return problem if self.kind is Kind.SATURATED else replace(problem, demand=self.rates(problem))

    def rates(self, problem: Problem) -> dict[str, float]:
        """Images/s by model."""
        weights = {name: 1 / ROWS[name].runtime_ms if self.kind is Kind.INVERSE else 1.0 for name in problem.models}
        whole = sum(weights.values())
        return {name: LINK * weight / whole for name, weight in weights.items()}

    def requests(self, problem: Problem, duration: Duration, *, never_due: bool) -> Iterator[Request]:
        """What comes in that time. `never_due`: a queue that is never empty holds requests without a deadline.

        Systems that live by deadlines get half as much again as each model does alone on all devices instead, due in time.
        """
        if self.kind is Kind.SATURATED:
            return saturated(problem, duration) if never_due else self._beyond(problem, duration)
        arrivals = drawn(problem.sources, self.rates(problem), duration, self.seed, _DRAWS[self.process])
        return (_stepped(arrivals) if self.kind is Kind.STEPS else arrivals).requests()

    def _beyond(self, problem: Problem, duration: Duration) -> Iterator[Request]:
        rates = {}
        for name, model in problem.models.items():
            shortest = min(problem.profile.curve(name, device.kind.sms)[-1] for device in problem.devices)
            rates[name] = _OVERLOAD * len(problem.devices) * model.max_batch * SECOND / shortest
        return drawn(problem.sources, rates, duration, self.seed, _DRAWS[self.process]).requests()


def _stepped(arrivals: Arrivals) -> Arrivals:
    """T0 with every model, then one step for each model without it, all steps equally long."""
    step = arrivals.times * (len(arrivals.models) + 1) // arrivals.duration
    kept = step != arrivals.which + 1
    times, which, rows = (column[kept] for column in (arrivals.times, arrivals.which, arrivals.rows))
    return Arrivals(arrivals.models, times, which, rows, arrivals.duration)
