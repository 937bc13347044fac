"""What becomes of a question for a plan: the plan in force, the same with other turns, a new one, or one for less."""

from dataclasses import replace

import pytest

from gpulet.application import Application, Stage
from gpulet.core.messages import Replan
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.core.staging import stage
from gpulet.device import Device, Mechanism
from gpulet.model import Model
from gpulet.plan import Plan, Promise
from gpulet.replanning import HOLDS, Replanner, attained, demanded, least_devices, reached
from gpulet.rows import RowDistribution
from gpulet.spares import Spares
from gpulet.systems import SYSTEMS, composed
from gpulet.units import MS
from support import TINY, models_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1"]
GPULET = SYSTEMS["gpulet"]
LIMITS = Limits()
LITTLE = {"m0": 20.0, "m1": 20.0}
APART = tiny_plan([[(4, ["m0"]), (4, ["m1"])]], NAMES, Mechanism.CPU)
"""A size of 4 affords 400 rows/s of a model, a whole device 800."""


def fleet(devices=1, in_force=None, slo=40 * MS):
    """Devices that may be cut in any way."""
    cut = tuple(Device(d, TINY, Mechanism.CPU) for d in range(devices))
    models = {model.name: model for model in models_of(2, slo)}
    return Problem(models, dict(LITTLE), cut, tiny_profile(NAMES), in_force or Plan(cut))


def answer(problem, demand, devices=None, *, system=GPULET, spares=Spares(), **asked):  # noqa: B008 (frozen)
    devices = tuple(d.index for d in problem.devices) if devices is None else devices
    return Replanner(system, LIMITS, spares).answer(problem, Replan(5, demand, devices, "m0 rose", **asked))


def planned(plan, name):
    return sum(turn.rate for g in plan.gpulets for turn in g.turns if turn.model == name)


# answers --------------------------------------------------------------------------------------------------------------


def test_a_plan_that_holds_is_left_alone():
    told = answer(fleet(in_force=APART), LITTLE)
    assert told.plan is None
    assert told.number == 5
    assert told.before == told.after >= HOLDS
    assert told.why == f"the plan in force holds {told.before:.2%} of it"


def test_a_plan_that_holds_gives_way_to_fewer_devices_where_that_was_asked():
    spread = tiny_plan([[(8, ["m0"])], [(8, ["m1"])]], NAMES, Mechanism.CPU)
    told = answer(fleet(2, spread), LITTLE, fewest=True, is_needed=False)
    assert told.plan.in_use == {0}
    assert [d.index for d in told.plan.devices] == [0, 1]
    assert told.before >= HOLDS
    assert told.after >= HOLDS


def test_a_first_plan_is_made_where_there_is_none():
    told = answer(fleet(), LITTLE)
    assert told.before < 0.01
    assert told.after >= HOLDS
    assert not told.why
    assert not told.plan.violations()
    assert planned(told.plan, "m0") >= 20


BOTH = tiny_plan([[(4, NAMES), (4, NAMES)]], NAMES, Mechanism.CPU)
LOPSIDED = replace(BOTH, gpulets=tuple(replace(g, turns=g.turns[:1], spare=("m1",)) for g in BOTH.gpulets))
"""Both gpulets have both models loaded; all turns are those of m0."""


def test_rates_that_cross_are_answered_with_other_turns_on_the_gpulets_there_are():
    told = answer(fleet(in_force=LOPSIDED), {"m0": 10.0, "m1": 300.0})
    assert told.before < 0.1
    assert told.after >= HOLDS
    assert stage(told.plan, LOPSIDED).is_nothing
    assert planned(told.plan, "m1") == pytest.approx(300, abs=0.01)


def test_what_is_down_has_no_turns():
    each = zip(BOTH.gpulets, NAMES, reversed(NAMES), strict=True)
    own = tuple(
        replace(g, turns=tuple(t for t in g.turns if t.model == mine), spare=(other,)) for g, mine, other in each
    )
    problem, demand = fleet(in_force=replace(BOTH, gpulets=own)), {"m0": 60.0, "m1": 60.0}
    assert answer(problem, demand).plan is None
    told = answer(problem, demand, down=(0,), builds=False)
    assert told.before < 0.6
    assert told.after >= HOLDS
    resting, serving = told.plan.gpulets
    assert (resting.turns, {*serving.models}) == ((), {"m0", "m1"})
    assert stage(told.plan, BOTH, down=(0,)).is_nothing


def test_where_nothing_can_be_built_there_are_other_turns_or_nothing():
    told = answer(fleet(in_force=APART), {"m0": 20.0, "m1": 300.0}, down=(0,), builds=False)
    assert told.why == "no other turns hold it"
    assert told.plan is None, "nobody else has the one, and the other has all of its gpulet"
    told = answer(fleet(in_force=LOPSIDED), {"m0": 200.0, "m1": 200.0}, down=(0,), builds=False)
    assert told.before < 0.5
    assert told.after > 0.7
    assert 0.8 < planned(told.plan, "m0") / planned(told.plan, "m1") < 1.25, "both get less"
    told = answer(fleet(in_force=LOPSIDED), {"m0": 10.0, "m1": 300.0}, builds=False)
    assert stage(told.plan, LOPSIDED).is_nothing


