from dataclasses import replace

import pytest

from gpulet.core.ports import Problem
from gpulet.device import Device, Kind, Mechanism
from gpulet.interference import Interference
from gpulet.model import Model
from gpulet.pacing import COMFORT, STRETCHES, Menu, Option, Pacing, options, pace, undominated
from gpulet.profile import Point, Profile
from gpulet.units import MS

KIND = Kind("hundred", 100, 0, mps_shares=(10, 20, 50, 100))
DEVICE = Device(0, KIND, Mechanism.MPS, resizes=True)


def problem(rates, slo=100, devices=1, dram=0.0):
    """A row takes 40 ms on 10 SMs, and 10 ms more for each row that joins it; half as long on twice as many, but for 4 ms."""
    points = [
        Point(name, sms, rows, *[4 * MS + (30 + 10 * rows) * MS * 10 // sms] * 3, dram=dram, l2=dram)
        for name in rates
        for sms in (10, 20, 50, 100)
        for rows in (1, 8)
    ]
    models = {name: Model(name, slo * MS, 8) for name in rates}
    return Problem(models, rates, tuple(replace(DEVICE, index=d) for d in range(devices)), Profile(tuple(points)))


def ways(slo=100):
    p = problem({"m": 1.0}, slo)
    return options(p.profile, p.models["m"], DEVICE)


def test_options_come_thriftiest_first_and_none_is_beaten_in_everything():
    found = undominated(ways())
    thrifts = [option.thrift for option in found]
    assert thrifts == sorted(thrifts, reverse=True)
    for n, one in enumerate(found):
        better = [o for o in found[:n] if o.rows <= one.rows and o.size <= one.size and o.latency <= one.latency]
        assert not better
    assert {option.rows for option in ways()} == set(range(1, 9))


def test_the_pace_is_the_thriftiest_batch_that_is_assembled_and_run_in_time():
    brisk, slow = pace(ways(), 1000.0, 100 * MS), pace(ways(), 20.0, 100 * MS)
    assert brisk is not None
    assert slow is not None
    # 8 rows on 20 SMs take 59 ms, and 7 ms to assemble; on 10 SMs no more than 6 are in time.
    assert (brisk.option.size, brisk.option.rows, brisk.wait) == (20, 8, 7 * MS)
    # At 20 rows/s a second row leaves 50 ms, which 20 SMs keep and 10 do not; a third leaves nothing.
    assert (slow.option.size, slow.option.rows, slow.wait) == (20, 2, 50 * MS)
    assert brisk.area == pytest.approx(1000 * 20 * 0.059 / 8)


def test_nothing_is_in_time_within_less_than_the_fastest_run():
    assert pace(ways(), 10.0, 7 * MS) is None
    menu = Menu(ways(), undominated(ways()), Model("m", 7 * MS, 8), 10.0, 1.0)
    assert not menu.is_in_time
    assert menu.pace.option.latency == menu.fastest == 8 * MS


def test_nobody_waits_for_rows_that_nobody_is_known_to_send():
    found = pace(ways(), 0.0, 100 * MS)
    assert found is not None
    assert (found.option.rows, found.wait, found.area) == (1, 0, 0.0)


def test_less_of_the_objectives_is_used_while_sms_are_left():
    light, heavy = (Pacing(problem({"m": rate}), [DEVICE]) for rate in (1.0, 800.0))
    assert STRETCHES[0] == light.stretch < heavy.stretch
    assert light.area <= COMFORT * KIND.sms
    assert heavy.stretch == STRETCHES[-1]
    assert heavy.area > COMFORT * KIND.sms


def test_a_backlog_raises_what_is_worth_running():
    menu = Menu(ways(), undominated(ways()), Model("m", 100 * MS, 8), 20.0, 0.9)
    few, many = menu.level(1), menu.level(16)
    assert few.options[-1].thrift < many.options[-1].thrift
    assert few.least < many.least
    assert menu.level(15) == menu.level(menu.pace.option.rows)


def test_neighbours_make_every_option_slower():
    apart = problem({"a": 40.0, "b": 40.0}, dram=0.5)
    beside = replace(apart, interference=Interference(("constant",), (1.5,)))
    quick, slowed = (Pacing(p, p.devices) for p in (apart, beside))
    assert slowed.area > quick.area
    assert slowed.menu("a").fastest > quick.menu("a").fastest


def test_the_bandwidth_of_a_batch_is_part_of_an_option():
    p = problem({"m": 1.0}, dram=0.25)
    assert {option.dram for option in options(p.profile, p.models["m"], DEVICE)} == {0.25}


def test_an_option_is_plain_numbers():
    assert Option(10, 5, 50).thrift == 0.01


def test_a_request_of_several_rows_runs_at_any_size_that_holds_it():
    menu = Menu(ways(), undominated(ways()), Model("m", 100 * MS, 8), 20.0, 0.9)
    level = menu.level(8, 7)
    assert {option.rows for option in level.options} == {7, 8}
    assert {option.size for option in level.options} == {10, 20, 50, 100}
    assert level.least == 14 * MS


def test_a_shape_class_has_the_sizes_at_which_it_was_measured():
    p = problem({"m": 10.0})
    wide = [replace(point, shape="wide") for point in p.profile.points if point.size >= 50]
    p = replace(p, profile=Profile((*p.profile.points, *wide)))
    pacing = Pacing(p, p.devices)
    assert pacing.menu("m", "wide").smallest == 50
    assert pacing.menu("m", "unheard of").smallest == 10
