"""One dispatcher of each shape under the live driver, on the simulated executor; the journal replays."""

import asyncio

import pytest

from gpulet.core.journal import encode_step, replay
from gpulet.core.messages import Reason
from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.drivers.live import Live
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.simulated import Simulated
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


async def drive(name, plan, lines):
    models = models_of(3, slo=400 * MS)
    problem = problem_of(models, plan, tiny_profile(NAMES, base=MS // 5, per_row=MS // 20))
    limits = Limits()
    timer = LiveTimer(asyncio.get_running_loop())
    metrics = Metrics(NAMES, plan)
    watch = Watch(plan, limits)
    scheduler = Scheduler(problem.models, plan, DISPATCHERS[name](problem, plan), limits)
    live = Live(scheduler, timer, metrics, lines.append, [watch.observe])
    executor = Simulated(problem.profile, plan, timer, live.feed, keeps_rows=True)
    live.attach(executor)
    executor.carve()
    callers = []
    for n in range(120):
        callers.append(Caller(1 + n % 3))
        deadline = timer.now() + 400 * MS
        number = live.submit(callers[-1], NAMES[n % 3], deadline, shape="", priority=n % 2, hard=False)
        if n % 40 == 39:
            live.cancel(number)
        if n % 4 == 0:
            await asyncio.sleep(0.001)
    assert await live.drain(10)
    timer.close()
    watch.finish()
    assert all(len(caller.ends) == 1 for caller in callers)
    return problem, metrics


@pytest.mark.parametrize("name", DISPATCHERS)
def test_every_shape_runs_live_and_its_journal_replays(name):
    plan = tiny_plan([[(4, ["m0", "m1"]), (4, ["m2", "m0"])], [(8, NAMES)]], NAMES)
    plan = Plan(plan.devices) if name in CARVES else plan
    lines = []
    problem, metrics = asyncio.run(drive(name, plan, lines))
    assert sum(c.served for c in metrics.models.values()) > 100
    fresh = Scheduler(problem.models, plan, DISPATCHERS[name](problem, plan), Limits())
    assert list(replay(fresh, lines)) == []


def test_steps_are_lines_of_json():
    assert encode_step(5, (), ()) == b"[5,[],[]]\n"
    assert SECOND == 1000 * MS
