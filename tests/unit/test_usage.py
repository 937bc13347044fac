"""What runs make of devices, how evenly models fare, and what is held against a server: by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.core.fairness import jain
from gpulet.core.messages import Answer, Arrived, Carve, Drop, Finished, GpuletDown, Reason, Reject, RunFailed, Start
from gpulet.core.metrics import Metrics
from gpulet.device import Device, Mechanism
from gpulet.loadgen import Outcome
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Point, Profile
from gpulet.reports.runs import run_table, usage_text
from gpulet.request import Request
from gpulet.units import MS, NEVER, SECOND, from_ms
from gpulet.useful import useful_sizes
from support import TINY, models_of, problem_of, tiny_plan

NAMES = ["m0", "m1"]
UNCUT = Device(0, TINY, Mechanism.WHOLE)


class Fold:
    """Metrics fed with runs by hand, one request each."""

    def __init__(self, plan, **given):
        self.metrics = Metrics(NAMES, plan, **given)
        self.batch = 0

    def start(self, now, model, on, deadline=NEVER):
        self.batch += 1
        self.metrics.record(now * MS, [Arrived(Request(self.batch, model, now * MS, deadline))], [])
        self.metrics.record(now * MS, [], [Start(self.batch, on, model, "", 1, (self.batch,))])
        return self.batch

    def end(self, now, batch):
        self.metrics.record(now * MS, [Finished(batch)], [Answer(batch, (batch,))])

    def run(self, begin, end, model, on):
        self.end(end, self.start(begin, model, on))

    def device(self, duration):
        (row,) = self.metrics.report(duration * MS)["devices"]
        return row


@pytest.mark.parametrize(
    ("values", "index"), [((1, 1, 1), 1), ((1, 0, 0), 1 / 3), ((0, 0), 1), ((), 1), ((2, 1), 0.9), ((5,), 1)]
)
def test_jains_index(values, index):
    assert jain(values) == pytest.approx(index)


@given(st.lists(st.floats(0, 1e9).filter(lambda x: x == 0 or x > 1e-9), min_size=1))
def test_jains_index_lies_between_one_of_all_and_one(values):
    assert 1 / len(values) * (1 - 1e-9) <= jain(values) <= 1 + 1e-9


def test_carves_are_allocated_while_they_run():
    """Two at once, on 6 and 2 of 8 SMs: D-STACK's shape."""
    fold = Fold(Plan((Device(0, TINY, Mechanism.MPS),)), knees={"m0": 4, "m1": 3})
    first = fold.start(0, "m0", Carve(0, 6))
    fold.run(2, 6, "m1", Carve(0, 2))
    fold.end(10, first)
    fold.run(12, 16, "m0", Carve(0, 4))
    held = 6 * 10 + 2 * 4 + 4 * 4
    assert fold.device(20) == {
        "busy": held / (8 * 20),
        "allocated": held / (8 * 20),
        "useful": (4 * 10 + 2 * 4 + 4 * 4) / (8 * 20),
        "in_use": 1.0,
        "switches": 2,
        "resizes": 1,
    }
    row = fold.metrics.report(20 * MS)["models"]["m0"]
    assert (row["gpu_s"], row["gpu_area_s"]) == (0.014, pytest.approx(0.010 * 6 / 8 + 0.004 * 4 / 8))


def test_gpulets_are_allocated_all_the_time_and_switch_each_by_itself():
    fold = Fold(tiny_plan([[(4, NAMES), (2, NAMES)]], NAMES), knees={"m0": 3})
    for begin, end, model, on in [
        (0, 4, "m0", 0),
        (4, 6, "m1", 1),
        (6, 8, "m1", 0),
        (8, 10, "m0", 0),
        (10, 14, "m0", 0),
    ]:
        fold.run(begin, end, model, on)
    assert fold.device(20) == {
        "busy": (4 * 4 + 2 * 2 + 4 * 2 + 4 * 2 + 4 * 4) / (8 * 20),
        "allocated": 6 / 8,
        "useful": (3 * 4 + 2 * 2 + 4 * 2 + 3 * 2 + 3 * 4) / (8 * 20),
        "in_use": 1.0,
        "switches": 2,
        "resizes": 0,
    }


def test_runs_that_overlap_on_an_uncut_device_count_for_all_of_it():
    """Each wants all 8 SMs and makes use of 5: in 4 ms of 12 both run."""
    plan = tiny_plan([[(8, ["m0"]), (8, ["m1"])]], NAMES, Mechanism.WHOLE)
    fold = Fold(plan, knees={"m0": 5, "m1": 5})
    first = fold.start(0, "m0", 0)
    second = fold.start(4, "m1", 1)
    fold.end(8, first)
    fold.end(12, second)
    assert fold.device(16) == {
        "busy": 8 * 12 / (8 * 16),
        "allocated": 1,
        "useful": (5 * 4 + 8 * 4 + 5 * 4) / (8 * 16),
        "in_use": 1.0,
        "switches": 0,
        "resizes": 0,
    }


def test_carves_of_an_uncut_device_are_counted_like_gpulets():
    fold = Fold(Plan((UNCUT,)), knees={"m0": 5})
    fold.run(0, 10, "m0", Carve(0, 8))
    row = fold.device(20)
    assert (row["busy"], row["allocated"], row["useful"]) == (0.5, 0.5, 5 * 10 / (8 * 20))


def test_a_plan_whose_dispatcher_carves_only_says_where_sizes_begin():
    fold = Fold(tiny_plan([[(4, ["m0"])]], NAMES))
    fold.run(0, 10, "m0", Carve(0, 2))
    assert fold.device(10)["allocated"] == 2 / 8


