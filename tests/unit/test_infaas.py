from functools import partial

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.infaas import infaas
from gpulet.planners.uncut import uncut
from gpulet.profile import Point, Profile
from gpulet.units import GIB, MS

KIND = find_kind("v100")
plan_of = partial(infaas, beside=uncut)


def problem(demand, devices=1, memory=0):
    """2 ms and 1 ms a row on all SMs: a replica alone carries 16 rows in 18 ms, 889 rows/s."""
    points = tuple(Point(name, 80, rows, *[(2 + rows) * MS] * 3) for name in demand for rows in (1, 16))
    fleet = tuple(Device(d, KIND, Mechanism.MPS) for d in range(devices))
    models = {n: Model(n, 100 * MS, 16, memory * GIB) for n in demand}
    return Problem(models, demand, fleet, Profile(points))


def homes(plan):
    return [(g.device, *g.models) for g in plan.gpulets]


def test_a_model_has_as_many_replicas_as_four_fifths_of_their_peak_carry_the_rate():
    assert homes(plan_of(problem({"a": 700.0}, devices=3))) == [(0, "a")]
    assert homes(plan_of(problem({"a": 720.0}, devices=3))) == [(0, "a"), (1, "a")]
    assert homes(plan_of(problem({"a": 0.0}, devices=3))) == [(0, "a")]


def test_replicas_go_to_the_least_loaded_devices():
    plan = plan_of(problem({"a": 1000.0, "b": 100.0, "c": 50.0}, devices=3))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert homes(plan) == [(0, "a"), (1, "a"), (2, "b"), (2, "c")]
    assert [g.id for g in plan.gpulets] == [0, 1, 2, 3]
    assert plan.promises["a"].demand == 1000.0


def test_a_gib_of_memory_stays_free():
    assert isinstance(plan_of(problem({"a": 10.0}, memory=15)), Plan)
    outcome = plan_of(problem({"a": 10.0}, memory=16))
    assert isinstance(outcome, Infeasible)
    assert "memory" in outcome.constraint
    assert homes(plan_of(problem({"a": 10.0, "b": 10.0}, devices=2, memory=8))) == [(0, "a"), (1, "b")]


def test_what_too_few_replicas_cannot_carry_is_told():
    outcome = plan_of(problem({"a": 2000.0, "b": 10.0}, devices=2))
    assert isinstance(outcome, Infeasible)
    assert outcome.model == "a"
    assert outcome.constraint.startswith("2 replicas beside others carry 17")
