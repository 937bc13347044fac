"""gpu-lets' artifact: its margins one by one, its baselines, and its dispatcher."""

from dataclasses import replace
from functools import partial

import pytest

from gpulet.core.messages import Drop, Start
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Mechanism, Size, find_kind, mps_size
from gpulet.dispatchers.glet import GletDispatcher
from gpulet.errors import PlanError
from gpulet.interference import CONSTANT, Interference
from gpulet.model import Model
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.planners.glet import NONE, Margins, Style, efficient_share, glet, saturation_table
from gpulet.planners.ideal import ideal
from gpulet.profile import Point, Profile
from gpulet.units import MIB, MS
from support import World, models_of, requests_of

KIND = find_kind("rtx2080ti")
PER_ROW = {20: 5.0, 40: 2.5, 50: 2.1, 60: 1.9, 80: 1.7, 100: 1.6}
"""Milliseconds for each row, beside 5 ms for every batch."""


def problem(rates, *, devices=1, slo=100, memory=0, input_bytes=0, interference=None):
    points = tuple(
        Point(name, mps_size(KIND, share).sms, rows, *[round((5 + rows * ms) * MS)] * 3)
        for name in rates
        for share, ms in PER_ROW.items()
        for rows in (1, 2, 4, 8, 16, 32)
    )
    models = {name: Model(name, slo * MS, 32, memory, input_bytes) for name in rates}
    fleet = tuple(Device(i, KIND, Mechanism.MPS) for i in range(devices))
    return Problem(models, rates, fleet, Profile(points), interference=interference)


@pytest.mark.parametrize(("mean", "planned"), [(10, 19), (50, 68), (100, 125), (200, 235), (400, 448), (600, 660)])
def test_rates_are_planned_with_their_99th_percentile(mean, planned):
    assert Margins().planned_rate(mean) == planned
    assert NONE.planned_rate(mean) == mean


def test_the_latency_ratio_is_in_the_saturation_table():
    asked = problem({"a": 10.0})
    plain = saturation_table(asked, asked.models["a"], NONE)
    longer = saturation_table(asked, asked.models["a"], replace(NONE, latency_ratio=1.1))
    assert plain[100].batch == 28  # 5 + 28 x 1.6 = 49.8 ms
    assert longer[100].batch == 25  # 1.1 x (5 + 25 x 1.6) = 49.5 ms
    assert longer[100].rate == pytest.approx(25_000 / 49.5)


def test_the_batch_limit_is_a_margin():
    asked = problem({"a": 10.0}, slo=300)
    assert saturation_table(asked, asked.models["a"])[100].batch == 31
    assert saturation_table(asked, asked.models["a"], replace(Margins(), max_batch=32))[100].batch == 32


def test_the_efficient_share_ends_the_steepest_segment_and_is_never_the_whole_device():
    asked = problem({"a": 10.0})
    table = saturation_table(asked, asked.models["a"], NONE)
    assert efficient_share(table, 1.05) == 40
    assert efficient_share(dict.fromkeys(table, table[20]), 1.05) == 20
    rising = {share: replace(table[20], rate=float(share**3)) for share in table}
    assert efficient_share(rising, 1.05) == 80


def test_a_rate_within_the_slack_is_not_placed_and_the_plan_says_so():
    refused = glet(problem({"a": 4.0}))
    assert isinstance(refused, Infeasible)
    assert "accepted by the artifact's margins, but model a: 0 rows/s planned of 4" in str(refused)
    assert isinstance(glet(problem({"a": 4.0}), margins=replace(Margins(), slack=0)), Plan)


def test_memory_keeps_models_off_a_device():
    rates = {"a": 100.0, "b": 100.0}
    assert isinstance(glet(problem(rates, memory=2000 * MIB)), Plan)
    crowded = problem(rates, memory=5000 * MIB)
    assert isinstance(glet(crowded), Infeasible)
    assert isinstance(glet(crowded, margins=replace(Margins(), memory_room=2.0)), Plan)


