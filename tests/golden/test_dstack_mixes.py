"""D-STACK's worked mixes: the mandatory plans of its three and four models, and why they need a sweep over time."""

from collections import Counter

import pytest

from gpulet.core.messages import Arrived, Start
from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.dstack import Dstack
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.executors.simulated import Simulated
from gpulet.plan import Plan
from gpulet.planners.dstack import dstack
from gpulet.reproduce.tcc24.data import KIND, mix, published, saturated, slowdown
from gpulet.units import MS, SECOND

C3 = {
    "alexnet": [(0, 8), (28, 36), (50, 58), (75, 83)],
    "resnet50": [(0, 28), (58, 86)],
    "vgg19": [(8, 63)],
}
C4 = {
    "mobilenet": [(0, 10), (28, 38), (50, 60), (75, 85)],
    "alexnet": [(0, 8), (28, 36), (50, 58), (75, 83)],
    "resnet50": [(0, 28), (60, 88)],
    "vgg19": [(10, 65)],
}


def planned(name, **given):
    problem = mix(name, **given)
    return dstack(problem, points=published(tuple(problem.models)))


def drawn(line):
    """Start and end of each model's runs, in ms."""
    spans = {}
    for run in line.runs:
        assert run.start % MS == 0
        spans.setdefault(run.model, []).append((run.start // MS, (run.start + run.length) // MS))
    return spans


@pytest.mark.parametrize(("name", "expected"), [("C-3", C3), ("C-4", C4)])
def test_the_mandatory_plan_is_the_one_computed_by_hand(name, expected):
    plan = planned(name)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    (line,) = plan.timelines
    assert line.period == 100 * MS
    assert drawn(line) == expected
    assert {run.batch for run in line.runs} == {16}


@pytest.mark.parametrize(("name", "percent"), [("C-2", 49.9), ("C-3", 59.5), ("C-4", 67.5)])
def test_the_mandatory_plan_takes_the_area_computed_by_hand(name, percent):
    plan = planned(name)
    assert isinstance(plan, Plan)
    (line,) = plan.timelines
    area = sum(run.size.sms * run.length for run in line.runs)
    assert 100 * area / (KIND.sms * line.period) == pytest.approx(percent, abs=0.05)


def test_seven_models_do_not_fit_as_published():
    outcome = planned("C-7")
    assert not isinstance(outcome, Plan)
    assert "rows/s fit" in outcome.constraint


def test_placing_model_by_model_leaves_no_hole_for_vgg19():
    """Each run at its earliest hole, the tightest SLO's runs first: what the sweep over time is for."""
    points = published(("alexnet", "resnet50", "vgg19"))
    placed = []

    def earliest(model, release, deadline):
        sms, length = points[model].size.sms, points[model].latency // MS
        for start in range(release, deadline - length + 1):
            spans = [range(a, b) for _, a, b, _ in placed if a < start + length and start < b]
            inside = {max(start, span.start) for span in spans}
            use = max((sum(s for _, a, b, s in placed if a <= t < b) for t in inside), default=0)
            if use + sms <= KIND.sms:
                placed.append((model, start, start + length, sms))
                return True
        return False

    assert all(earliest("alexnet", t, t + 25) for t in (0, 25, 50, 75))
    assert all(earliest("resnet50", t, t + 50) for t in (0, 50))
    assert [span[:3] for span in placed if span[0] == "resnet50"] == [("resnet50", 0, 28), ("resnet50", 50, 78)]
    assert not earliest("vgg19", 0, 100)


def test_every_gpu_of_a_cluster_has_every_model():
    plan = planned("C-4", gpus=4)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert [drawn(line) for line in plan.timelines] == [C4] * 4
    assert plan.promises["vgg19"].throughput == pytest.approx(4 * 160)


@pytest.mark.parametrize(
    ("part", "expected"),
    [(0.125, 5.52), (0.25, 2.88), (0.5, 1.58), (0.75, 1.18), (1, 1), (1.5, 0.86), (2, 0.83), (3, 0.83)],
)
def test_latency_below_and_above_the_knee_follows_the_analytical_model(part, expected):
    assert slowdown(part) == pytest.approx(expected, abs=0.005)


SESSIONS = 10
TOTALS = {
    "C-3": (1760, 69.1, {"alexnet": 1280, "resnet50": 320, "vgg19": 160}),
    "C-4": (3040, 84.7, {"mobilenet": 1280, "alexnet": 1280, "resnet50": 320, "vgg19": 160}),
}
"""Images/s in all, time average of the SMs up to each knee in percent, images/s by model; no window without its run."""


class Until:
    """Metrics of what comes to pass by `end`."""

    def __init__(self, end, metrics):
        self.end = end
        self.metrics = metrics

    def record(self, now, events, commands):
        if now <= self.end:
            self.metrics.record(now, events, commands)


@pytest.mark.parametrize("name", TOTALS)
def test_both_passes_serve_saturated_queues_as_computed(name):
    problem = mix(name)
    points = published(tuple(problem.models))
    plan = planned(name)
    end = SESSIONS * plan.timelines[0].period
    starts = []
    metrics = Metrics(list(problem.models), plan, knees={name: point.size.sms for name, point in points.items()})
    limits = Limits(max_queue=10**6, early_drop=False)
    timer = VirtualTimer()
    scheduler = Scheduler(problem.models, plan, Dstack(problem, plan), limits)
    simulation = Simulation(
        scheduler,
        timer,
        Until(end, metrics),
        [lambda now, _, commands: starts.extend((now, c) for c in commands if isinstance(c, Start) and now < end)],
    )
    simulation.attach(Simulated(problem.profile, plan, timer, simulation.feed))
    simulation.feed(*map(Arrived, saturated(problem, end)))
    simulation.run([])

    rows = Counter()
    for _, start in starts:
        rows[start.model] += start.rows
    served = {model: count * SECOND / end for model, count in rows.items()}
    total, useful, by_model = TOTALS[name]
    assert sum(served.values()) == pytest.approx(total, rel=0.02)
    assert served == pytest.approx(by_model, rel=0.02)
    area = sum(min(s.on.size, points[s.model].size.sms) * s.expected for _, s in starts)
    assert 100 * area / (KIND.sms * end) == pytest.approx(useful, abs=0.05)
    (device,) = metrics.report(end)["devices"]
    assert 100 * device["useful"] == pytest.approx(useful, abs=0.05)
    assert device["busy"] == device["useful"] == device["allocated"]
    assert misses(problem, starts, end) == 0


def misses(problem, starts, end):
    """Windows of a model's SLO in which no run of it begins and ends."""
    windows = [(m, begin) for m in problem.models.values() for begin in range(0, end, m.slo)]
    return sum(
        not any(s.model == m.name and begin <= now and now + s.expected <= begin + m.slo for now, s in starts)
        for m, begin in windows
    )
