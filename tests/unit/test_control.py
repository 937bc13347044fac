"""Live control in the core: every way that a change of plan can go; what serves notices nothing before its end."""

from dataclasses import replace

import pytest

from gpulet.core.control import Controlled, Steering
from gpulet.core.decisions import change_row
from gpulet.core.messages import (
    Adopt,
    Answer,
    Arrived,
    Build,
    Built,
    Closed,
    DeviceIn,
    DeviceOut,
    Drop,
    Enlist,
    Explain,
    Finished,
    Force,
    Freeze,
    GpuletDown,
    GpuletUp,
    Hint,
    NotBuilt,
    Opened,
    Reason,
    Reject,
    Replan,
    Replanned,
    Retire,
    Revise,
    Start,
    Stopping,
)
from gpulet.core.replan import Demand, Watch
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.core.weighing import Weights
from gpulet.ours import as_planned
from gpulet.request import Request
from gpulet.units import MS, SECOND
from support import SHAPES, models_of, problem_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1"]
MODELS = models_of(2)
NOW = tiny_plan([[(4, ["m0"]), (4, ["m1"])], []], NAMES)
OTHER = tiny_plan([[(4, ["m0"]), (2, ["m0"]), (2, ["m1"])], []], NAMES)
"""Keeps the first gpulet of `NOW`, and has two in the place of its second."""
SPREAD = tiny_plan([[(8, ["m0"])], [(8, ["m1"])]], NAMES)
PACKED = tiny_plan([[(8, NAMES)], []], NAMES)
OVERCUT = tiny_plan([[(8, ["m0"]), (8, ["m1"])], []], NAMES)
HOLDS = "the plan in force holds 99.90% of it"
IdlePicks = SHAPES["idle picks"]


class Script:
    """An estimator that says what it is told to, and remembers what it hears."""

    def __init__(self):
        self.look_at = SECOND
        self.says = Demand({"m0": 10.0, "m1": 10.0}, {"m0": 10.0, "m1": 10.0})
        self.jumps = False
        self.heard = []

    def record(self, now, events, commands):
        return self.jumps

    def look(self, now):
        self.look_at = now + SECOND
        return self.says

    def considered(self, now, targets, *, is_held):
        self.heard.append((dict(targets), is_held))
        self.says = replace(self.says, why="")

    def hint(self, now, model, rate):
        self.heard.append((model, rate))

    def revise(self, model):
        self.heard.append(model)

    def enlist(self, now, model):
        self.heard.append(model)


class Told:
    """A core that is told one thing after the other, a millisecond apart; what it said each time, by kind."""

    def __init__(self, plan=NOW, estimator=None, steering=None, make=IdlePicks):
        problem = problem_of(MODELS, plan)
        scheduler = Scheduler(problem.models, plan, make(problem, plan), Limits())
        self.script = estimator or Script()
        self.core = Controlled(scheduler, problem, plan, self.script, make, steering or Steering())
        self.now = 0
        self.said = []
        self.asked = None
        self.requests = 0
        self.tell(*(GpuletUp(g.id) for g in plan.gpulets))

    def tell(self, *events):
        return self.at(self.now + MS, *events)

    def at(self, now, *events):
        self.now = now
        self.said = self.core.step(now, *events)
        self.asked = self.all(Replan)[-1] if self.all(Replan) else self.asked
        return self.said

    def one(self, kind):
        """The only one of that kind that was said last."""
        (found,) = self.all(kind)
        return found

    def all(self, kind):
        return [command for command in self.said if isinstance(command, kind)]

    def call(self, why="m0 rose", **targets):
        """It looks, and something calls for a plan."""
        wanted = {"m0": 20.0, "m1": 10.0, **targets}
        self.script.says = Demand(wanted, wanted, why)
        self.at(self.script.look_at)
        return self.all(Replan)

    def answer(self, plan, before=0.5, after=1.0, why=""):
        """What was asked last is answered."""
        self.tell(Replanned(self.asked.number, plan, why, before, after))
        return self.all(Build)

    def build(self):
        """What is to be built is up, and proven."""
        fresh = [g.id for g in self.all(Build)[-1].plan.gpulets if g.id not in self.core.fleet.gpulets]
        number = self.one(Build).number
        self.tell(*(GpuletUp(gpulet) for gpulet in fresh), Built(number))
        return self.all(Adopt)

    def change(self, plan):
        """All the way."""
        self.call()
        self.answer(plan)
        return self.build()

    def arrive(self, model, count=1, allowed=10 * SECOND):
        first = self.requests + 1
        self.requests += count
        due = self.now + allowed
        return self.tell(*(Arrived(Request(n, model, self.now, due)) for n in range(first, first + count)))

    def stays(self, plan=NOW):
        """Nothing has changed and nothing is about to."""
        return self.core.in_force == plan and not self.core.is_changing and not self.all(Build) + self.all(Adopt)


