"""Our planner: packing, the allowance for bunching, the room at full load, the judge."""

from dataclasses import replace

import numpy as np
import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.duty import bunched
from gpulet.errors import PlanError
from gpulet.interference import CONSTANT, Interference
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.best import best
from gpulet.planners.elastic import elastic
from gpulet.planners.packing import packing
from gpulet.profile import Point, Profile
from gpulet.units import MS, SECOND

KIND = find_kind("rtx2080ti")
PER_ROW = {20: 4.0, 40: 3.0, 50: 2.8, 60: 2.6, 80: 2.5, 100: 2.4}
"""Milliseconds a row: 20 % gives most rows/s for its room."""


def problem(rates, devices=2, slo=100, interference=None):
    points = tuple(
        Point(name, mps_size(KIND, share).sms, rows, *[round((2 + rows * ms) * MS)] * 3)
        for name in rates
        for share, ms in PER_ROW.items()
        for rows in (1, 2, 4, 8, 16, 32)
    )
    models = {name: Model(name, slo * MS) for name in rates}
    fleet = tuple(Device(i, KIND, Mechanism.MPS) for i in range(devices))
    return Problem(models, rates, fleet, Profile(points), interference=interference)


def test_packing_fills_a_device_with_as_many_gpulets_as_fit():
    plan = packing(problem({"a": 1000.0}, devices=1))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert [g.size.share_pct for g in plan.gpulets] == [20] * 5
    assert [g.offset for g in plan.gpulets] == [0, 20, 40, 60, 80]
    assert isinstance(elastic(problem({"a": 1000.0}, devices=1)), Infeasible)


def test_residues_of_several_models_share_a_gpulet_where_that_saves_room():
    rates = dict.fromkeys("abcdef", 20.0)
    merged, apart = packing(problem(rates)), packing(problem(rates), merges=False)
    assert isinstance(merged, Plan)
    assert isinstance(apart, Plan)
    assert len(merged.gpulets) < len(apart.gpulets) == 6
    assert merged.violations() == ()


def test_spreading_parts_heavy_neighbours():
    rates = {"a": 400.0}
    together, spread = packing(problem(rates)), packing(problem(rates), spreads=True)
    assert isinstance(together, Plan)
    assert isinstance(spread, Plan)
    assert (together.devices_used, spread.devices_used) == (1, 2)


@pytest.mark.parametrize("rate", [10.0, 100.0, 1000.0, 30_000.0])
def test_the_allowance_is_what_poisson_arrivals_overflow_by(rate):
    window, loss = 50 * MS, 0.01
    needed = bunched(rate, window, loss)
    counts = np.random.default_rng(1).poisson(rate * window / SECOND, 400_000)
    overflow = np.maximum(counts - needed * window / SECOND, 0).mean() / counts.mean()
    assert needed >= rate
    assert overflow <= loss * 1.1
    assert needed / rate >= bunched(2 * rate, window, loss) / (2 * rate) - 1e-9


def test_a_fast_model_needs_less_of_an_allowance_than_a_slow_one():
    assert bunched(1000.0, 50 * MS, 0.01) / 1000 < 1.3 < bunched(20.0, 50 * MS, 0.01) / 20


def test_no_plan_without_room_for_queues_is_taken():
    asked = problem({"a": 1190.0}, devices=1)
    full = packing(asked)
    assert isinstance(full, Plan)
    assert 0 < full.promises["a"].headroom < 0.03
    refused = best(asked, candidates=[packing])
    assert isinstance(refused, Infeasible)
    assert refused.model == "a"
    assert "Poisson arrivals" in refused.constraint


def test_the_judge_has_the_last_word_and_is_asked_about_few_plans():
    asked = problem({"a": 300.0})
    judged = []
    refused = best(asked, candidates=[packing, elastic], judge=lambda _, plan, care: bool(judged.append(plan)))
    assert isinstance(refused, Infeasible)
    assert 1 <= len(judged) <= 5
    taken = best(asked, candidates=[packing, elastic], judge=lambda _, plan, care: True)
    assert taken == judged[0]
    assert isinstance(taken, Plan)
    assert taken.promises["a"].demand == 300.0


def test_what_neighbours_cost_is_asked_for_on_top():
    rates = {"a": 700.0}
    quiet = best(problem(rates), candidates=[packing])
    loud = best(problem(rates, interference=Interference(CONSTANT, (1.1,))), candidates=[packing])
    assert isinstance(quiet, Plan)
    assert isinstance(loud, Plan)
    assert loud.violations() == ()
    assert max(t.latency / t.batch for g in loud.gpulets for t in g.turns) > max(
        t.latency / t.batch for g in quiet.gpulets for t in g.turns
    )


def test_candidates_that_cannot_cut_such_devices_are_passed_over():
    def never(problem):
        msg = "not mine"
        raise PlanError(msg)

    asked = problem({"a": 100.0})
    assert isinstance(best(asked, candidates=[never, packing]), Plan)
    with pytest.raises(PlanError, match="not mine"):
        best(asked, candidates=[never])


def test_models_without_demand_do_no_harm():
    asked = problem({"a": 100.0, "b": 1.0})
    idle = replace(asked, demand={"a": 100.0, "b": 0.0})
    plan = best(idle, candidates=[packing, elastic])
    assert isinstance(plan, Plan)
    assert plan.promises["a"].throughput > 100
