"""The plan in force with other turns: nothing is built, models take turns wherever they are loaded already."""

from dataclasses import replace
from random import Random

import pytest

from gpulet.core.ports import Infeasible
from gpulet.core.staging import stage
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.retuned import retuned
from gpulet.units import MS
from support import models_of, problem_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1"]


def asked(plan, demand, slo=40 * MS):
    """Within 40 ms a size of 4 affords 400 rows/s of a model."""
    return replace(problem_of(models_of(len(demand), slo), plan), demand=demand, in_force=plan)


def tuned(plan, demand, slo=40 * MS):
    outcome = retuned(asked(plan, demand, slo))
    assert isinstance(outcome, Plan), outcome
    assert not outcome.violations()
    return outcome


def rates(plan):
    """By gpulet, as far as anything is asked of it."""
    return {g.id: {t.model: round(t.rate, 3) for t in g.turns} for g in plan.gpulets if g.turns}


def served(plan, name):
    return sum(turn.rate for g in plan.gpulets for turn in g.turns if turn.model == name)


BOTH = tiny_plan([[(4, NAMES), (4, NAMES)]], NAMES)
APART = tiny_plan([[(4, ["m0"]), (4, ["m1"])]], NAMES)


def test_nothing_is_built_and_nothing_is_moved():
    plan = tuned(BOTH, {"m0": 300.0, "m1": 20.0})
    staged = stage(plan, BOTH)
    assert staged.is_nothing
    assert [g.held for g in plan.gpulets] == [g.held for g in BOTH.gpulets]
    assert plan.devices == BOTH.devices


def test_rates_that_cross_cross_on_the_gpulets_there_are():
    before, after = tuned(BOTH, {"m0": 500.0, "m1": 50.0}), tuned(BOTH, {"m0": 50.0, "m1": 500.0})
    assert [len(before.hosts(name)) for name in NAMES] == [2, 1]
    assert [len(after.hosts(name)) for name in NAMES] == [1, 2]
    assert served(after, "m1") == pytest.approx(500, abs=0.01)


def test_what_one_gpulet_does_not_hold_goes_over_several_all_of_it():
    plan = tuned(BOTH, {"m0": 500.0, "m1": 20.0})
    assert len(plan.hosts("m0")) == 2
    assert served(plan, "m0") == pytest.approx(500, abs=0.01)
    assert served(plan, "m1") == pytest.approx(20, abs=0.01)


def test_gpulets_go_at_one_level_as_low_as_can_be():
    plan = tuned(tiny_plan([[(4, ["m0"]), (4, ["m0"])]], ["m0"]), {"m0": 400.0})
    assert rates(plan) == {0: {"m0": pytest.approx(200, rel=0.01)}, 1: {"m0": pytest.approx(200, rel=0.01)}}


def test_a_larger_gpulet_takes_more():
    plan = tuned(
        tiny_plan(
            [[(2, ["m0"]), (4, ["m0"])]],
            ["m0"],
        ),
        {"m0": 300.0},
        slo=80 * MS,
    )
    parts = {g.size.sms: g.turns[0].rate for g in plan.gpulets}
    assert parts[4] == pytest.approx(2 * parts[2], rel=0.02)


def test_who_has_no_choice_comes_before_who_has():
    plan = tiny_plan([[(4, NAMES), (4, ["m0"])]], NAMES)
    outcome = tuned(plan, {"m0": 380.0, "m1": 250.0})
    assert [g.id for g in outcome.hosts("m1")] == [0]
    assert rates(outcome)[1]["m0"] > 300


def test_models_of_one_load_keep_out_of_each_others_way():
    assert rates(tuned(BOTH, {"m0": 200.0, "m1": 200.0})) == {0: {"m0": 200.0}, 1: {"m1": 200.0}}


def test_the_largest_load_chooses_first_and_is_split_last():
    names = ["m0", "m1", "m2"]
    plan = tuned(tiny_plan([[(4, names), (4, names)]], names), {"m2": 100.0, "m1": 200.0, "m0": 300.0}, slo=200 * MS)
    assert rates(plan) == {0: {"m0": 300.0}, 1: {"m1": 200.0, "m2": 100.0}}


def test_a_gpulet_without_work_keeps_its_models_spare():
    plan = tuned(APART, {"m0": 10.0, "m1": 0.0})
    assert rates(plan) == {0: {"m0": 10.0}}
    assert plan.gpulets[1].spare == ("m1",)


