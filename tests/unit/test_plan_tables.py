"""What `plan` prints and draws of a plan."""

from dataclasses import replace

import pytest

from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.plan import Gpulet, Plan, Promise, Resident, Timeline, TimelineRun, Turn
from gpulet.reports.pictures import draw_plan, placed
from gpulet.reports.plans import promise_table, shape_table
from gpulet.units import MIB, MS

DEVICES = tuple(Device(d, find_kind("v100"), Mechanism.MPS) for d in range(3))
SIZE = Size(40, 50.0)
BOTH = (Resident(0, "a", 300 * MIB), Resident(0, "b"), Resident(1, "a", 300 * MIB), Resident(1, "b"))
GPULET = Gpulet(0, 0, SIZE, 0, 20 * MS, (Turn("a", 4, 100.0, 10 * MS),))
LINE = Timeline(0, 100 * MS, (TimelineRun(0, 10 * MS, "a", SIZE, 4),))


def columns(table):
    return [list(column.cells) for column in table.columns]


def test_models_that_share_devices_uncut_are_listed_and_like_devices_named_together():
    table = shape_table(Plan(DEVICES, residents=BOTH))
    assert table.title == "4 replicas on 2 of 3 devices, uncut"
    assert columns(table) == [["0, 1", "0, 1"], ["a", "b"], ["300", ""], ["", ""]]


@pytest.mark.parametrize(
    ("plan", "title"),
    [
        (Plan(DEVICES, (GPULET,), residents=BOTH[:2]), "1 gpulets on 1 of 3 devices"),
        (Plan(DEVICES, timelines=(LINE,), residents=BOTH), "sessions of 100 ms on 1 of 3 devices"),
        (Plan(DEVICES), "0 gpulets on 0 of 3 devices"),
    ],
)
def test_a_plan_is_shown_as_what_it_is(plan, title):
    assert shape_table(plan).title == title


def test_the_worst_latency_of_sessions_is_said_to_be_no_bound():
    promises = {"a": Promise(10.0, 40.0, 10 * MS, 100 * MS)}
    assert promise_table(Plan(DEVICES, (GPULET,), promises=promises)).caption is None
    caption = promise_table(Plan(DEVICES, timelines=(LINE,), promises=promises)).caption
    assert caption == "worst latency: a batch assembled and run, not a bound on waits"


def test_each_kind_of_plan_is_drawn_as_what_it_is(tmp_path):
    guaranteed = (Resident(0, "a", guaranteed=30.5), Resident(0, "b", guaranteed=20.0))
    plan = Plan(DEVICES, (replace(GPULET, device=1),), (replace(LINE, device=2),), guaranteed)
    draw_plan(plan, tmp_path / "plan.svg")
    drawn = (tmp_path / "plan.svg").read_text()
    assert all(
        text in drawn for text in ("30.5 SMs guaranteed", "whoever needs it", "ms of a session", "one duty cycle")
    )
    draw_plan(Plan(DEVICES, residents=BOTH), tmp_path / "uncut.svg")
    assert "<!-- a, b -->" in (tmp_path / "uncut.svg").read_text()


def test_a_run_that_no_hole_holds_is_drawn_in_pieces():
    def run(start, length, sms):
        return TimelineRun(start, length, "a", Size(sms, 0.0), 1)

    low, middle, high, late = (run(-5, 15, 4), run(0, 30, 3), run(0, 10, 3), run(10, 5, 6))
    assert list(placed([low, middle, high, late], 10)) == [
        (low, 0, 4),
        (middle, 4, 3),
        (high, 7, 3),
        (late, 0, 4),
        (late, 7, 2),
    ]
