from functools import partial
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.core.messages import Start
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism
from gpulet.dispatchers.greedy import Greedy, Offer, Rule, least_used_first, richest, smallest_first
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Size, Turn
from gpulet.profile import Point, Profile
from gpulet.units import MS
from support import SMS, TINY, World, requests_of

offers = st.lists(st.builds(Offer, st.integers(1, 8), st.integers(1, 9).map(float)), max_size=7)


@given(offers=offers, room=st.integers(0, 12))
def test_no_other_set_that_fits_is_worth_more(offers, room):
    chosen = richest(offers, room)
    assert len(set(chosen)) == len(chosen)
    assert sum(offers[n].sms for n in chosen) <= room
    sets = [c for k in range(len(offers) + 1) for c in combinations(offers, k)]
    best = max(sum(o.worth for o in c) for c in sets if sum(o.sms for o in c) <= room)
    assert sum(offers[n].worth for n in chosen) == best


def test_the_smallest_go_first_as_many_as_fit():
    assert smallest_first([Offer(4, 9), Offer(2, 1), Offer(3, 1)], 6) == [1, 2]
    assert smallest_first([Offer(4, 9), Offer(5, 1)], 3) == []


def test_who_had_least_goes_first_and_who_does_not_fit_is_passed_over():
    assert least_used_first([Offer(4, 1, 9), Offer(5, 1, 3), Offer(2, 1, 5)], 6) == [1]
    assert least_used_first([Offer(4, 1, 9), Offer(5, 1, 3), Offer(2, 1, 5)], 9) == [1, 2]
    assert least_used_first([Offer(7, 1, 1), Offer(2, 1, 5)], 6) == [1]


# Two models that need 2 SMs, quick, and one that needs 6, slow; nothing is faster beyond.
KNEES = {"light": (2, 2 * MS), "medium": (4, 4 * MS), "heavy": (6, 12 * MS)}


def world(rule):
    points = [
        Point(name, size, rows, *[took * max(1, knee / size) + rows] * 3)
        for name, (knee, took) in KNEES.items()
        for size in range(1, SMS + 1)
        for rows in (1, 4)
    ]
    profile = Profile(tuple(Point(p.model, p.size, p.rows, *[round(p.mean)] * 3) for p in points))
    models = [Model(name, 100 * MS, 4) for name in KNEES]
    turns = tuple(Turn(m.name, 4, 1.0, MS) for m in models)
    plan = Plan((Device(0, TINY, Mechanism.GREEN),), (Gpulet(0, 0, Size(SMS, 100.0), 0, 4 * MS, turns),))
    return World(models, plan, partial(Greedy, rule=rule), Limits(early_drop=False), profile=profile), models


@pytest.mark.parametrize("rule", Rule)
def test_models_run_side_by_side_at_their_knees(rule):
    w, models = world(rule)
    w.run(requests_of([(0, m, 4, "", 0, False) for m in range(3) for _ in range(5)], models))
    runs = [(now, c) for now, _, commands in w.steps for c in commands if isinstance(c, Start)]
    sizes = {c.model: c.on.size for _, c in runs}
    assert sizes == {name: knee for name, (knee, _) in KNEES.items()}
    assert [c.model for now, c in runs if now == 0] == ["light", "medium"]


def test_max_throughput_starves_the_slow_until_the_quick_are_done():
    w, models = world(Rule.MAX_THROUGHPUT)
    w.run(requests_of([(0, m, 4, "", 0, False) for m in range(3) for _ in range(5)], models))
    order = [c.model for _, _, commands in w.steps for c in commands if isinstance(c, Start)]
    assert "heavy" not in order[: order.index("medium") + 5]
    assert order[-5:] == ["heavy"] * 5
