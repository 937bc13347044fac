"""One dispatcher of each shape under the live driver, on the simulated executor; the journal replays."""

import asyncio
from dataclasses import replace

import pytest

from gpulet.core.journal import encode_step, replay
from gpulet.core.messages import Reason
from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.live import Live
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.simulated import Simulated
from gpulet.interference import CONSTANT, Interference
from gpulet.plan import Plan
from gpulet.units import MS, SECOND
from support import CARVES, DISPATCHERS, Watch, models_of, problem_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1", "m2"]


class Caller:
    name = ""
    inputs = ()
    dims = ()

    def __init__(self, rows):
        self.rows = rows
        self.ends = []

    def answer(self, outputs, first_row):
        assert outputs[0].shape[0] >= first_row + self.rows
        self.ends.append("answer")

    def refuse(self, reason):
        assert isinstance(reason, Reason)
        self.ends.append(reason)


class Timed(Caller):
    """Waits for one row and tells when it was answered."""

    def __init__(self, timer):
        super().__init__(1)
        self.timer = timer
        self.answered = asyncio.get_running_loop().create_future()

    def answer(self, outputs, first_row):
        super().answer(outputs, first_row)
        self.answered.set_result(self.timer.now())

    def refuse(self, reason):
        self.answered.set_exception(AssertionError(reason))


def live_server(name, problem, plan, lines):
    """The live driver with a dispatcher on the simulated executor, and what watches it."""
    limits = Limits()
    timer = LiveTimer(asyncio.get_running_loop())
    metrics = Metrics(NAMES, plan)
    watch = Watch(plan, limits)
    scheduler = Scheduler(problem.models, plan, DISPATCHERS[name](problem, plan), limits)
    live = Live(scheduler, timer, metrics, lines.append)
    live.show(watch.observe)
    executor = Simulated(problem.profile, plan, timer, live.feed, keeps_rows=True, interference=problem.interference)
    live.attach(executor)
    executor.carve()
    return live, watch


async def drive(name, plan, lines):
    models = models_of(3, slo=400 * MS)
    problem = problem_of(models, plan, tiny_profile(NAMES, base=MS // 5, per_row=MS // 20))
    live, watch = live_server(name, problem, plan, lines)
    callers = []
    for n in range(120):
        callers.append(Caller(1 + n % 3))
        deadline = live.timer.now() + 400 * MS
        number = live.submit(callers[-1], NAMES[n % 3], deadline, shape="", priority=n % 2, hard=False)
        if n % 40 == 39:
            live.cancel(number)
        if n % 4 == 0:
            await asyncio.sleep(0.001)
    assert await live.drain(10)
    live.timer.close()
    watch.finish()
    assert all(len(caller.ends) == 1 for caller in callers)
    return problem, live.metrics


async def run_times(plan, alone, interference):
    """How long one row of m0 takes beside nobody, and beside a row of m1 on the same device: the best of three each."""
    problem = problem_of(models_of(3), plan, tiny_profile(NAMES, base=alone // 2, per_row=0))
    live, watch = live_server("idle picks", replace(problem, interference=interference), plan, [])

    async def took(*names):
        start = live.timer.now()
        callers = [Timed(live.timer) for _ in names]
        for name, caller in zip(names, callers, strict=True):
            live.submit(caller, name, start + 10 * SECOND, shape="", priority=0, hard=False)
        return (await asyncio.gather(*(caller.answered for caller in callers)))[0] - start

    lone = min([await took("m0") for _ in range(3)])
    beside = min([await took("m0", "m1") for _ in range(3)])
    live.timer.close()
    watch.finish()
    return lone, beside


@pytest.mark.parametrize("name", DISPATCHERS)
def test_every_shape_runs_live_and_its_journal_replays(name):
    plan = tiny_plan([[(4, ["m0", "m1"]), (4, ["m2", "m0"])], [(8, NAMES)]], NAMES)
    plan = Plan(plan.devices) if name in CARVES else plan
    lines = []
    problem, metrics = asyncio.run(drive(name, plan, lines))
    assert sum(c.served for c in metrics.models.values()) > 100
    fresh = Scheduler(problem.models, plan, DISPATCHERS[name](problem, plan), Limits())
    assert list(replay(fresh, lines)) == []


def test_a_run_beside_a_neighbour_takes_longer_than_alone():
    alone = 100 * MS
    plan = tiny_plan([[(4, ["m0"]), (4, ["m1"])]], NAMES)
    lone, beside = asyncio.run(run_times(plan, alone, Interference(CONSTANT, (1.2,))))
    assert alone <= lone < beside
    assert beside > 1.1 * alone  # 1.2 and what the loop adds, less what starts and ends apart


def test_steps_are_lines_of_json():
    assert encode_step(5, (), ()) == b"[5,[],[]]\n"
    assert SECOND == 1000 * MS
