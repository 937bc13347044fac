"""Devices that are lost: plans go on without them."""

from gpulet.core.control import Controlled, Steering
from gpulet.core.losses import Losses
from gpulet.core.messages import DeviceIn, DeviceOut, GpuletDown, GpuletUp, Replan, Replanned
from gpulet.core.replan import Watch
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.dutycycle import DutyCycle
from gpulet.units import SECOND
from support import models_of, problem_of, tiny_plan

NAMES = ["m0", "m1"]
PLAN = tiny_plan([[(8, NAMES)], [(4, ["m0"]), (4, ["m1"])]], NAMES)


class Running:
    """A core whose gpulets are up."""

    def __init__(self, plan=PLAN):
        problem = problem_of(models_of(2), plan)
        scheduler = Scheduler(problem.models, plan, DutyCycle(problem, plan), Limits())
        watch = Watch(problem.models, problem.demand)
        self.core = Controlled(scheduler, problem, plan, watch, DutyCycle, Steering(lost=2 * SECOND))
        self.core.step(0, *(GpuletUp(g.id) for g in plan.gpulets))
        self.now = 0
        self.pass_on(0.5)

    def pass_on(self, seconds, *events):
        """What is asked of planners meanwhile."""
        asked = self.step(self.now + 1, *events)
        ends = self.now + round(seconds * SECOND)
        while self.now < ends:
            self.now = min(ends, self.core.wake_at)
            asked += self.step(self.now)
        return asked

    def step(self, now, *events):
        """Nobody has another plan."""
        asked = [command for command in self.core.step(now, *events) if isinstance(command, Replan)]
        for replan in asked:
            self.core.step(now, Replanned(replan.number, None, "no plan: none fits", 1.0, 1.0))
        return asked


def test_a_device_whose_gpulets_all_stay_down_is_planned_without():
    running = Running()
    soon = running.pass_on(1.5, GpuletDown(1), GpuletDown(2))
    assert [replan.devices for replan in soon] == [(0, 1)], "it may come back"
    (asked, *_) = [replan for replan in running.pass_on(1.5) if "device 1" in replan.why]
    assert asked.devices == (0,)
    assert running.core.out == {1}


def test_one_gpulet_that_is_up_keeps_its_device():
    running = Running()
    assert not any("device" in replan.why for replan in running.pass_on(5, GpuletDown(1)))


def test_a_gpulet_that_stays_down_is_not_counted_on_until_it_is_up_again():
    running = Running()
    assert not running.pass_on(0.8, GpuletDown(1)), "its replacement may just be on its way"
    (asked,) = running.pass_on(0.8)
    assert (asked.why, asked.down, asked.builds) == ("gpulet 1 stays down", (1,), False)
    (asked,) = running.pass_on(1, GpuletUp(1))
    assert (asked.why, asked.down, asked.builds) == ("gpulet 1 is up again", (), True)


def test_a_gpulet_that_is_down_for_a_moment_now_and_then_is_counted_on():
    running = Running()
    for _ in range(5):
        asked = [*running.pass_on(0.6, GpuletDown(1)), *running.pass_on(0.1, GpuletUp(1))]
        assert not any("gpulet" in replan.why for replan in asked)


def test_a_gpulet_that_is_in_the_plan_no_more_is_forgotten():
    losses, running = Losses(SECOND, SECOND), Running()
    fleet = running.core.fleet
    losses.look(0, fleet)
    fleet.gpulets[1].is_up = False
    losses.look(1, fleet)
    losses.look(1 + SECOND, fleet)
    assert losses.gpulets.lost == {1}
    state = fleet.gpulets.pop(1)
    losses.look(2 * SECOND, fleet)
    assert losses.gpulets.lost == set()
    fleet.gpulets[1] = state  # another of that number, which was built but does not come up
    losses.look(60 * SECOND, fleet)
    assert losses.gpulets.lost == set()
    losses.look(61 * SECOND, fleet)
    assert losses.gpulets.lost == {1}


def test_one_that_comes_back_is_planned_with_again():
    running = Running()
    running.pass_on(3, GpuletDown(1), GpuletDown(2))
    assert running.core.out == {1}
    running.pass_on(0.5, GpuletUp(1))
    assert running.core.out == set()


def test_the_last_device_is_never_lost():
    running = Running(tiny_plan([[(8, NAMES)]], NAMES))
    assert not any("device" in replan.why for replan in running.pass_on(10, GpuletDown(0)))
    assert running.core.out == set()


def test_what_was_never_up_is_not_lost():
    losses, running = Losses(SECOND, SECOND), Running()
    for state in running.core.fleet.gpulets.values():
        state.is_up = False
    for now in (0, 60 * SECOND):
        losses.look(now, running.core.fleet)
    assert losses.devices.lost == losses.gpulets.lost == set()


def test_somebody_may_restore_it():
    running = Running()
    running.pass_on(3, GpuletDown(1), GpuletDown(2))
    running.pass_on(0.5, DeviceIn(1))
    assert running.core.out == set()


def test_who_went_down_as_the_last_is_out_once_another_is_back():
    running = Running()
    running.pass_on(3, GpuletDown(0), GpuletDown(1), GpuletDown(2))
    assert len(running.core.out) == 1
    running.pass_on(0.5, GpuletUp(0))
    assert running.core.out == {1}


def test_what_somebody_took_out_stays_out_when_it_comes_back_from_being_lost():
    running = Running()
    running.pass_on(0.5, DeviceOut(1))
    running.pass_on(3, GpuletDown(1), GpuletDown(2))
    running.pass_on(1, GpuletUp(1))
    assert running.core.out == {1}
    running.pass_on(0.5, DeviceIn(1))
    assert running.core.out == set()
