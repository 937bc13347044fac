"""gpu-lets' artifact on the recovered profile: the counts and rates of the specification, section 5."""

import json

import pytest

from gpulet.cli import reproducing
from gpulet.errors import ConfigError
from gpulet.plan import Plan
from gpulet.reproduce.atc22 import fluctuating, parts
from gpulet.reproduce.atc22.data import load
from gpulet.reproduce.atc22.jobs import SYSTEMS, Asked, count_schedulable, reproduce
from gpulet.reproduce.atc22.report import write_report
from gpulet.reproduce.atc22.workloads import (
    RERUN_COUNTS,
    RERUN_LEVELS,
    RERUN_PEAKS,
    RERUN_SATURATION,
    WORKLOADS,
    at_rate,
    scenarios,
)

TRAFFIC, GAME = WORKLOADS


@pytest.fixture(scope="module")
def measured(shared_data):
    return load(shared_data)


def test_saturated_gpulets_are_the_artifacts_to_the_printed_digit(measured):
    table = parts.saturation(measured)
    for (model, share), (batch, rate) in RERUN_SATURATION.items():
        assert table[model][str(share)] == {"batch": batch, "rate": rate}


@pytest.mark.parametrize("system", RERUN_COUNTS)
def test_as_many_scenarios_are_schedulable_as_in_the_artifact(measured, system):
    every = scenarios(RERUN_LEVELS)
    assert len(every) == 1023
    assert abs(count_schedulable(measured, system, every) - RERUN_COUNTS[system]) <= 5


def test_predicted_peaks_of_traffic_are_the_artifacts(measured):
    peaks = {system: parts.predicted_peak(measured, system, TRAFFIC) for system in RERUN_PEAKS["traffic"]}
    for system, peak in RERUN_PEAKS["traffic"].items():
        assert abs(peaks[system] - peak) <= parts.STEP
    assert peaks["sbp"] < peaks["greedy"] < peaks["glet"]


def test_the_ideal_accepts_what_glet_int_accepts(measured):
    for rate in (600, 640):
        assert isinstance(parts.accepts("glet-int", at_rate(measured, TRAFFIC, rate)), Plan)
        assert isinstance(parts.accepts("ideal", at_rate(measured, TRAFFIC, rate)), Plan)


@pytest.mark.parametrize(("application", "rate"), [(TRAFFIC, 900), (GAME, 3000)])
def test_ours_accepts_far_more_than_any_other_and_keeps_it(measured, application, rate):
    asked = at_rate(measured, application, rate)
    plan = parts.accepts("gpulet", asked)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert parts.run("gpulet", asked, plan, 4, 9)["total"]["attainment"] >= 0.99
    for system in ("sbp", "greedy", "glet", "glet-int", "ideal", "nexus"):
        assert not isinstance(parts.accepts(system, asked), Plan)


def test_a_glet_plan_keeps_its_promise_in_simulation(measured):
    assert parts.violations(measured, "glet-int", TRAFFIC, 600) <= 0.01


def test_fluctuating_load_uses_devices_as_they_are_needed(measured):
    periods = fluctuating.rates_by_period(measured)
    assert len(periods) == 160
    busiest = max(periods, key=lambda rates: sum(rates.values()))
    some = [periods[0], busiest, busiest, busiest, busiest]
    report = fluctuating.fluctuating(measured, "glet-int", some)
    assert report[0]["devices"] < report[-1]["devices"]
    assert all(0 <= period["violation"] <= 1 for period in report)


def test_the_report_has_a_section_and_a_picture_for_what_was_asked(measured, shared_data, tmp_path):
    asked = Asked(shared_data, (0, 400), ("sbp", "glet"), ("saturation", "schedulable", "interference"), 1)
    told = []
    result = reproduce(asked, lambda done, of: told.append((done, of)))
    assert told[-1][0] == told[-1][1]
    assert result["total"] == 31
    assert result["schedulable"]["sbp"] < result["schedulable"]["glet"] <= 31
    assert json.loads(json.dumps(result)) == result
    text = write_report(result, tmp_path).read_text(encoding="utf-8")
    for wanted in ("## Saturation", "13 / 400.5", "a guess", "scen1", "no licence", "interference.png"):
        assert wanted in text
    assert (tmp_path / "interference.png").read_bytes().startswith(b"\x89PNG")


def test_missing_measurements_are_named_with_their_origin_and_licence(tmp_path):
    with pytest.raises(ConfigError, match=r"rtx2080ti_utilization.csv|concat_overhead.csv") as raised:
        load(tmp_path)
    assert "casys-kaist/glet" in str(raised.value)
    assert "licence" in str(raised.value)


@pytest.mark.parametrize("levels", ["1,2,3", "a,b,c,d", "0,1,2,-3", "0,1,2,nan"])
def test_bad_levels_are_refused(gpulet, levels):
    code, _, err = gpulet("reproduce", "atc22", "--levels", levels)
    assert code == 2
    assert "give four rates" in err


def test_every_compared_system_is_registered():
    assert set(SYSTEMS) >= {"sbp", "greedy", "glet", "glet-int", "ideal", "elastic", "elastic-int", "nexus", "gpulet"}
    assert reproducing.SYSTEMS == SYSTEMS
