"""D-STACK (Dhakal et al., TCC 2024): the numbers that the specification remembers or computed."""

from math import sqrt

import pytest

from gpulet.device import Size
from gpulet.efficacy import Bound, Optimum, Unreachable, assembly, optimum, points_of
from gpulet.model import Model
from gpulet.parallelism import Ramp, closed_form, divided, knee_of, ramp
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND, to_ms

SMS = range(1, 81)


def knee_of_example(operations, *, is_whole):
    kernels = ramp(operations, 50, 40, 10, is_whole=is_whole)
    return knee_of(lambda size: divided(kernels, size), SMS)


def test_knees_of_the_papers_example_are_10_21_and_31_sms():
    """The paper has 9, 24 and 31."""
    assert [knee_of_example(n, is_whole=True) for n in (20, 40, 60)] == [10, 21, 31]


def test_with_real_operations_the_knees_are_half_of_the_widest_kernel():
    assert [knee_of_example(n, is_whole=False) for n in (20, 40, 60)] == [10, 20, 30]


def test_plain_efficiency_would_put_every_knee_at_one_sm():
    kernels = ramp(40, 50, 40, 10)
    assert min(SMS, key=lambda size: divided(kernels, size) * size) == 1


@pytest.mark.parametrize(
    ("serial_ratio", "knee"), [(0, 0.577), (0.1, 0.545), (0.25, 0.500), (0.5, 0.434), (1, 0.333), (2, 0.215)]
)
def test_the_closed_form_has_the_computed_knees_to_three_digits(serial_ratio, knee):
    assert round(closed_form(serial_ratio), 3) == knee
    curve = Ramp(serial_ratio, 1, 10_000)
    assert knee_of(curve.latency, range(1, 10_001)) == pytest.approx(10_000 * knee, abs=6)


def test_the_closed_form_is_the_sum_over_a_fine_ramp():
    kernels = ramp(60, 2000, 4, 1, is_whole=False)
    curve = Ramp(2000, 8000, 60)
    # N_i below one operation still takes one: 1/60 of the kernels.
    assert all(divided(kernels, size) == pytest.approx(curve.latency(size), rel=0.01) for size in SMS)


def test_a_knee_never_exceeds_58_percent_of_the_widest_kernel():
    assert closed_form(0) == pytest.approx(1 / sqrt(3))
    assert all(closed_form(r / 10) < closed_form(0) for r in range(1, 100))


@pytest.mark.parametrize(
    ("of_knee", "slowdown"),
    [(0.125, 5.52), (0.25, 2.88), (0.5, 1.58), (0.75, 1.18), (1.0, 1.00), (1.5, 0.86), (2, 0.83), (3, 0.83)],
)
def test_latency_around_the_knee_at_r_a_quarter_is_as_computed(of_knee, slowdown):
    curve = Ramp(0.25, 1, 800)
    size = round(of_knee * curve.knee())
    assert curve.latency(size) / curve.latency(400) == pytest.approx(slowdown, abs=0.006)


# Knee in percent, SLO and runtime of a batch of 16 in ms, on a V100.
TABLE = {
    "mobilenet": (20, 25, 10),
    "alexnet": (30, 25, 8),
    "bert": (30, 25, 9),
    "resnet18": (30, 25, 12),
    "resnet50": (40, 50, 28),
    "inception": (40, 50, 25),
    "vgg19": (50, 100, 55),
    "resnext50": (50, 100, 40),
}


def planned(name, rate=0.0):
    """The published operating point as a profile of one point; efficacy is in percent where it is usually in SMs."""
    share, slo, runtime = TABLE[name]
    profile = Profile((Point(name, share, 16, *[runtime * MS] * 3),)).as_measured()
    model = Model(name, slo * MS, 16)
    return optimum(points_of(profile, name, [Size(share, share)]), model, rate)


def test_two_rows_of_the_model_table_break_half_their_slo():
    unreachable = {name: found for name in TABLE if isinstance(found := planned(name), Unreachable)}
    assert {name: found.binds for name, found in unreachable.items()} == {
        "resnet50": (Bound.HALF,),
        "vgg19": (Bound.HALF,),
    }


def test_the_other_rows_of_the_model_table_run_sixteen_rows():
    points = [found.point for name in TABLE if isinstance(found := planned(name), Optimum)]
    assert len(points) == 6
    assert {p.batch for p in points} == {16}


def test_a_link_of_1920_images_per_second_for_seven_models_assembles_sixteen_rows_in_58_ms():
    rate = 1920 / 7
    assert round(rate) == 274
    assert round(16 * 1000 / rate) == 58
    found = planned("mobilenet", rate)
    assert isinstance(found, Optimum)
    assert (found.point.batch, found.binds) == (4, (Bound.ASSEMBLY,))
    assert to_ms(assembly(4, rate)) == pytest.approx(4 * SECOND / rate / MS)
