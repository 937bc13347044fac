"""Table 1.12 of D-STACK's specification: batches of 16, queues never empty, no interference, the analytical curve."""

from functools import cache
from itertools import pairwise

import pytest

from gpulet.core.scheduler import Limits
from gpulet.reproduce.tcc24.cases import Case, find_mix, row
from gpulet.reproduce.tcc24.data import mix, saturated
from gpulet.reproduce.tcc24.published import system_at_knees
from gpulet.reproduce.tcc24.runs import planned, serve
from gpulet.units import MS, SECOND

TABLE = {
    ("C-3", "dstack"): (1760, {"alexnet": 1280, "resnet50": 320, "vgg19": 160}),
    ("C-3", "temporal"): (633, {"alexnet": 211, "resnet50": 211, "vgg19": 211}),
    ("C-3", "gslice-static"): (2589, {"alexnet": 1809, "resnet50": 517, "vgg19": 263}),
    ("C-3", "rolling"): (1909, {"alexnet": 1334, "resnet50": 381, "vgg19": 194}),
    ("C-4", "dstack"): (3040, {"mobilenet": 1280, "alexnet": 1280, "resnet50": 320, "vgg19": 160}),
    ("C-4", "temporal"): (760, {"mobilenet": 190, "alexnet": 190, "resnet50": 190, "vgg19": 190}),
    ("C-4", "round-robin"): (760, {"mobilenet": 190, "alexnet": 190, "resnet50": 190, "vgg19": 190}),
    ("C-4", "gslice-static"): (3661, {"mobilenet": 1312, "alexnet": 1641, "resnet50": 469, "vgg19": 239}),
    ("convnets", "rolling"): (154, {"convnet1": 64.5, "convnet2": 46.0, "convnet3": 43.5}),
}
"""Images/s (batches/s of convnets) in all and by model."""
USEFUL = {
    ("C-3", "dstack"): 0.691,
    ("C-3", "temporal"): 0.452,
    ("C-3", "gslice-static"): 1.0,
    ("C-3", "rolling"): 0.80,
    ("C-4", "dstack"): 0.847,
    ("C-4", "temporal"): 0.427,
    ("convnets", "rolling"): 0.867,
}


@cache
def found(name, system, windows=100):
    return row(Case(find_mix(name), windows=windows), system)


@pytest.mark.parametrize(("name", "system"), TABLE)
def test_totals_and_models_are_those_of_the_table(name, system):
    total, models = TABLE[name, system]
    assert found(name, system)["total_per_s"] == pytest.approx(total, rel=0.02)
    assert found(name, system)["models"] == pytest.approx(models, rel=0.02)


@pytest.mark.parametrize(("name", "system"), USEFUL)
def test_useful_utilisation_is_that_of_the_table(name, system):
    assert found(name, system)["useful_utilisation"] == pytest.approx(USEFUL[name, system], abs=0.005)


@pytest.mark.parametrize(("name", "planned_part"), [("C-2", 0.499), ("C-3", 0.595), ("C-4", 0.675)])
def test_dstack_misses_no_window_up_to_four_models(name, planned_part):
    assert found(name, "dstack")["misses_per_window"] == 0
    assert found(name, "dstack")["planned_utilisation"] == pytest.approx(planned_part, abs=0.0005)


def test_dstack_is_four_times_temporal_on_four_models():
    assert found("C-4", "dstack")["total_per_s"] / found("C-4", "temporal")["total_per_s"] == pytest.approx(4, rel=0.05)


def test_dstack_is_fair_on_four_models_over_ten_windows():
    fair = found("C-4", "dstack", 10)
    assert fair["windows"] == 10
    assert fair["least_runtime_over_mean"] == pytest.approx(0.863, abs=0.001)
    assert fair["least_area_over_mean"] == pytest.approx(0.752, abs=0.001)
    assert fair["jain"] >= 0.97
    assert fair["misses_per_window"] == 0


def test_by_the_clock_the_run_below_the_knee_weighs_more():
    """Of every session one run of Mobilenet is on 10 %, 15.8 ms long instead of 10."""
    fair = found("C-4", "dstack", 10)
    assert fair["least_elapsed_over_mean"] == pytest.approx(55 / ((80 + 5.833 + 64 + 56 + 55) / 4), abs=0.001)
    assert fair["jain_elapsed"] == pytest.approx(0.965, abs=0.001)


def test_dstack_is_within_a_tenth_of_what_kernels_at_their_own_knees_could_at_most():
    ratio = found("convnets", "dstack")["total_per_s"] / found("convnets", "ideal-kernels")["total_per_s"]
    assert 0.9 <= ratio <= 1


def test_least_runtime_first_starts_every_model_within_the_gaps_of_the_table():
    problem, system = mix("C-3"), system_at_knees("rolling")
    end = 10 * SECOND
    limits = Limits(10**6, early_drop=False)
    ran = serve(system, problem, planned(system, problem).plan, saturated(problem, end), limits, end).ran
    starts = {name: [run.start for run in ran if run.model == name] for name in problem.models}
    gaps = {name: max(b - a for a, b in pairwise(at)) / MS for name, at in starts.items()}
    assert gaps == pytest.approx({"alexnet": 40, "resnet50": 60, "vgg19": 87}, abs=0.5)
