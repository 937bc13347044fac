"""The analytic model against public tables: what benchmarks/analytic.py prints, within the limits set for it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from analytic import CASES, MEDIAN_PCT, best
from work import COUNTS

from gpulet.roofline.works import WORKS

NAMED = {
    "RTX 2080 Ti, gpu-lets": {"ssd-mobilenetv1", "vgg16"},
    "V100, iGniter": {"alexnet"},
    "A100-80GB, ParvaGPU": {"bert", "densenet169", "resnet152", "resnet50"},
    "A100-80GB, MIGProfiler": {"resnet50"},
}
"""Beyond the limits on their own: planned from the table."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eight_points_of_every_model_predict_the_others(shared_data, case):
    found = best(case, shared_data)
    together = found.line(found.accepted, "accepted")
    assert together["median_pct"] <= MEDIAN_PCT
    assert together["p95_pct"] <= case.p95_pct
    lines = [found.model_line(name) for name in found.fits]
    assert {line["models"] for line in lines if line["planned_from"] == "table"} == NAMED[case.name]
    left = set(found.fits) - set(found.accepted)
    assert left == ({"vgg16"} if case.kind == "rtx2080ti" else set())


def test_work_is_what_the_layer_shapes_add_up_to():
    assert set(WORKS) - set(COUNTS) == {"lenet", "inceptionv3"}
    for name, counted in COUNTS.items():
        on_record = WORKS[name]
        assert on_record.flops == pytest.approx(counted.flops, rel=0.01)
        assert on_record.weights == pytest.approx(counted.weights, rel=0.01)
        assert on_record.activations == pytest.approx(counted.activations, rel=0.02)
        assert on_record.kernels == counted.kernels


def test_multiply_adds_are_those_that_torchvision_publishes():
    published = {"vgg19": 19.632e9, "densenet121": 2.834e9}
    assert {name: round(COUNTS[name].flops / 2e6) * 1e6 for name in published} == published
