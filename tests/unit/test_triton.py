from dataclasses import replace

import pytest

from gpulet.core.messages import Reject, Start
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism, find_kind
from gpulet.dispatchers.triton import DynamicBatching, RateLimiter, Resource, TimeoutAction, Triton
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.uncut import uncut
from gpulet.profile import Point, Profile
from gpulet.units import MS
from support import World, models_of, requests_of, tiny_plan

KIND = find_kind("v100")


def problem(demand, devices=1, contention=0.0, slo=100, memory=0):
    """2 ms and 1 ms a row on all SMs."""
    points = tuple(Point(name, 80, rows, *[(2 + rows) * MS] * 3) for name in demand for rows in (1, 16))
    fleet = tuple(Device(d, KIND, Mechanism.MPS, contention) for d in range(devices))
    return Problem({n: Model(n, slo * MS, 16, memory) for n in demand}, demand, fleet, Profile(points))


# planner --------------------------------------------------------------------------------------------------------------


def test_every_model_is_on_every_device_at_the_speed_that_the_others_leave_it():
    plan = uncut(problem({"a": 300.0, "b": 100.0}, devices=2))
    assert isinstance(plan, Plan)
    assert [(g.device, g.models) for g in plan.gpulets] == [(0, ("a",)), (0, ("b",)), (1, ("a",)), (1, ("b",))]
    assert [g.turns[0].rate for g in plan.gpulets] == [150, 50, 150, 50]
    assert {d.mechanism for d in plan.devices} == {Mechanism.WHOLE}
    # 16 rows in 18 ms: 50 rows/s of b take 5.6 % of each device, and a has the rest.
    speed = 1 - 50 * 0.018 / 16
    assert plan.gpulets[0].turns[0].batch == 16
    assert plan.promises["a"].throughput == pytest.approx(2 * 16 / 0.018 * speed)
    assert plan.promises["a"].worst_latency == pytest.approx(36 * MS / speed, abs=2)


def test_nobody_goes_slower_than_an_equal_part_whatever_the_others_want():
    outcome = uncut(problem({"a": 10.0, "b": 5000.0}))
    assert isinstance(outcome, Infeasible)
    assert outcome.model == "b"
    assert outcome.partial.promises["a"].throughput == pytest.approx(16 / 0.036)


def test_contention_and_copies_slow_everybody():
    calm = uncut(problem({"a": 10.0, "b": 10.0}))
    rough = uncut(problem({"a": 10.0, "b": 10.0}, contention=0.5))
    twice = uncut(problem({"a": 10.0, "b": 10.0}), copies=2)
    assert isinstance(calm, Plan)
    assert isinstance(rough, Plan)
    assert isinstance(twice, Plan)
    assert rough.promises["a"].throughput < calm.promises["a"].throughput
    assert len(twice.gpulets) == 4


def test_models_that_do_not_fit_into_memory_together_are_refused():
    outcome = uncut(problem({"a": 1.0, "b": 1.0}, memory=9 * 2**30))
    assert isinstance(outcome, Infeasible)
    assert "bytes" in outcome.constraint


def test_a_model_that_nobody_asks_for_is_loaded_and_slows_nobody():
    plan = uncut(problem({"a": 300.0, "b": 0.0}))
    assert isinstance(plan, Plan)
    assert plan.promises["a"].throughput == pytest.approx(16 / 0.018)


# batcher --------------------------------------------------------------------------------------------------------------

PREFERRED = DynamicBatching((4, 8), 5000)


@pytest.mark.parametrize(
    ("batching", "rows", "age", "sent"),
    [
        (DynamicBatching(), [1, 1, 1], 0, 3),
        (DynamicBatching(), [4, 4, 4, 4, 4], 0, 4),
        (DynamicBatching((4,)), [1] * 7, 0, 7),
        (PREFERRED, [1, 1, 1], 0, 0),
        (PREFERRED, [1] * 4, 0, 4),
        (PREFERRED, [1] * 7, 0, 4),
        (PREFERRED, [1] * 7, 5, 7),
        (PREFERRED, [1] * 12, 0, 8),
        (PREFERRED, [3, 3], 0, 0),
        (PREFERRED, [3, 3, 3], 0, 3),
        (PREFERRED, [7, 7, 7], 0, 2),
        (DynamicBatching((), 5000), [1] * 15, 0, 0),
        (DynamicBatching((), 5000), [1] * 16, 0, 16),
        (DynamicBatching((), 5000), [9, 9], 0, 1),
    ],
)
def test_batches_are_formed_by_tritons_rule(batching, rows, age, sent):
    assert batching.form(rows, 16, age * MS) == sent


