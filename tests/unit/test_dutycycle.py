from collections import Counter
from dataclasses import replace

import pytest

from gpulet.core.messages import Answer, Arrived, Drop, Finished, GpuletUp, Reason, Reject, Start
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.dutycycle import DutyCycle, Hold
from gpulet.drivers.sim import simulate
from gpulet.request import Request
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, poisson
from support import World, models_of, problem_of, requests_of, tiny_plan

PLAIN = ("", 0, False)


def world(layout, hold=Hold.NONE, drops_early=True, slo=40 * MS, delays=(0, 0)):
    names = sorted({name for cut in layout for _, models in cut for name in models})
    models = [replace(m, max_queue_delay=delay) for m, delay in zip(models_of(len(names), slo), delays, strict=False)]
    plan = tiny_plan(layout, names)
    return World(
        models,
        plan,
        lambda problem, plan: DutyCycle(problem, plan, hold=hold, drops_early=drops_early),
        Limits(early_drop=drops_early),
    ), models


def starts(w):
    return [(now, c) for now, _, commands in w.steps for c in commands if isinstance(c, Start)]


def test_an_idle_gpulet_does_not_wait():
    w, models = world([[(8, ["m0"])]])
    w.run(requests_of([(5, 0, 1, *PLAIN)], models))
    assert [now for now, _ in starts(w)] == [5]


