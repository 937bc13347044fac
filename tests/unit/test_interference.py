import json

import pytest

from gpulet.core.correction import Correction
from gpulet.core.messages import Finished, Start
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Kind, Mechanism, Size
from gpulet.drivers.sim import VirtualTimer, simulate
from gpulet.errors import ConfigError
from gpulet.executors.simulated import Simulated
from gpulet.interference import (
    CONSTANT,
    LINEAR,
    OURS,
    Interference,
    Link,
    Side,
    footprint,
    format_interference,
    parse_interference,
)
from gpulet.neighbours import beside_neighbours
from gpulet.plan import Gpulet, Plan, Promise, Turn
from gpulet.profile import Point, Profile
from gpulet.systems import SYSTEMS, make_scheduler
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, poisson
from support import models_of, problem_of

HEAVY = Side(0.6, 0.5, 0.5, 8, 10 * MS, "m0")
LIGHT = Side(0.1, 0.1, 0.5, 8, 10 * MS, "m1")
PAPER = Interference(LINEAR, (0.1, 0.7, 0.35, 0.09, 0.9))
BESIDE = Interference(CONSTANT, (1.5,))
"""Every neighbour costs half of the device's part."""
HALVES = (Size(4, 50.0), Size(4, 50.0))


def profile(host=0):
    points = [Point(f"m{i}", 4, rows, *[10 * MS] * 3, host=host) for i in range(3) for rows in (1, 8)]
    return Profile(tuple(points))


def plan(count=2, batch=8):
    device = Device(0, Kind("tiny", 4 * count, 100), Mechanism.GREEN)
    gpulets = tuple(
        Gpulet(i, 0, Size(4, 100 / count), 4 * i, 10 * MS, (Turn(f"m{i}", batch, 10.0, 10 * MS),)) for i in range(count)
    )
    promises = {f"m{i}": Promise(10.0, 800.0, 20 * MS, 40 * MS) for i in range(count)}
    return Plan((device,), gpulets, promises=promises)


def finishes(starts, *, count=2, host=0, interference=BESIDE):
    """When each batch ends; `starts` as (batch, gpulet, instant in ms)."""
    ends = {}
    timer = VirtualTimer()
    executor = Simulated(
        profile(host),
        plan(count),
        timer,
        lambda event: ends.setdefault(event.batch, timer.now() / MS) if isinstance(event, Finished) else None,
        interference=interference,
    )
    for batch, gpulet, at in starts:
        command = Start(batch, gpulet, f"m{gpulet}", "", 8, (batch,))
        timer.at(at * MS, lambda _, command=command: executor.start(command), 0)
    while timer.heap:
        timer.instant, _, wake, token = timer.heap.pop(0)
        timer.heap.sort()
        wake(token)
    return ends


def test_a_neighbour_that_arrives_mid_run_slows_what_is_left():
    # alone for 4 ms, then both at 1/1.5: the first needs 6 x 1.5 = 9 ms more; the other has 4 left of 10 then, alone again
    assert finishes([(1, 0, 0), (2, 1, 4)]) == {1: pytest.approx(13), 2: pytest.approx(17)}


def test_only_the_devices_part_is_slowed():
    # 4 of 10 ms on the host: beside a neighbour 4 + 6 x 1.5 = 13 ms
    assert finishes([(1, 0, 0), (2, 1, 0)], host=4 * MS) == {1: pytest.approx(13), 2: pytest.approx(13)}


def test_what_several_neighbours_cost_adds_up():
    assert finishes([(n, n, 0) for n in range(3)], count=3) == {n: pytest.approx(20) for n in range(3)}
    assert BESIDE.slowdown(HEAVY, [LIGHT, LIGHT]) == pytest.approx(2.0)
    assert Interference(CONSTANT, (1.5,), ceiling=1.7).slowdown(HEAVY, [LIGHT, LIGHT]) == pytest.approx(1.7)


def test_the_papers_model_is_linear_in_both_sides_and_never_below_one():
    assert PAPER.pair(HEAVY, HEAVY) == pytest.approx(0.9 + 0.8 * 0.6 + 0.44 * 0.5)
    idle = Side(0.05, 0.05)
    assert PAPER.pair(idle, idle) == 1.0
    assert PAPER.pair(LIGHT, HEAVY) > PAPER.pair(HEAVY, LIGHT)


