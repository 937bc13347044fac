"""Who gives way: least recently used first, never who is pinned or in use, nobody in vain."""

import pytest

from gpulet.core.residents import Loaded, Room, affordable, idle, room_for

OLD, MIDDLE, NEW = Loaded("old", 40, 1), Loaded("middle", 30, 2), Loaded("new", 20, 3)
PINNED, BUSY = Loaded("pinned", 50, 0, is_pinned=True), Loaded("busy", 50, 0, is_busy=True)


@pytest.mark.parametrize(
    ("needs", "limit", "room"),
    [
        (10, 100, Room()),
        (11, 100, Room(("old",))),
        (50, 100, Room(("old",))),
        (51, 100, Room(("old", "middle"))),
        (100, 100, Room(("old", "middle", "new"))),
        (101, 100, Room(lacks=1)),
    ],
)
def test_the_least_recently_used_go_and_no_more_than_needed(needs, limit, room):
    assert room_for(needs, (NEW, OLD, MIDDLE), limit) == room


def test_who_is_pinned_or_in_use_never_goes_though_it_was_used_first():
    assert room_for(20, (PINNED, BUSY, NEW), 120) == Room(("new",))
    assert room_for(21, (PINNED, BUSY, NEW), 120) == Room(lacks=1)


def test_two_models_used_at_once_go_by_name():
    assert room_for(1, (Loaded("b", 5, 1), Loaded("a", 5, 1)), 10) == Room(("a",))


def test_idle_are_those_that_nobody_asked_for_so_long_and_that_are_not_pinned():
    assert idle((OLD, MIDDLE, PINNED, BUSY), now=12, after=11) == ("old",)
    assert idle((OLD, MIDDLE), now=12, after=10) == ("old", "middle")


def test_at_the_start_pinned_models_come_first_and_then_who_fits_in_order():
    sizes = {"a": 40, "b": 70, "c": 30, "p": 30}
    assert affordable(sizes, {"p"}, 100) == ("a", "c", "p")
    assert affordable(sizes, {"b", "p"}, 90) == ("b", "p")
    assert affordable({}, {"p"}, 90) == ()
