"""Random schedules of faults and changes of plan: the same ones every time, and some that nobody has seen yet."""

import random

import pytest

from faults import run

PIECE = 250


@pytest.mark.parametrize("first", range(0, 1750, PIECE))
def test_every_rule_holds_through_faults_and_changes_of_plan(first):
    assert run(range(first, first + PIECE)) > PIECE


def test_and_in_schedules_that_nobody_has_seen_yet():
    seed = random.SystemRandom().randrange(10**6, 10**9)
    print(f"schedules from seed {seed}")  # noqa: T201 (whoever reads a failure needs it)
    assert run(range(seed, seed + PIECE)) > 0
