"""PARIS and ELSA against what was computed for the specification from the same public profile."""

import json
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpulet.cli import app
from gpulet.errors import GpuletError
from gpulet.reproduce.dac22.cases import Case, facts, read_profile, whole_gpus
from gpulet.reproduce.dac22.designs import DESIGNS, Effort, throughput
from gpulet.reproduce.dac22.jobs import studies

PROFILE = Path(__file__).parents[3] / "shared" / "data" / "a100_parvagpu" / "profile.csv"
pytestmark = pytest.mark.skipif(not PROFILE.exists(), reason="needs ../shared/data (ParvaGPU's profile, MIT)")

LN4, LN8 = log(4), log(8)
ROWS = [
    (("mobilenetv2", 4, LN4), 11.9, (4, 7, 11, 12, 19), (6, 2, 1, 1, 1)),
    (("mobilenetv2", 4, LN8), 11.9, (4, 7, 11, 12, 19), (1, 1, 1, 1, 2)),
    (("resnet50", 8, LN4), 20.0, (5, 7, 10, 8, 14), (15, 3, 2, 0, 3)),
    (("resnet50", 8, LN8), 20.0, (5, 7, 10, 8, 14), (8, 3, 2, 0, 4)),
    (("bert", 7, LN4), 184.9, (11, 11, 11, 30, 27), (19, 0, 0, 4, 1)),
    (("vgg16", 8, LN4), 28.6, (4, 5, 5, 5, 6), (14, 3, 0, 0, 4)),
]


@pytest.fixture(scope="module")
def profile():
    return read_profile(PROFILE)


@pytest.mark.parametrize(("case", "sla_ms", "knees", "counts"), ROWS)
def test_knees_and_counts_are_those_of_the_specification(profile, case, sla_ms, knees, counts):
    found = facts(profile, Case(*case))
    assert round(found["sla_ms"], 1) == sla_ms
    assert tuple(found["knees"].values()) == knees
    assert tuple(found["counts"].values()) == counts


def test_which_utilization_makes_a_knee_decides_everything():
    """The specification's counts for gract, 4/7/10/0, leave requests of 32 rows without a size that is in time."""
    measured = read_profile(PROFILE.parents[1] / "a100_migprofiler" / "vision.csv")
    full, busy = (Case("resnet50", 8, utilization=name) for name in ("saturation", "gract"))
    assert tuple(facts(measured, full)["knees"].values()) == (15, 16, 20, 28)
    assert tuple(facts(measured, full)["counts"].values()) == (36, 1, 1, 1)
    assert throughput(measured, full, "PARIS+ELSA", Effort()) == pytest.approx(550, rel=0.01)
    assert tuple(facts(measured, busy)["knees"].values()) == (1, 4, 32, 32)
    assert tuple(facts(measured, busy)["counts"].values()) == (2, 6, 9, 1)
    assert throughput(measured, busy, "PARIS+ELSA", Effort(6_000)) > 1_500


def test_demand_and_fractional_counts_of_mobilenet_are_exact_to_four_digits(profile):
    found = facts(profile, Case("mobilenetv2", 4))
    assert list(found["r_ms"].values()) == pytest.approx([2.8343, 1.1121, 0.6706, 0.1006, 0.5524], abs=5e-5)
    assert list(found["n_real"].values()) == pytest.approx([5.999, 2.354, 1.419, 0.213, 1.169], abs=5e-4)
    assert list(found["n_real"]) == ["1", "2", "3", "4", "7"]


@pytest.mark.parametrize(
    ("case", "design", "rate"),
    [
        (ROWS[1][0], "PARIS+ELSA", 801),
        (ROWS[1][0], "GPU(7)", 589),
        (ROWS[4][0], "PARIS+FIFS", 488),
        (ROWS[4][0], "GPU(7)", 193),
        (ROWS[4][0], "GPU(1)", 739),
    ],
)
def test_the_throughput_within_the_sla_is_that_of_the_specification(profile, case, design, rate):
    assert throughput(profile, Case(*case), design, Effort()) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("design", ["GPU(1)", "GPU(2)", "PARIS+FIFS"])
def test_what_misses_the_sla_without_any_load_holds_nothing(profile, design):
    assert throughput(profile, Case("mobilenetv2", 4), design, Effort()) == 0


def test_taking_the_largest_idle_gpulet_first_helps_fifs(profile):
    case, effort = Case("mobilenetv2", 4), Effort(8_000)
    assert throughput(profile, case, "PARIS+FIFS, largest idle", effort) == pytest.approx(768, rel=0.08)


def test_ours_holds_a_tenth_more_than_the_best_published_design(profile):
    case, effort = Case("mobilenetv2", 4, LN8), Effort(6_000)
    best = max(throughput(profile, case, design, effort) for design in ("GPU(3)", "PARIS+ELSA"))
    assert throughput(profile, case, "gpulet", effort) >= 1.1 * best


def test_gpu_7_has_whole_gpus_and_fewer_where_slices_come_out_even():
    assert [whole_gpus(gpus) for gpus in (4, 7, 8, 14)] == [4, 6, 8, 12]


def test_the_studies_vary_spread_largest_request_sla_and_location():
    assert [row.study for row in studies(full=False)].count(4) == 4
    assert {row.study for row in studies(full=False)} == {1, 2, 3, 4}
    assert {row.case.model for row in studies(full=True)} >= {"bert", "vgg16", "densenet121", "inceptionv3"}


def test_the_command_prints_one_row_and_goes_on_where_it_stopped(tmp_path):
    asked = ["reproduce", "dac22", "--profile", str(PROFILE), "--model", "bert", "--gpus", "7", "--requests", "1000"]
    asked += ["--systems", "GPU(7),PARIS+ELSA,Random+ELSA", "--draws", "2", "--out", str(tmp_path), "--json"]
    printed = [CliRunner().invoke(app, asked) for _ in range(2)]
    rows = [json.loads(result.stdout.splitlines()[-1]) for result in printed]
    assert rows[0] == rows[1]
    assert set(rows[0]["lbt"]) == {"GPU(7)", "PARIS+ELSA", "Random+ELSA"}
    assert len(json.loads((tmp_path / "points.json").read_text())) == 4
    report = (tmp_path / "report.md").read_text()
    assert "19/0/0/4/1" in report
    assert "US 2024/0012690 A1" in report
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "lenet"}, "lenet"),
        ({"largest": 512}, "requests of up to 512 rows"),
        ({"sla": 0.0}, "multiple above 0"),
        ({"sigma": 0.0}, "sigma above 0"),
    ],
)
def test_a_case_that_cannot_be_is_refused_in_one_line(profile, change, says):
    with pytest.raises(GpuletError, match=says) as refused:
        facts(profile, replace(Case("bert", 7), **change))
    assert "\n" not in str(refused.value)


def test_every_design_has_a_name_of_its_own():
    assert len(set(DESIGNS)) == len(DESIGNS)