def test_no_planner_is_asked_where_the_plan_in_force_or_other_turns_will_do():
    def never(problem):
        pytest.fail("a planner was asked")

    system = replace(GPULET, planner=never, prober=never)
    assert answer(fleet(in_force=APART), LITTLE, system=system).plan is None
    assert answer(fleet(in_force=LOPSIDED), LITTLE, system=system).plan


@pytest.mark.parametrize(
    ("system", "dispatcher", "is_retuned"),
    [
        (GPULET, "", True),
        (GPULET, "merging", True),
        (GPULET, "elsa", False),
        (SYSTEMS["nexus"], "", False),
    ],
)
def test_only_turns_that_are_served_as_such_are_changed(system, dispatcher, is_retuned):
    told = answer(fleet(in_force=replace(LOPSIDED, dispatcher=dispatcher)), LITTLE, system=system)
    assert told.after >= HOLDS
    assert all(g.held == {"m0", "m1"} and g.spare for g in told.plan.gpulets) is is_retuned


def test_a_plan_that_stands_on_another_device_may_not_stay_though_it_holds():
    told = answer(fleet(2, APART), LITTLE, devices=(1,))
    assert told.before >= HOLDS
    assert told.plan.in_use == {1}
    assert [d.index for d in told.plan.devices] == [0, 1], "the other one is still there"


LONELY = tiny_plan([[(4, ["m0"])]], NAMES, Mechanism.CPU)
"""No place for the other."""


@pytest.mark.parametrize(("rate", "is_given"), [(0.5, True), (0.1, False)])
def test_a_model_that_is_asked_for_and_has_no_place_is_given_one_though_hardly_anything_is_missed(rate, is_given):
    told = answer(fleet(in_force=LONELY), {"m0": 200.0, "m1": rate})
    assert told.before > HOLDS
    assert bool(told.plan and told.plan.serves("m1")) is is_given


def test_of_several_plans_that_is_best_which_has_a_place_for_all():
    problem = fleet(in_force=Plan(fleet().devices))
    partial = replace(LONELY, promises={"m0": Promise(2000, 2000, MS, 40 * MS)})

    def planner(problem):
        refusal = GPULET.planner(problem)
        return replace(refusal, partial=partial) if isinstance(refusal, Infeasible) else refusal

    told = answer(problem, {"m0": 2000.0, "m1": 2.0}, system=replace(GPULET, planner=planner))
    assert told.plan.serves("m1")


@pytest.mark.parametrize("system", [GPULET, composed("elastic", "gpulet")], ids=["own", "composed"])
def test_plans_for_less_are_sketched_since_they_are_judged_here(system):
    asked = []

    def sketcher(problem):
        asked.append(sum(problem.demand.values()))
        return system.sketcher(problem)

    def never(problem):
        pytest.fail("a plan for less was judged twice")

    told = answer(
        fleet(in_force=APART), {"m0": 700.0, "m1": 350.0}, system=replace(system, prober=never, sketcher=sketcher)
    )
    assert told.why.startswith("no plan: model m")
    assert told.before < told.after
    assert len(asked) > 1
    assert max(asked) < 1050


def test_what_cannot_be_held_is_told_and_as_much_as_can_be_is_offered():
    told = answer(fleet(in_force=APART), {"m0": 700.0, "m1": 350.0}, system=SYSTEMS["nexus"])
    assert told.why.startswith("no plan: model m")
    assert not told.plan.violations()
    assert told.before < told.after < 0.95
    assert planned(told.plan, "m0") / 700 == pytest.approx(planned(told.plan, "m1") / 350), "of equal weights"
    assert planned(told.plan, "m0") > 400


def test_an_objective_below_every_run_has_no_plan_at_all():
    told = answer(fleet(slo=MS), LITTLE)
    assert told.plan is None
    assert told.why.startswith("no plan: model m")
    assert told.before == told.after


def test_spares_are_loaded_with_what_is_new():
    problem = replace(fleet(), models={model.name: model for model in models_of(2, memory=10)})
    bare, spared = (answer(problem, LITTLE, spares=Spares(most, {"m0": 10, "m1": 10})) for most in (0, 100))
    assert not any(g.spare for g in bare.plan.gpulets)
    assert all(g.held == {"m0", "m1"} for g in spared.plan.gpulets)
    assert [g.turns for g in spared.plan.gpulets] == [g.turns for g in bare.plan.gpulets]


def test_the_same_question_has_the_same_answer():
    one, other = (answer(fleet(2, APART), LITTLE, (1,), system=SYSTEMS["nexus"]) for _ in range(2))
    assert one.plan
    assert one == other


