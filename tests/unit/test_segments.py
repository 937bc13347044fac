"""Segments: which option a model gets at a size, how many devices are enough, what stands in the way."""

from dataclasses import replace

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.ours import ours
from gpulet.plan import Plan
from gpulet.planners.segments import segments
from gpulet.profile import Point, Profile
from gpulet.rows import fixed
from gpulet.units import GIB, MS

A100 = find_kind("a100-80gb")
SIZES = {int(size.label[0]): size.sms for size in Device(0, A100, Mechanism.MIG).sizes()}


def points(table):
    """`table` maps (model, slices, processes, batch) to milliseconds."""
    return tuple(
        Point(name, SIZES[slices], batch, *[round(ms * MS)] * 3, processes=n)
        for (name, slices, n, batch), ms in table.items()
    )


def problem(table, rates, devices=2, slo=100, **options):
    models = {name: Model(name, slo * MS, 32) for name in rates}
    fleet = tuple(Device(i, A100, Mechanism.MIG) for i in range(devices))
    return Problem(models, rates, fleet, Profile(points(table)), **options)


RUNS = {(1, 8): 20, (2, 8): 31, (3, 8): 45, (1, 16): 44, (2, 16): 70}
ONE = {("a", k, n, batch): ms for k in SIZES for (n, batch), ms in RUNS.items()}


def chosen(plan):
    return [(g.size.label, g.offset, g.processes, t.model, t.batch) for g in plan.gpulets for t in g.turns]


def test_an_instance_runs_the_processes_and_batch_of_the_largest_throughput_in_time():
    plan = segments(problem(ONE, {"a": 300.0}))
    assert chosen(plan) == [("1g.10gb", slot, 2, "a", 8) for slot in range(7)]
    promise = plan.promises["a"]
    assert promise.throughput == pytest.approx(len(plan.gpulets) * 2 * 8 / 0.031)
    assert (promise.worst_latency, promise.demand) == (62 * MS, 300)
    assert plan.violations() == plan.unfolded().violations() == ()


def test_a_latency_of_just_45_percent_of_the_slo_is_too_long_and_the_margin_is_a_parameter():
    three = segments(problem(ONE, {"a": 100.0}, slo=101))
    assert {g.processes for g in three.gpulets} == {3}
    assert {g.processes for g in segments(problem(ONE, {"a": 100.0})).gpulets} == {2}
    assert {g.processes for g in segments(problem(ONE, {"a": 100.0}), margin=0.09).gpulets} == {3}


def test_batches_keep_the_models_limit_and_hold_its_largest_request():
    asked = problem(ONE, {"a": 100.0}, slo=1000)
    assert {(g.processes, g.turns[0].batch) for g in segments(asked).gpulets} == {(3, 8)}
    rows = replace(asked, rows={"a": fixed(9)})
    assert {(g.processes, g.turns[0].batch) for g in segments(rows).gpulets} == {(2, 16)}
    small = replace(asked, models={"a": Model("a", 1000 * MS, 5)})
    assert {(g.processes, g.turns[0].batch) for g in segments(small).gpulets} == {(3, 5)}
    refusal = segments(replace(small, rows={"a": fixed(6)}))
    assert isinstance(refusal, Infeasible)
    assert refusal.constraint == "no MIG type is profiled with batches of 6 to 5 rows"


def test_at_a_size_that_nobody_measured_the_profile_interpolates():
    table = {("a", 1, 1, 4): 160, ("a", 1, 1, 32): 320, ("a", 7, 1, 4): 20, ("a", 7, 1, 32): 40}
    plan = segments(problem(table, {"a": 100.0}, slo=410, slices=4))
    assert chosen(plan) == [("4g.40gb", 0, 1, "a", 32)]
    assert plan.gpulets[0].turns[0].latency == 180 * MS


MIX = {
    **{("a", k, 1, 8): 80 / k for k in SIZES},
    **{("b", k, n, 8): (60 + 20 * n) / k**0.5 for k in SIZES for n in (1, 2, 3)},
}


def test_as_few_devices_as_carry_the_rates_then_room_then_few_slices():
    little = segments(problem(MIX, {"a": 60.0, "b": 90.0}, devices=3, slo=400))
    assert little.devices_used == 1
    most = min(p.throughput / p.demand for p in little.promises.values())
    grown = segments(problem(MIX, {"a": 60.0 * most, "b": 90.0 * most}, devices=3, slo=400))
    assert grown.devices_used == 1
    more = segments(problem(MIX, {"a": 61.0 * most, "b": 91.5 * most}, devices=3, slo=400))
    assert more.devices_used == 2
    assert more.violations() == ()
    assert sum(t.rate for g in more.gpulets for t in g.turns if t.model == "a") == pytest.approx(61.0 * most)


