from dataclasses import replace

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Kind, Mechanism, find_kind
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.nexus import ARTIFACT, Margins, nexus
from gpulet.profile import Point, Profile
from gpulet.units import MS

KIND = Kind("test", 10, 100)


def problem(demand, slo=100, devices=2, memory=0, base=5, per_row=5):
    """base + per_row x rows ms on a whole device, up to eight rows; p95 twice the mean's distance from 0."""
    points = tuple(
        Point(name, 10, rows, (base + per_row * rows) * MS, 2 * (base + per_row * rows) * MS, 0)
        for name in demand
        for rows in range(1, 9)
    )
    models = {name: Model(name, slo * MS, 8, memory) for name in demand}
    return Problem(models, demand, tuple(Device(d, KIND, Mechanism.WHOLE) for d in range(devices)), Profile(points))


def shape(plan):
    return [[(t.model, t.batch) for t in g.turns] for g in plan.gpulets]


def test_a_high_rate_fills_devices_and_leaves_a_residue():
    # 2 L(8) = 90 ms <= 100: T = 8 / 45 ms = 177.8/s; 400 = 2 T + 44.4, whose largest batch is 3: 20 + 67.5 ms.
    plan = nexus(problem({"a": 400.0}, devices=3))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert shape(plan) == [[("a", 8)], [("a", 8)], [("a", 3)]]
    assert plan.gpulets[2].duty_cycle == pytest.approx(3 / (400 - 2 * 8 / 0.045) * 1000 * MS, abs=1)


def test_a_rate_too_low_to_wait_for_a_second_row_gets_what_the_slo_leaves():
    plan = nexus(problem({"a": 1.0}))
    assert isinstance(plan, Plan)
    assert (plan.gpulets[0].duty_cycle, shape(plan)) == (90 * MS, [[("a", 1)]])
    assert plan.promises["a"].worst_latency == 100 * MS


def test_a_rate_between_every_residue_and_saturation_gets_a_whole_device():
    plan = nexus(problem({"a": 177.0}, slo=90))
    assert isinstance(plan, Plan)
    assert shape(plan) == [[("a", 8)]]
    assert plan.gpulets[0].duty_cycle == 45 * MS


def test_models_share_a_device_only_where_its_memory_holds_both():
    rates = {"a": 10.0, "b": 10.0}
    together, apart = nexus(problem(rates, memory=50)), nexus(problem(rates, memory=51))
    assert isinstance(together, Plan)
    assert isinstance(apart, Plan)
    assert (together.devices_used, apart.devices_used) == (1, 2)


def test_of_two_devices_the_one_that_gets_fuller_takes_a_residue():
    slow = problem({"big": 60.0, "small": 30.0, "tiny": 2.0}, devices=3, base=15)
    plan = nexus(slow)
    assert isinstance(plan, Plan)
    assert [g.models for g in plan.gpulets] == [("big", "tiny"), ("small",)]


def test_a_refusal_names_the_rate_that_would_fit():
    refused = nexus(problem({"a": 400.0}))
    assert isinstance(refused, Infeasible)
    assert refused.constraint == "355.6 of 400.0 rows/s fit on 2 whole devices"
    assert refused.nearest == "lower its rate by 44.4/s, or add a device (one carries 177.8/s)"
    assert len(refused.partial.gpulets) == 2


def test_margins_lengthen_latencies_and_shorten_objectives():
    asked = problem({"a": 20.0})
    plan = nexus(asked, margins=Margins(ratio=2.0, network=10 * MS))
    assert isinstance(plan, Plan)
    assert plan.gpulets[0].turns[0].latency == 20 * MS
    assert plan.promises["a"].worst_latency == 20 * MS + plan.gpulets[0].duty_cycle + 10 * MS <= 100 * MS
    stricter = nexus(asked, margins=ARTIFACT)
    assert isinstance(stricter, Plan)
    # One deviation is (p95 - mean) / 1.645: (10 + 10 / 1.645) x 1.15 ms.
    assert stricter.gpulets[0].turns[0].latency == pytest.approx(18.491 * MS, rel=1e-3)


def test_unequal_devices_are_refused():
    asked = problem({"a": 1.0})
    mixed = (asked.devices[0], Device(1, find_kind("v100"), Mechanism.WHOLE))
    with pytest.raises(PlanError, match="equal devices, not 2 kinds"):
        nexus(replace(asked, devices=mixed))