def world(models, layout, **options):
    plan = tiny_plan(layout, [m.name for m in models], Mechanism.WHOLE)
    return World(models, plan, lambda problem, plan: Triton(problem, plan, **options), Limits(early_drop=False))


def starts(world):
    return [(now // MS, c.model, c.rows) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]


def arrivals(*at, model=0):
    return [(ms * MS, model, 1, "", 0, False) for ms in at]


def test_a_free_instance_waits_no_longer_than_the_delay():
    models = models_of(1, slo=100 * MS)
    w = world(models, [[(8, ["m0"])]], batching=DynamicBatching((4,), 5000))
    w.run(requests_of(arrivals(0, 3, 20, 21, 22, 23), models))
    assert starts(w) == [(5, "m0", 2), (23, "m0", 4)]


def test_a_request_that_waited_too_long_is_dropped_or_comes_last():
    models = models_of(1, slo=100 * MS)
    asked = DynamicBatching(max_batch_size=1, default_timeout_microseconds=2500)
    rejecting = world(models, [[(8, ["m0"])]], batching=asked)
    assert rejecting.run(requests_of(arrivals(0, 0, 2), models)).models["m0"].expired == 1
    assert starts(rejecting) == [(0, "m0", 1), (3, "m0", 1)]
    delaying = world(models, [[(8, ["m0"])]], batching=replace(asked, timeout_action=TimeoutAction.DELAY))
    delaying.run(requests_of(arrivals(0, 0, 2), models))
    order = [c.requests for _, _, commands in delaying.steps for c in commands if isinstance(c, Start)]
    assert order == [(1,), (3,), (2,)]


def test_a_full_queue_refuses():
    models = models_of(1, slo=100 * MS)
    w = world(models, [[(8, ["m0"])]], batching=DynamicBatching(max_batch_size=1, max_queue_size=2))
    w.run(requests_of(arrivals(0, 1, 1, 1), models))
    refused = [c.request for _, _, commands in w.steps for c in commands if isinstance(c, Reject)]
    assert refused == [4]


def test_priority_two_gets_half_the_turns_of_priority_one():
    models = models_of(2, slo=1000 * MS)
    token = (Resource("SM", 100),)
    limiters = {"m0": RateLimiter(token, 1), "m1": RateLimiter(token, 2)}
    one = DynamicBatching(max_batch_size=1)
    w = world(models, [[(8, ["m0"]), (8, ["m1"])]], batching=one, limiters=limiters)
    w.run(requests_of([*arrivals(*[0] * 20), *arrivals(*[0] * 20, model=1)], models))
    first = [model for _, model, _ in starts(w)][:18]
    assert (first.count("m0"), first.count("m1")) == (12, 6)
    ends = [now for now, _, _ in starts(w)]
    assert len(set(ends)) == len(ends), "two runs held the same resource"


def test_who_is_next_but_lacks_a_resource_holds_up_everybody():
    models = models_of(3, slo=1000 * MS)
    limiters = {
        "m0": RateLimiter((Resource("a", 1, is_global=True),)),
        "m1": RateLimiter((Resource("a", 1, is_global=True),)),
        "m2": RateLimiter((Resource("b", 1),)),
    }
    w = world(models, [[(8, ["m0"]), (8, ["m1"]), (8, ["m2"])]], limiters=limiters)
    w.run(requests_of([*arrivals(0), *arrivals(1, model=1), *arrivals(2, model=2)], models))
    assert starts(w) == [(0, "m0", 1), (3, "m1", 1), (3, "m2", 1)]