def test_the_network_budget_binds_where_parts_are_readjusted():
    light = problem({"a": 1300.0}, devices=2)
    heavy = problem({"a": 1300.0}, devices=2, input_bytes=1_000_000)
    assert isinstance(glet(light), Plan)
    assert isinstance(glet(heavy), Infeasible)
    assert isinstance(glet(heavy, margins=replace(Margins(), network_gbit=100.0)), Plan)


def test_interference_costs_throughput_and_needs_a_model():
    rates = {"a": 250.0, "b": 250.0}
    with pytest.raises(PlanError, match=r"name a file under \[interference\]"):
        glet(problem(rates), with_interference=True)
    beside = problem(rates, interference=Interference(CONSTANT, (1.2,)))
    plain, aware = glet(beside), glet(beside, with_interference=True)
    assert isinstance(plain, Plan)
    assert isinstance(aware, Plan)
    assert len(plain.gpulets) == len(aware.gpulets) == 2
    for stated, factor in ((plain, 1.0), (aware, 1.2)):
        for gpulet in stated.gpulets:
            (turn,) = gpulet.turns
            alone = beside.profile.latency(turn.model, gpulet.size.sms, turn.batch)
            assert turn.latency == pytest.approx(alone * factor)


def test_sbp_cuts_nothing_and_greedy_shares_nothing_in_time():
    rates = {"a": 40.0, "b": 40.0}
    timed, greedy = glet(problem(rates), style=Style.SBP), glet(problem(rates), style=Style.GREEDY)
    assert isinstance(timed, Plan)
    assert isinstance(greedy, Plan)
    assert [g.size.share_pct for g in timed.gpulets] == [100]
    assert sorted(timed.gpulets[0].models) == ["a", "b"]
    assert all(len(g.turns) == 1 for g in greedy.gpulets)


@pytest.mark.slow
def test_the_ideal_tries_every_split_that_fits_the_profile():
    asked = problem({"a": 500.0, "b": 20.0, "c": 30.0}, devices=2)
    seen = []

    def place(problem, *, cuts):
        seen.append(tuple(map(tuple, cuts)))
        return glet(problem, cuts=cuts) if len(seen) > 5 else glet(replace(problem, demand={"a": 1e6}))

    assert isinstance(ideal(asked, place=place), Plan)
    assert seen[0] == ()
    assert seen[1] == ((100,), (100,))
    assert all(sum(cut) == 100 and len(cut) <= 2 for cuts in seen for cut in cuts)
    never = []
    refused = ideal(
        asked, place=lambda problem, *, cuts: never.append(cuts) or glet(replace(problem, demand={"a": 1e6}))
    )
    assert isinstance(refused, Infeasible)
    assert len(never) == 1 + 10  # 4 kinds of cut, two equal devices: 4 x 5 / 2


def test_mig_devices_are_refused():
    mig = (Device(0, find_kind("a100-40gb"), Mechanism.MIG),)
    with pytest.raises(PlanError, match="not mig"):
        glet(replace(problem({"a": 10.0}), devices=mig))


# dispatcher -----------------------------------------------------------------------------------------------------------


def world(batch=4, duty=20 * MS, gpulets=1, **options):
    device = Device(0, find_kind("v100"), Mechanism.GREEN)
    turns = (Turn("m0", batch, 100.0, 5 * MS),)
    plan = Plan((device,), tuple(Gpulet(i, 0, Size(8, 10.0), 8 * i, duty, turns) for i in range(gpulets)))
    points = tuple(Point("m0", 8, rows, *[(3 + rows) * MS] * 3) for rows in range(1, 9))
    dispatcher = partial(GletDispatcher, **options)
    return World(models_of(1), plan, dispatcher, Limits(early_drop=False), Profile(points))


