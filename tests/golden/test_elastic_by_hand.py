"""The example of docs/elastic-by-hand.md, number by number."""

from dataclasses import replace

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.knee import knee
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.autoscale import autoscaled
from gpulet.planners.elastic import Order, elastic
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND

PER_ROW = {20: 20.0, 40: 10.0, 50: 9.0, 60: 8.0, 80: 7.5, 100: 7.0}
SLO = {"a": 40, "b": 100, "c": 200}
RATE = {"a": 30.0, "b": 60.0, "c": 150.0}
KIND = find_kind("rtx2080ti")


@pytest.fixture
def problem():
    points = tuple(
        Point(model, mps_size(KIND, share).sms, rows, *[round(rows * ms * MS)] * 3)
        for model in SLO
        for share, ms in PER_ROW.items()
        for rows in range(1, 17)
    )
    models = {name: Model(name, slo * MS, 16) for name, slo in SLO.items()}
    return Problem(models, RATE, tuple(Device(i, KIND, Mechanism.MPS) for i in range(2)), Profile(points))


def test_what_each_size_affords_and_where_the_knee_is(problem):
    for name, model in problem.models.items():
        curves = [problem.profile.curve(name, mps_size(KIND, share).sms) for share in PER_ROW]
        rates = [saturated_rate(Share(curve, model.slo, 1.0, 16)) for curve in curves]
        assert [round(rate, 1) for rate in rates] == [50, 100, 111.1, 125, 133.3, 142.9]
        assert knee(list(PER_ROW), rates) == 3
    assert saturated(Share(problem.profile.curve("c", mps_size(KIND, 60).sms), 200 * MS, 1.0, 16)).batches == (12,)


def test_the_plan_is_the_one_worked_by_hand(problem):
    plan = elastic(problem)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    found = [(g.device, g.size.share_pct, g.models, tuple(t.batch for t in g.turns)) for g in plan.gpulets]
    assert found == [(0, 20, ("a",), (1,)), (0, 80, ("b", "c"), (4, 2)), (1, 60, ("c",), (12,))]
    assert [g.duty_cycle / MS for g in plan.gpulets] == [20, 55, 96]
    assert [turn.rate for turn in plan.gpulets[1].turns] == [60, 25]
    assert plan.promises["b"].worst_latency == 100 * MS
    assert plan.promises["c"].throughput == pytest.approx(125 + 2 * SECOND / (55 * MS))


def test_before_c_takes_turns_b_has_its_own_cycle(problem):
    alone = elastic(replace(problem, demand={"a": 30.0, "b": 60.0}))
    assert isinstance(alone, Plan)
    assert alone.gpulets[1].turns[0].batch == 4
    assert round(alone.gpulets[1].duty_cycle / MS, 1) == 66.7


def test_the_arxiv_order_starts_with_the_highest_rate(problem):
    plan = elastic(problem, order=Order.RATE)
    assert isinstance(plan, Plan)
    assert plan.gpulets[0].models[0] == "c"


def test_one_device_is_not_enough_and_a_second_one_is(problem):
    assert isinstance(elastic(replace(problem, devices=problem.devices[:1])), Infeasible)
    in_force = elastic(replace(problem, demand={"a": 30.0}))
    assert isinstance(in_force, Plan)
    assert in_force.devices_used == 1
    scaled = autoscaled(replace(problem, in_force=in_force), planner=elastic)
    assert isinstance(scaled, Plan)
    assert scaled.devices_used == 2
