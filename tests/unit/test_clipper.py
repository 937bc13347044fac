from functools import partial
from random import Random

import pytest

from gpulet.core.messages import Start
from gpulet.core.scheduler import Limits
from gpulet.device import Mechanism
from gpulet.dispatchers.clipper import Aimd, Clipper, Regression, regression
from gpulet.units import MS
from support import World, models_of, requests_of, tiny_plan


def latency(rows):
    return (5 + 2 * rows) * MS


CURVE = tuple(latency(rows) for rows in range(1, 65))


def test_the_golden_trace_of_additive_increase_and_multiplicative_decrease():
    sizing = Aimd(50 * MS, CURVE)
    trace = []
    for _ in range(20):
        size = sizing.limit(0)
        trace.append(size)
        sizing.add(size, latency(size), is_full=True)
    # 5 + 2 b <= 25 ms up to 10 rows; floor(0.9 x 11) = 9.
    assert trace == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 9, 10, 11, 9, 10, 11, 9, 10, 11]


def test_a_batch_that_is_not_full_tells_nothing_and_one_row_always_runs():
    sizing = Aimd(50 * MS, CURVE)
    sizing.add(1, 26 * MS, is_full=True)
    assert sizing.size == 1
    sizing.add(1, 25 * MS, is_full=True)
    sizing.add(1, 1 * MS, is_full=False)
    sizing.add(1, 90 * MS, is_full=False)
    assert sizing.size == 2


def test_no_batch_grows_beyond_what_can_run():
    sizing = Aimd(50 * MS, CURVE[:3])
    for _ in range(9):
        sizing.add(sizing.size, 1, is_full=True)
    assert sizing.size == 3


def explored(left, rounds):
    sizing = Regression(100 * MS, CURVE, random=Random(1), is_warm=False)
    trace = []
    for _ in range(rounds):
        size = sizing.limit(left)
        trace.append(size)
        sizing.add(size, latency(size), is_full=True)
    return sizing, trace


def test_the_regression_explores_by_one_after_five_samples_and_by_about_a_tenth_from_ten_on():
    _, trace = explored(10_000 * MS, 100)
    assert trace[:50] == [n for n in range(1, 11) for _ in range(5)]
    sizes = list(dict.fromkeys(trace))
    assert sizes[:10] == list(range(1, 11))
    assert all(1 < b / a <= 1.3 for a, b in zip(sizes[9:], sizes[10:], strict=False))


def test_a_warm_start_knows_what_exploring_would_find():
    sizing = Regression(100 * MS, CURVE, random=Random(1))
    assert sizing.limit(10_000 * MS) == 64
    assert sizing.limit(round((5 + 2 * 20 + 1) * MS / 0.92)) == 20


@pytest.mark.parametrize("budget", [8, 12, 14])
def test_the_regression_reads_the_batch_for_the_time_left_off_its_line(budget):
    sizing, _ = explored(40 * MS, 200)
    left = round((5 + 2 * budget + 1) * MS / 0.92)
    assert sizing.limit(left) in {budget - 1, budget}


def test_the_regression_stays_within_the_time_it_was_given():
    _, trace = explored(40 * MS, 400)
    # 0.92 x 40 ms = 36.8 ms are 15 rows; it explores beyond them once.
    assert max(trace) <= 18
    assert set(trace[-50:]) <= {14, 15}


def test_a_batch_of_one_more_row_after_each_full_one():
    models = models_of(1, slo=100 * MS)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"], Mechanism.WHOLE)
    world = World(models, plan, Clipper, Limits(early_drop=False))
    world.run(requests_of([(0, 0, 1, "", 0, False)] * 16, models))
    rows = [c.rows for _, _, commands in world.steps for c in commands if isinstance(c, Start)]
    assert rows == [1, 2, 3, 4, 5, 1]


def test_a_replica_waits_for_a_full_batch_no_longer_than_it_is_told():
    models = models_of(1, slo=100 * MS)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"], Mechanism.WHOLE)
    world = World(models, plan, partial(Clipper, wait=2 * MS), Limits(early_drop=False))
    at = [0, 10, 11, 40]
    world.run(requests_of([(t * MS, 0, 1, "", 0, False) for t in at], models))
    starts = [(now // MS, c.rows) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]
    assert starts == [(0, 1), (11, 2), (42, 1)]


def test_runs_beside_neighbours_are_slower_and_batches_shrink():
    models = models_of(2, slo=30 * MS)
    plan = tiny_plan([[(8, ["m0"]), (8, ["m1"])]], ["m0", "m1"], Mechanism.WHOLE)

    def largest(beside):
        world = World(models, plan, Clipper, Limits(early_drop=False))
        arrivals = [(0, m, 1, "", 0, False) for m in ([0, 1] if beside else [0]) for _ in range(200)]
        world.run(requests_of(arrivals, models))
        return max(c.rows for _, _, commands in world.steps for c in commands if isinstance(c, Start))

    # 2 + b <= 15 ms alone, beyond the 8 rows of the model; 2 x (2 + b) <= 15 ms beside another: 5, and 6 tried.
    assert (largest(beside=False), largest(beside=True)) == (8, 6)


def test_every_dispatcher_draws_from_the_start_of_its_stream():
    assert explored(10_000 * MS, 90)[1] == explored(10_000 * MS, 90)[1]
    first, second = (regression()(100 * MS, CURVE) for _ in range(2))
    assert first is not second
