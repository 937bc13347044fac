from dataclasses import replace
from math import inf

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Kind, Mechanism, cpu_kind, find_kind
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.exact import Waits, configurations, cuts, exact, optimum, physical_bound
from gpulet.profile import Point, Profile
from gpulet.units import MS

HALVES = Kind("halves", 10, 0, mps_shares=(50, 100))


def problem(demand, tables, slos, kind=HALVES, mechanism=Mechanism.MPS, devices=1):
    """`tables[model][size]` lists latencies in ms from one row up."""
    points = tuple(
        Point(name, size, rows, *[ms * MS] * 3)
        for name, table in tables.items()
        for size, row in table.items()
        for rows, ms in enumerate(row, start=1)
    )
    models = {name: Model(name, slos[name] * MS, 8) for name in tables}
    return Problem(models, demand, tuple(Device(d, kind, mechanism) for d in range(devices)), Profile(points))


def shape(plan):
    return [(g.device, g.offset, g.size.sms, [(t.model, t.batch) for t in g.turns]) for g in plan.gpulets]


def test_two_halves_beat_a_whole_where_the_whole_is_not_twice_as_fast():
    # A half makes 2 rows in 20 ms: 100/s each. The whole makes 2 in 16 ms: 125/s.
    asked = problem({"a": 160.0}, {"a": {5: [15, 20], 10: [12, 16]}}, {"a": 40})
    assert optimum(asked) == pytest.approx(200 / 160)
    plan = exact(asked)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert shape(plan) == [(0, 0, 5, [("a", 2)]), (0, 50, 5, [("a", 2)])]
    assert [t.rate for g in plan.gpulets for t in g.turns] == [80, 80]
    assert plan.promises["a"].worst_latency == 40 * MS


def test_an_slo_below_two_runs_of_a_half_needs_the_whole():
    asked = problem({"a": 160.0}, {"a": {5: [15, 20], 10: [12, 16]}}, {"a": 32})
    assert optimum(asked) == pytest.approx(max(2 * 1 / 0.015, 2 / 0.016) / 160)
    assert optimum(replace(asked, models={"a": Model("a", 29 * MS, 8)})) == pytest.approx(1 / 0.012 / 160)


def test_two_models_in_turns_share_one_cycle():
    # One row of each in 10 + 10 ms and twice that within 40 ms: 50/s each; two rows of one would be late.
    asked = problem({"a": 40.0, "b": 50.0}, {"a": {10: [10, 11]}, "b": {10: [10, 11]}}, {"a": 40, "b": 40})
    assert optimum(asked) == pytest.approx(1.0)
    plan = exact(asked)
    assert isinstance(plan, Plan)
    assert shape(plan) == [(0, 0, 10, [("a", 1), ("b", 1)])]
    assert optimum(asked, most_models=1) == 0


def test_waiting_only_for_its_own_turn_allows_a_longer_cycle():
    # Nexus' rule: 11 + 11 ms of cycle and a run of 11 ms fit 33 ms; gpu-lets' rule wants 44 ms.
    tables = {"a": {10: [10, 11]}, "b": {10: [10, 11]}}
    asked = problem({"a": 2 / 0.022, "b": 2 / 0.022}, tables, {"a": 33, "b": 33})
    assert optimum(asked) == 0
    assert optimum(asked, waits=Waits.TURN) == pytest.approx(1.0)
    plan = exact(asked, waits=Waits.TURN)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert plan.promises["a"].worst_latency == 33 * MS


def test_devices_are_cut_differently_where_that_serves_more():
    # a needs a whole device, two halves serve b.
    tables = {"a": {10: [10]}, "b": {5: [10]}}
    asked = problem({"a": 100.0, "b": 200.0}, tables, {"a": 20, "b": 20}, devices=2)
    assert optimum(asked) == pytest.approx(1.0)
    assert optimum(asked, most_per_device=1) == pytest.approx(0.5)
    plan = exact(asked)
    assert isinstance(plan, Plan)
    assert sorted(len([g for g in plan.gpulets if g.device == d]) for d in range(2)) == [1, 2]


def test_cores_are_cut_to_whole_numbers_side_by_side():
    asked = problem({"a": 300.0}, {"a": {1: [10], 3: [5]}}, {"a": 20}, cpu_kind(4), Mechanism.CPU)
    assert optimum(asked) == pytest.approx(400 / 300)  # four of one core, not 200/s of three and 100/s of one
    plan = exact(asked)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert [g.offset for g in plan.gpulets] == [0, 1, 2, 3]


def test_nothing_bounds_no_demand():
    asked = problem({"a": 0.0}, {"a": {10: [10]}}, {"a": 20})
    assert optimum(asked) == physical_bound(asked) == inf
    plan = exact(asked)
    assert isinstance(plan, Plan)
    assert plan.gpulets == ()


def test_a_refusal_names_the_tightest_model_and_what_would_fit():
    asked = problem({"a": 200.0, "b": 50.0}, {"a": {10: [10]}, "b": {10: [10]}}, {"a": 40, "b": 40})
    refused = exact(asked)
    assert isinstance(refused, Infeasible)
    assert refused.model == "a"
    assert refused.constraint == "50.0 of 200.0 rows/s, and no plan of 1 devices has more of every model"
    assert refused.nearest == "lower its rate by 150.0/s and every other to 25.0%, or add a device"
    hopeless = exact(problem({"a": 1.0, "b": 50.0}, {"a": {10: [30]}, "b": {10: [10]}}, {"a": 40, "b": 40}))
    assert isinstance(hopeless, Infeasible)
    assert (hopeless.model, hopeless.nearest) == ("a", "raise its SLO")
    assert hopeless.unserved == {"a": 1.0}


def test_any_dispatcher_is_bounded_by_the_best_batches_and_divided_time():
    # a: 2 rows in 20 ms within 20 ms at a half: 100/s each; b: one row in 10 ms on the whole: 100/s.
    tables = {"a": {5: [15, 20], 10: [15, 20]}, "b": {10: [10]}}
    asked = problem({"a": 100.0, "b": 50.0}, tables, {"a": 20, "b": 15})
    # Half of the time cut in halves for a: 100/s; half of the time whole for b: 50/s. No cut in force serves both.
    assert physical_bound(asked) == pytest.approx(1.0)
    assert optimum(asked) == 0


def test_mig_is_refused():
    asked = problem({"a": 1.0}, {"a": {10: [1]}}, {"a": 20})
    with pytest.raises(PlanError, match="not mig"):
        exact(replace(asked, devices=(Device(0, find_kind("a100-40gb"), Mechanism.MIG),)))


def test_too_many_batches_are_refused(monkeypatch):
    asked = problem({"a": 1.0}, {"a": {10: [1, 1, 1, 1]}}, {"a": 20})
    monkeypatch.setattr(configurations, "MOST_CONFIGURATIONS", 3)
    with pytest.raises(PlanError, match="1 models have more than 3 configurations at 2 sizes"):
        exact(asked)


def test_too_many_cuts_are_refused(monkeypatch):
    monkeypatch.setattr(cuts, "MOST_CUTS", 2)
    many = problem({"a": 1.0}, {"a": {1: [10], 2: [9], 3: [8]}}, {"a": 20}, cpu_kind(6), Mechanism.CPU)
    with pytest.raises(PlanError, match="device 0 can be cut into 3 sizes in more than 2 ways"):
        exact(many)