def test_spare_models_take_turns():
    plan = tiny_plan([[(4, ["m0"]), (4, ["m0"])]], NAMES)
    spared = replace(plan, gpulets=(plan.gpulets[0], replace(plan.gpulets[1], spare=("m1",))))
    assert isinstance(retuned(asked(plan, {"m0": 10.0, "m1": 10.0})), Infeasible)
    outcome = tuned(spared, {"m0": 10.0, "m1": 10.0})
    assert [g.id for g in outcome.hosts("m1")] == [1]


def test_a_model_that_is_loaded_nowhere_is_named():
    outcome = retuned(asked(tiny_plan([[(8, ["m0"])]], NAMES), {"m0": 10.0, "m1": 30.0}))
    assert isinstance(outcome, Infeasible)
    assert (outcome.model, outcome.constraint) == ("m1", "no gpulet has it loaded")
    assert outcome.unserved == {"m1": 30.0}


def test_a_model_that_nobody_asks_for_need_not_be_loaded():
    plan = tuned(tiny_plan([[(8, ["m0"])]], NAMES), {"m0": 10.0, "m1": 0.0})
    assert not plan.hosts("m1")
    assert plan.promises["m1"].demand == 0


def test_a_gpulet_too_small_for_an_objective_does_not_count():
    plan = tiny_plan([[(1, NAMES), (4, ["m1"])]], NAMES)  # a row takes 24 ms on size 1
    outcome = retuned(asked(plan, {"m0": 1.0, "m1": 1.0}))
    assert isinstance(outcome, Infeasible)
    assert outcome.model == "m0"
    assert rates(tuned(plan, {"m0": 0.0, "m1": 1.0})) == {1: {"m1": 1.0}}


@pytest.mark.parametrize("demand", [{"m0": 900.0, "m1": 10.0}, {"m0": 10.0, "m1": 900.0}])
def test_more_than_there_is_room_for_is_refused_and_the_largest_load_named(demand):
    outcome = retuned(asked(BOTH, demand))
    assert isinstance(outcome, Infeasible)
    assert outcome.model == max(demand, key=demand.get)
    assert outcome.partial == BOTH


def test_what_is_asked_now_counts_not_what_was_planned():
    once = tuned(BOTH, {"m0": 300.0, "m1": 20.0})
    assert tuned(once, {"m0": 20.0, "m1": 300.0}) == tuned(BOTH, {"m0": 20.0, "m1": 300.0})


def test_each_model_is_promised_its_rate_within_its_objective():
    plan = tuned(APART, {"m0": 200.0, "m1": 100.0})
    for name, rate in (("m0", 200.0), ("m1", 100.0)):
        promise = plan.promises[name]
        assert promise.demand == rate
        assert promise.throughput >= rate
        assert 0 < promise.worst_latency <= promise.slo == 40 * MS


def test_headroom_is_what_the_fullest_gpulet_leaves():
    plan = tuned(APART, {"m0": 200.0, "m1": 10.0})
    assert plan.promises["m0"].headroom == pytest.approx(1.0, rel=0.05)


def test_another_dispatcher_than_that_of_turns_is_not_asked_to_serve_them():
    assert tuned(replace(APART, dispatcher="merging"), {"m0": 10.0, "m1": 10.0}).dispatcher == ""


def test_each_process_of_a_gpulet_takes_its_part_at_what_it_takes_beside_the_others():
    plan = tiny_plan([[(8, ["m0"], 2)]], ["m0"])  # 8 rows in 15 ms each
    outcome = tuned(plan, {"m0": 500.0})
    assert [(g.process, g.turns[0].rate) for g in outcome.gpulets] == [
        (n, pytest.approx(250, rel=0.01)) for n in (1, 2)
    ]
    profile = tiny_profile(["m0"])
    for turn in (t for g in outcome.gpulets for t in g.turns):
        assert turn.latency == profile.latency("m0", 8, turn.batch, processes=2)
    assert isinstance(retuned(asked(plan, {"m0": 1100.0})), Infeasible)


def test_whatever_is_asked_all_of_it_is_planned_in_valid_turns_or_it_is_refused():
    names, refused = ["m0", "m1", "m2"], 0
    plan = tiny_plan([[(4, names), (4, names[:2])], [(2, names), (2, names[1:])]], names)
    for seed in range(60):
        random = Random(seed)
        models = [Model(name, random.choice((30, 60, 100)) * MS, max_batch=8) for name in names]
        demand = {name: float(random.choice((0, 5, 50, 150, 300))) for name in names}
        outcome = retuned(replace(problem_of(models, plan), demand=demand, in_force=plan))
        if isinstance(outcome, Infeasible):
            refused += 1
            continue
        assert not outcome.violations()
        assert stage(outcome, plan).is_nothing
        assert {name: served(outcome, name) for name in names} == pytest.approx(demand, abs=0.01)
    assert 0 < refused < 50
