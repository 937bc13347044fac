"""The difference of two plans: who stays, who gets a number, where things are moved so that more stays."""

from dataclasses import replace

import pytest

from gpulet.core.staging import stage
from gpulet.device import Device, Mechanism
from gpulet.plan import Plan
from support import TINY, tiny_plan

NAMES = ["m0", "m1", "m2"]


def cut(*layout, mechanism=Mechanism.GREEN):
    return tiny_plan(list(layout), NAMES, mechanism)


def test_the_same_plan_again_changes_nothing():
    plan = cut([(4, ["m0"]), (4, ["m1"])], [(8, ["m2"])])
    staged = stage(plan, plan)
    assert staged.is_nothing
    assert (staged.stay, staged.plan) == ((0, 1, 2), plan)


def test_what_stays_keeps_its_number_and_what_is_new_gets_a_free_one():
    old = cut([(4, ["m0"]), (4, ["m1"])])
    new = cut([(4, ["m0"]), (2, ["m1"]), (2, ["m2"])])
    staged = stage(new, old)
    assert (staged.stay, staged.start, staged.stop) == ((0,), (2, 3), (1,))
    assert {g.id: g.size.sms for g in staged.plan.gpulets} == {0: 4, 2: 2, 3: 2}
    assert not staged.plan.violations()


def test_a_gpulet_stays_with_fewer_models_and_later_takes_them_back():
    old = cut([(4, ["m0", "m1"]), (4, ["m2"])])
    fewer = cut([(4, ["m0"]), (4, ["m2"])])
    staged = stage(fewer, old)
    assert staged.is_nothing
    assert staged.plan.gpulets[0].spare == ("m1",)
    assert stage(old, staged.plan).is_nothing
    assert stage(old, fewer).start, "of models that it does not hold it is another"


def test_one_that_is_down_stays_where_it_has_no_turns_and_is_built_anew_where_it_has():
    old = cut([(4, ["m0"]), (4, ["m1"])])
    both = cut([(4, ["m0"]), (4, ["m1"])])
    anew = stage(both, old, down=(1,))
    assert (anew.stay, anew.start, anew.stop) == ((0,), (2,), (1,))
    resting = stage(both.without((1,)), old, down=(1,))
    assert resting.is_nothing
    assert [(g.models, g.spare) for g in resting.plan.gpulets] == [(("m0",), ()), ((), ("m1",))]
    assert stage(both, resting.plan).is_nothing, "once it is up it serves again"


def test_equal_devices_and_equal_places_are_exchanged():
    old = cut([(4, ["m0"]), (4, ["m1"])], [(8, ["m2"])])
    new = cut([(8, ["m2"])], [(4, ["m1"]), (4, ["m0"])])
    staged = stage(new, old)
    assert staged.is_nothing
    assert staged.plan == old


def test_what_is_left_goes_into_the_gaps():
    old = cut([(2, ["m0"]), (2, ["m1"]), (4, ["m2"])])
    new = cut([(4, ["m1"]), (4, ["m2"])])
    staged = stage(new, old)
    assert staged.stay == (2,)
    assert [(g.id, g.offset) for g in staged.plan.gpulets] == [(2, 4), (3, 0)]


def test_where_the_gaps_are_too_small_it_is_as_planned():
    old = cut([(2, ["m0"]), (2, ["m1"]), (2, ["m0"]), (2, ["m1"])])
    new = cut([(4, ["m2"]), (2, ["m1"]), (2, ["m0"])])
    staged = stage(new, old)
    assert not staged.plan.violations()
    assert {g.size.sms for g in staged.plan.gpulets} == {2, 4}


def test_nothing_goes_to_a_device_that_is_out():
    old = cut([(8, ["m0"])], [(8, ["m1"])], [])
    new = cut([], [(8, ["m1"])], [(8, ["m0"])])
    staged = stage(new, old, (1, 2))
    assert {g.device for g in staged.plan.gpulets} == {1, 2}
    assert (staged.stay, staged.stop) == ((1,), (0,))


@pytest.mark.parametrize("mechanism", [Mechanism.MPS, Mechanism.CPU, Mechanism.WHOLE])
def test_several_at_one_place_are_told_apart(mechanism):
    old = cut([(4, ["m0"]), (4, ["m0"])], mechanism=mechanism)
    new = cut(
        [(4, ["m0"]), (4, ["m0"]), (4, ["m0"])] if mechanism is Mechanism.WHOLE else [(4, ["m0"])], mechanism=mechanism
    )
    staged = stage(new, old)
    assert len({g.id for g in staged.plan.gpulets}) == len(new.gpulets)
    assert len(staged.stay) == min(2, len(new.gpulets))


def test_the_loss_is_what_stands_idle_until_the_last_has_ended():
    old = cut([(4, ["m0"]), (4, ["m1"])])
    whole = cut([(8, ["m2"])])
    longest_s = max(t.latency for g in old.gpulets for t in g.turns) / 1e9
    assert stage(whole, old).loss == pytest.approx(20.0 * longest_s)
    assert stage(old, whole).loss == 0, "one that ends makes room for all"


def test_plans_without_gpulets_have_nothing_to_stage():
    old = cut([(8, ["m0"])])
    bare = Plan(old.devices)
    staged = stage(bare, old)
    assert (staged.plan, staged.stop) == (bare, (0,))
    assert stage(old, bare).start == (0,)


def test_other_turns_on_the_gpulets_there_are_stay_where_they_are():
    both = cut([(4, ["m0"]), (4, ["m0"])])
    (one, other), (last,) = both.gpulets, cut([(4, ["m2"])]).gpulets
    old = replace(both, gpulets=(replace(one, spare=("m1", "m2")), replace(other, spare=("m2",))))
    new = replace(old, gpulets=(old.gpulets[0], replace(other, turns=last.turns, spare=("m0",))))
    staged = stage(new, old)
    assert staged.is_nothing
    assert [g.models for g in staged.plan.gpulets] == [("m0",), ("m2",)]


def test_who_would_keep_more_than_the_memory_holds_begins_anew():
    devices = (Device(0, replace(TINY, memory=10), Mechanism.GREEN),)
    old = replace(cut([(4, ["m0", "m1"])]), devices=devices)
    new = replace(cut([(4, ["m0"]), (4, ["m1"])]), devices=devices)
    memory = {"m0": 4, "m1": 4}
    assert stage(new, old).stay == (0,)
    staged = stage(new, old, memory=memory)
    assert (staged.stay, staged.stop) == ((), (0,))
    assert not any(staged.plan.overfull(memory))
    assert stage(new, old, memory={"m0": 4, "m1": 2}).stay == (0,), "there is room for what it keeps"
