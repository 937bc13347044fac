"""The best size and batch within an objective, ties, and what binds."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.device import Device, Mechanism, Size, cpu_kind, find_kind
from gpulet.efficacy import Bound, OperatingPoint, Optimum, Unreachable, efficacy, optimum, points_of, sizes_of, within
from gpulet.errors import ProfileError
from gpulet.model import Model
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND


def profile_of(*cells):
    return Profile(tuple(Point("m", size, rows, *[took * MS] * 3) for size, rows, took in cells))


def model(slo_ms, max_batch=32):
    return Model("m", slo_ms * MS, max_batch)


def points(profile, *sizes):
    return points_of(profile, "m", [Size(sms, 0.0) for sms in sizes or profile.sizes("m")])


def chosen(found):
    assert isinstance(found, Optimum)
    return found.point.size.sms, found.point.batch, found.binds


# Two rows at 20 SMs are the best point by far: 2/(10^2 x 20) = 1/1000; then 1/(8^2 x 20), 2/(9^2 x 40), 1/(6^2 x 40).
TABLE = profile_of((20, 1, 8), (20, 2, 10), (40, 1, 6), (40, 2, 9))


@pytest.mark.parametrize(
    ("slo_ms", "max_batch", "rate", "expected"),
    [
        (20, 32, 0, (20, 2, ())),
        (20, 32, 200, (20, 2, ())),
        (20, 1, 0, (20, 1, (Bound.BATCH,))),
        (20, 32, 120, (20, 1, (Bound.ASSEMBLY,))),
        (19, 32, 0, (20, 1, (Bound.HALF,))),
        (18, 32, 120, (20, 1, (Bound.ASSEMBLY, Bound.HALF))),
        (15, 32, 0, (40, 1, (Bound.HALF,))),
        (20, 32, 199, (40, 2, (Bound.ASSEMBLY,))),  # 20, 1 carries 125 rows/s
        (20, 32, 201, (40, 2, (Bound.RATE,))),
        (20, 32, 1, (20, 1, (Bound.ASSEMBLY,))),  # a row that comes alone waits for nobody
    ],
)
def test_the_best_point_within_the_objective_is_chosen_and_what_binds_is_named(slo_ms, max_batch, rate, expected):
    assert chosen(optimum(points(TABLE), model(slo_ms, max_batch), rate)) == expected


def test_of_equal_points_the_larger_batch_goes_first_then_the_smaller_size():
    more = profile_of((10, 1, 10), (10, 2, 20), (10, 4, 20))  # 1 / 100 = 4 / 400
    assert [p.batch for p in points(more)] == [4, 1, 3, 2]
    smaller = profile_of((10, 1, 20), (40, 1, 10))  # 1 / (400 x 10) = 1 / (100 x 40)
    assert [p.size.sms for p in points(smaller)] == [10, 40]


def test_nothing_within_the_objective_is_an_answer_with_its_numbers():
    found = optimum(points(TABLE), model(11))
    assert isinstance(found, Unreachable)
    assert found.binds == (Bound.HALF,)
    assert found.nearest == OperatingPoint(Size(40, 0.0), 1, 6 * MS)
    assert str(found) == (
        "no point has latency within half the SLO; the nearest is a batch of 1: 6 ms at size 40 and 0 ms to assemble"
    )


def test_a_rate_that_no_point_carries_is_told():
    found = optimum(points(TABLE), model(20), rate=230)
    assert isinstance(found, Unreachable)
    assert found.binds == (Bound.RATE,)
    assert (found.nearest.size.sms, found.nearest.batch, found.assembly) == (40, 1, 0)


def test_points_keep_half_the_objective_carry_the_rate_and_assemble_in_time():
    every = points(profile_of(*((10, rows, 10 * rows) for rows in range(1, 5))))

    def batches(rate=0.0, max_batch=4):
        return sorted(p.batch for p in within(every, model(60, max_batch), rate))

    assert batches() == [1, 2, 3]  # four take more than half of 60 ms
    assert batches(max_batch=2) == [1, 2]
    assert batches(101.0) == []  # 100 rows/s by runs back to back
    assert batches(50.0) == [1, 2]  # two rows come in 40 ms and take 20; three are late
    assert batches(0.5) == [1]


def test_sizes_are_those_that_a_device_offers_and_somebody_measured():
    a100 = Device(0, find_kind("a100-40gb"), Mechanism.GREEN)
    assert [size.sms for size in sizes_of(TABLE, "m", a100)] == [32, 64]
    assert chosen(optimum(points(TABLE, 30, 40), model(100)))[:2] == (30, 2)
    small = Device(1, cpu_kind(8), Mechanism.CPU)
    with pytest.raises(ProfileError, match="model m is profiled from 20 SMs up, and device 1 has no gpulet of so many"):
        sizes_of(TABLE, "m", small)
    with pytest.raises(ProfileError, match="profiled from 20 SMs up, not at 10"):
        points(TABLE, 10)


def test_efficacy_is_throughput_by_latency_and_size():
    assert efficacy(20, 2, 10 * MS) == pytest.approx(2 / 0.010 / 0.010 / 20)


cells = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 12)), min_size=1, unique_by=lambda cell: cell[:2]
)


@given(cells, st.integers(1, 30), st.integers(1, 6), st.sampled_from([0, 50, 200, 1000]))
def test_no_point_within_the_objective_is_worth_more_than_the_chosen_one(table, slo_ms, max_batch, rate):
    profile, asked = profile_of(*table), model(slo_ms, max_batch)
    every = {
        (size, rows): Fraction(rows, took * took * size)
        for size in profile.sizes("m")
        for rows, took in enumerate(profile.curve("m", size)[:max_batch], start=1)
        if 2 * took <= asked.slo
        and (rows == 1 or not rate or took + round(rows * SECOND / rate) <= asked.slo)
        and rows * SECOND >= rate * took
    }
    found = optimum(points(profile), asked, rate)
    assert isinstance(found, Optimum) == bool(every)
    if isinstance(found, Optimum):
        assert every[found.point.size.sms, found.point.batch] == max(every.values())
        assert bool(found.binds) == (points(profile)[0] != found.point)
    else:
        assert found.binds
