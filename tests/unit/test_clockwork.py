from dataclasses import replace

from gpulet.core.messages import Drop, Load, Start, Unload
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism, find_kind
from gpulet.dispatchers.clockwork import Clockwork, Predictions, _Key
from gpulet.model import Model
from gpulet.plan import Plan, Resident
from gpulet.planners.clockwork import clockwork
from gpulet.planners.nexus import nexus
from gpulet.profile import Point, Profile
from gpulet.units import GIB, MS, SECOND
from support import TINY, World, models_of, requests_of, tiny_profile

KIND = find_kind("v100")


def problem(demand, memory, devices=1):
    """2 ms and 1 ms a row on all SMs."""
    points = tuple(Point(name, 80, rows, *[(2 + rows) * MS] * 3) for name in demand for rows in (1, 16))
    fleet = tuple(Device(d, KIND, Mechanism.MPS) for d in range(devices))
    models = {n: Model(n, 100 * MS, 16, memory * GIB) for n in demand}
    return Problem(models, demand, fleet, Profile(points))


# planner --------------------------------------------------------------------------------------------------------------


def test_models_are_resident_where_they_are_needed_then_wherever_there_is_room():
    plan = clockwork(problem({"a": 10.0, "b": 700.0, "c": 0.0}, memory=7, devices=2), place=nexus)
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert not plan.gpulets
    assert {(r.device, r.model) for r in plan.residents} == {(0, "a"), (0, "b"), (1, "a"), (1, "b")}
    assert plan.promises["b"].throughput >= 700


def test_a_model_that_no_device_holds_is_refused():
    outcome = clockwork(problem({"a": 10.0}, memory=17), place=nexus)
    assert isinstance(outcome, Infeasible)
    assert "residents need" in outcome.constraint


# dispatcher -----------------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_longest_of_the_last_ten_and_the_profile_until_then():
    key = _Key(8, "m0", "", 1)
    predictions = Predictions(tiny_profile(["m0"]), 10)
    assert predictions.of(key) == 3 * MS
    for _ in range(9):
        predictions.add(key, MS)
    assert predictions.of(key) == 3 * MS
    predictions.add(key, 2 * MS)
    assert predictions.of(key) == 2 * MS
    for _ in range(10):
        predictions.add(key, MS)
    assert predictions.of(key) == MS


def world(models, resident=(), devices=1, believed=None):
    """`resident` lists (device, model); `believed` is the profile that the dispatcher has."""
    memory = {m.name: m.memory for m in models}
    plan = Plan(
        tuple(Device(d, TINY, Mechanism.WHOLE) for d in range(devices)),
        residents=tuple(Resident(d, name, memory[name]) for d, name in resident),
    )

    def make(problem, plan):
        return Clockwork(replace(problem, profile=believed or problem.profile), plan)

    return World(models, plan, make, Limits())


def starts(world):
    return [(now // MS, c.model, c.rows) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]


def said(world, kind):
    return [c for _, _, commands in world.steps for c in commands if isinstance(c, kind)]


def single(*at, model=0):
    return [(ms * MS, model, 1, "", 0, False) for ms in at]


LONG = (0, 0, 8, "", 0, False)
"""Runs until 10 ms."""


def test_the_latest_start_goes_first_in_batches_of_powers_of_two():
    models = [Model("m0", 200 * MS, 8), Model("m1", 60 * MS, 8)]
    w = world(models, [(0, "m0"), (0, "m1")])
    w.run(requests_of([*single(0, *[1] * 7), *single(*[1] * 7, model=1)], models))
    assert starts(w) == [
        (0, "m0", 1),
        (3, "m1", 4),
        (9, "m1", 2),
        (13, "m1", 1),
        (16, "m0", 4),
        (22, "m0", 2),
        (26, "m0", 1),
    ]


def test_an_urgent_request_gets_a_smaller_batch_than_the_others_would_fill():
    models = models_of(1, slo=20 * MS)
    w = world(models, [(0, "m0")])
    # Due by 15 ms. After the run from 0 to 10, 4 rows would end at 16, 2 at 14.
    w.run(requests_of([LONG, *single(0, 0), *single(*[9] * 4)], models))
    assert starts(w) == [(0, "m0", 8), (10, "m0", 2), (14, "m0", 4)]


def test_what_would_be_late_even_alone_is_dropped_not_run():
    models = models_of(1, slo=20 * MS)
    w = world(models, [(0, "m0")])
    w.run(requests_of([LONG, *single(*[0] * 8)], models))
    assert starts(w) == [(0, "m0", 8), (10, "m0", 2)]
    assert len(said(w, Drop)) == 6


def test_longer_runs_than_predicted_are_learnt():
    models = models_of(1, slo=SECOND)
    w = world(models, [(0, "m0")], believed=tiny_profile(["m0"], base=MS // 2, per_row=MS // 2))
    w.run(requests_of(single(0, 10), models))
    assert [c.expected for c in said(w, Start)] == [MS, 3 * MS]


def test_a_model_that_is_asked_for_is_loaded_and_the_one_used_longest_ago_makes_room():
    models = models_of(3, memory=40)
    w = world(models, [(0, "m0"), (0, "m1")])
    w.run(requests_of([*single(0, model=1), *single(5, model=0), *single(10, model=2)], models))
    assert said(w, Unload) == [Unload("m1", 0)]
    assert said(w, Load) == [Load("m2", 0)]
    assert starts(w)[-1] == (10, "m2", 1)


def test_a_model_that_runs_is_not_evicted():
    models = models_of(3, memory=40)
    w = world(models, [(0, "m0"), (0, "m1")])
    w.run(requests_of([*single(0, model=1), *single(1, model=0), *single(5, model=1), *single(6, model=2)], models))
    assert said(w, Unload) == [Unload("m0", 0)]


def test_a_model_with_more_demand_than_its_device_serves_is_loaded_onto_another():
    models = models_of(1, slo=50 * MS)
    w = world(models, [(0, "m0")], devices=2)
    w.run(requests_of(single(*[0] * 30), models))
    assert said(w, Load) == [Load("m0", 1)]
    assert {c.on.device for c in said(w, Start)} == {0, 1}
    calm = world(models, [(0, "m0")], devices=2)
    calm.run(requests_of(single(*range(0, 100, 10)), models))
    assert not said(calm, Load)


def test_a_model_that_never_fits_is_refused_on_arrival():
    models = [Model("m0", 50 * MS, 8, memory=101)]
    w = world(models)
    assert w.run(requests_of(single(0), models)).models["m0"].rejected == 1
