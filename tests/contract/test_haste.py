"""Who stands by does so in idle time. Who takes a dead worker's place does not wait for that: busy cores may never have any."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

import benches
from benches import soon
from gpulet.core.messages import GpuletUp
from gpulet.device import Device, Mechanism, Size, cpu_kind
from gpulet.executors.cpu import Cores
from gpulet.executors.crew import Crew
from gpulet.executors.gentle import LOADS, may_return, name_of, threads_of
from gpulet.executors.process import CPU, WorkerProcess
from gpulet.executors.wire import Prepare, WorkerModel
from gpulet.fleetfile import usable_cores
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import MS
from servers import save_model

PLAN = Plan(
    (Device(0, cpu_kind(1), Mechanism.CPU),), (Gpulet(0, 0, Size(1, 100.0), 0, 10 * MS, (Turn("plain", 4, 1.0, MS),)),)
)


def is_done(worker):
    worker.hasten()  # busy machines have no idle time
    return not worker.is_importing


def test_who_has_just_begun_in_idle_time_is_left_to_it():
    async def run():
        crew = Crew(CPU, lambda *_, **__: None)
        crew.stand_by(is_gentle=True)
        hired, standby = crew.hire(), crew._standby  # noqa: SLF001 (nobody serves by it yet)
        assert not hired.is_importing
        assert standby.is_importing
        await soon(lambda: is_done(standby))
        assert crew.hire() is standby
        await crew.close()

    asyncio.run(run())


@pytest.fixture
def endless(tmp_path):
    """A model that is never done loading, until somebody writes to it."""
    os.mkfifo(tmp_path / "endless")
    return WorkerModel("endless", str(tmp_path / "endless"), 4)


def is_idle(pid):
    """Whether a thread of it takes only idle time."""
    return any(os.sched_getscheduler(thread) == os.SCHED_IDLE for thread in threads_of(pid))


async def replaced(folder, endless):
    """Kill who serves while the one that stands by loads: (that one, whether it still takes only idle time, who serves then)."""
    save_model(folder, "plain")
    models = {"plain": WorkerModel("plain", str(folder / "plain" / "1" / "model.onnx"), 4)}
    async with benches.carved(PLAN, Cores(usable_cores()[:1]), CPU, models) as bench:
        crew, dead = bench.workers._crew, bench.workers.pids[0]  # noqa: SLF001 (as above)
        crew.stand_by(Prepare(1, (endless,)))
        standby = crew._standby.pid  # noqa: SLF001
        await soon(lambda: name_of(standby) == LOADS and is_idle(standby))
        os.kill(dead, signal.SIGKILL)
        await soon(lambda: bench.workers.pids.get(0, dead) != dead)
        still = is_idle(standby)
        await asyncio.to_thread(Path(endless.path).write_bytes, b"no model")
        await bench.until(GpuletUp)
        await bench.serves(0)
        return standby, still, bench.workers.pids[0]


@pytest.mark.skipif(not may_return(), reason="threads may not leave SCHED_IDLE here (CAP_SYS_NICE, RLIMIT_NICE)")
def test_who_loads_in_idle_time_is_hastened(tmp_path, endless):
    standby, still, serves = asyncio.run(replaced(tmp_path, endless))
    assert serves == standby
    assert not still


def test_who_may_not_be_hastened_is_left_to_it(tmp_path, endless, monkeypatch):
    monkeypatch.setattr(WorkerProcess, "hasten", lambda _: False)
    standby, still, serves = asyncio.run(replaced(tmp_path, endless))
    assert serves != standby
    assert still
