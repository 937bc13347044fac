from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Arrived, Drop, Start
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Kind, Mechanism, Size, find_kind
from gpulet.dispatchers.dstack import Dstack
from gpulet.efficacy import OperatingPoint
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Plan, Timeline, TimelineRun
from gpulet.planners.dstack import Need, Order, dstack, place, sweep
from gpulet.profile import Point, Profile
from gpulet.reports.plans import timeline_table
from gpulet.request import Request
from gpulet.units import MS, SECOND
from support import TINY, World, models_of

KIND = Kind("hundred", 100, 100)


def problem(demand, devices=1, memory=0, slo=100, mechanism=Mechanism.MPS):
    """5 ms and 2 ms a row on all of 100 SMs; rows inversely with the share."""
    points = tuple(
        Point(name, size, rows, *[5 * MS + 200 * MS * rows // size] * 3)
        for name in demand
        for size in (10, 20, 40, 50, 80, 100)
        for rows in (1, 16)
    )
    slos = slo if isinstance(slo, dict) else dict.fromkeys(demand, slo)
    models = {name: Model(name, slos[name] * MS, 16, memory) for name in demand}
    return Problem(models, demand, tuple(Device(d, KIND, mechanism) for d in range(devices)), Profile(points))


# planner --------------------------------------------------------------------------------------------------------------


def needs_of(*rows):
    return [Need(name, runs, OperatingPoint(Size(sms, 0.0), 1, length)) for name, runs, sms, length in rows]


def test_least_laxity_places_what_the_earliest_deadline_does_not():
    needs = needs_of(("a", 2, 2, 8), ("b", 1, 2, 6), ("c", 2, 1, 12))
    assert not sweep(needs, 24, 4)
    assert sweep(needs, 24, 4, Order.LAXITY)
    assert place(needs, 24, 4)


def test_holding_one_model_back_places_what_both_orders_do_not():
    needs = needs_of(("a", 1, 1, 10), ("b", 2, 4, 3), ("c", 2, 2, 7))
    assert not place(needs, 24, 4, searches=False)
    assert place(needs, 24, 4)


need = st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 12))


@settings(max_examples=200, deadline=None)
@given(drawn=st.lists(need, min_size=1, max_size=4))
def test_a_placed_session_has_one_run_in_each_window_and_is_never_overcut(drawn):
    needs = needs_of(*((f"m{n}", *rest) for n, rest in enumerate(drawn)))
    placed = place(needs, 24, 8)
    for wanted in needs if placed else ():
        mine = [r for r in placed if r.model == wanted.model]
        assert len(mine) == wanted.runs
        for n, run in enumerate(mine):
            assert 24 * n // wanted.runs <= run.start
            assert run.start + run.length <= 24 * (n + 1) // wanted.runs
    device = Device(0, Kind("eight", 8, 0), Mechanism.GREEN)
    assert Plan((device,), timelines=(Timeline(0, 24, placed),)).violations() == ()


def test_a_model_has_as_many_runs_in_its_windows_as_its_demand_needs():
    seldom, often = dstack(problem({"a": 5.0})), dstack(problem({"a": 150.0}))
    assert isinstance(seldom, Plan)
    assert isinstance(often, Plan)
    assert len(seldom.timelines[0].runs) == 1
    runs = often.timelines[0].runs
    assert sum(run.batch for run in runs) >= 15
    assert often.promises["a"].throughput == pytest.approx(sum(run.batch for run in runs) * 10)
    assert often.violations() == ()


def test_windows_shrink_where_slos_do_not_divide_the_session():
    plan = dstack(problem({"a": 5.0, "b": 5.0}, slo={"a": 60, "b": 100}))
    assert isinstance(plan, Plan)
    assert plan.timelines[0].period == 100 * MS
    starts = [run.start for run in plan.timelines[0].runs if run.model == "a"]
    assert len(starts) == 2
    assert starts[1] >= 50 * MS


def test_a_model_that_nobody_asks_for_is_resident_and_has_no_run():
    plan = dstack(problem({"a": 5.0, "b": 0.0}))
    assert isinstance(plan, Plan)
    assert {run.model for run in plan.timelines[0].runs} == {"a"}
    assert [r.model for r in plan.residents] == ["a", "b"]
    assert dstack(problem({"a": 0.0})).violations() == ()


def test_a_session_is_shown_run_by_run():
    plan = dstack(problem({"a": 5.0, "b": 5.0}, devices=2))
    assert isinstance(plan, Plan)
    table = timeline_table(plan)
    assert table.title == "sessions of 100 ms on 2 of 2 devices"
    assert table.row_count == 2
    assert list(table.columns[0].cells) == ["0, 1", "0, 1"]