# what is asked --------------------------------------------------------------------------------------------------------


def test_a_demand_takes_the_place_of_another_and_of_what_was_sent():
    problem = demanded(replace(fleet(), sent={"m0": 9.0}), {"m0": 50.0, "m1": 0.0, "nobody": 7.0})
    assert problem.demand == {"m0": 50.0, "m1": 1e-6}, "nobody is asked exactly nothing"
    assert problem.rates == problem.demand


def test_requests_of_several_rows_are_fewer():
    rows = {"m0": RowDistribution((0.0, 0.0, 0.0, 1.0))}
    assert demanded(replace(fleet(), rows=rows), {"m0": 100.0}).rates == {"m0": 25.0}


def served_by(*stages):
    return replace(fleet(), applications=(Application("app", 100 * MS, stages),))


CHAIN = Stage("first", "m0"), Stage("second", "m1", ("first",), 3.0)


def test_what_clients_send_is_what_applications_do_not_ask_of_models():
    problem = replace(served_by(*CHAIN), sent={"app": 1.0, "m0": 1.0, "m1": 1.0})
    told = demanded(problem, {"app": 10.0, "m0": 25.0, "m1": 37.0})
    assert told.demand == {"m0": 25.0, "m1": 37.0}
    assert told.sent == {"app": 10.0, "m0": 15.0, "m1": 7.0}, "the second stage is asked three times"


def test_a_model_that_serves_applications_alone_is_sent_nothing():
    told = demanded(served_by(*CHAIN), {"app": 10.0, "m0": 12.0, "m1": 31.0})
    assert told.sent == {"app": 10.0}


def test_a_model_beside_the_applications_is_sent_all_it_serves():
    told = demanded(served_by(Stage("only", "m0")), {"app": 10.0, "m0": 8.0, "m1": 5.0})
    assert told.sent == {"app": 10.0, "m1": 5.0}


# what a planner had got to --------------------------------------------------------------------------------------------


def promising(demand, throughput, worst=10 * MS):
    return replace(APART, promises={"m0": Promise(demand, throughput, worst, 40 * MS)})


def test_a_plan_for_less_promises_what_it_can():
    able = reached(promising(100.0, 60.0))
    assert able.promises["m0"] == Promise(60.0, 60.0, 10 * MS, 40 * MS)
    assert able.gpulets == APART.gpulets


def test_a_plan_that_promises_enough_promises_what_it_did():
    assert reached(promising(100.0, 160.0)) == promising(100.0, 160.0)


def test_a_plan_that_is_late_or_of_nothing_is_none():
    assert reached(promising(100.0, 60.0, worst=41 * MS)) is None
    assert reached(Plan(APART.devices)) is None


# how much, how many ---------------------------------------------------------------------------------------------------


def test_nobody_who_asks_nothing_is_disappointed():
    problem = fleet()
    assert attained(GPULET, demanded(problem, {"m0": 0.0, "m1": 0.0}), Plan(problem.devices), LIMITS) == 1


def test_a_plan_serves_less_of_a_demand_the_more_it_is():
    shares = [
        attained(GPULET, demanded(fleet(), {"m0": rate, "m1": 10.0}), APART, LIMITS) for rate in (100.0, 800.0, 1600.0)
    ]
    assert shares[0] > 0.999
    assert shares[0] > shares[1] > shares[2] > 0


def test_a_model_without_a_place_is_served_nothing():
    alone = tiny_plan([[(8, ["m0"])]], NAMES, Mechanism.CPU)
    share = attained(GPULET, demanded(fleet(), {"m0": 30.0, "m1": 10.0}), alone, LIMITS)
    assert share == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize(
    ("rates", "slo", "devices"),
    [
        ((0.0, 0.0), 40 * MS, 1),
        ((790.0, 0.0), 40 * MS, 1),  # at its cheapest a row takes 10 SM-ms of 8 SMs
        ((810.0, 0.0), 40 * MS, 2),
        ((410.0, 410.0), 40 * MS, 2),
        ((1610.0, 0.0), 40 * MS, 3),
        ((1e6, 0.0), 40 * MS, 3),
        ((310.0, 0.0), 3 * MS, 1),  # a single row of 3 ms on all 8 SMs is the only run in time
        ((350.0, 0.0), 3 * MS, 2),
    ],
)
def test_no_fewer_devices_are_tried_than_the_cheapest_runs_fill(rates, slo, devices):
    problem = fleet(3, slo=slo)
    assert least_devices(replace(problem, demand=dict(zip(NAMES, rates, strict=True)))) == devices


def test_small_batches_take_more_devices():
    single = {name: Model(name, 40 * MS, max_batch=1) for name in NAMES}
    problem = replace(fleet(3), demand={"m0": 300.0, "m1": 0.0})
    assert least_devices(problem) == 1
    assert least_devices(replace(problem, models=single)) == 1
    assert least_devices(replace(problem, models=single, demand={"m0": 350.0, "m1": 0.0})) == 2