def test_a_model_survives_being_written_and_read():
    ours = Interference(OURS, tuple(0.01 * n for n in range(len(OURS))), 1.2, Link.LOG)
    text = json.dumps(format_interference(ours))
    assert parse_interference(text, "x.json") == ours
    names = ("c1_l2_victim", "c2_l2_corunner", "c3_dram_victim", "c4_dram_corunner", "c5_constant")
    table = "coefficient,value\n" + "".join(f"{name},0.{n}\n" for n, name in enumerate(names, start=1))
    assert parse_interference(table, "c.csv") == Interference(LINEAR, (0.1, 0.2, 0.3, 0.4, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "x: not an interference model"),
        ("nothing", "x: not an interference model"),
        ('{"features": ["l3"], "coefficients": [1]}', "x: unknown feature 'l3'; known are constant"),
        ('{"features": ["constant"], "coefficients": [1, 2]}', "x: 1 features, but 2 coefficients"),
        ('{"features": ["constant"], "coefficients": ["NaN"]}', "x: coefficients: must be a finite number, is 'NaN'"),
        (
            "coefficient,value\nc1_l2_victim,inf\nc2_l2_corunner,1\nc3_dram_victim,1\nc4_dram_corunner,1\nc5_constant,1\n",
            "x: c1_l2_victim: must be a finite number, is 'inf'",
        ),
    ],
)
def test_a_bad_model_is_one_clear_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_interference(text, "x")


def test_a_plan_beside_neighbours_states_slower_turns_and_smaller_batches():
    stated = beside_neighbours(plan(), profile(), BESIDE)
    assert [t.latency for g in stated.gpulets for t in g.turns] == [15 * MS] * 2
    assert stated.promises["m0"].throughput == pytest.approx(8 / 0.015)
    assert stated.promises["m0"].worst_latency == 30 * MS
    assert beside_neighbours(plan(), profile(), None).promises["m0"].throughput == pytest.approx(800)


def test_measured_batch_times_correct_the_model():
    """The truth is 1.5 times slower beside anybody; what is assumed is 1.2."""
    models = models_of(2)
    problem = problem_of(models, plan(), profile())
    assumed = Interference(CONSTANT, (1.2,))
    correction = Correction(plan(), profile(), assumed)
    arrivals = drawn(models, {"m0": 400.0, "m1": 400.0}, 5 * SECOND, 1, poisson)
    scheduler = make_scheduler(SYSTEMS["gpulet"], problem, plan(), Limits())
    simulate(scheduler, problem.profile, plan(), arrivals, [correction.record], interference=BESIDE)
    assert correction.factors["m0"] == pytest.approx(1.5 / 1.2, rel=0.05)
    assert correction.corrected().pair(HEAVY, LIGHT) == pytest.approx(1.5, rel=0.05)
    assert assumed.pair(HEAVY, LIGHT) == 1.2


def test_a_footprint_knows_its_use_and_its_host_time():
    points = (Point("m", 4, 1, *[5 * MS] * 3, host=MS, l2=0.2, dram=0.1), Point("m", 4, 3, *[9 * MS] * 3, l2=0.4))
    one = footprint(Profile(points), "m", 4, 0.5, 2)
    assert (one.side.l2, one.side.dram) == (pytest.approx(0.3), pytest.approx(0.05))
    assert one.slowed(2.0) == pytest.approx(7 * MS + 6.5 * MS)


def test_corrections_build_on_each_other_and_on_the_devices_part():
    """8 of 10 ms on the host; beside a neighbour the truth is 12 ms, so the device part is twice as slow."""
    assumed = Interference(CONSTANT, (1.25,), corrections={"m0": 1.2, "m9": 1.1})  # 1.5 as corrected before
    correction = Correction(plan(), profile(8 * MS), assumed, weight=1.0)
    starts = [Start(n, n, f"m{n}", "", 8, (n,)) for n in (0, 1)]
    correction.record(0, (), starts)
    correction.record(12 * MS, (Finished(0), Finished(1)), ())
    assert correction.corrected().pair(HEAVY, LIGHT) == pytest.approx(2.0)
    assert correction.corrected().corrections["m9"] == 1.1


@pytest.mark.parametrize("text", ["coefficient,value\nc1_l2_victim,0.1\n", "coefficient,value\nzz_l2_victim,0.1\n"])
def test_an_incomplete_table_of_coefficients_is_refused(text):
    with pytest.raises(ConfigError, match=r"c.csv: coefficients .*_l2_victim; needed are c1_l2_victim, c2_l2_corunner"):
        parse_interference(text, "c.csv")


def test_a_ceiling_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"x: ceiling must be at least 1, is 0\.5"):
        parse_interference('{"features": ["constant"], "coefficients": [1], "ceiling": 0.5}', "x")


def test_uncut_devices_keep_what_their_planner_said():
    whole = plan()
    device = Device(0, whole.devices[0].kind, Mechanism.WHOLE)
    assert (
        beside_neighbours(Plan((device,), whole.gpulets, promises=whole.promises), profile(), BESIDE).gpulets
        == whole.gpulets
    )