def test_holding_builds_a_batch_until_it_is_full():
    w, models = world([[(8, ["m0"])]], Hold.DUTY)
    w.run(requests_of([(n * MS // 10, 0, 1, *PLAIN) for n in range(4)], models))
    assert [(now, c.rows) for now, c in starts(w)] == [(3 * MS // 10, 4)]


def test_holding_ends_after_one_duty_cycle():
    w, models = world([[(8, ["m0"])]], Hold.DUTY)
    w.run(requests_of([(MS, 0, 1, *PLAIN), (2 * MS, 0, 1, *PLAIN)], models))
    duty = w.plan.gpulets[0].duty_cycle
    assert [(now, c.rows) for now, c in starts(w)] == [(MS + duty, 2)]


DELAYED = (3 * MS, 0)
ALONE, TWICE, SHARED = [[(8, ["m0"])]], [[(4, ["m0"]), (4, ["m0"])]], [[(8, ["m0", "m1"])]]


def delayed(layout, arrivals, slo=40 * MS, delays=DELAYED):
    """(ms, rows, gpulet) of every start; arrivals are (ms, model) or whole tuples."""
    w, models = world(layout, slo=slo, delays=delays)
    w.run(requests_of([(ms * MS, *(rest if len(rest) > 1 else (*rest, 1, *PLAIN))) for ms, *rest in arrivals], models))
    return [(now / MS, c.rows, c.on) for now, c in starts(w)]


def test_an_idle_gpulet_waits_the_models_delay_for_a_fuller_batch():
    assert delayed(ALONE, [(1, 0), (2, 0), (3, 0)]) == [(4, 3, 0)]


def test_who_fills_the_batch_starts_it_at_once():
    assert delayed(ALONE, [(1, 0), (1, 0), (2, 0), (3, 0), (3, 0)]) == [(3, 4, 0), (9, 1, 0)]
    assert delayed(ALONE, [(1, 0), (2, 0, 4, *PLAIN)]) == [(2, 1, 0), (5, 4, 0)]


def test_a_gpulet_waits_no_longer_than_its_duty_cycle():
    assert delayed(ALONE, [(1, 0)], slo=400 * MS, delays=(99 * MS,)) == [(7, 1, 0)]


def test_a_batch_starts_while_two_runs_of_a_full_one_are_in_time():
    assert delayed(ALONE, [(1, 0)], slo=14 * MS) == [(3, 1, 0)]
    assert delayed(ALONE, [(1, 0)], slo=12 * MS) == [(1, 1, 0)]


def test_a_later_request_with_less_time_ends_the_wait_of_all():
    w, _ = world(ALONE, delays=DELAYED)
    w.run([Request(1, "m0", 0, 40 * MS), Request(2, "m0", MS, 14 * MS), Request(3, "m0", MS + MS // 2, 40 * MS)])
    assert [(now, c.rows) for now, c in starts(w)] == [(2 * MS, 3)]


def test_a_request_of_priority_does_not_make_those_behind_it_wait_longer():
    assert delayed(ALONE, [(0, 0), (1, 0, 1, "", 2, False), (2, 0, 1, "", 1, False)]) == [(3, 3, 0)]


def test_several_idle_gpulets_start_one_batch_when_the_wait_ends():
    first, second, _ = delayed(TWICE, [(0, 0), (1, 0), (10, 0), (11, 0), (40, 0)], slo=100 * MS)
    assert first[:2] == (3, 2)
    assert second[:2] == (13, 2)
    assert {first[2], second[2]} == {0, 1}


def test_while_one_model_waits_another_has_the_gpulet():
    assert delayed(SHARED, [(0, 0), (1, 1)], slo=100 * MS) == [(1, 1, 0), (4, 1, 0)]


def test_the_turns_of_other_models_are_allowed_for():
    assert delayed(ALONE, [(0, 0)], slo=20 * MS) == [(3, 1, 0)]
    assert delayed(SHARED, [(0, 0)], slo=20 * MS) == [(2, 1, 0)]  # a turn of 6 ms of m1, and twice as much of m0


def test_what_a_death_brings_back_is_not_held_once_more():
    w, models = world(ALONE, delays=DELAYED)
    w.kill(5 * MS, 0, MS)
    w.run(requests_of([(MS, 0, 1, *PLAIN)], models))
    assert [now for now, _ in starts(w)] == [4 * MS, 6 * MS]


def test_models_of_a_gpulet_take_turns():
    w, models = world([[(8, ["m0", "m1"])]], slo=400 * MS)
    w.run(requests_of([(0, m, 1, *PLAIN) for m in (0, 1) for _ in range(12)], models))
    assert [c.model for _, c in starts(w)][:6] == ["m0", "m1", "m0", "m1", "m0", "m1"]


def test_gpulets_of_one_model_share_it_in_proportion_to_their_throughput():
    w, models = world([[(2, ["m0"]), (4, ["m0"])]], slo=400 * MS)
    rows = Counter()
    w.run(requests_of([(n * 30 * MS, 0, 1, *PLAIN) for n in range(300)], models))
    for _, start in starts(w):
        rows[start.on] += start.rows
    assert rows[1] / rows[0] == pytest.approx(2, rel=0.05)


def test_the_shortest_duty_cycle_ends_the_wait():
    w, models = world([[(2, ["m0"]), (4, ["m0"])]], Hold.DUTY, slo=400 * MS)
    duties = [g.duty_cycle for g in w.plan.gpulets]
    assert duties[1] < duties[0]
    w.run(requests_of([(MS, 0, 1, *PLAIN)], models))
    assert [(now, c.on) for now, c in starts(w)] == [(MS + duties[1], 1)]


def test_shape_classes_of_one_model_do_not_starve_each_other():
    w, models = world([[(8, ["m0"])]], slo=100 * MS)
    often = [(n * MS, 0, 1, "a", 0, False) for n in range(300)]
    seldom = [(n * 10 * MS, 0, 1, "b", 0, False) for n in range(30)]
    w.run(requests_of(often + seldom, models))
    served = Counter(c.shape for _, c in starts(w) for _ in c.requests)
    assert served["b"] >= 15  # of 30, while the other class alone is half as much again as the gpulet can serve


def test_an_idle_gpulet_that_is_too_slow_leaves_a_request_to_a_faster_one():
    w, models = world([[(1, ["m0"]), (4, ["m0"])]], slo=40 * MS)
    w.run(requests_of([(0, 0, 4, *PLAIN), (MS, 0, 4, *PLAIN)], models))
    assert [c.on for _, c in starts(w)] == [1, 1]
    assert w.metrics.models["m0"].served == 2


def test_two_idle_gpulets_do_not_wait_for_each_other():
    w, _ = world([[(4, ["m0"]), (4, ["m0"])]])
    step = w.scheduler.step
    due = 100 * MS
    running = step(0, *(Arrived(Request(n, "m0", 0, due)) for n in (1, 2)))
    running += step(0, Arrived(Request(3, "m0", 0, due)))
    step(1, *(Arrived(Request(n, "m0", 1, due)) for n in range(4, 9)))
    # Both end late: 6.5 ms are left for five requests, enough for a row each. Neither may leave them to the other.
    late = 93 * MS + MS // 2
    commands = step(late, *(Finished(c.batch) for c in running if isinstance(c, Start)))
    assert len([c for c in commands if isinstance(c, Start)]) == 2


def test_what_stands_behind_an_expired_head_starts_at_once():
    w, models = world([[(8, ["m0"])]], slo=100 * MS)
    w.kill(0, 0, 200 * MS)
    late = [Request(1, "m0", 1, 300 * MS, 1), Request(2, "m0", 2, 50 * MS, 1, "", 0, True)]
    w.run(late)
    assert w.metrics.models["m0"].served == 1
    assert w.metrics.models["m0"].expired == 1


def test_a_request_that_is_predicted_late_is_refused_at_once():
    w, models = world([[(8, ["m0"])]], slo=10 * MS)
    w.run(requests_of([(0, 0, 1, *PLAIN) for _ in range(30)], models))
    refused = [(now, c.reason) for now, _, commands in w.steps for c in commands if isinstance(c, Reject)]
    assert refused
    assert set(refused) == {(0, Reason.LATE)}


def test_what_is_accepted_is_in_time_when_runs_take_what_the_profile_says():
    w, models = world([[(8, ["m0"])]], slo=20 * MS)
    metrics = w.run(requests_of([(n * MS // 4, 0, 1, *PLAIN) for n in range(200)], models))
    counts = metrics.models["m0"]
    assert counts.rejected > 20
    assert counts.late == 0
    assert counts.expired == 0


def test_overload_keeps_batches_large():
    w, models = world([[(8, ["m0"])]], slo=20 * MS)
    w.run(requests_of([(n * MS // 8, 0, 1, *PLAIN) for n in range(800)], models))
    rows = [c.rows for _, c in starts(w)]
    assert sum(rows[2:-2]) / len(rows[2:-2]) > 3.5


def test_without_early_drop_late_requests_are_served_late():
    w, models = world([[(8, ["m0"])]], drops_early=False, slo=10 * MS)
    metrics = w.run(requests_of([(0, 0, 1, *PLAIN) for _ in range(30)], models))
    counts = metrics.models["m0"]
    assert counts.served == 30
    assert counts.late > 0
    assert not [c for _, _, commands in w.steps for c in commands if isinstance(c, Drop)]


def overloaded(learns, factor):
    """In-time answers and late ones of one gpulet, asked for twice what its device can do, which is slower than its profile says."""
    (model,) = models_of(1, 100 * MS)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"])
    problem = problem_of([model], plan)
    scheduler = Scheduler(problem.models, plan, DutyCycle(problem, plan, learns=learns), Limits())
    per_second = 2 * 4 * SECOND / problem.profile.latency("m0", 8, 4)
    arrivals = drawn((model,), {"m0": per_second}, 3 * SECOND, 1, poisson)
    metrics = simulate(scheduler, problem.profile.stretched(factor), plan, arrivals)
    m0 = metrics.models["m0"]
    return m0.served - m0.late, m0.late


def test_a_device_slower_than_its_profile_serves_nearly_all_late_unless_that_is_learned():
    (in_time, late), (learned, still_late) = overloaded(learns=False, factor=1.5), overloaded(learns=True, factor=1.5)
    assert late > in_time, "in overload everything served is served just in time"
    assert still_late < 0.15 * learned
    assert learned + still_late > 0.95 * (in_time + late), "and the device is as busy as before"


def test_where_the_profile_is_right_learning_changes_nothing():
    assert overloaded(learns=True, factor=1.0) == overloaded(learns=False, factor=1.0)


def test_a_spell_of_slow_runs_is_not_held_against_a_model_for_ever():
    """Runs of 3 ms that take 60 for a while, then requests that leave 10: refused at first, and served again after some."""
    (model,) = models_of(1, 400 * MS)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"])
    problem = problem_of([model], plan)
    core = Scheduler(problem.models, plan, DutyCycle(problem, plan, learns=True), Limits())
    core.step(0, GpuletUp(0))
    now, answers = 0, []
    for n in range(400):
        slow = n < 30
        now += 100 * MS
        (command,) = core.step(now, Arrived(Request(n, "m0", now, now + (400 if slow else 10) * MS)))
        answers.append(type(command))
        if isinstance(command, Start):
            now += (60 if slow else 3) * MS
            core.step(now, Finished(command.batch))
    assert answers[:30] == [Start] * 30
    assert answers[30] is Reject
    assert answers[-1] is Start


def test_a_run_that_ends_a_little_late_is_not_taken_for_a_long_one():
    """What was taken in because two runs just fit is not given up because the first took 0.1 ms more."""
    (model,) = models_of(1, 40 * MS)
    plan = tiny_plan([[(8, ["m0"])]], ["m0"])
    problem = problem_of([model], plan)
    run = problem.profile.latency("m0", 8, 1)
    assert run == 3 * MS
    core = Scheduler(problem.models, plan, DutyCycle(problem, plan, learns=True), Limits())
    core.step(0, GpuletUp(0))
    (first,) = core.step(0, Arrived(Request(0, "m0", 0, model.slo)))
    assert core.step(0, Arrived(Request(1, "m0", 0, 62 * MS // 10))) == []
    assert [type(c) for c in core.step(run + MS // 10, Finished(first.batch))] == [Answer, Start]