def shapes(plan):
    return sorted((g.device, g.size.sms, g.models) for g in plan.gpulets)


# what is asked --------------------------------------------------------------------------------------------------------


def test_nothing_is_asked_while_nothing_calls_for_a_plan():
    told = Told()
    for n in range(1, 10):
        assert told.at(n * SECOND) == []
    assert told.stays()
    assert not told.core.history


def test_a_plan_is_asked_for_with_what_was_seen_and_what_to_plan_for():
    told = Told()
    told.call("m0 rose", m0=50.0, m1=7.0)
    assert told.one(Replan) == Replan(1, {"m0": 50.0, "m1": 7.0}, (0, 1), "m0 rose", fewest=False, is_needed=True)
    assert told.core.is_changing
    assert told.core.in_force == NOW


def test_one_change_at_a_time():
    told = Told()
    told.call()
    assert told.call("m1 rose as well") == []
    told.answer(None, before=1.0)
    assert told.call("m1 rose as well")[0].why == "m1 rose as well"


def test_a_fall_asks_for_fewer_devices_even_where_the_plan_holds():
    told = Told(steering=Steering(fewest=True))
    assert (told.call()[0].fewest, told.asked.is_needed) == (True, True)
    told.answer(None, before=1.0)
    told.script.says = replace(told.script.says, why="m0 fell", has_fallen=True)
    told.at(told.script.look_at)
    assert (told.asked.number, told.asked.fewest, told.asked.is_needed) == (2, True, False)


def test_a_fall_leaves_a_plan_that_holds_alone_where_devices_are_not_spared():
    told = Told()
    told.script.says = replace(told.script.says, why="m0 fell", has_fallen=True)
    told.at(SECOND)
    assert told.asked.is_needed


def test_it_wants_to_be_woken_when_the_estimator_or_the_scheduler_does():
    told = Told()
    assert told.core.wake_at == told.script.look_at == SECOND
    due = told.now + SECOND + 500 * MS
    told.arrive("m0", 20, allowed=due - told.now)
    told.at(SECOND)
    assert told.core.wake_at == due < told.script.look_at, "the deadlines of those that wait"


def test_hints_and_objectives_reach_the_estimator():
    told = Told()
    revised = replace(MODELS[0], slo=70 * MS)
    told.tell(Hint("m0", 99.0), Revise(revised))
    assert told.script.heard == [("m0", 99.0), revised]


def test_another_objective_calls_for_a_plan_and_is_planned_for():
    told = Told()
    told.tell(Revise(replace(MODELS[0], slo=70 * MS)))
    assert told.one(Replan).why == "model m0 has another objective"
    assert told.core.problem.models["m0"].slo == 70 * MS
    assert told.core.problem.models["m1"] == MODELS[1]


# other dispatchers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [("", "elsa"), ("elsa", ""), ("fifs", "elsa"), ("elsa", "fifs"), ("", "fifs")]
)
def test_a_plan_with_another_dispatcher_serves_what_waits(before, after, stays):
    told = Told(replace(NOW, dispatcher=before), make=as_planned)
    told.call()
    told.arrive("m0", 9)
    told.answer(replace(NOW if stays else OTHER, dispatcher=after))
    if told.all(Build):
        told.build()
    answered = 0
    while told.core.fleet.waiting or not told.core.is_idle:
        assert answered < 9
        running = [state.running for state in told.core.fleet.gpulets.values() if state.running]
        leaving = [state.running for state in told.core._scheduler._handover.leaving.values()]  # noqa: SLF001
        told.tell(*(Finished(batch) for batch in (*running, *leaving)))
        answered += sum(len(answer.requests) for answer in told.all(Answer))
    assert answered == 9


@pytest.mark.parametrize(("before", "after"), [("", "elsa"), ("elsa", ""), ("fifs", "elsa")])
def test_what_a_dead_worker_ran_for_another_dispatcher_runs_again(before, after):
    told = Told(replace(NOW, dispatcher=before), make=as_planned)
    told.call()
    told.arrive("m0")
    started = told.one(Start)
    told.answer(replace(NOW, dispatcher=after))
    told.build()
    told.tell(GpuletDown(started.on))
    told.tell(GpuletUp(started.on))
    assert told.one(Start).requests == started.requests


# models that come -----------------------------------------------------------------------------------------------------

NEW = Enlist(models_of(3)[2], tiny_profile(["m2"]).points, 5.0)
WITH_NEW = tiny_plan([[(4, ["m0"]), (2, ["m1"]), (2, ["m2"])], []], [*NAMES, "m2"])


def rejected(told, model):
    """Why a request for it is, empty where it is not."""
    told.arrive(model)
    return [command.reason for command in told.all(Reject)]


