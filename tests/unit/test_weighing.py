"""Whether a change pays: rows gained over a horizon against rows lost on the way, and devices that are saved."""

from dataclasses import replace

import pytest

from gpulet.core.staging import stage
from gpulet.core.weighing import Offer, Weights, weigh
from gpulet.units import SECOND
from support import tiny_plan

NAMES = ["m0", "m1"]
SPREAD = tiny_plan([[(8, ["m0"])], [(8, ["m1"])]], NAMES)
PACKED = tiny_plan([[(4, ["m0"]), (4, ["m1"])], []], NAMES)


def offer(before, after, *, rate=100.0, loss=0.0, in_force=SPREAD, plan=SPREAD):
    return Offer(rate, before, after, in_force, replace(stage(plan, in_force), loss=loss))


@pytest.mark.parametrize(
    ("before", "after", "loss", "is_change"),
    [
        (0.90, 0.95, 149.0, True),  # 5 % of 100/s for 30 s are 150 rows
        (0.90, 0.95, 151.0, False),
        (0.95, 0.90, 0.0, False),
        (0.90, 0.90, 0.0, False),
    ],
)
def test_a_plan_is_worth_its_change_when_it_gains_more_than_it_costs(before, after, loss, is_change):
    assert weigh(offer(before, after, loss=loss), Weights()).is_change is is_change


def test_what_only_makes_up_for_its_cost_is_not_worth_it():
    assert not weigh(offer(0.5, 0.75, rate=4.0, loss=30.0), Weights()).is_change
    assert weigh(offer(0.5, 0.75, rate=4.0, loss=29.9), Weights()).is_change


def test_the_longer_a_plan_lasts_the_more_its_change_may_cost():
    dear = offer(0.90, 0.95, loss=160.0)
    assert not weigh(dear, Weights(horizon=30 * SECOND)).is_change
    assert weigh(dear, Weights(horizon=40 * SECOND)).is_change


def test_the_busier_the_models_the_more_a_change_may_cost():
    assert not weigh(offer(0.90, 0.95, rate=100.0, loss=160.0), Weights()).is_change
    assert weigh(offer(0.90, 0.95, rate=120.0, loss=160.0), Weights()).is_change


def test_a_gain_below_the_least_is_none_even_where_the_change_is_free():
    assert not weigh(offer(0.9900, 0.9905), Weights(least=0.001)).is_change
    assert weigh(offer(0.9900, 0.9905), Weights(least=0.0004)).is_change


@pytest.mark.parametrize(
    ("after", "loss", "is_change"),
    [(1.0, 0.0, True), (0.998, 0.0, True), (0.996, 0.0, False), (1.0, 8.0, True), (1.0, 10.0, False)],
)
def test_a_device_is_saved_where_no_more_than_the_slack_is_lost(after, loss, is_change):
    verdict = weigh(offer(1.0, after, loss=loss, plan=PACKED), Weights(slack=0.003))
    assert verdict.is_change is is_change  # 0.3 % of 3000 rows are 9


def test_what_is_lost_on_the_way_and_in_attainment_share_one_slack():
    assert not weigh(offer(1.0, 0.998, loss=4.0, plan=PACKED), Weights(slack=0.003)).is_change
    assert weigh(offer(1.0, 0.998, loss=2.0, plan=PACKED), Weights(slack=0.003)).is_change


def test_a_device_more_is_nothing_saved():
    more = offer(1.0, 1.0, in_force=PACKED, plan=SPREAD)
    assert more.saved == -1
    assert not weigh(more, Weights()).is_change


def test_a_device_is_given_back_when_nobody_asks_for_anything():
    idle = offer(1.0, 1.0, rate=0.0, plan=PACKED)
    assert idle.saved == 1
    assert weigh(idle, Weights()).is_change
    assert not weigh(replace(idle, rate=0.0, stage=replace(idle.stage, loss=1.0)), Weights()).is_change


def test_what_must_change_changes_at_any_price():
    worse = offer(1.0, 0.2, loss=1e6)
    assert not weigh(worse, Weights()).is_change
    verdict = weigh(worse, Weights(), must=True)
    assert verdict.is_change
    assert verdict.chosen == "the new plan, for the old one cannot stay"


def test_what_is_gained_comes_before_what_is_saved():
    both = weigh(offer(0.90, 0.95, plan=PACKED), Weights())
    assert both.chosen == "the new plan, for what it gains"
    assert weigh(offer(0.95, 0.95, plan=PACKED), Weights()).chosen == "the new plan, for 1 devices less"


def test_what_was_considered_is_told_with_its_numbers():
    told = weigh(offer(0.90, 0.95, loss=2.5, plan=PACKED), Weights()).considered
    assert told == (
        "in time 90.00% to 95.00% of 100.0/s, devices 2 to 1; 0 gpulets stay, 2 start, 2 stop; "
        "+150.0 rows in 30 s, the change costs up to 2.5"
    )
