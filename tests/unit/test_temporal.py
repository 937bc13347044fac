from functools import partial

import pytest

from gpulet.core.messages import Start
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism, find_kind
from gpulet.dispatchers.fixedbatch import FixedBatch
from gpulet.dispatchers.temporal import Temporal
from gpulet.duty import slices
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Size, Turn
from gpulet.planners.temporal import temporal
from gpulet.planners.uncut import uncut
from gpulet.profile import Point, Profile
from gpulet.units import MS
from support import SMS, TINY, World, models_of, requests_of, tiny_plan

KIND = find_kind("v100")


def problem(demand, slos, devices=1):
    """2 ms and 1 ms a row on all SMs."""
    points = tuple(Point(name, 80, rows, *[(2 + rows) * MS] * 3) for name in demand for rows in (1, 16))
    fleet = tuple(Device(d, KIND, Mechanism.MPS) for d in range(devices))
    models = {n: Model(n, slo * MS, 16) for n, slo in zip(demand, slos, strict=True)}
    return Problem(models, demand, fleet, Profile(points))


def test_slices_are_in_proportion_to_objectives():
    assert slices(60 * MS, [100 * MS, 200 * MS]) == [20 * MS, 40 * MS]


def test_the_plan_keeps_its_promises():
    plan = temporal(problem({"a": 150.0, "b": 300.0}, [100, 200]))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    (gpulet,) = plan.gpulets
    for turn, length, slo in zip(gpulet.turns, slices(gpulet.duty_cycle, [100, 200]), [100, 200], strict=True):
        assert turn.latency <= length
        assert gpulet.duty_cycle + turn.latency <= slo * MS
        rows = turn.batch * (length // turn.latency)
        assert plan.promises[turn.model].throughput == pytest.approx(rows * 1e9 / gpulet.duty_cycle)


def test_more_devices_carry_more():
    asked = {"a": 400.0, "b": 800.0}
    refused = temporal(problem(asked, [100, 200]))
    assert isinstance(refused, Infeasible)
    assert "lower its rate by" in refused.nearest
    assert isinstance(temporal(problem(asked, [100, 200], devices=3)), Plan)


def world(make, slos, cycle=0, mechanism=Mechanism.GREEN):
    models = [Model(f"m{n}", slo * MS, 8) for n, slo in enumerate(slos)]
    turns = tuple(Turn(m.name, 8, 1.0, MS) for m in models)
    gpulet = Gpulet(0, 0, Size(SMS, 100.0), 0, cycle * MS, turns)
    return World(models, Plan((Device(0, TINY, mechanism),), (gpulet,)), make, Limits(early_drop=False)), models


def starts(world):
    return [(now // MS, c.model, c.rows) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]


def test_who_has_the_longer_objective_has_the_longer_slice():
    # Slices of 10 and 20 ms; 8 rows take 10 ms.
    w, models = world(Temporal, [100, 200], cycle=30)
    w.run(requests_of([(0, m, 8, "", 0, False) for m in (0, 1) for _ in range(4)], models))
    assert [model for _, model, _ in starts(w)] == ["m0", "m1", "m1", "m0", "m1", "m1", "m0", "m0"]


def test_a_batch_is_cut_to_what_its_slice_has_left_but_the_first_always_runs():
    # Slices of 8 ms: after 4 rows (6 ms) there are 2 ms, too few for another; a slice's first batch may be longer.
    w, models = world(Temporal, [100, 100], cycle=16)
    w.run(requests_of([(0, 0, 2, "", 0, False), *[(MS, m, 1, "", 0, False) for m in (0, 1) for _ in range(8)]], models))
    assert starts(w) == [(0, "m0", 2), (4, "m0", 2), (8, "m1", 8), (18, "m0", 6)]


def test_a_slice_ends_early_when_nothing_is_left_to_do():
    w, models = world(Temporal, [100, 100], cycle=200)
    arrivals = [(0, 0), (0, 1), (50, 0)]
    w.run(requests_of([(t * MS, m, 1, "", 0, False) for t, m in arrivals], models))
    assert starts(w) == [(0, "m0", 1), (3, "m1", 1), (50, "m0", 1)]


# fixed batches --------------------------------------------------------------------------------------------------------


def test_a_batch_waits_until_it_is_full_or_an_objective_has_passed():
    models = models_of(1)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"], Mechanism.WHOLE)
    w = World(models, plan, partial(FixedBatch, batch=4), Limits(early_drop=False))
    at = [0, 1, 2, 3, 10, 11]
    w.run(requests_of([(t * MS, 0, 1, "", 0, False) for t in at], models))
    assert starts(w) == [(3, "m0", 4), (50, "m0", 2)]


def test_a_model_without_sixteen_rows_runs_as_many_as_it_can():
    models = models_of(1)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"], Mechanism.WHOLE)
    w = World(models, plan, FixedBatch, Limits(early_drop=False))
    w.run(requests_of([(0, 0, 1, "", 0, False)] * 9, models))
    assert starts(w) == [(0, "m0", 8), (40, "m0", 1)]


def test_fixed_batches_are_planned_as_they_run():
    plan = uncut(problem({"a": 10.0}, [100]), batch=16)
    assert isinstance(plan, Plan)
    assert (plan.gpulets[0].turns[0].batch, plan.promises["a"].worst_latency) == (16, 36 * MS)
    assert isinstance(uncut(problem({"a": 10.0}, [35]), batch=16), Infeasible)
