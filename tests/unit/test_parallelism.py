"""The model of kernels and SMs, its calibrations, and the search for a knee."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.errors import ProfileError
from gpulet.knee import efficient, knee, within
from gpulet.parallelism import (
    Kernel,
    Launched,
    Memory,
    Ramp,
    calibrated,
    divided,
    fitted,
    knee_of,
    ramp,
    searched,
    waved,
)
from gpulet.units import US

SHARES = range(5, 101, 5)


def test_kernels_of_a_ramp_fall_in_equal_steps():
    assert [k.operations for k in ramp(10, 5, 1, 1)] == [10, 8, 6, 4, 2]
    assert [k.operations for k in ramp(3, 2, 1, 1)] == [3, 2]
    assert [k.operations for k in ramp(3, 2, 1, 1, is_whole=False)] == [3, 1.5]


def test_latency_is_serial_time_and_data_and_work_of_every_launch():
    kernels = (Kernel(8, 10, serial=5, launches=2, data=60), Kernel(1, 7))
    memory = Memory(per_sm=3)
    assert divided(kernels, 4, rows=2, memory=memory) == 2 * (5 + 2 * 60 / 12 + 8 * 10 / 4) + 7
    assert divided(kernels, 100) == 2 * (5 + 10) + 7


def test_waves_are_whole_and_hide_the_shorter_of_work_and_data():
    kernel = (Kernel(9, 10, serial=5, data=90),)
    assert waved(kernel, 4) == 5 + 30
    assert waved(kernel, 9) == 5 + 10
    assert waved(kernel, 9, memory=Memory(per_sm=1)) == 5 + 10
    assert waved(kernel, 9, memory=Memory(per_sm=1, whole=3)) == 5 + 30


launches = st.builds(
    Launched, st.integers(1, 5000), st.integers(1, 16), st.integers(1, 10**6), st.integers(1, 20), st.just(0.0)
)


@given(st.lists(launches, min_size=1, max_size=8), st.integers(1, 132))
def test_calibrated_kernels_take_on_the_whole_device_what_was_measured_there(measured, sms):
    total = sum(m.launches * (m.duration + 5 * US) for m in measured)
    assert waved(calibrated(measured, sms, 5 * US), sms) == pytest.approx(total)


def test_a_profiled_kernel_becomes_operations_of_an_sm_each():
    (kernel,) = calibrated([Launched(grid=1000, per_sm=4, duration=800, launches=3)], 80, 5000)
    assert kernel == Kernel(operations=250, each=200, serial=5000, launches=3)


@pytest.mark.slow
@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(2, 30))
def test_a_ramp_is_found_again_from_its_own_latencies(serial, parallel, per_row):
    truth = Ramp(serial * US, parallel * US, per_row)
    points = [(s, b, round(truth.latency(s, b))) for s in range(8, 81, 8) for b in (1, 2, 4)]
    found = fitted(points)
    assert found.error < 1e-3
    assert all(found.latency(s, b) == pytest.approx(took, rel=5e-3) for s, b, took in points)


def test_a_fit_gives_back_parameters_and_knee():
    truth = Ramp(250 * US, 1000 * US, 12)
    found = fitted([(s, b, round(truth.latency(s, b))) for s in range(4, 81, 4) for b in (1, 2, 4)])
    assert (found.serial, found.parallel) == (pytest.approx(250 * US, rel=0.01), pytest.approx(1000 * US, rel=0.01))
    assert found.per_row == pytest.approx(12, rel=0.01)
    assert found.knee(2) == pytest.approx(12, rel=0.01)


def test_a_latency_that_no_sm_shortens_has_no_knee():
    assert fitted([(s, 1, 500) for s in (10, 20, 40)]).latency(10) == pytest.approx(500)
    assert fitted([(s, 1, 0) for s in (10, 20, 40)]).latency(10) == pytest.approx(1)  # below the clock's resolution
    assert Ramp(5.0, 0.0, 10.0).knee() == 0


def test_too_few_points_for_a_ramp_are_refused():
    with pytest.raises(ProfileError, match="2 points; a ramp has three parameters and needs 3"):
        fitted([(1, 1, 10), (2, 1, 9)])


def test_rules_of_a_knee_take_the_smallest_of_equal_sizes():
    assert efficient([10, 40], [2, 1]) == 0
    assert efficient([10, 39], [2, 1]) == 1
    assert within([10, 20, 40], [112, 110, 100]) == 1
    assert within([10, 20, 40], [100, 100, 100]) == 0
    assert knee([1, 2, 4], [5, 5, 5]) == 0


def test_a_search_starts_at_the_whole_device_and_thirty_percent():
    found = searched(lambda share: round(1000 / min(share, 40)), SHARES)
    assert list(found.measured)[:2] == [100, 30]
    assert found.size == 40
    assert len(found.measured) <= 7


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12))
def test_what_a_search_returns_was_measured_within_the_target_whatever_the_noise(latencies):
    asked = []
    found = searched(lambda size: asked.append(size) or latencies[size - 1], range(1, len(latencies) + 1))
    assert sorted(asked) == sorted(found.measured)
    assert found.measured[found.size] <= 1.1 * latencies[-1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12).map(lambda xs: sorted(xs, reverse=True)))
def test_a_search_over_falling_latencies_finds_the_smallest_size_within_the_target(latencies):
    sizes = range(1, len(latencies) + 1)
    assert searched(lambda size: latencies[size - 1], sizes).size == sizes[within(sizes, latencies)]


def test_the_knee_of_a_function_is_a_size():
    assert knee_of(lambda size: 100 / min(size, 8), [2, 4, 8, 16]) == 8