@pytest.mark.parametrize("more", [0, 1e-12, 1e-8, 3e-7, 9e-7, 1e-5])
def test_rates_are_carried_to_the_last_digit(more):
    full = 7 * 2 * 8 / 0.031
    plan = segments(problem(ONE, {"a": full * (1 + more)}))
    assert plan.violations() == ()
    assert plan.devices_used == (2 if more > 1e-9 else 1)


def test_a_need_for_headroom_ends_somewhere():
    plan = segments(problem(MIX, {"a": 1e-6, "b": 1e-6}, slo=400))
    assert plan.violations() == ()
    assert len(plan.gpulets) == 2
    assert {g.size.label for g in plan.gpulets} == {"1g.10gb"}


def test_a_model_without_demand_gets_nothing_and_none_has_to_have_any():
    plan = segments(problem(MIX, {"a": 60.0, "b": 0.0}, slo=400))
    assert {m for g in plan.gpulets for m in g.models} == {"a"}
    assert segments(problem(MIX, {"a": 0.0, "b": 0.0}, slo=400)).gpulets == ()


def test_every_process_needs_memory_for_its_replica():
    asked = problem(ONE, {"a": 100.0})
    heavy = replace(asked, models={"a": replace(asked.models["a"], memory=6 * GIB)})
    assert {(g.size.label, g.processes) for g in segments(heavy).gpulets} <= {("1g.10gb", 1), ("2g.20gb", 2)}
    huge = replace(asked, models={"a": replace(asked.models["a"], memory=79 * GIB)})
    refusal = segments(huge)
    assert str(refusal).startswith(f"model a: its {79 * GIB} bytes fit into no instance that is fast enough")


def test_a_model_that_is_never_fast_enough_is_named_and_the_others_are_planned():
    asked = problem(MIX, {"a": 60.0, "b": 90.0}, slo=400)
    refusal = segments(replace(asked, models={**asked.models, "a": Model("a", 25 * MS, 32)}))
    assert isinstance(refusal, Infeasible)
    assert (
        str(refusal)
        == "model a: no batch takes less than 45% of its SLO of 25 ms (fastest: 11.4 ms, 8 rows on 7g.80gb); raise its SLO"
    )
    assert {m for g in refusal.partial.gpulets for m in g.models} == {"b"}
    assert refusal.unserved == {"a": 60.0}


def test_too_few_devices_are_told_with_how_many_are_needed():
    asked = problem(MIX, {"a": 3000.0, "b": 90.0}, devices=2, slo=400)
    refusal = segments(asked)
    assert isinstance(refusal, Infeasible)
    assert "rows/s: there are 2 devices, and all rates together need 5" in refusal.constraint
    assert refusal.partial.violations()
    assert refusal.partial.devices_used == 2
    five = replace(asked, devices=tuple(Device(i, A100, Mechanism.MIG) for i in range(5)))
    assert isinstance(segments(five), Plan)


def test_a_budget_of_slices_binds():
    asked = problem(MIX, {"a": 150.0, "b": 90.0}, devices=2, slo=400)
    used = [sum(int(g.size.label[0]) for g in segments(replace(asked, slices=n)).gpulets) for n in (0, 4, 3)]
    assert used == [7, 4, 3]
    refusal = segments(replace(asked, slices=2))
    assert isinstance(refusal, Infeasible)
    assert "there are 2 compute slices, and all rates together need 3" in refusal.constraint
    with pytest.raises(PlanError, match="a budget of 15 compute slices of the 14 there are"):
        segments(replace(asked, slices=15))


def test_other_devices_than_mig_are_not_for_segments():
    asked = problem(ONE, {"a": 100.0})
    mixed = (asked.devices[0], Device(1, A100, Mechanism.MPS))
    with pytest.raises(PlanError, match="segments are MIG instances; device 1 is cut by mps"):
        segments(replace(asked, devices=mixed))


def test_the_same_problem_has_the_same_plan():
    asked = problem(MIX, {"a": 500.0, "b": 300.0}, devices=4, slo=400)
    assert segments(asked) == segments(asked)


@pytest.mark.slow
def test_our_own_system_plans_mig_devices_with_processes_where_they_are_profiled():
    asked = problem(MIX, {"a": 60.0, "b": 90.0}, devices=2, slo=400)
    plan = ours(asked)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert max(g.processes for g in plan.gpulets) > 1
    one = replace(asked, profile=Profile(tuple(p for p in asked.profile.points if p.processes == 1)))
    assert {g.processes for g in ours(one).gpulets} == {1}