def test_a_new_model_calls_for_a_plan_and_is_planned_for():
    told = Told()
    told.tell(NEW)
    assert told.one(Replan).why == "model m2 is new"
    assert told.script.heard == [NEW.model, ("m2", 5.0)]
    assert told.core.problem.models["m2"] == NEW.model
    assert told.core.problem.profile.latency("m2", 4, 1) == tiny_profile(["m2"]).latency("m2", 4, 1)
    assert told.core.problem.profile.latency("m0", 4, 1) == tiny_profile(NAMES).latency("m0", 4, 1)


def test_a_new_model_is_served_once_a_plan_has_it():
    told = Told()
    assert rejected(told, "m2") == [Reason.UNKNOWN_MODEL]
    told.tell(NEW)
    assert rejected(told, "m2") == [Reason.NOT_LOADED]
    told.answer(WITH_NEW)
    assert told.build()
    told.arrive("m2")
    assert told.one(Start).model == "m2"


@pytest.mark.parametrize(("events", "why"), [([Opened("m2")], []), ([Closed("m2")], [Reason.NOT_LOADED])])
def test_a_new_model_that_is_opened_or_closed_meanwhile_is_so_once_a_dispatcher_knows_it(events, why):
    told = Told()
    told.tell(NEW)
    told.tell(*events)
    assert rejected(told, "m2") == [Reason.NOT_LOADED]
    told.answer(WITH_NEW)
    told.build()
    assert rejected(told, "m2") == why


def test_a_new_model_without_a_place_is_known_and_waits_for_one():
    told = Told()
    told.tell(NEW)
    told.answer(None, before=0.999, after=0.999, why="no plan: model m2: no")
    assert told.one(Explain).seen == "model m2 is new"
    assert rejected(told, "m2") == [Reason.NOT_LOADED]
    told.change(OTHER)
    assert rejected(told, "m2") == [], "it waits, and is given up at its deadline"
    told.at(told.now + 10 * SECOND)
    assert told.one(Drop).reason == Reason.EXPIRED


LONELY = tiny_plan([[(4, ["m0"])], []], NAMES)


@pytest.mark.parametrize(("rate", "is_change"), [(1.0, True), (0.1, False)])
def test_who_is_asked_for_and_has_no_place_is_given_one_whatever_that_costs(rate, is_change):
    told = Told(LONELY)
    told.call(m1=rate)
    assert bool(told.answer(OTHER, before=0.999, after=0.998)) is is_change


def test_what_is_told_while_a_plan_is_made_is_heeded_afterwards_all_of_it():
    told = Told()
    told.call()
    told.tell(NEW, Revise(replace(MODELS[0], slo=70 * MS)))
    told.answer(None, before=0.999, after=0.999, why=HOLDS)
    assert told.one(Replan).why == "model m2 is new; model m0 has another objective"


# what is answered -----------------------------------------------------------------------------------------------------


def test_a_plan_in_force_that_holds_stays():
    told = Told()
    told.call()
    told.answer(None, before=0.999, after=0.999, why=HOLDS)
    assert told.one(Explain) == Explain(1, "m0 rose", HOLDS, "the plan in force stays")
    assert told.stays()
    assert told.script.heard == [({"m0": 20.0, "m1": 10.0}, True)]


def test_no_plan_at_all_gives_the_planner_a_pause():
    told = Told(steering=Steering(pause=5 * SECOND))
    told.call()
    told.answer(None, before=0.5, why="no plan: too much")
    paused = told.now
    assert told.stays()
    assert told.script.heard == [({"m0": 20.0, "m1": 10.0}, False)]
    while told.script.look_at < paused + 5 * SECOND:
        assert told.call("m0 rose again") == []
    assert told.call("m0 rose again")


def test_a_plan_that_holds_needs_no_pause():
    told = Told()
    told.call()
    told.answer(None, before=0.99)
    assert told.call("m0 rose again")


def test_a_jump_ends_the_pause():
    told = Told(steering=Steering(pause=100 * SECOND, settle=10 * MS))
    told.call()
    told.answer(None, before=0.5)
    assert told.call("m0 rose again") == []
    told.script.jumps = True
    told.tell()
    told.script.jumps = False
    assert told.at(told.now + 10 * MS) == [told.asked]
    assert told.asked.number == 2


def test_a_device_that_is_taken_out_is_no_matter_for_a_pause():
    told = Told(steering=Steering(pause=100 * SECOND))
    told.call()
    told.answer(None, before=0.5)
    told.tell(DeviceOut(1))
    assert told.one(Replan).number == 2


