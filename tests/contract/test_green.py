"""The green executor in this process, on the imaginary GPU: faults, and a re-cut under running batches."""

import asyncio
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from gpulet.core.messages import Carve, Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import DeviceError, DeviceFull, DeviceLost, PlanError, Unproven, Unusable
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.imaginary import ImaginaryGraph, ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.runtime import Answered
from gpulet.executors.green import Green
from gpulet.executors.wire import WorkerModel
from gpulet.plan import Gpulet, Plan, Resident, Turn
from gpulet.units import MS

DEVICE = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)


def plan(*spans, model="a"):
    turns = (Turn(model, 4, 1.0, MS),)
    return Plan((DEVICE,), tuple(Gpulet(n, 0, Size(b - a, 50.0), a, 10 * MS, turns) for n, (a, b) in enumerate(spans)))


@dataclass
class Request:
    inputs: tuple
    dims: tuple


class Held(FakeCudaDriver):
    """Batches end when `gate` opens."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def wait(self, mark):
        if threading.current_thread().name.startswith("gpulet"):
            self.gate.wait(20)
        super().wait(mark)


class Bench:
    def __init__(self, driver, first):
        self.driver, self.first = driver, first
        self.events = []
        self.given_up = []
        self.requests = {}
        self.timer = LiveTimer(asyncio.get_running_loop())
        runtime = ImaginaryRuntime(driver, {"a": ImaginaryModel(), "off": ImaginaryModel(error=1.0)})
        tell = lambda event, **fields: None  # noqa: E731
        opened = lambda: (driver, runtime)  # noqa: E731
        ask = self.requests.__getitem__
        self.green = Green(first, 0, opened, self.timer.now, self.events.append, ask, tell, self.given_up.append)

    def start(self, batch, on, rows=1, size=4):
        self.requests[batch] = Request((bytes(size * rows),), ((rows, 1),))
        self.green.start(Start(batch, on, "a", "", rows, (batch,)))

    async def until(self, condition):
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        pytest.fail(f"{self.events} {self.given_up}")

    def count(self, kind):
        return sum(isinstance(e, kind) for e in self.events)


@asynccontextmanager
async def carved(first, driver=None):
    bench = Bench(driver or Held(), first)
    bench.green.carve()
    await bench.until(lambda: bench.count(GpuletUp) == len(first.gpulets) or bench.given_up)
    try:
        yield bench
    finally:
        bench.driver.gate.set()
        await bench.green.close()
        bench.timer.close()


def run(scene):
    asyncio.run(scene())


def test_a_batch_that_the_runtime_refuses_fails_and_its_gpulet_lives_on():
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            bench.start(1, 0, size=3)
            await bench.until(lambda: bench.count(RunFailed) == 1)
            bench.start(2, 0, rows=5)
            assert bench.count(RunFailed) == 2
            bench.start(3, 0, rows=3)
            await bench.until(lambda: bench.count(Finished) == 1)
            assert bench.green.outputs(3)[0].shape == (3, 1)

    run(scene)


def test_a_lost_gpu_takes_every_gpulet_down_once_and_gives_up():
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            bench.driver.faults.break_call("wait", DeviceLost("wait: ILLEGAL_ADDRESS (700)"))
            bench.start(1, 0)
            bench.start(2, 1)
            await bench.until(lambda: bench.given_up)
            await asyncio.sleep(0.02)
            downs = [e.gpulet for e in bench.events if isinstance(e, GpuletDown)]
            assert downs == [0, 1]
            assert [type(e) for e in bench.given_up] == [DeviceLost]
            bench.start(3, 0)

    run(scene)


@pytest.mark.parametrize(
    ("fault", "kind"), [({"is_confining": False}, Unproven), ({"queues": 1}, Unproven), ({"missing_sms": 8}, Unproven)]
)
def test_what_cannot_be_proven_is_not_served(fault, kind):
    async def scene():
        driver = Held()
        for name, value in fault.items():
            setattr(driver.faults, name, value)
        async with carved(plan((0, 64), (64, 128)), driver) as bench:
            assert [type(e) for e in bench.given_up] == [kind]
            assert bench.events == []

    run(scene)


def test_a_re_cut_loses_nothing_and_tells_its_three_times():
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            bench.driver.gate.clear()
            bench.start(1, 0)
            recut = asyncio.ensure_future(bench.green.recut(plan((0, 96), (96, 128))))
            await bench.until(lambda: bench.green.is_draining)
            bench.start(2, 1)
            bench.driver.gate.set()
            times = await recut
            await bench.until(lambda: bench.count(Finished) == 2)
            assert times.build > 0
            assert times.drain > 0
            assert times.swap < 50 * MS
            bench.start(3, 0)
            await bench.until(lambda: bench.count(Finished) == 3)
            assert Counter(type(e) for e in bench.events) == {GpuletUp: 2, Finished: 3}

    run(scene)


def test_a_parked_batch_without_a_gpulet_goes_back_to_the_core():
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            bench.driver.gate.clear()
            bench.start(1, 0)
            recut = asyncio.ensure_future(bench.green.recut(plan((0, 128))))
            await bench.until(lambda: bench.green.is_draining)
            bench.start(2, 1)
            bench.driver.gate.set()
            await recut
            assert [e.gpulet for e in bench.events if isinstance(e, GpuletDown)] == [1]

    run(scene)


@pytest.mark.parametrize(
    ("wanted", "fault", "kind"),
    [
        (plan((0, 12)), None, PlanError),
        (plan((0, 96), model="off"), None, Unproven),
        (plan((0, 96)), DeviceFull("make_context: OUT_OF_MEMORY (2)"), DeviceError),
    ],
)
def test_a_re_cut_that_cannot_be_built_leaves_the_plan_serving(wanted, fault, kind):
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            if fault:
                bench.driver.faults.break_call("make_context", fault)
            with pytest.raises(kind):
                await bench.green.recut(wanted)
            bench.start(1, 1)
            await bench.until(lambda: bench.count(Finished) == 1)
            assert not bench.given_up
            await bench.green.recut(plan((0, 32), (32, 128)))

    run(scene)


def test_a_batch_that_does_not_end_in_time_ends_the_re_cut_instead():
    async def scene():
        async with carved(plan((0, 64), (64, 128))) as bench:
            bench.driver.gate.clear()
            bench.start(1, 0)
            with pytest.raises(Unusable, match=r"a running batch did not end within 0.02 s"):
                await bench.green.recut(plan((0, 96), (96, 128)), patience=20 * MS)
            bench.driver.gate.set()
            await bench.until(lambda: bench.count(Finished) == 1)
            bench.start(2, 0)
            await bench.until(lambda: bench.count(Finished) == 2)

    run(scene)


class EchoGraph(ImaginaryGraph):
    """Its outputs are what it was last given, as a real graph's fixed buffers are."""

    def __init__(self, *given):
        super().__init__(*given)
        self.buffer = bytearray(4)

    def replay(self, rows, inputs):
        self.buffer[:] = inputs[0][0]
        return super().replay(rows, inputs)

    def outputs(self, rows):
        return (Answered((rows, 1), memoryview(self.buffer)),)


