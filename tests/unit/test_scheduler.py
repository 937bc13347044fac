from dataclasses import replace

import pytest

from gpulet.core.messages import (
    Answer,
    Arrived,
    Cancelled,
    Closed,
    Drop,
    Fail,
    Finished,
    GpuletDown,
    GpuletUp,
    Opened,
    Reason,
    Reject,
    Start,
    Stopping,
)
from gpulet.core.ports import Decision, Run
from gpulet.core.scheduler import Limits
from gpulet.dispatchers.fifo import Fifo
from gpulet.request import Request
from gpulet.units import MS, NEVER
from support import SHAPES, World, models_of, requests_of, tiny_plan, tiny_profile


def world(dispatcher=SHAPES["idle picks"], layout=((8, ("m0", "m1")),), **limits):
    return World(models_of(2), tiny_plan([layout], ["m0", "m1"]), dispatcher, Limits(**limits))


def request(number, *, model="m0", now=0, deadline=40 * MS, rows=1, **more):
    return Request(number, model, now, deadline, rows, **more)


def step(w, now, *events):
    w.timer.instant = now
    return w.scheduler.step(now, *events)


def test_an_idle_gpulet_starts_what_arrives_and_answers_when_it_is_done():
    w = world()
    (start,) = step(w, 0, Arrived(request(1, rows=2)))
    assert (start.model, start.rows, start.requests, start.on) == ("m0", 2, (1,), 0)
    assert step(w, 5, Finished(start.batch)) == [Answer(start.batch, (1,))]


def test_one_step_may_hold_many_events():
    w = world()
    (start,) = step(w, 0, Arrived(request(1)), Arrived(request(2)))
    assert start.requests == (1, 2)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [({"model": "nobody"}, Reason.UNKNOWN_MODEL), ({"rows": 9}, Reason.TOO_LARGE)],
)
def test_what_cannot_be_served_is_refused_on_arrival(bad, reason):
    assert step(world(), 0, Arrived(request(1, **bad))) == [Reject(1, reason)]


def test_queues_are_bounded_per_model():
    w = world(max_queue=2)
    commands = step(w, 0, *(Arrived(request(n)) for n in range(1, 8)))
    full = [c.request for c in commands if isinstance(c, Reject) and c.reason is Reason.QUEUE_FULL]
    assert full == [3, 4, 5, 6, 7]
    assert not [c for c in step(w, 1, Arrived(request(8, model="m1"))) if isinstance(c, Reject)]


def test_a_model_may_have_a_bound_of_its_own():
    models = [replace(model, max_queue=most) for model, most in zip(models_of(2), (1, 0), strict=True)]
    w = World(models, tiny_plan([((8, ("m0", "m1")),)], ["m0", "m1"]), SHAPES["idle picks"], Limits(max_queue=2))
    for model, taken in (("m0", 1), ("m1", 2)):
        commands = step(w, 0, *(Arrived(request(n, model=model)) for n in range(taken * 10, taken * 10 + 4)))
        assert sum(isinstance(c, Reject) and c.reason is Reason.QUEUE_FULL for c in commands) == 4 - taken


def test_what_still_waits_at_its_deadline_is_dropped_without_any_event():
    w = world()
    step(w, 0, Arrived(request(1)))
    step(w, 0, Arrived(request(2, deadline=3 * MS)))
    assert w.scheduler.wake_at == 3 * MS
    assert step(w, 3 * MS) == [Drop(2, Reason.EXPIRED)]
    assert w.scheduler.wake_at == NEVER


def test_without_early_drop_only_hard_deadlines_count():
    w = world(early_drop=False)
    step(w, 0, Arrived(request(1)))
    step(w, 0, Arrived(request(2, deadline=MS)), Arrived(request(3, deadline=2 * MS, hard=True)))
    assert step(w, 2 * MS) == [Drop(3, Reason.EXPIRED)]
    (answer, start) = step(w, 5 * MS, Finished(1))
    assert start.requests == (2,)


def test_a_cancelled_request_leaves_the_queue_and_a_running_one_does_not():
    w = world()
    (start,) = step(w, 0, Arrived(request(1)))
    step(w, 0, Arrived(request(2)))
    assert step(w, 1, Cancelled(2)) == [Drop(2, Reason.CANCELLED)]
    assert step(w, 1, Cancelled(1)) == []
    assert step(w, 2, Finished(start.batch)) == [Answer(start.batch, (1,))]


def test_a_dead_workers_batch_is_tried_once_more_and_then_failed():
    w = world()
    step(w, 0, Arrived(request(1)))
    assert step(w, 1, GpuletDown(0)) == []
    (again,) = step(w, 2, GpuletUp(0))
    assert isinstance(again, Start)
    assert again.requests == (1,)
    assert step(w, 3, GpuletDown(0)) == [Fail(1, Reason.WORKER_LOST)]