def test_every_device_has_every_model_and_an_equal_part():
    one, two = dstack(problem({"a": 100.0})), dstack(problem({"a": 200.0}, devices=2))
    assert isinstance(one, Plan)
    assert isinstance(two, Plan)
    assert [line.runs for line in two.timelines] == [one.timelines[0].runs] * 2


def test_models_that_overfill_a_device_are_refused():
    assert isinstance(dstack(problem({"a": 5.0, "b": 5.0}, memory=50)), Plan)
    refused = dstack(problem({"a": 5.0, "b": 5.0}, memory=51, devices=2))
    assert isinstance(refused, Infeasible)
    assert refused.constraint == "every model lives on every device: device 0 needs 102 of 100 bytes"


def test_the_tightest_slo_is_admitted_first_and_what_is_left_over_is_said():
    refused = dstack(problem({"a": 300.0, "b": 300.0}, slo={"a": 100, "b": 50}))
    assert isinstance(refused, Infeasible)
    assert refused.model == "a"
    assert "of 300.0 rows/s fit" in refused.constraint
    left = 300.0 - refused.unserved["a"]
    assert refused.nearest == f"lower its rate by {refused.unserved['a']:.1f}/s"
    assert isinstance(dstack(problem({"a": left, "b": 300.0}, slo={"a": 100, "b": 50})), Plan)
    assert refused.partial.violations() == ()


def test_a_model_that_no_point_runs_in_time_is_refused_with_what_binds():
    refused = dstack(problem({"a": 1.0}, slo=10))
    assert isinstance(refused, Infeasible)
    assert refused.constraint == (
        "no point has latency within half the SLO; the nearest is a batch of 1: 7 ms at size 100 and 0 ms to assemble: "
        "0 of 1.0 rows/s"
    )


def test_devices_whose_sizes_stand_are_refused():
    with pytest.raises(PlanError, match="not on mig"):
        dstack(replace(problem({"a": 1.0}), devices=(Device(0, find_kind("a100-40gb"), Mechanism.MIG),)))


# dispatcher -----------------------------------------------------------------------------------------------------------

SLO = 1000 * MS
"""Long, so that deadlines do not matter unless a test makes them."""