def test_a_plan_that_is_worth_it_is_built_beside_what_serves_then_adopted():
    told = Told()
    told.call()
    told.answer(OTHER, before=0.5, after=1.0)
    build = told.one(Build)
    assert build.number == 1
    assert shapes(build.plan) == shapes(OTHER)
    assert NOW.gpulets[0] in build.plan.gpulets, "what stays has its number"
    assert {g.id for g in build.plan.gpulets} == {0, 2, 3}
    assert (told.core.in_force, told.core.before) == (NOW, None)
    told.build()
    assert told.one(Adopt) == Adopt(1, build.plan)
    assert (told.core.in_force, told.core.before) == (build.plan, NOW)
    assert not told.core.is_changing
    assert set(told.core.fleet.gpulets) == {0, 2, 3}


def test_what_was_adopted_is_what_is_planned_for_from_then_on():
    told = Told()
    told.call(m0=33.0)
    told.answer(OTHER)
    assert told.core.problem.demand["m0"] == 10
    told.build()
    assert told.core.problem.demand == {"m0": 33.0, "m1": 10.0}
    assert told.core.problem.in_force == told.core.in_force
    assert told.script.heard == [({"m0": 33.0, "m1": 10.0}, True)]


def test_a_change_is_explained_with_how_long_it_took():
    told = Told()
    told.call()
    asked = told.now
    told.at(asked + 250 * MS, Replanned(1, OTHER, "", 0.5, 1.0))
    build = told.one(Build)
    told.at(asked + 1500 * MS, Built(build.number))
    said = told.one(Explain)
    assert (said.number, said.seen) == (1, "m0 rose")
    assert "in time 50.00% to 100.00% of 30.0/s" in said.considered
    assert said.chosen == ("the new plan, for what it gains; decided after 0.250 s, in force 1.250 s later")


@pytest.mark.parametrize(("before", "is_urgent"), [(0.94, True), (0.96, False)])
def test_haste_is_for_those_who_lose_more_than_it_costs(before, is_urgent):
    told = Told(steering=Steering(urgent=0.95))
    told.call()
    told.answer(OTHER, before=before)
    assert told.one(Build).is_urgent is is_urgent


@pytest.mark.parametrize(("after", "is_held"), [(0.995, True), (0.9, False)])
def test_a_plan_that_does_not_hold_all_is_adopted_as_one_that_does_not(after, is_held):
    told = Told(steering=Steering(enough=0.99))
    told.call()
    told.answer(OTHER, before=0.5, after=after)
    told.build()
    assert told.script.heard == [({"m0": 20.0, "m1": 10.0}, is_held)]


def test_what_a_planner_said_of_less_is_told():
    told = Told()
    told.call()
    told.answer(OTHER, after=0.8, why="no plan: model m0: too much")
    told.build()
    assert told.one(Explain).considered.startswith("no plan: model m0: too much; for less: in time 50.00% to 80.00%")


@pytest.mark.parametrize(("before", "is_held"), [(0.9, False), (0.995, True)])
def test_a_change_that_does_not_pay_is_left(before, is_held):
    told = Told()
    told.call()
    told.answer(OTHER, before=before, after=before)
    assert told.one(Explain).chosen == "the plan in force stays: the change does not pay"
    assert told.stays()
    assert told.script.heard == [({"m0": 20.0, "m1": 10.0}, is_held)]


def test_weights_say_what_pays():
    told = Told(steering=Steering(Weights(least=0.6)))
    told.call()
    assert told.answer(OTHER, before=0.5, after=1.0) == []
    assert told.stays()


def test_advice_is_told_and_not_followed():
    told = Told(steering=Steering(is_advice=True))
    told.call()
    told.answer(OTHER, before=0.5, after=1.0)
    assert told.one(Explain).chosen == "advice only: the new plan, for what it gains"
    assert told.stays()
    told.call()
    told.answer(OTHER, before=1.0, after=1.0)
    assert told.one(Explain).chosen == "the plan in force stays: the change does not pay"


def test_a_plan_that_cannot_be_is_refused_and_why():
    told = Told()
    told.call()
    told.answer(OVERCUT)
    said = told.one(Explain)
    assert said.considered == f"a plan that cannot be: {OVERCUT.violations()[0]}"
    assert said.chosen == "refused, the plan in force stays"
    assert told.stays()


def test_what_could_not_be_built_is_given_up():
    told = Told()
    told.call()
    told.answer(OTHER)
    told.tell(GpuletUp(2), NotBuilt(1, "out of memory"))
    assert told.one(Explain).chosen == "given up, the plan in force stays: out of memory"
    assert not told.one(Replan).builds, "other turns might help as well"
    told.answer(None)
    assert told.stays()
    assert told.script.heard == [({"m0": 20.0, "m1": 10.0}, False)], "misses still tell that something is wrong"
    assert told.change(OTHER), "the next may go better"
    assert not told.core.fleet.gpulets[2].is_leaving


@pytest.mark.parametrize(
    "stale", [Replanned(0, OTHER, "", 0.5), Replanned(2, OTHER, "", 0.5), Built(1), NotBuilt(1, "too early")]
)
def test_an_answer_to_what_nobody_asked_is_nothing(stale):
    told = Told()
    assert told.tell(stale) == [], "before anything is asked"
    told.call()
    assert told.tell(stale) == [], "while another is awaited"
    assert told.answer(OTHER)


