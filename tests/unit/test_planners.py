from dataclasses import replace

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, cpu_kind, find_kind
from gpulet.errors import PlanError
from gpulet.interference import CONSTANT, Interference
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.dedicated import dedicated
from gpulet.planners.elastic import elastic
from gpulet.planners.packing import packing
from gpulet.planners.shared import shared
from gpulet.profile import Point, Profile
from gpulet.systems import SYSTEMS
from gpulet.units import MS

KIND = cpu_kind(4)
BESIDE = Interference(CONSTANT, (1.05,))
ANYWHERE = [
    pytest.param(name, marks=pytest.mark.slow) if name == "fifs" else name for name in SYSTEMS if name != "segments"
]
"""Segments are MIG instances: test_segments.py."""


def problem(demand, slo=100, cores=4, devices=1, per_row=2):
    """Two models on cores: 2 + per_row x rows milliseconds on one core, inversely with cores."""
    models = {name: Model(name, slo * MS, 8) for name in demand}
    points = tuple(
        Point(name, size, rows, *[(2 + per_row * rows) * MS // size] * 3)
        for name in demand
        for size in (1, 2, 4)
        for rows in (1, 2, 4, 8)
    )
    kind = cpu_kind(cores)
    return Problem(
        models,
        demand,
        tuple(Device(d, kind, Mechanism.CPU) for d in range(devices)),
        Profile(points),
        interference=BESIDE,
    )


@pytest.mark.parametrize("name", ANYWHERE)
@pytest.mark.parametrize("rates", [(5, 5), (100, 20), (200, 400), (300, 900)])
def test_a_plan_has_no_violations_and_meets_every_demand(name, rates):
    asked = problem({"a": float(rates[0]), "b": float(rates[1])}, devices=2)
    outcome = SYSTEMS[name].planner(asked)
    if isinstance(outcome, Plan):
        assert outcome.violations() == ()
        for model, promise in outcome.promises.items():
            assert promise.throughput >= asked.demand[model] * (1 - 1e-9)
            assert promise.demand == asked.demand[model]
    else:
        assert sum(outcome.unserved.values()) > 0
        assert outcome.model in asked.models


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_same_problem_gives_the_same_plan(name):
    asked = problem({"a": 100.0, "b": 300.0}, devices=2)
    assert SYSTEMS[name].planner(asked) == SYSTEMS[name].planner(asked)


@pytest.mark.parametrize("name", ANYWHERE)
def test_too_much_demand_is_refused_with_the_model_the_reason_and_a_way_out(name):
    outcome = SYSTEMS[name].planner(problem({"a": 100_000.0}))
    assert isinstance(outcome, Infeasible)
    assert outcome.model == "a"
    assert "/s" in outcome.constraint
    assert outcome.unserved["a"] > 90_000
    assert "lower its rate by" in outcome.nearest


@pytest.mark.parametrize("name", ANYWHERE)
def test_an_slo_below_one_row_is_refused(name):
    outcome = SYSTEMS[name].planner(problem({"a": 1.0}, slo=1, per_row=3))
    assert isinstance(outcome, Infeasible)


@pytest.mark.parametrize("planner", [elastic, packing])
def test_models_that_overfill_a_devices_memory_are_refused_with_both_numbers(planner):
    asked = problem({"a": 20.0, "b": 20.0})
    devices = (replace(asked.devices[0], kind=replace(asked.devices[0].kind, memory=100)),)
    models = {"a": Model("a", 100 * MS, 8, memory=50), "b": Model("b", 100 * MS, 8, memory=51)}
    assert isinstance(planner(replace(asked, devices=devices)), Plan)
    outcome = planner(replace(asked, devices=devices, models=models))
    assert isinstance(outcome, Infeasible)
    assert str(outcome) == "model b: device 0: its gpulets' models need 101 of 100 bytes; add a device"
    assert outcome.unserved == {"b": 20.0}


def test_dedicated_needs_a_device_for_each_model():
    outcome = dedicated(problem({"a": 1.0, "b": 1.0}))
    assert isinstance(outcome, Infeasible)
    assert (outcome.model, outcome.constraint) == ("b", "2 models for 1 devices")


def test_elastic_lets_small_models_take_turns_and_cuts_for_large_ones():
    plan = elastic(problem({"a": 20.0, "b": 20.0}))
    assert isinstance(plan, Plan)
    assert [g.models for g in plan.gpulets] == [("a", "b")]
    plan = elastic(problem({"a": 20.0, "b": 700.0}))
    assert isinstance(plan, Plan)
    assert len(plan.gpulets) == 2


def test_elastic_keeps_to_two_gpulets_a_device_unless_told_otherwise():
    demand = dict.fromkeys("abc", 300.0)
    two, many = (elastic(problem(demand, slo=20), most_per_device=n) for n in (2, 4))
    assert isinstance(two, Plan)
    assert isinstance(many, Plan)
    assert [g.models for g in two.gpulets] == [("a",), ("b", "c")]
    assert [g.models for g in many.gpulets] == [("a",), ("b",), ("c",)]


def test_elastic_orders_by_rate_times_slo():
    asked = problem({"slow": 10.0, "fast": 10.0})
    models = {"slow": Model("slow", 200 * MS, 8), "fast": Model("fast", 50 * MS, 8)}
    plan = elastic(replace(asked, models=models))
    assert isinstance(plan, Plan)
    assert plan.gpulets[0].models[0] == "fast"


def test_elastic_refuses_mig_devices():
    asked = problem({"a": 1.0})
    mig = (Device(0, find_kind("a100-40gb"), Mechanism.MIG),)
    with pytest.raises(PlanError, match="not mig"):
        elastic(replace(asked, devices=mig))


def test_ours_leaves_at_least_as_much_headroom_as_elastic():
    for rates in ((20.0, 20.0), (100.0, 200.0), (200.0, 400.0)):
        asked = replace(problem({"a": rates[0], "b": rates[1]}), interference=None)
        theirs, ours = elastic(asked), SYSTEMS["gpulet"].planner(asked)
        assert isinstance(ours, Plan)
        if isinstance(theirs, Plan):
            assert headroom(ours) >= headroom(theirs) - 1e-9


def headroom(plan):
    return min(p.headroom for p in plan.promises.values())


def test_shared_is_chosen_where_there_are_more_models_than_cores_can_be_cut_for():
    demand = dict.fromkeys("abcd", 20.0)
    asked = problem(demand, slo=30, cores=1, per_row=1)
    plan = shared(asked)
    assert isinstance(plan, Plan)
    assert {g.offset for g in plan.gpulets} == {0}
    assert plan.devices[0].mechanism is Mechanism.WHOLE
    assert plan.violations() == ()


def unlike(light, heavy, contention=0.0):
    """One light model (objective 25 ms) and one heavy one (400 ms) that gains less from two cores than it pays for them."""
    models = {"light": Model("light", 25 * MS, 8), "heavy": Model("heavy", 400 * MS, 1)}
    times = {("light", 1): 1, ("light", 2): 1, ("heavy", 1): 40, ("heavy", 2): 25}
    points = tuple(
        Point(name, size, rows, *[ms * MS] * 3)
        for (name, size), ms in times.items()
        for rows in (1, 8)[: models[name].max_batch]
    )
    device = Device(0, cpu_kind(2), Mechanism.CPU, contention)
    return Problem(models, {"light": light, "heavy": heavy}, (device,), Profile(points))


def test_the_tighter_objective_goes_first_and_pays_nothing_for_the_laxer():
    plan = shared(unlike(100.0, 30.0))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert [(g.models[0], g.priority, g.size.sms) for g in plan.gpulets] == [
        ("light", 0, 1),
        ("heavy", 1, 1),
        ("heavy", 1, 1),
    ]
    alone = shared(unlike(100.0, 0.0))
    assert plan.promises["light"] == alone.promises["light"]


def test_the_laxer_objective_has_what_the_tighter_leaves():
    """Two workers of 40 ms on 2 cores less 100 x 1 ms, after one run of 1 ms: (2 x 40 + 1) / 1.9 ms each."""
    plan = shared(unlike(100.0, 30.0))
    assert plan.hosts("heavy")[0].turns[0].latency == pytest.approx((2 * 40 + 1) / 1.9 * MS)
    assert plan.promises["heavy"].throughput == pytest.approx(2 * 1000 * 1.9 / 81)
    starved = shared(unlike(1900.0, 30.0))
    assert isinstance(starved, Infeasible)
    assert set(starved.unserved) == {"heavy"}


def test_contention_lowers_what_sharing_promises():
    asked = problem({"a": 20.0, "b": 20.0}, cores=2)
    crowded = replace(asked, devices=(replace(asked.devices[0], contention=0.5),))
    calm, rough = shared(asked), shared(crowded)
    assert isinstance(calm, Plan)
    assert isinstance(rough, Plan)
    assert rough.promises["a"].throughput < calm.promises["a"].throughput
