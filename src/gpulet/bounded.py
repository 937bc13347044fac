"""Latency-bounded throughput: the highest rate at which so many percent of the requests are still in time.

As PARIS and ELSA (DAC 2022, section 5) measure it: the rate is doubled until it fails, then bisected; the first tenth of
the requests is not counted; every plan sees the same requests, drawn once at one request per second and squeezed.
A percentile of latency is within the objective exactly when no more than the rest is late, so late ones are counted; a
request that gets no result, or is never answered at all, is late.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf, ldexp, sqrt
from random import Random

import numpy as np
from numpy.typing import NDArray

from gpulet.core.messages import Answer, Command, Drop, Event, Fail, Gather, Reject, RequestId
from gpulet.core.ports import MakeDispatcher, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.executors.simulated import Noise, Simulated
from gpulet.plan import Plan
from gpulet.profile import Profile
from gpulet.units import NEVER, SECOND, Instant
from gpulet.workload import Arrivals

PERCENTILE = 95.0
PLANNED_PERCENTILE = 99.0
UNBOUNDED = Limits(10**9)
"""Queues are not limited while a rate is searched: what waits too long is late, and given up."""
REQUESTS = 20_000
LEAST_REQUESTS, MOST_REQUESTS = 100, 10_000_000
WARM_UP = 0.1
HALVINGS = 9
_MOST_DOUBLINGS = 40


@dataclass(frozen=True, slots=True)
class Unit:
    """Requests at one per second in all: instants in seconds, model by place, rows."""

    times: NDArray[np.float64]
    which: NDArray[np.int64]
    rows: NDArray[np.int64]

    def at(self, problem: Problem, rate: float) -> Arrivals:
        """The same requests at `rate` per second in all."""
        times = np.rint(self.times * (SECOND / rate)).astype(np.int64)
        return Arrivals(problem.sources, times, self.which, self.rows, int(times[-1]) + 1)


def unit_requests(problem: Problem, count: int, seed: int) -> Unit:
    """Poisson arrivals over the sources in proportion to their rates, each with rows of its own.

    Drawn one request after the other: its gap, its source where there are several, its rows.
    """
    random = Random(seed)
    sources = problem.sources
    shares = list(accumulate(problem.rates.get(source.name, 0.0) for source in sources))
    rows = [list(accumulate(problem.rows_of(source.name).weights)) for source in sources]
    places, now = range(len(sources)), 0.0
    times, which, brought = np.empty(count), np.zeros(count, np.int64), np.ones(count, np.int64)
    for number in range(count):
        now += random.expovariate(1.0)
        place = random.choices(places, cum_weights=shares)[0] if len(places) > 1 else 0
        times[number], which[number] = now, place
        if len(rows[place]) > 1:
            brought[number] = 1 + random.choices(range(len(rows[place])), cum_weights=rows[place])[0]
    return Unit(times, which, brought)


class _TooLate(Exception):  # noqa: N818 (not an error: the answer is no)
    """More requests of a source are late than may be: the rest of the run says nothing new."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source


class _Lateness:
    """Counts the late among the counted requests of each source; stops the run when there are too many."""

    def __init__(self, arrivals: Arrivals, percentile: float) -> None:
        self._first = int(len(arrivals) * WARM_UP)
        self._last = len(arrivals)
        self._sources = [source.name for source in arrivals.models]
        slos = np.array([model.slo for model in arrivals.models])
        self._deadlines = (arrivals.times + slos[arrivals.which]).tolist()
        self._which = arrivals.which.tolist()
        counted = np.bincount(arrivals.which[self._first :], minlength=len(arrivals.models))
        self._open = counted.tolist()
        self._allowed = np.floor(counted * (1 - percentile / 100) + 1e-9).astype(int).tolist()

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Take one step's answers and refusals into account."""
        for command in commands:
            match command:
                case Answer():
                    for request in command.requests:
                        self._end(now, request)
                case Gather():
                    self._end(now, command.request)
                case Reject() | Drop() | Fail():
                    self._end(NEVER, command.request)
                case _:
                    pass

    def close(self) -> None:
        """The run is over: what was never answered is late."""
        for place, count in enumerate(self._open):
            self._allow(place, count)

    def _end(self, now: Instant, request: RequestId) -> None:
        """One request has its end; requests of applications' stages are not counted."""
        if self._first < request <= self._last:
            place = self._which[request - 1]
            self._open[place] -= 1
            if now > self._deadlines[request - 1]:
                self._allow(place, 1)

    def _allow(self, place: int, late: int) -> None:
        self._allowed[place] -= late
        if self._allowed[place] < 0:
            raise _TooLate(self._sources[place])


