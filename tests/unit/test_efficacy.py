"""The best size and batch within an objective, ties, and what binds."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.efficacy import Bound, Operating, Optimum, Unreachable, optimum
from gpulet.errors import ConfigError, ProfileError
from gpulet.model import Model
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND


def profile_of(*cells):
    return Profile(tuple(Point("m", size, rows, *[took * MS] * 3) for size, rows, took in cells))


def model(slo_ms, max_batch=32):
    return Model("m", slo_ms * MS, max_batch)


def chosen(found):
    assert isinstance(found, Optimum)
    return found.point.size, found.point.rows, found.binds


# Two rows at 20 SMs are the best point by far: 2/(10^2 x 20) = 1/1000; then 1/(8^2 x 20), 2/(9^2 x 40), 1/(6^2 x 40).
TABLE = profile_of((20, 1, 8), (20, 2, 10), (40, 1, 6), (40, 2, 9))


@pytest.mark.parametrize(
    ("slo_ms", "max_batch", "rate", "expected"),
    [
        (20, 32, float("inf"), (20, 2, ())),
        (20, 32, 200, (20, 2, ())),
        (20, 1, float("inf"), (20, 1, (Bound.BATCH,))),
        (20, 32, 199, (20, 1, (Bound.ASSEMBLY,))),
        (19, 32, float("inf"), (20, 1, (Bound.HALF,))),
        (18, 32, 150, (20, 1, (Bound.ASSEMBLY, Bound.HALF))),
        (15, 32, float("inf"), (40, 1, (Bound.HALF,))),
    ],
)
def test_the_best_point_within_the_objective_is_chosen_and_what_binds_is_named(slo_ms, max_batch, rate, expected):
    assert chosen(optimum(TABLE, model(slo_ms, max_batch), rate)) == expected


def test_of_equal_points_the_larger_batch_wins_then_the_smaller_size():
    more = profile_of((10, 1, 10), (10, 2, 20), (10, 4, 20))  # 1 / 100 = 4 / 400
    assert chosen(optimum(more, model(100)))[:2] == (10, 4)
    smaller = profile_of((10, 1, 20), (40, 1, 10))  # 1 / (400 x 10) = 1 / (100 x 40)
    assert chosen(optimum(smaller, model(100)))[:2] == (10, 1)


def test_nothing_within_the_objective_is_an_answer_with_its_numbers():
    found = optimum(TABLE, model(11))
    assert isinstance(found, Unreachable)
    assert found.binds == (Bound.HALF,)
    assert found.nearest == Operating(40, 1, 6 * MS)
    assert str(found) == (
        "model m: SLO 11 ms does not hold latency within half the SLO; the nearest is a batch of 1: "
        "6 ms at size 40 and 0 ms to assemble"
    )


def test_a_rate_too_low_to_assemble_one_row_in_time_is_told():
    found = optimum(TABLE, model(20), rate=50)
    assert isinstance(found, Unreachable)
    assert found.binds == (Bound.ASSEMBLY,)
    assert found.nearest.assembly == 20 * MS


def test_sizes_may_be_those_that_a_device_offers():
    assert chosen(optimum(TABLE, model(100), sizes=(30, 40)))[:2] == (30, 2)
    with pytest.raises(ProfileError, match="profiled from 20 SMs up, not at 10"):
        optimum(TABLE, model(100), sizes=(10,))


def test_a_rate_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="model m: rate must be above 0, is 0"):
        optimum(TABLE, model(100), rate=0)


def test_efficacy_is_throughput_by_latency_and_size():
    assert Operating(20, 2, 10 * MS).efficacy == pytest.approx(2 / 0.010 / 0.010 / 20)


cells = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 12)), min_size=1, unique_by=lambda cell: cell[:2]
)


@given(cells, st.integers(1, 30), st.integers(1, 6), st.sampled_from([50, 200, 1000, float("inf")]))
def test_no_point_within_the_objective_is_worth_more_than_the_chosen_one(table, slo_ms, max_batch, rate):
    profile, asked = profile_of(*table), model(slo_ms, max_batch)
    every = {
        (size, rows): Fraction(rows, took * took * size)
        for size in profile.sizes("m")
        for rows, took in enumerate(profile.curve("m", size)[:max_batch], start=1)
        if 2 * took <= asked.slo and took + round(rows * SECOND / rate) <= asked.slo
    }
    found = optimum(profile, asked, rate)
    assert isinstance(found, Optimum) == bool(every)
    if isinstance(found, Optimum):
        assert every[found.point.size, found.point.rows] == max(every.values())
        assert bool(found.binds) == (optimum(profile, model(10**6, 99), rate).point != found.point)
    else:
        assert found.binds
