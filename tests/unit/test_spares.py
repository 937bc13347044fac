"""Spare models: on every gpulet that has no turn for them, as far as memory goes and as many bytes as are allowed."""

from dataclasses import replace

import pytest

from gpulet.model import Model
from gpulet.spares import Spares
from gpulet.units import MS
from support import tiny_plan

NAMES = ["m0", "m1", "m2"]
APART = tiny_plan([[(4, ["m0"]), (4, ["m1"])]], NAMES)
SIZES = {"m0": 10, "m1": 20, "m2": 30}


def light(memory=1, names=NAMES):
    return {name: Model(name, 40 * MS, memory=memory) for name in names}


def spare(plan):
    return [g.spare for g in plan.gpulets]


def test_every_gpulet_holds_every_model_where_there_is_room():
    plan = Spares(1000, SIZES).added(APART, light())
    assert spare(plan) == [("m1", "m2"), ("m0", "m2")]
    assert [g.turns for g in plan.gpulets] == [g.turns for g in APART.gpulets]
    assert all(g.held == set(NAMES) for g in plan.gpulets)


def test_without_an_allowance_a_plan_is_left_as_it_is():
    assert Spares().added(APART, light()) is APART
    assert Spares(0, SIZES).added(APART, light()) is APART


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (49, [(), ("m0", "m2")]),  # the first gpulet would take 20 + 30
        (50, [("m1", "m2"), ()]),
        (89, [("m1", "m2"), ()]),
        (90, [("m1", "m2"), ("m0", "m2")]),
        (39, [(), ()]),
    ],
)
def test_a_gpulet_gets_all_its_spares_or_none_within_the_allowance(most, expected):
    assert spare(Spares(most, SIZES).added(APART, light())) == expected


def test_a_model_of_unknown_size_counts_nothing():
    assert spare(Spares(30, {"m2": 30}).added(APART, light())) == [("m1", "m2"), ()]
    assert spare(Spares(1, {}).added(APART, light())) == [("m1", "m2"), ("m0", "m2")]


def test_what_is_held_already_counts_and_stays():
    once = Spares(50, SIZES).added(APART, light())
    assert spare(Spares(40, SIZES).added(once, light())) == spare(once)
    assert spare(Spares(90, SIZES).added(once, light())) == [("m1", "m2"), ("m0", "m2")]


def test_a_spare_that_is_no_model_of_these_stays_where_it_is():
    held = Spares(1000).added(APART, light())
    assert spare(Spares(1000).added(held, light(names=["m0", "m1"]))) == spare(held)


@pytest.mark.parametrize(("memory", "expected"), [(16, 2), (17, 1), (20, 1), (25, 1), (26, 0)])
def test_a_device_is_never_fuller_than_its_memory(memory, expected):
    """Of 100 bytes; two copies are there, each gpulet that is filled makes it two more."""
    models = light(memory)
    plan = Spares(1000, SIZES).added(APART, models)
    assert sum(map(bool, spare(plan))) == expected
    assert not [*plan.overfull(dict.fromkeys(models, memory))]


def test_a_full_device_leaves_another_its_spares():
    plan = tiny_plan([[(4, ["m0"]), (4, ["m0"])], [(8, ["m1"])]], NAMES)
    assert spare(Spares(1000, SIZES).added(plan, light(33))) == [(), (), ("m0", "m2")]


def test_every_process_of_a_gpulet_has_a_copy_that_counts():
    plan = tiny_plan([[(8, ["m0"], 2)]], ["m0", "m1"])
    models = light(names=["m0", "m1"])
    assert spare(Spares(39, SIZES).added(plan, models)) == [("m1",), ()]
    assert spare(Spares(40, SIZES).added(plan, models)) == [("m1",), ("m1",)]


def test_a_gpulet_that_stands_for_several_processes_counts_each_copy():
    unfolded = tiny_plan([[(8, ["m0"], 2)]], ["m0", "m1"])
    models = light(names=["m0", "m1"])
    folded = replace(unfolded, gpulets=(replace(unfolded.gpulets[0], process=0),))
    assert spare(Spares(39, SIZES).added(folded, models)) == [()]
    assert spare(Spares(40, SIZES).added(folded, models)) == [("m1",)]