def world(*runs, models=None, period=100, limits=None):
    """Runs are (start, model, size, batch); a row takes 2 ms and 1 more on 8 SMs, inversely with the size."""
    models = models or models_of(3, slo=SLO)
    device = Device(0, TINY, Mechanism.CPU)
    planned = [TimelineRun(s * MS, (2 + b) * 8 // g * MS, m, Size(g, 12.5 * g), b) for s, m, g, b in runs]
    plan = Plan((device,), timelines=(Timeline(0, period * MS, tuple(planned)),))
    assert not plan.violations()
    return World(models, plan, Dstack, limits or Limits(early_drop=False))


def serve(world, *arrivals):
    """(ms, model, how many, due after so many ms): what comes at one instant comes in one step."""
    by_instant, serial = {}, 0
    for when, model, many, *due in arrivals:
        for _ in range(many):
            serial += 1
            request = Request(serial, model, when * MS, (when + (due[0] if due else 1000)) * MS)
            by_instant.setdefault(when * MS, []).append(Arrived(request))
    for when, events in by_instant.items():
        world.at(when, lambda events=events: world.simulation.feed(*events))
    world.run([])


def started(world):
    """(ms, model, size, rows) of every run."""
    return [
        (now / MS, c.model, c.on.size, c.rows)
        for now, _, commands in world.steps
        for c in commands
        if isinstance(c, Start)
    ]


def test_a_planned_run_starts_at_its_instant_with_its_size_and_batch():
    run = world((10, "m0", 4, 4), (10, "m1", 4, 2))
    serve(run, (9, "m0", 5), (9, "m1", 1))
    assert started(run)[:2] == [(10, "m0", 4, 4), (10, "m1", 4, 1)]


def test_an_extra_run_neither_delays_a_planned_one_nor_its_own():
    run = world((10, "m0", 8, 4), (40, "m1", 8, 4))
    serve(run, (0, "m1", 4))
    # 10 ms are free: 8 rows would fit on 8 SMs, of four 6 ms.
    assert started(run) == [(0, "m1", 8, 4)]
    run = world((5, "m0", 8, 4), (40, "m1", 8, 4))
    serve(run, (0, "m1", 4))
    assert [s[:2] for s in started(run)] == [(0, "m1"), (5, "m1")]
    assert started(run)[0][3] == 3  # as many rows as end before m0 may start, who does not come


def test_a_planned_run_without_requests_gives_its_sms_up_at_once():
    run = world((0, "m0", 8, 8), (60, "m1", 8, 4))
    serve(run, (0, "m1", 4))
    assert started(run)[0] == (0, "m1", 8, 4)


def test_the_least_served_of_those_that_wait_goes_first():
    run = world((90, "m2", 8, 1))
    serve(run, (0, "m0", 8), (1, "m0", 8), (1, "m1", 8))
    assert [s[1] for s in started(run)[:3]] == ["m0", "m1", "m0"]


@pytest.mark.parametrize(("sessions", "first"), [(5, "m1"), (9, "m1"), (10, "m0"), (12, "m0")])
def test_what_was_served_ten_sessions_ago_is_forgotten(sessions, first):
    run = world((9, "m2", 8, 4), period=30)
    then = 30 * sessions
    serve(run, (15, "m0", 4), (then + 9, "m2", 4), (then + 10, "m0", 1), (then + 10, "m1", 1))
    after = [model for at, model, _, _ in started(run) if at > then]
    assert after[:2] == ["m2", first]


def test_a_share_below_the_knee_is_taken_where_only_that_is_free():
    run = world((0, "m0", 4, 8), (0, "m1", 2, 1), (60, "m2", 4, 1))
    serve(run, (0, "m0", 8), (0, "m1", 1), (1, "m2", 1))
    assert started(run)[:3] == [(0, "m0", 4, 8), (0, "m1", 2, 1), (1, "m2", 2, 1)]


def test_an_overrun_delays_who_needs_its_sms_and_nobody_else():
    run = world((0, "m0", 4, 4), (0, "m1", 4, 2), (12, "m2", 4, 4), (10, "m1", 4, 1))
    run.executor.overruns[1] = 5 * MS
    serve(run, (0, "m0", 4), (0, "m1", 2), (5, "m2", 4), (9, "m1", 1))
    begun = {(model, at) for at, model, _, _ in started(run)}
    assert ("m1", 10) in begun
    assert ("m2", 16) in begun  # m1 is gone by then, m0 at 17


@pytest.mark.parametrize(("late", "rows"), [(0, [8, 8, 8]), (0.5, [8, 8, 8]), (5, [8, 5, 8])])
def test_runs_that_fit_exactly_still_do_where_clocks_are_late_by_a_fiftieth_of_the_session(late, rows):
    run = world((0, "m0", 8, 8), (10, "m1", 8, 8), (20, "m2", 8, 8))
    run.executor.overruns[1] = round(late * MS)
    serve(run, (0, "m0", 8), (5, "m1", 8), (5, "m2", 8))
    assert [(at, count) for at, _, _, count in started(run)[:2]] == [(0, 8), (10 + late, rows[1])]
    assert next(count for _, model, _, count in started(run) if model == "m2") == rows[2]


def test_no_extra_run_takes_what_a_planned_one_waits_for():
    """Both of whom m3 follows end at one instant, in two events; m2 must not slip in between."""
    run = world((0, "m0", 4, 4), (0, "m1", 4, 4), (12, "m3", 8, 4), models=models_of(4, slo=SLO))
    serve(run, (0, "m0", 4), (0, "m1", 4), (5, "m2", 1), (5, "m3", 4))
    assert started(run)[2] == (12, "m3", 8, 4)


def test_requests_that_cannot_be_in_time_are_dropped_unstarted():
    run = world((10, "m0", 8, 4))
    serve(run, (1, "m0", 1, 2), (1, "m1", 1, 900))
    dropped = [(now // MS, c.request) for now, _, commands in run.steps for c in commands if isinstance(c, Drop)]
    assert dropped == [(1, 1)]


def test_a_planned_run_does_not_shrink_to_save_who_is_almost_due():
    run = world((10, "m0", 8, 8), (30, "m1", 8, 4))
    serve(run, (9, "m0", 2, 5), (9, "m0", 8))
    # Eight rows take 10 ms; the first two are due at 14.
    first = next(c for _, _, commands in run.steps for c in commands if isinstance(c, Start) and c.model == "m0")
    assert first.requests == (3, 4, 5, 6, 7, 8, 9, 10)


def test_a_planned_run_saves_who_is_almost_due_where_nobody_else_waits():
    run = world((10, "m0", 8, 8), (30, "m1", 8, 4))
    serve(run, (9, "m0", 8, 6))
    assert started(run)[0] == (10, "m0", 8, 3)


def test_sessions_repeat():
    run = world((10, "m0", 8, 4), period=30)
    serve(run, (0, "m1", 1), (9, "m0", 4), (39, "m0", 4), (69, "m0", 4))
    assert [s for s in started(run) if s[1] == "m0"] == [(10, "m0", 8, 4), (40, "m0", 8, 4), (70, "m0", 8, 4)]
    assert run.timer.instant < SECOND