def holds(
    scheduler: Scheduler,
    problem: Problem,
    plan: Plan,
    arrivals: Arrivals,
    *,
    percentile: float = PERCENTILE,
    times: Profile | None = None,
    noise: Noise | None = None,
) -> bool:
    """Whether at least `percentile` percent of each source's requests are in time, the first tenth left out.

    Runs take what `times` says, where that is not the profile that the scheduler knows, with `noise`.
    """
    return not late_source(scheduler, problem, plan, arrivals, percentile=percentile, times=times, noise=noise)


def late_source(
    scheduler: Scheduler,
    problem: Problem,
    plan: Plan,
    arrivals: Arrivals,
    *,
    percentile: float = PERCENTILE,
    times: Profile | None = None,
    noise: Noise | None = None,
) -> str:
    """The model or application of which too many requests are late first; empty when all `holds`."""
    plan = plan.unfolded()
    timer = VirtualTimer()
    lateness = _Lateness(arrivals, percentile)
    simulation = Simulation(scheduler, timer, lateness)
    executor = Simulated(
        times or problem.profile, plan, timer, simulation.feed, interference=problem.interference, noise=noise
    )
    simulation.attach(executor)
    executor.carve()
    try:
        simulation.run(arrivals.requests())
        lateness.close()
    except _TooLate as late:
        return late.source
    return ""


def largest_rate(
    holds_at: Callable[[float], bool], start: float, *, halvings: int = HALVINGS, give_up: int = 6
) -> float:
    """The largest rate that holds, to 1 part in 2^halvings of its doubling; 0 when `start` / 2^give_up does not.

    That rate is asked first, since what does not hold without load holds nothing: first idle first served sends large
    requests to small gpulets as long as these are idle, and not when all are busy. Above it, what holds at one rate is
    taken to hold at every lower one.
    """
    low, high = ldexp(start, -give_up), start
    if not holds_at(low):
        return 0.0
    while holds_at(high) and high < start * 2**_MOST_DOUBLINGS:
        low, high = high, high * 2
    while high > 2 * low:
        middle = high / 2
        low, high = (middle, high) if holds_at(middle) else (low, middle)
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if holds_at(middle) else (low, middle)
    return low


_JUDGED_SEED = 101


@dataclass(frozen=True, slots=True)
class Quick:
    """A short search: how many requests, how many halvings, and the percentile that must be in time."""

    requests: int = 6_000
    halvings: int = 5
    percentile: float = PLANNED_PERCENTILE

    @property
    def careful(self) -> float:
        """The percentile that so few requests must reach: two standard deviations of their count of late ones higher.

        Else a pool is chosen that is late for almost as many as may be, and in a longer run for more.
        """
        part = 1 - self.percentile / 100
        return min(100.0, self.percentile + 200 * sqrt(part * (1 - part) / (self.requests * (1 - WARM_UP))))


def worth(make: MakeDispatcher, quick: Quick, problem: Problem, plan: Plan, *, least: float) -> float:
    """How many times its demand a plan holds in a short search, infinite without any; 0 when not `least` times."""
    plan = plan.unfolded()
    if problem.is_idle:
        return inf
    unit, rate = unit_requests(problem, quick.requests, _JUDGED_SEED), sum(problem.rates.values())

    def holds_at(factor: float) -> bool:
        scheduler = Scheduler(problem.models, plan, make(problem, plan), UNBOUNDED, problem.applications)
        return holds(scheduler, problem, plan, unit.at(problem, factor * rate), percentile=quick.careful)

    if least and not holds_at(least):
        return 0.0
    return largest_rate(holds_at, least or guess(plan), halvings=quick.halvings)


def guess(plan: Plan) -> float:
    """Half of what the planner thinks the plan carries."""
    return max(min((p.throughput / p.demand for p in plan.promises.values() if p.demand), default=1.0) / 2, 1e-3)
