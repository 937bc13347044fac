"""Latency-bounded throughput: the search, what counts as late, and the requests that every rate sees."""

from dataclasses import replace

import numpy as np
import pytest

from gpulet.application import Application, Stage
from gpulet.bounded import HALVINGS, guess, holds, largest_rate, late_source, unit_requests
from gpulet.core.fleet import CENTRAL
from gpulet.core.ports import Decision
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.fifs import Fifs
from gpulet.plan import Promise
from gpulet.rows import RowDistribution
from gpulet.units import MS, SECOND
from gpulet.workload import Arrivals
from support import models_of, problem_of, tiny_plan

NAMES = ["m0", "m1"]
PLAN = tiny_plan([[(8, ["m0"])], [(8, ["m1"])]], NAMES)
RUN = 3 * MS
"""A request of one row takes so long on its model's gpulet; a second one at the same instant is late."""
PROBLEM = problem_of(models_of(2, slo=5 * MS), PLAN)


def arrivals(twins=(), count=20, lone=(), problem=PROBLEM):
    """Requests 1, 2, ... of m0 10 ms apart, but each of `twins` comes with the one before it; `lone` are m1's."""
    numbers = range(1, count + 1)
    times = [10 * MS * (n - (n in twins)) for n in numbers]
    which = [int(n in lone) for n in numbers]
    columns = (np.array(column, np.int64) for column in (times, which, [1] * count))
    return Arrivals(problem.sources, *columns, times[-1] + 1)


def scheduler(problem=PROBLEM, dispatcher=Fifs, **limits):
    return Scheduler(problem.models, PLAN, dispatcher(problem, PLAN), Limits(**limits), problem.applications)


def is_held(some, percentile):
    return holds(scheduler(early_drop=False), PROBLEM, PLAN, some, percentile=percentile)


# the search -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize("threshold", [100.0, 127.99, 128.0, 1234.5])
def test_the_search_finds_a_threshold_to_one_part_in_512(start, threshold):
    found = largest_rate(lambda rate: rate <= threshold, start)
    assert 2**HALVINGS == 512
    assert threshold * (1 - 1 / 512) <= found <= threshold


def test_the_search_gives_0_when_nothing_holds_and_ends_when_everything_does():
    asked = []
    assert largest_rate(asked.append, 64.0) == 0
    assert asked == [1]
    assert largest_rate(lambda rate: rate <= 1, 64.0) == 1
    assert largest_rate(lambda rate: 20 < rate < 50, 64.0) == 0
    assert largest_rate(lambda rate: True, 1.0) > 1e11


def test_the_search_starts_at_half_of_what_the_plan_promises_its_worst_model():
    promises = {name: Promise(10.0, rate, RUN, 5 * MS) for name, rate in (("m0", 40.0), ("m1", 30.0))}
    assert guess(replace(PLAN, promises=promises)) == 1.5
    assert guess(PLAN) == 0.5


# what is late -----------------------------------------------------------------------------------------------------------


def test_late_requests_count_only_after_the_first_tenth():
    assert is_held(arrivals(twins=[2]), 100)
    assert not is_held(arrivals(twins=[2, 4]), 100)


@pytest.mark.parametrize(("late", "percentile"), [(0, 100), (9, 75), (12, 66.6), (1, 97.2), (0, 97.3)])
def test_a_percentile_is_held_until_more_are_late_than_may_be(late, percentile):
    """Of 40 requests 36 are counted."""
    twins = range(6, 6 + 2 * (late + 1), 2)
    assert is_held(arrivals(twins[:late], count=40), percentile)
    assert not is_held(arrivals(twins, count=40), percentile)


def test_each_source_must_hold_by_itself_and_the_first_that_does_not_is_told():
    few = arrivals(twins=[200], count=200, lone=[50, 150, 199, 200])
    assert late_source(scheduler(early_drop=False), PROBLEM, PLAN, few, percentile=95) == "m1"
    same = arrivals(twins=[199], count=200, lone=[50, 150, 200])
    assert late_source(scheduler(early_drop=False), PROBLEM, PLAN, same, percentile=95) == ""
    assert late_source(scheduler(early_drop=False), PROBLEM, PLAN, same, percentile=100) == "m0"


def test_what_is_dropped_or_never_answered_is_late():
    class Idle:
        def __init__(self, problem, plan):
            pass

        def bind(self, now, request, fleet):
            return CENTRAL

        def decide(self, now, changed, fleet):
            return Decision()

    for drops in (True, False):
        some = arrivals(lone=[20])
        assert late_source(scheduler(dispatcher=Idle, early_drop=drops), PROBLEM, PLAN, some, percentile=50) == "m0"
    assert is_held(arrivals(), 100)


def test_an_application_is_in_time_when_its_last_stage_is():
    stages = (Stage("first", "m0"), Stage("second", "m1", ("first",)))
    for slo, late in ((6 * MS, ""), (6 * MS - 1, "app")):
        application = Application("app", slo, stages)
        problem = replace(PROBLEM, applications=(application,), sent={"app": 10.0})
        some = arrivals(problem=problem)
        assert next(source.name for source in problem.sources) == "app"
        assert late_source(scheduler(problem, early_drop=False), problem, PLAN, some, percentile=95) == late


def test_runs_take_the_times_that_are_said():
    slower = PROBLEM.profile.stretched(2)
    assert not holds(scheduler(early_drop=False), PROBLEM, PLAN, arrivals(), times=slower)


# the requests -----------------------------------------------------------------------------------------------------------


def test_every_rate_sees_the_same_requests():
    problem = replace(PROBLEM, sent={"m0": 30.0, "m1": 10.0}, rows={"m0": RowDistribution((0.5, 0.0, 0.5))})
    unit = unit_requests(problem, 4_000, 1)
    slow, fast = unit.at(problem, 10.0), unit.at(problem, 1000.0)
    assert np.array_equal(slow.which, fast.which)
    assert np.array_equal(slow.rows, fast.rows)
    assert slow.times / 100 == pytest.approx(fast.times, abs=1)
    assert len(fast) * SECOND / fast.duration == pytest.approx(1000, rel=0.05)
    assert (fast.which == 0).mean() == pytest.approx(0.75, abs=0.03)
    assert set(fast.rows[fast.which == 0]) == {1, 3}
    assert set(fast.rows[fast.which == 1]) == {1}
    other = unit_requests(problem, 4_000, 2)
    assert not np.array_equal(unit.times, other.times)