def test_batches_that_end_after_the_arrivals_stretch_the_window():
    fold = Fold(tiny_plan([[(8, ["m0"])]], NAMES), begins=0)
    fold.run(0, 40, "m0", 0)
    assert fold.device(20)["busy"] == 1


def test_a_window_begins_when_the_run_does():
    fold = Fold(tiny_plan([[(8, ["m0"])]], NAMES), begins=1000 * MS)
    fold.run(1010, 1020, "m0", 0)
    assert fold.device(1)["busy"] == 0.5
    assert Fold(Plan((UNCUT,))).metrics.report(0)["devices"] == []


def test_failed_runs_have_held_their_sms_as_well():
    fold = Fold(tiny_plan([[(4, ["m0"]), (4, ["m0"])]], NAMES))
    fold.start(0, "m0", 0)
    fold.start(0, "m0", 1)
    fold.metrics.record(5 * MS, [RunFailed(1), GpuletDown(1)], [])
    assert fold.device(10)["busy"] == 0.5


def test_violations_are_all_that_is_late_or_unanswered_but_for_the_cancelled():
    fold = Fold(tiny_plan([[(8, NAMES)]], NAMES))
    for batch, end in ((1, 5), (2, 15)):
        fold.start(0, "m0", 0, deadline=10 * MS)
        fold.end(end, batch)
    reasons = [Reason.QUEUE_FULL, Reason.EXPIRED, Reason.CANCELLED, Reason.RUN_FAILED]
    requests = [Request(n, "m0", 0, NEVER) for n in range(3, 8)]
    refusals = [Reject(3, reasons[0]), *(Drop(n, reason) for n, reason in enumerate(reasons[1:], start=4))]
    fold.metrics.record(20 * MS, [Arrived(r) for r in requests], refusals)
    report = fold.metrics.report(2 * SECOND)
    row = report["models"]["m0"]
    assert (row["late"], row["rejected"], row["expired"], row["cancelled"], row["failed"], row["lost"]) == (1,) * 6
    assert fold.metrics.models["m0"].violations == 4
    assert row["violations_per_s"] == report["total"]["violations_per_s"] == 5 / 2
    assert row["goodput"] + row["violations_per_s"] + row["cancelled"] / 2 == row["arrived"] / 2


def test_fairness_is_of_time_of_area_and_of_goodput():
    """m0 runs 6 ms on half of the device, m1 2 ms on a quarter; m1 is late."""
    fold = Fold(Plan((Device(0, TINY, Mechanism.MPS),)))
    assert fold.metrics.fairness() == {"runtime": 1, "area": 1, "goodput": 1}
    fold.run(0, 6, "m0", Carve(0, 4))
    assert fold.metrics.fairness() == {"runtime": 1, "area": 1, "goodput": 1}
    fold.end(8, fold.start(6, "m1", Carve(0, 2), deadline=7 * MS))
    found = fold.metrics.report(10 * MS)["fairness"]
    assert found == pytest.approx({"runtime": jain([6, 2]), "area": jain([24, 4]), "goodput": jain([1, 0])})


def test_applications_have_goodput_but_no_time_of_their_own():
    metrics = Metrics(["m0", "app"], Plan(()), applications=["app"])
    requests = [Request(n, name, 0, NEVER) for n, name in enumerate(["m0", "app", "unknown"], start=1)]
    metrics.record(0, [Arrived(r) for r in requests], [Reject(n, Reason.STOPPED) for n in (1, 2)])
    metrics.models["app"].served = 1
    assert metrics.fairness() == {"runtime": 1, "area": 1, "goodput": 0.5}


def test_a_client_knows_of_goodput_alone():
    fold = Fold(Plan((UNCUT,)))
    fold.end(5, fold.start(0, "m0", Carve(0, 8)))
    fold.start(5, "m1", Carve(0, 8))
    counts = fold.metrics.models
    assert Outcome(counts, {}).report(SECOND)["fairness"] == {"goodput": 0.5}


def test_people_read_it_in_two_lines():
    fold = Fold(tiny_plan([[(4, NAMES)], [(8, NAMES)]], NAMES), knees={"m0": 2})
    fold.run(0, 10, "m0", 0)
    report = fold.metrics.report(10 * MS)
    assert usage_text(report).splitlines() == [
        "devices busy 25.0%, useful 12.5%, allocated 75.0%; 0 switches, 0 resizes",
        "fairness runtime 1.00, area 1.00, goodput 1.00",
    ]
    assert "violations/s" in run_table(report, "").columns[0].cells
    assert usage_text(Metrics([], Plan(())).report(0)).startswith("devices busy 0.0%")


@pytest.mark.parametrize("mechanism", [Mechanism.WHOLE, Mechanism.MPS, Mechanism.CPU])
@pytest.mark.parametrize(("slo", "knee"), [(40, 4), (3.9, 6), (3, None)])
def test_the_useful_size_is_that_of_highest_efficacy_within_half_of_the_objective(mechanism, slo, knee):
    """1 / (L^2 size) of single rows: 1/64 at 1 SM, 1/50 at 2, 1/16 at 4, 1/29 at 8; from 6 SMs on they take 1.95 ms or less."""
    latencies = {1: 8.0, 2: 5.0, 4: 2.0, 8: 1.9}
    profile = Profile(tuple(Point("m0", size, 1, *[from_ms(ms)] * 3) for size, ms in latencies.items()))
    plan = Plan((Device(0, TINY, mechanism),))
    problem = problem_of([Model("m0", from_ms(slo), 1), Model("unmeasured", MS, 1)], plan, profile)
    assert useful_sizes(problem) == ({"m0": knee} if knee else {})


def test_without_devices_nobody_knows():
    assert useful_sizes(problem_of(models_of(1), Plan(()))) == {}