@pytest.mark.parametrize("stale", [Replanned(1, SPREAD, "", 0.5), Built(2), NotBuilt(2, "another"), Built(0)])
def test_what_is_decided_waits_for_its_own_building_alone(stale):
    told = Told()
    told.call()
    told.answer(OTHER)
    build = told.one(Build)
    assert told.tell(stale) == []
    told.tell(Built(1))
    assert told.one(Adopt).plan == build.plan


# rates that move while a plan is made ---------------------------------------------------------------------------------


def moved(told, target):
    """Rates are others when the answer comes; what is asked then."""
    told.call("m0 rose", m0=target)
    told.answer(OTHER)
    return told.all(Replan)


def test_a_plan_for_rates_that_have_moved_on_is_asked_for_again():
    told = Told()
    told.call(m0=100.0)
    (again,) = moved(told, 200.0)
    assert (again.number, again.demand["m0"]) == (2, 200)
    assert again.why == "m0 rose; since then m0 went from 100.0/s to 200.0/s"
    assert told.core.in_force == NOW
    told.answer(OTHER)
    assert told.one(Build).number == 2


@pytest.mark.parametrize("target", [71.0, 139.0])
def test_a_plan_for_rates_that_are_near_still_is_good_enough(target):
    told = Told()
    told.call(m0=100.0)
    assert moved(told, target) == []
    assert told.one(Build).number == 1


def test_a_row_a_second_more_or_less_is_no_move():
    told = Told()
    told.call(m0=0.5)
    assert moved(told, 1.6) == []
    assert told.one(Build)


def test_rates_that_fall_have_moved_as_well():
    told = Told()
    told.call(m0=100.0)
    assert moved(told, 60.0)[0].demand["m0"] == 60


def test_who_is_always_late_takes_what_there_is_after_so_many_tries():
    told = Told(steering=Steering(tries=2))
    told.call(m0=10.0)
    assert [told.asked.number, *(again.number for t in (100.0, 1000.0) for again in moved(told, t))] == [1, 2, 3]
    assert moved(told, 10_000.0) == []
    assert told.one(Build).number == 3


def test_tries_are_counted_anew_for_the_next_change():
    told = Told(steering=Steering(tries=1))
    told.call(m0=10.0)
    assert moved(told, 100.0)
    assert moved(told, 1000.0) == []
    told.build()
    told.call(m0=10.0)
    assert moved(told, 100.0)


# somebody's own will --------------------------------------------------------------------------------------------------


def test_a_frozen_plan_stays_until_it_is_thawed():
    told = Told()
    told.tell(Freeze(is_on=True))
    assert told.one(Explain) == Explain(0, "asked", "", "the plan is frozen")
    assert told.core.is_frozen
    assert told.call() == []
    told.tell(Freeze(is_on=False))
    assert told.all(Explain) == [Explain(0, "asked", "", "the plan may change again")]
    assert not told.core.is_frozen
    assert told.one(Replan).why == "m0 rose"


def test_what_happened_to_a_device_is_not_forgotten_while_the_plan_is_frozen():
    told = Told()
    told.tell(Freeze(is_on=True), DeviceOut(0))
    assert told.all(Replan) == []
    told.tell(Freeze(is_on=False))
    assert told.one(Replan).why == "device 0 is taken out"


def test_a_plan_that_somebody_wants_is_not_weighed():
    told = Told()
    told.tell(Force(7, SPREAD))
    assert told.one(Build).number == -7
    told.build()
    assert told.one(Adopt).number == -7
    assert shapes(told.core.in_force) == shapes(SPREAD)
    assert told.core.before == NOW
    said = told.one(Explain)
    assert (said.number, said.seen, said.considered) == (-7, "asked", "the plan that was asked for")


def test_a_frozen_plan_gives_way_to_one_that_somebody_wants():
    told = Told()
    told.tell(Freeze(is_on=True))
    told.tell(Force(1, OTHER))
    assert told.build()
    assert told.core.is_frozen
    assert told.call() == []


def test_nobody_gets_a_plan_that_cannot_be():
    told = Told()
    told.tell(Force(3, OVERCUT))
    said = told.one(Explain)
    assert said == Explain(
        -3, "asked", f"the plan that was asked for: {OVERCUT.violations()[0]}", "refused, the plan in force stays"
    )
    assert told.stays()


def test_what_somebody_wants_waits_for_the_change_that_is_under_way():
    told = Told()
    told.call()
    assert told.tell(Force(1, SPREAD)) == []
    told.answer(OTHER)
    assert told.one(Build).number == 1
    told.build()
    assert told.one(Adopt).number == 1
    told.at(told.script.look_at)
    assert told.one(Build).number == -1
    told.build()
    assert shapes(told.core.in_force) == shapes(SPREAD)