def run(world, arrivals):
    """Arrivals as (ms, rows); the starts as (ms, gpulet, rows) and the drops as ms."""
    world.run(requests_of([(at * MS, 0, rows, "", 0, False) for at, rows in arrivals], models_of(1)))
    starts = [(now / MS, c.on, c.rows) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]
    drops = [now / MS for now, _, commands in world.steps for c in commands if isinstance(c, Drop)]
    return starts, drops


def test_a_full_batch_starts_at_once_and_a_partial_one_after_the_duty_cycle():
    assert run(world(), [(0, 1), (1, 1), (2, 1), (3, 1), (10, 1), (12, 1)])[0] == [(3, 0, 4), (30, 0, 2)]


def test_the_next_batch_is_built_while_one_runs():
    starts, _ = run(world(), [(n, 1) for n in range(8)])
    assert starts == [(3, 0, 4), (10, 0, 4)]  # 3 + 7 ms of the first batch


def test_gpulets_of_one_model_take_requests_by_credit():
    starts, _ = run(world(gpulets=2), [(n, 1) for n in range(8)])
    assert sorted(gpulet for _, gpulet, _ in starts) == [0, 1]
    assert [rows for *_, rows in starts] == [4, 4]


def test_what_waits_longer_than_its_objective_is_dropped_unless_that_is_off():
    burst = [(0, 1)] * 40
    _, drops = run(world(), burst)
    assert drops
    assert set(drops) == {40}
    assert run(world(drop_ratio=0), burst)[1] == []
    assert set(run(world(drop_ratio=0.5), burst)[1]) == {20}


def test_a_lost_gpulets_batch_is_built_elsewhere():
    two = world(gpulets=2)
    two.kill(1 * MS, 0, 500 * MS)
    starts, _ = run(two, [(0, 1), (2, 1), (3, 1), (4, 1)])
    assert starts == [(4, 1, 4)]


def test_a_request_given_up_while_another_is_put_back_leaves_no_ghost():
    one = world(batch=1)
    one.kill(2 * MS, 0, 5 * MS)
    one.cancel(2 * MS, 2)
    starts, _ = run(one, [(0, 1), (1, 1), (1, 1)])
    assert sum(rows for *_, rows in starts) == 1 + 1 + 1  # the first is run twice, the second never


def test_a_shape_that_is_measured_to_fewer_rows_is_batched_to_fewer():
    small = world(batch=4)
    points = (*small.executor._profile.points, *(Point("m0", 8, n, *[5 * MS] * 3, shape="big") for n in (1, 2)))  # noqa: SLF001 (what the world was made with)
    again = World(models_of(1), small.plan, GletDispatcher, Limits(early_drop=False), Profile(points))
    again.run(requests_of([(n * MS, 0, 1, "big", 0, False) for n in range(4)], models_of(1)))
    rows = [c.rows for _, _, commands in again.steps for c in commands if isinstance(c, Start)]
    assert rows == [2, 2]


def test_models_that_share_a_gpulet_in_time_need_memory_for_each():
    rates = dict.fromkeys("abc", 20.0)
    assert isinstance(glet(problem(rates, memory=1000 * MIB)), Plan)
    crowded = glet(problem(rates, memory=4096 * MIB))
    assert isinstance(crowded, Infeasible)
    assert sum(crowded.unserved.values()) > 0


def test_sizes_that_do_not_divide_the_device_and_uneven_profiles_are_planned_or_refused():
    green = replace(problem({"a": 50.0}), devices=(Device(0, find_kind("h200-141gb"), Mechanism.GREEN),))
    assert isinstance(glet(green), Plan | Infeasible)
    uneven = tuple(
        Point("a", mps_size(KIND, share).sms, rows, *[round((5 + rows * ms) * MS)] * 3)
        for share, ms in PER_ROW.items()
        for rows in (1, 2, 4, 8)[: 2 + share // 40]
    )
    plan = glet(replace(problem({"a": 100.0}), profile=Profile(uneven)))
    assert isinstance(plan, Plan)
