"""Loads that stand still while requests wait: by counters here, and by a process of the OS."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gpulet.executors import yielding as yielding_module
from gpulet.executors.process import Program, WorkerProcess
from gpulet.executors.yielding import yielding


class Loading:
    """Counts how long it stood."""

    def __init__(self):
        self.stood, self.since, self.turns = 0.0, None, 0

    def suspend(self):
        assert self.since is None
        self.since = time.monotonic()

    def resume(self):
        if self.since is not None:
            self.stood += time.monotonic() - self.since
            self.since, self.turns = None, self.turns + 1


def spent(is_wanted, seconds=0.3):
    """Two processes that load for a while."""

    async def run():
        loading = Loading(), Loading()
        async with yielding(loading, is_wanted):
            await asyncio.sleep(seconds)
        return loading

    return asyncio.run(run())


def test_a_load_runs_where_nobody_waits():
    assert [(one.stood, one.turns) for one in spent(lambda: False)] == [(0.0, 0)] * 2


def test_a_load_has_a_tenth_of_the_time_where_somebody_always_waits():
    for one in spent(lambda: True):
        assert one.turns >= 3, "it goes on now and then"
        assert one.stood > 0.15
        assert one.since is None, "and in the end"


def test_a_load_goes_on_as_soon_as_nobody_waits_any_more(monkeypatch):
    monkeypatch.setattr(yielding_module, "_STAND_S", 60.0)
    ends = time.monotonic() + 0.1
    for one in spent(lambda: time.monotonic() < ends):
        assert one.turns == 1
        assert one.stood < 0.2


def test_a_load_that_ends_while_it_stands_still_is_left_running():
    async def run(loading):
        async with yielding([loading], lambda: True):
            await until(lambda: loading.since is not None)
            raise EOFError

    loading = Loading()
    with pytest.raises(EOFError):
        asyncio.run(run(loading))
    assert loading.since is None


def test_a_load_may_end_at_any_moment():
    """Even when that of its turn is the same: a cancellation that got lost left it waiting for ever."""
    chance, every = random.Random(1), [Loading() for _ in range(500)]

    async def load(loading):
        async with yielding([loading], lambda: chance.random() < 0.5):
            await asyncio.sleep(chance.random() * 0.03)

    async def run():
        await asyncio.gather(*map(load, every))
        turns = [loading.turns for loading in every]
        await asyncio.sleep(0.1)
        assert [loading.turns for loading in every] == turns, "nothing goes on"
        assert all(loading.since is None for loading in every), "nobody stands still"

    asyncio.run(run())


SLEEPER = Program("timeit", ("-n1", "-r1", "import time; time.sleep(60)"))


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def until(holds):
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come about in 5 s")


def test_a_worker_stands_still_goes_on_and_ends_whatever_it_does():
    async def run():
        worker = WorkerProcess(lambda _: None, lambda: None, SLEEPER)
        worker.suspend()
        await until(lambda: state(worker.pid) == "T")
        worker.resume()
        await until(lambda: state(worker.pid) != "T")
        worker.suspend()
        worker.kill()
        await worker.close()
        worker.suspend()
        worker.resume()

    asyncio.run(run())


ORPHANING = """
    import asyncio, os, signal, sys
    from gpulet.executors.process import Program, WorkerProcess
    async def run():
        worker = WorkerProcess(lambda _: None, lambda: None, Program("timeit", ("-n1", "-r1", "import time; time.sleep(60)")))
        worker.suspend()
        print(worker.pid, flush=True)
        await asyncio.sleep(60)
    asyncio.run(run())
"""


def test_a_worker_that_stands_still_does_not_outlive_its_front_end():
    front = subprocess.Popen([sys.executable, "-c", textwrap.dedent(ORPHANING)], stdout=subprocess.PIPE, text=True)
    pid = int(front.stdout.readline())
    asyncio.run(until(lambda: state(pid) == "T"))
    front.kill()
    front.wait()
    front.stdout.close()
    try:
        asyncio.run(until(lambda: not Path(f"/proc/{pid}").exists() or state(pid) == "Z"))
    except pytest.fail.Exception:
        os.kill(pid, signal.SIGKILL)
        raise