def test_what_somebody_wants_comes_before_what_rates_call_for():
    told = Told()
    told.script.says = replace(told.script.says, why="m0 rose")
    told.at(SECOND, Force(1, SPREAD))
    assert told.all(Replan) == []
    assert told.one(Build).number == -1


def test_the_plan_before_can_be_had_back():
    told = Told()
    told.change(OTHER)
    told.tell(Force(1, told.core.before))
    told.build()
    assert shapes(told.core.in_force) == shapes(NOW)
    assert shapes(told.core.before) == shapes(OTHER)


# devices --------------------------------------------------------------------------------------------------------------


def test_a_device_that_is_taken_out_is_in_no_question():
    told = Told(SPREAD)
    told.tell(DeviceOut(1))
    assert (told.one(Replan).devices, told.asked.why) == ((0,), "device 1 is taken out")
    assert told.core.out == {1}


def test_whatever_it_costs_a_device_that_is_out_is_left():
    told = Told(SPREAD)
    told.tell(DeviceOut(1))
    told.answer(PACKED, before=1.0, after=0.2)
    assert {g.device for g in told.one(Build).plan.gpulets} == {0}
    told.build()
    assert told.one(Explain).chosen.startswith("the new plan, for the old one cannot stay")
    assert told.core.in_force.in_use == {0}


def test_a_plan_is_not_put_on_a_device_that_is_out_because_more_would_stay_there():
    told = Told(SPREAD)
    told.tell(DeviceOut(1))
    only_m1 = tiny_plan([[(8, ["m1"])], []], NAMES)  # as it stands on device 1
    told.answer(only_m1, before=1.0, after=1.0)
    assert {g.device for g in told.one(Build).plan.gpulets} == {0}


def test_a_device_that_was_not_in_use_is_no_reason_to_pay():
    told = Told(NOW)
    told.tell(DeviceOut(1))
    assert told.answer(OTHER, before=1.0, after=0.9) == []
    assert told.stays()


def test_a_device_that_is_back_may_be_used_again():
    told = Told(NOW)
    told.tell(DeviceOut(1))
    told.answer(None, before=1.0)
    told.tell(DeviceIn(1))
    assert (told.one(Replan).devices, told.asked.why) == ((0, 1), "device 1 is back")
    assert told.core.out == set()


def test_a_device_that_goes_while_a_plan_is_made_is_asked_about_next():
    told = Told(SPREAD)
    told.call()
    assert told.tell(DeviceOut(1)) == []
    told.answer(None, before=1.0)
    assert (told.one(Replan).devices, told.asked.why) == ((0,), "device 1 is taken out")


def test_a_device_that_is_still_in_use_is_asked_about_again_after_a_pause():
    told = Told(SPREAD, steering=Steering(pause=5 * SECOND))
    told.tell(DeviceOut(1))
    told.answer(PACKED)
    told.tell(NotBuilt(1, "out of memory"))
    paused = told.now
    assert told.stays(SPREAD)
    while told.script.look_at < paused + 5 * SECOND:
        assert told.at(told.script.look_at) == []
    told.at(told.script.look_at)
    assert (told.one(Replan).devices, told.asked.why) == ((0,), "device 1 is taken out")
    told.answer(None, before=1.0, why="no plan: there is no room")
    while not told.at(told.script.look_at):
        assert told.now < paused + 20 * SECOND
    assert (told.one(Replan).devices, told.asked.why) == ((0,), "device 1 is still in use")


@pytest.mark.parametrize("is_built", [False, True])
def test_what_failed_is_tried_again_ever_more_seldom(is_built):
    told, asked = Told(steering=Steering(pause=5 * SECOND)), []
    told.call()
    for _ in range(3):
        asked.append(told.now)
        assert told.asked.why == "m0 rose"
        if is_built:
            told.answer(OTHER)
            assert told.asked.builds
            told.tell(NotBuilt(told.asked.number, "out of memory"))
            told.answer(None)
        else:
            told.tell(Replanned(told.asked.number, None, "the planner failed", 0.0, 0.0, has_failed=True))
        while not told.at(told.script.look_at):
            assert told.now < asked[-1] + 60 * SECOND
    first, second, third = asked
    assert 5 * SECOND < second - first < 7 * SECOND
    assert 10 * SECOND < third - second < 12 * SECOND


def test_what_cannot_be_built_is_tried_again_though_other_turns_came_into_force_instead():
    told = Told(steering=Steering(pause=5 * SECOND))
    told.call()
    told.answer(OTHER)
    told.tell(NotBuilt(1, "out of memory"))
    failed = told.now
    assert (told.asked.why, told.asked.builds) == ("m0 rose, and what was chosen could not be built", False)
    turned = replace(NOW, gpulets=tuple(replace(g, duty_cycle=g.duty_cycle + 1) for g in NOW.gpulets))
    told.answer(turned)
    assert told.build()
    assert told.core.in_force == turned
    while not told.at(told.script.look_at):
        assert told.now < failed + 60 * SECOND
    assert 5 * SECOND <= told.now - failed < 7 * SECOND
    assert (told.one(Replan).why, told.one(Replan).builds) == ("m0 rose", True)