def test_a_dead_workers_batch_is_failed_at_once_when_its_deadline_has_passed():
    w = world()
    step(w, 0, Arrived(request(1, deadline=5)))
    assert step(w, 6, GpuletDown(0)) == [Fail(1, Reason.WORKER_LOST)]


def test_a_retried_request_that_nobody_can_run_expires():
    w = world(early_drop=False)
    step(w, 0, Arrived(request(1, deadline=9 * MS)))
    step(w, 1, GpuletDown(0))
    assert step(w, 9 * MS) == [Drop(1, Reason.EXPIRED)]


def test_a_stopping_server_takes_nothing_new_and_finishes_what_it_has():
    w = world()
    step(w, 0, Arrived(request(1)))
    assert step(w, 1, Stopping(), Arrived(request(2))) == [Reject(2, Reason.STOPPED)]
    assert not w.scheduler.is_idle
    assert step(w, 2, Finished(1)) == [Answer(1, (1,))]
    assert w.scheduler.is_idle


def test_urgent_requests_go_first_and_priority_0_last():
    w = world()
    step(w, 0, Arrived(request(1)))
    step(w, 0, *(Arrived(request(n, priority=p)) for n, p in ((2, 0), (3, 2), (4, 1), (5, 1))))
    (_, start) = step(w, 1, Finished(1))
    assert start.requests == (4, 5, 3, 2)


def test_unequal_shapes_wait_in_queues_of_their_own():
    w = world()
    step(w, 0, Arrived(request(1)))
    step(w, 0, *(Arrived(request(n, shape=s)) for n, s in ((2, "7"), (3, "9"), (4, "7"))))
    (_, start) = step(w, 1, Finished(1))
    assert (start.shape, start.requests) == ("7", (2, 4))


def test_a_closed_model_refuses_what_arrives_serves_what_is_here_and_opens_again():
    w = world(SHAPES["idle picks"])
    (first,) = step(w, 0, Arrived(request(1)))
    assert step(w, 1, Arrived(request(2)), Closed("m0"), Arrived(request(3))) == [Reject(3, Reason.NOT_LOADED)]
    assert w.scheduler.holds("m0")
    assert isinstance(step(w, 2, Finished(first.batch))[-1], Start)
    assert step(w, 3, Finished(first.batch + 1)) == [Answer(first.batch + 1, (2,))]
    assert not w.scheduler.holds("m0")
    assert isinstance(step(w, 4, Arrived(request(4, model="m1")))[0], Start)
    assert isinstance(step(w, 5, Finished(first.batch + 2), Opened("m0"), Arrived(request(5)))[-1], Start)


class Careless:
    """A dispatcher that breaks a rule."""

    def __init__(self, decide):
        self.bind = SHAPES["idle picks"](None, None).bind
        self._decide = decide

    def decide(self, now, changed, fleet):
        return self._decide(now, fleet) if fleet.waiting else Decision()


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda now, fleet: Decision(wake_at=now), "not after"),
        (lambda now, fleet: Decision([Run(0, list(fleet.queue("m0", ""))[:1])] * 1, more=True), "runs batch"),
        (
            lambda now, fleet: Decision([Run(0, [*fleet.queue("m0", ""), *fleet.queue("m1", "")])]),
            "a batch of m0 holds m1",
        ),
    ],
)
def test_a_dispatcher_that_breaks_a_rule_is_stopped(decide, message):
    w = world(lambda problem, plan: Careless(decide))
    with pytest.raises(AssertionError, match=message):
        step(w, 0, Arrived(request(1)), Arrived(request(2)), Arrived(request(3, model="m1")))


def test_fifo_refuses_what_no_gpulet_runs_at_once():
    plan = tiny_plan([((8, ("m0",)),)], ["m0"])
    w = World(models_of(1), plan, Fifo, profile=tiny_profile(["m0"], largest=4))
    assert step(w, 0, Arrived(request(1, rows=5))) == [Reject(1, Reason.TOO_LARGE)]


def test_fifo_serves_the_oldest_of_its_models():
    w = world(Fifo, early_drop=False)
    arrivals = [(0, 0, 1, "", 0, False), (1, 1, 1, "", 0, False), (2, 0, 1, "", 0, False), (3, 1, 1, "", 0, False)]
    w.run(requests_of(arrivals, models_of(2)))
    assert [c.requests for _, _, commands in w.steps for c in commands if isinstance(c, Start)] == [(1,), (2, 4), (3,)]
