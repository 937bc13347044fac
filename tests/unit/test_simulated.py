"""Runs on a `whole` device: their speed changes whenever a neighbour starts or ends."""

from dataclasses import replace

import pytest

from gpulet.core.messages import Finished, Start
from gpulet.device import Mechanism
from gpulet.drivers.sim import VirtualTimer
from gpulet.executors.simulated import Simulated
from gpulet.systems import SYSTEMS
from gpulet.units import MS
from support import SMS, World, models_of, requests_of, tiny_plan, tiny_profile


def crowd(contention=0.0, size=SMS, priorities=(0, 0, 0)):
    """An executor on one whole device of three overlapping gpulets; finish times by batch."""
    plan = tiny_plan([[(size, ["m0"])] * 3], ["m0"], Mechanism.WHOLE)
    gpulets = tuple(replace(g, priority=p) for g, p in zip(plan.gpulets, priorities, strict=True))
    plan = replace(plan, gpulets=gpulets, devices=(replace(plan.devices[0], contention=contention),))
    timer = VirtualTimer()
    ends = {}

    def emit(event):
        if isinstance(event, Finished):
            ends[event.batch] = timer.instant

    executor = Simulated(tiny_profile(["m0"], base=9 * MS, per_row=MS), plan, timer, emit)

    def start(when, gpulet, batch):
        timer.at(when, lambda _: executor.start(Start(batch, gpulet, "m0", "", 1, (batch,))), 0)

    def run():
        while timer.heap:
            timer.instant, _, wake, token = min(timer.heap)
            timer.heap.remove(min(timer.heap))
            wake(token)
        return ends

    return start, run


def test_alone_a_run_takes_what_the_profile_says():
    start, run = crowd()
    start(0, 0, 1)
    assert run() == {1: 10 * MS}


def test_a_neighbour_that_arrives_mid_run_slows_what_is_left():
    start, run = crowd()
    start(0, 0, 1)
    start(5 * MS, 1, 2)
    # The first has 5 ms left and goes at half speed; then the second has 5 ms left, alone.
    assert run() == {1: 15 * MS, 2: 20 * MS}


def test_runs_that_fit_side_by_side_slow_each_other_by_the_contention_alone():
    start, run = crowd(contention=0.5, size=SMS // 4)
    start(0, 0, 1)
    start(0, 1, 2)
    assert run() == {1: 60 * MS, 2: 60 * MS}


def test_three_runs_share_the_device_and_the_last_speeds_up():
    start, run = crowd()
    for gpulet in range(3):
        start(0, gpulet, gpulet + 1)
    ends = run()
    assert ends == {1: 30 * MS, 2: 30 * MS, 3: 30 * MS}


def test_who_goes_first_is_not_slowed_and_the_next_has_what_is_left():
    start, run = crowd(priorities=(1, 0, 0), size=SMS * 3 // 4)
    start(0, 0, 1)
    start(3 * MS, 1, 2)
    # Runs of 15 ms. From 3 to 18 ms the first has a quarter for its three: a third of its speed, so 12 - 5 ms are left then.
    assert run() == {1: 25 * MS, 2: 18 * MS}


def test_who_is_left_nothing_goes_at_a_tenth_of_its_speed():
    start, run = crowd(priorities=(1, 0, 0))
    start(0, 0, 1)
    start(3 * MS, 1, 2)
    assert run() == {1: 19 * MS, 2: 13 * MS}


@pytest.mark.parametrize("second", [1, 3, 7])
def test_no_work_is_lost_or_won(second):
    start, run = crowd()
    start(0, 0, 1)
    start(second * MS, 1, 2)
    assert max(run().values()) == 20 * MS


@pytest.mark.parametrize("system", ["gpulet", "dedicated", "glet"])
def test_processes_of_a_gpulet_each_run_a_batch_at_their_own_latency(system):
    models = models_of(1, slo=400 * MS)
    plan = tiny_plan([[(4, ["m0"], 2)]], ["m0"])
    world = World(models, plan, SYSTEMS[system].dispatcher)
    metrics = world.run(requests_of([(0, 0, 4, "", 0, False)] * 3, models))
    profile = tiny_profile(["m0"])
    runs = [(now, c) for now, _, commands in world.steps for c in commands if isinstance(c, Start)]
    shared = profile.latency("m0", 4, 4, processes=2)
    assert shared == 1.5 * profile.latency("m0", 4, 4)
    assert [(now, c.on, c.expected) for now, c in runs] == [(0, 0, shared), (0, 1, shared), (shared, 0, shared)]
    assert metrics.report(2 * shared)["devices"] == [
        {"busy": 0.5 * 0.75, "allocated": 0.5, "useful": 0.5 * 0.75, "in_use": 1.0, "switches": 0, "resizes": 0}
    ]