def unbuilt(*events):
    """What was to be built could not be; these came meanwhile."""
    told = Told(steering=Steering(pause=5 * SECOND))
    told.call()
    told.answer(OTHER)
    told.tell(*events)
    told.tell(NotBuilt(1, "out of memory"))
    return told


def test_what_was_asked_for_while_a_build_failed_may_build():
    told = unbuilt(DeviceOut(1))
    assert (told.asked.why, told.asked.builds) == ("device 1 is taken out", True)


def test_rates_that_move_while_other_turns_are_looked_for_are_answered_by_turns_as_well():
    told = unbuilt()
    told.script.says = Demand({"m0": 90.0, "m1": 10.0}, {"m0": 90.0, "m1": 10.0})
    told.at(told.script.look_at)
    told.answer(NOW)
    assert "since then m0 went from" in told.one(Replan).why
    assert not told.asked.builds


def test_a_plan_that_is_frozen_while_other_turns_are_looked_for_is_not_built_upon_in_haste():
    told = unbuilt()
    told.tell(Freeze(is_on=True))
    told.tell(Freeze(is_on=False))
    assert not told.one(Replan).builds


def test_a_plan_that_was_asked_for_ends_what_could_not_be_built():
    told = unbuilt(Force(1, SPREAD))
    assert told.build()
    for gpulet in (0, 1):  # whose places are others' now
        assert gpulet not in told.core.fleet.gpulets
    for _ in range(20):
        assert told.at(told.script.look_at) == []


def test_other_turns_that_cannot_be_built_either_are_not_asked_for_again():
    told = Told()
    told.call()
    for _ in range(2):
        told.answer(OTHER)
        told.tell(NotBuilt(told.asked.number, "out of memory"))
    assert told.all(Replan) == []


def test_for_a_plan_that_was_asked_for_and_could_not_be_built_there_is_nothing_instead():
    told = Told()
    told.tell(Force(1, OTHER))
    told.tell(NotBuilt(-1, "out of memory"))
    assert told.all(Replan) == []


def test_where_there_is_no_plan_none_is_asked_for_until_something_changes():
    told = Told(steering=Steering(pause=5 * SECOND))
    told.call()
    told.answer(None, before=0.5, why="no plan: m0: no")
    while told.now < 60 * SECOND:
        assert told.at(told.script.look_at) == []


# the end --------------------------------------------------------------------------------------------------------------


def test_a_server_that_stops_asks_for_nothing_more():
    told = Told()
    told.tell(Stopping())
    assert told.call() == []
    told.tell(Force(1, OTHER))
    assert (told.one(Explain).number, told.one(Explain).chosen) == (-1, "not begun: the server stops")
    assert told.tell(DeviceOut(1)) == []
    assert told.stays()


def test_a_change_that_is_under_way_ends_even_so():
    told = Told()
    told.call()
    told.answer(OTHER)
    build = told.one(Build)
    told.tell(Stopping())
    told.tell(Built(1))
    assert told.one(Adopt).plan == build.plan


# jumps ----------------------------------------------------------------------------------------------------------------


def jump(told, why="m0 jumped"):
    told.script.jumps = True
    told.script.says = replace(told.script.says, why=why)
    told.tell()
    told.script.jumps = False


def test_after_a_jump_the_other_rates_have_time_to_settle():
    told = Told(steering=Steering(settle=60 * MS))
    jump(told)
    at = told.now
    assert told.said == []
    assert told.core.wake_at == at + 60 * MS
    told.script.says = Demand({"m0": 90.0, "m1": 1.0}, {"m0": 90.0, "m1": 1.0}, "m0 jumped")
    assert told.at(at + 30 * MS) == []
    told.at(at + 60 * MS)
    assert told.one(Replan).demand == {"m0": 90.0, "m1": 1.0}
    assert told.core.wake_at == told.script.look_at


def test_where_a_plan_takes_no_time_a_jump_calls_for_one_at_once():
    told = Told(steering=Steering(planning=0))
    jump(told)
    assert told.one(Replan).why == "m0 jumped"


def test_rates_settle_no_longer_than_the_last_plan_took():
    told = Told(steering=Steering(settle=60 * MS, planning=40 * MS))
    jump(told)
    assert told.core.wake_at == told.now + 40 * MS
    told.at(told.now + 40 * MS)
    told.at(told.now + 30 * MS, Replanned(told.one(Replan).number, OVERCUT))
    told.now += 10 * SECOND
    jump(told)
    assert told.core.wake_at == told.now + 30 * MS


