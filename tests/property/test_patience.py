"""An idle gpulet waits for a fuller batch as long as a model allows, and never where a deadline forbids it."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.dispatchers.dutycycle import DutyCycle
from gpulet.request import Request
from gpulet.units import MS, NEVER
from support import World, models_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1", "m2"]
LAYOUTS = [
    [[(8, NAMES)]],
    [[(4, ["m0", "m1"]), (4, ["m2", "m0"])]],
    [[(4, NAMES), (4, ["m0"])], [(4, ["m1", "m2"])]],
]
"""Gpulets of one model are equally fast: what one is too slow for is left to another, whatever the delay."""
PROFILE = tiny_profile(NAMES)
arrival = st.tuples(
    st.integers(0, 120).map(lambda n: n * MS // 4),
    st.sampled_from(NAMES),
    st.integers(5, 60).map(lambda n: n * MS),
    st.integers(1, 4),
    st.sampled_from(["", "", "7"]),
    st.sampled_from([0, 0, 0, 1, 2]),
)
death = st.tuples(st.integers(0, 40).map(lambda n: n * MS), st.integers(0, 2), st.integers(1, 20).map(lambda n: n * MS))


def run(layout, arrivals, delays, deaths, look):
    """`look` sees the world after every step."""
    models = [replace(m, max_queue_delay=delay) for m, delay in zip(models_of(3), delays, strict=True)]
    world = World(models, tiny_plan(LAYOUTS[layout], NAMES), DutyCycle, look=look)
    for when, gpulet, back_after in deaths:
        if gpulet < len(world.plan.gpulets):
            world.kill(when, gpulet, back_after)
    ordered = sorted(arrivals)
    requests = [Request(n, m, t, t + slo, *rest) for n, (t, m, slo, *rest) in enumerate(ordered, start=1)]
    world.run(requests)


def held(world, now):
    """(queue, gpulet) of what waits although an idle gpulet that has its model could still serve the first in time."""
    fleet = world.scheduler.fleet
    for name in NAMES:
        for gpulet in (g for g in fleet.gpulets.values() if g.is_idle and name in g.planned.models):
            for queue in fleet.central(name):
                if now + PROFILE.latency(name, gpulet.planned.size.sms, queue.head.rows) <= queue.head.deadline:
                    yield queue, gpulet


@settings(max_examples=150, deadline=None)
@given(
    layout=st.integers(0, 2),
    arrivals=st.lists(arrival, max_size=50),
    delays=st.tuples(*[st.sampled_from([0, 1, 3, 50]).map(lambda n: n * MS)] * 3),
    deaths=st.lists(death, max_size=2),
)
def test_what_waits_beside_an_idle_gpulet_may_wait_and_is_woken_in_time(layout, arrivals, delays, deaths):
    delay = dict(zip(NAMES, delays, strict=True))

    def look(world, now):
        for queue, gpulet in held(world, now):
            oldest, soonest = min(r.arrival for r in queue), min(r.deadline for r in queue)
            latency = next(t.latency for t in gpulet.planned.turns if t.model == queue.model)
            until = min(oldest + min(delay[queue.model], gpulet.planned.duty_cycle), soonest - 2 * latency)
            assert now < until, "held too long"
            assert queue.rows < 4, "a full batch was held"
            assert world.scheduler.wake_at <= until, "nobody wakes it in time"

    run(layout, arrivals, delays, deaths, look)


@settings(max_examples=100, deadline=None)
@given(layout=st.integers(0, 2), arrivals=st.lists(arrival, max_size=50), deaths=st.lists(death, max_size=2))
def test_without_a_delay_nothing_is_held_and_nobody_is_woken(layout, arrivals, deaths):
    def look(world, now):
        waiting = (r for queues in world.scheduler.fleet.queues.values() for queue in queues.values() for r in queue)
        assert world.scheduler.wake_at in {NEVER, *(r.deadline for r in waiting)}
        assert not [*held(world, now)], "an idle gpulet left what it could serve in time"

    run(layout, arrivals, (0, 0, 0), deaths, look)