class EchoRuntime(ImaginaryRuntime):
    graph = EchoGraph


def test_a_run_that_waited_for_a_place_begins_only_once_the_one_before_has_been_read():
    """Both replay one graph. The worker reads outputs while it is told that they are there; here it takes its time."""
    found = {}

    async def scene():
        driver = Held()
        timer = LiveTimer(asyncio.get_running_loop())
        requests = {n: Request((bytes([n] * 4),), ((1, 1),)) for n in (1, 2, 3)}

        def hear(event):
            if isinstance(event, Finished):
                time.sleep(0.05)
                found[event.batch] = green.outputs(event.batch)[0].data.tobytes() if event.batch not in found else b""

        first = Plan((DEVICE,), residents=(Resident(0, "a"),))
        opened = lambda: (driver, EchoRuntime(driver, {"a": ImaginaryModel()}))  # noqa: E731
        models = {"a": WorkerModel("a", "", 1)}
        tell = lambda event, **fields: None  # noqa: E731
        green = Green(first, 0, opened, timer.now, hear, requests.__getitem__, tell, pytest.fail, models)
        green.carve()
        await green.carved()
        for n in requests:
            green.start(Start(n, Carve(0, 128), "a", "", 1, (n,)))  # there is one such place
        for _ in range(2000):
            if len(found) == len(requests):
                break
            await asyncio.sleep(0.005)
        await green.close()
        timer.close()

    run(scene)
    assert found == {n: bytes([n] * 4) for n in (1, 2, 3)}