def test_that_no_plan_was_made_says_nothing_of_how_long_one_takes():
    told = Told(steering=Steering(settle=60 * MS, planning=40 * MS))
    told.call()
    told.at(told.now + 10 * MS, Replanned(told.one(Replan).number, None, HOLDS, 0.999))
    told.now += 10 * SECOND
    jump(told)
    assert told.core.wake_at == told.now + 40 * MS


def test_a_second_jump_does_not_put_it_off():
    told = Told(steering=Steering(settle=60 * MS))
    jump(told)
    at = told.now
    told.now = at + 30 * MS
    jump(told)
    told.at(at + 60 * MS)
    assert told.one(Replan).why == "m0 jumped"


def test_a_jump_to_what_was_planned_for_calls_for_nothing():
    told = Told(steering=Steering(settle=60 * MS))
    jump(told, "")
    assert told.at(told.now + 60 * MS) == []
    assert told.stays()


def test_rates_are_watched_by_what_comes():
    """With our own watch: m0 goes from 10/s to 400/s."""
    told = Told(estimator=Watch({m.name: m for m in MODELS}, {"m0": 10.0, "m1": 10.0}))
    for n in range(1, 401):
        told.at(SECOND + n * SECOND // 400, Arrived(Request(n, "m0", told.now, told.now + SECOND)))
        if told.asked:
            break
    assert told.now < SECOND + 300 * MS
    assert told.asked.why.startswith("m0 rose to ")
    assert 250 < told.asked.demand["m0"] < 700
    assert told.core.demand.rates["m1"] < 12


# what serves ----------------------------------------------------------------------------------------------------------


def test_requests_are_served_while_a_plan_is_made_and_built():
    told = Told()
    told.call()
    told.arrive("m0")
    start = told.one(Start)
    told.answer(OTHER)
    told.tell(Finished(start.batch))
    assert told.one(Answer).requests == start.requests


def test_what_waits_starts_on_what_is_new_at_the_instant_it_is_adopted():
    told = Told()
    told.arrive("m0", 9)
    assert told.one(Start).on == 0, "one batch runs, the others wait"
    told.call()
    told.answer(OTHER)
    assert told.all(Start) == []
    told.build()
    start = told.one(Start)
    assert (start.on, start.model, len(start.requests)) == (2, "m0", 4)
    assert told.said.index(told.one(Adopt)) < told.said.index(start)


def test_what_stays_ends_its_batch_undisturbed_and_what_goes_ends_it_first():
    told = Told()
    told.arrive("m0")
    staying = told.one(Start)
    told.arrive("m1")
    going = told.one(Start)
    told.change(OTHER)
    assert told.all(Retire) == []
    told.tell(Finished(going.batch))
    assert (told.one(Answer).requests, told.one(Retire).gpulet) == (going.requests, going.on)
    told.tell(Finished(staying.batch))
    assert told.one(Answer).requests == staying.requests
    assert told.all(Retire) == []


def test_there_is_no_other_change_before_the_last_gpulet_has_left():
    told = Told()
    told.arrive("m1")
    going = told.one(Start)
    told.change(OTHER)
    assert told.core.is_changing
    assert told.call() == []
    assert told.tell(Force(1, SPREAD)) == []
    told.tell(Finished(going.batch))
    told.at(told.script.look_at)
    assert told.one(Build).number == -1


def test_it_is_as_idle_as_its_scheduler_and_refuses_what_that_refuses():
    told = Told()
    assert told.core.is_idle
    told.arrive("m0")
    assert not told.core.is_idle
    assert (told.core.holds("m0"), told.core.holds("m1")) == (True, False)
    assert told.arrive("nobody") == [Reject(2, Reason.UNKNOWN_MODEL)]
    assert not told.core.applications


# what is remembered ---------------------------------------------------------------------------------------------------


def test_every_decision_is_remembered_with_its_instant():
    told = Told()
    told.call()
    told.answer(None, before=1.0, why=HOLDS)
    stayed = told.now
    told.change(OTHER)
    told.tell(Freeze(is_on=True))
    assert [(at, said.number) for at, said in told.core.history] == [(stayed, 1), (told.now - MS, 2), (told.now, 0)]
    assert change_row(*told.core.history[0]) == {
        "at_s": stayed / SECOND,
        "number": 1,
        "seen": "m0 rose",
        "considered": HOLDS,
        "chosen": "the plan in force stays",
    }


def test_no_more_than_a_thousand_decisions_are_remembered():
    told = Told()
    for n in range(1001):
        told.tell(Freeze(is_on=n % 2 == 0))
    assert len(told.core.history) == 1000
    assert told.core.history[-1] == (told.now, Explain(0, "asked", "", "the plan is frozen"))
    assert told.core.history[0][0] == 3 * MS
