"""Who gets less: the least important first, by weight, and nobody less than its floor."""

import pytest

from gpulet.model import Model
from gpulet.shedding import allotted, shed
from gpulet.units import MS


def fleet(**wishes):
    return {name: Model(name, 40 * MS, **wish) for name, wish in wishes.items()}


ALIKE = fleet(a={}, b={})
RANKED = fleet(first={"importance": 0}, second={"importance": 1}, last={"importance": 7})
WEIGHTED = fleet(light={"weight": 1.0, "floor": 0.0}, heavy={"weight": 2.0, "floor": 0.0})
DEMAND = {"first": 100.0, "second": 100.0, "last": 100.0}


class Room:
    """A planner that has room for so many rows/s in all; it remembers what it was asked."""

    def __init__(self, most):
        self.most = most
        self.asked = []

    def __call__(self, demand):
        self.asked.append(dict(demand))
        return dict(demand) if sum(demand.values()) <= self.most else None


def test_at_no_depth_everybody_gets_all():
    assert allotted(RANKED, DEMAND, 0.0) == DEMAND


@pytest.mark.parametrize(
    ("depth", "given"),
    [
        (0.5, {"first": 100, "second": 100, "last": 55}),
        (1.0, {"first": 100, "second": 100, "last": 10}),
        (1.5, {"first": 100, "second": 55, "last": 10}),
        (2.0, {"first": 100, "second": 10, "last": 10}),
        (3.0, {"first": 10, "second": 10, "last": 10}),
    ],
)
def test_nothing_is_taken_from_a_class_before_all_that_are_less_important_are_at_their_floors(depth, given):
    assert allotted(RANKED, DEMAND, depth) == pytest.approx(given)


def test_beyond_all_floors_there_is_nothing_left_to_take():
    assert allotted(RANKED, DEMAND, 99.0) == allotted(RANKED, DEMAND, 3.0)


def test_a_model_of_twice_the_weight_gives_half_as_much_of_its_demand():
    given = allotted(WEIGHTED, {"light": 100.0, "heavy": 300.0}, 0.4)
    assert given == pytest.approx({"light": 60.0, "heavy": 240.0})


def test_at_the_end_of_its_class_a_heavy_model_is_down_to_its_floor_too():
    assert allotted(WEIGHTED, {"light": 100.0, "heavy": 300.0}, 1.0) == {"light": 0.0, "heavy": 0.0}


def test_weights_are_compared_within_a_class_alone():
    models = fleet(light={"importance": 0, "weight": 1.0, "floor": 0.0}, heavy={"importance": 1, "weight": 2.0})
    assert allotted(models, {"light": 10.0, "heavy": 10.0}, 0.5)["heavy"] == pytest.approx(5.5)


def test_a_model_that_may_lose_nothing_loses_nothing():
    models = fleet(kept={"floor": 1.0}, a={"floor": 0.0})
    assert allotted(models, {"kept": 10.0, "a": 10.0}, 1.0) == {"kept": 10.0, "a": 0.0}


def test_who_is_asked_nothing_makes_no_class_of_its_own():
    assert allotted(RANKED, {"first": 10.0, "second": 10.0}, 1.0) == pytest.approx({"first": 10.0, "second": 1.0})


@pytest.mark.parametrize("most", [195.0, 150.0, 100.0, 25.0])
def test_no_more_is_taken_than_a_sixteenth_of_a_class_beyond_the_need(most):
    demand = {"a": 100.0, "b": 100.0}
    served = sum(shed(ALIKE, demand, Room(most)).values())
    step = 200 * 0.9 / 16
    assert most - step <= served <= most


def test_the_more_important_keep_everything_while_the_rest_makes_room():
    served = shed(RANKED, DEMAND, Room(230.0))
    assert served["first"] == served["second"] == 100
    assert 10 < served["last"] <= 30


def test_where_only_the_floors_fit_they_are_what_is_left():
    assert shed(ALIKE, {"a": 100.0, "b": 50.0}, Room(15.0)) == pytest.approx({"a": 10.0, "b": 5.0})


def test_where_not_even_the_floors_fit_there_is_no_plan_and_nothing_else_is_tried():
    room = Room(14.9)
    assert shed(ALIKE, {"a": 100.0, "b": 50.0}, room) is None
    assert room.asked == [pytest.approx({"a": 10.0, "b": 5.0})]


def test_nobody_is_ever_asked_to_serve_less_than_a_floor_or_more_than_the_demand():
    room = Room(120.0)
    shed(RANKED, DEMAND, room)
    assert room.asked
    assert all(10 - 1e-9 <= rate <= 100 for demand in room.asked for rate in demand.values())
