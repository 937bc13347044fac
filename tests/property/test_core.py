"""The core's rules, for every registered dispatcher and for one of each shape, under deaths, cancels and ties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.journal import encode_step
from gpulet.core.scheduler import Limits
from gpulet.device import Mechanism
from gpulet.plan import Plan
from gpulet.units import MS
from support import CARVES, DISPATCHERS, World, models_of, requests_of, tiny_plan

NAMES = ["m0", "m1", "m2"]
LAYOUTS = [
    [[(8, NAMES)]],
    [[(4, ["m0", "m1"]), (4, ["m2", "m0"])]],
    [[(2, NAMES), (2, ["m0"]), (4, ["m1", "m2"])], [(8, NAMES)]],
    [[(4, NAMES, 2), (2, ["m0"]), (2, ["m1"], 2)]],
    [[(8, NAMES), (8, ["m0"]), (2, ["m1", "m2"])]],
]
WHOLE = 4
"""The layout whose gpulets overlap: its runs slow each other."""

# Small integers, so that ties happen.
arrival = st.tuples(
    st.integers(0, 30).map(lambda n: n * MS),
    st.integers(0, 2),
    st.integers(1, 4),
    st.sampled_from(["", "", "7"]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.booleans(),
)
death = st.tuples(st.integers(0, 40).map(lambda n: n * MS), st.integers(0, 3), st.integers(1, 20).map(lambda n: n * MS))
cancel = st.tuples(st.integers(0, 40).map(lambda n: n * MS), st.integers(1, 20))


def world_of(name, layout, limits):
    models = models_of(3)
    plan = tiny_plan(LAYOUTS[layout], NAMES, Mechanism.WHOLE if layout == WHOLE else Mechanism.GREEN)
    if name in CARVES:
        plan = Plan(plan.devices)
    return World(models, plan, DISPATCHERS[name], limits), models


@pytest.mark.parametrize("name", DISPATCHERS)
@settings(max_examples=60, deadline=None)
@given(
    layout=st.integers(0, WHOLE),
    arrivals=st.lists(arrival, max_size=40),
    deaths=st.lists(death, max_size=3),
    cancels=st.lists(cancel, max_size=4),
    limits=st.builds(Limits, st.sampled_from([2, 5, 1000]), st.booleans()),
)
def test_every_request_is_answered_exactly_once_and_nothing_is_overcut(name, layout, arrivals, deaths, cancels, limits):
    world, models = world_of(name, layout, limits)
    for when, gpulet, back_after in deaths:
        if gpulet < len(world.plan.gpulets):
            world.kill(when, gpulet, back_after)
    for when, request in cancels:
        world.cancel(when, request)
    metrics = world.run(requests_of(arrivals, models))
    for counts in metrics.models.values():
        assert counts.unanswered == 0
        answered = counts.served + counts.rejected + counts.expired + counts.cancelled + counts.failed
        assert counts.arrived == answered
    assert world.scheduler.is_idle


@pytest.mark.parametrize("name", DISPATCHERS)
@settings(max_examples=20, deadline=None)
@given(layout=st.integers(0, WHOLE), arrivals=st.lists(arrival, max_size=40))
def test_the_same_arrivals_give_the_same_journal_byte_for_byte(name, layout, arrivals):
    journals = []
    for _ in range(2):
        world, models = world_of(name, layout, Limits())
        world.run(requests_of(arrivals, models))
        journals.append(b"".join(encode_step(*step) for step in world.steps))
    assert journals[0] == journals[1]


@pytest.mark.parametrize("name", ["dedicated", "gpulet", "elastic", "idle picks"])
@settings(max_examples=30, deadline=None)
@given(arrivals=st.lists(arrival, min_size=1, max_size=30))
def test_a_batch_that_a_model_fails_fails_its_requests_once(name, arrivals):
    world, models = world_of(name, 1, Limits())
    world.executor.poisoned = set(range(1, 1000, 2))
    metrics = world.run(requests_of(arrivals, models))
    assert sum(c.failed for c in metrics.models.values()) > 0 or not any(c.batches for c in metrics.models.values())
