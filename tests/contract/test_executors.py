"""One suite that every live executor passes: carve, start, outputs, close."""

import asyncio
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fake_grounds import SHARES, mig_ground, mig_plan, mps_ground, mps_plan
from gpulet.core.messages import Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.device import Device, Mechanism, Size, cpu_kind, find_kind
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.cpu import Cores
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.opening import open_rehearsal
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.gpus import Gpus
from gpulet.executors.green import Green
from gpulet.executors.process import CPU, Program
from gpulet.executors.simulated import Simulated
from gpulet.executors.stations import Patience
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.fleetfile import usable_cores
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profile import Point, Profile
from gpulet.units import MIB, MS
from servers import save_detector, save_model

CORES = len(usable_cores())
TURNS = (Turn("plain", 4, 1.0, MS), Turn("deep", 4, 1.0, MS))
PLAN = Plan(
    (Device(0, cpu_kind(max(2, CORES)), Mechanism.CPU if CORES > 1 else Mechanism.WHOLE),),
    tuple(Gpulet(g, 0, Size(1, 50.0), g if CORES > 1 else 0, 10 * MS, TURNS) for g in range(2)),
)


@dataclass
class Request:
    inputs: tuple
    dims: tuple


class Bench:
    def __init__(self):
        self.events = asyncio.Queue()
        self.requests = {}
        self.seen = Counter()
        self.told = []

    def ask(self, number, rows, fill):
        data = np.full((rows, 4), fill, np.float32)
        self.requests[number] = Request((data.tobytes(),), (data.shape,))

    async def until(self, kind, count=1):
        found = []
        while len(found) < count:
            event = await asyncio.wait_for(self.events.get(), 20)
            self.seen[type(event)] += 1
            if isinstance(event, kind):
                found.append(event)
        return found


def simulated(bench, timer, folder):
    profile = Profile(tuple(Point(m, 1, n, MS, MS, MS) for m in ("plain", "deep") for n in (1, 8)))
    return Simulated(profile, PLAN, timer, bench.events.put_nowait, keeps_rows=True)


def cpu(bench, timer, folder):
    for name, layers in (("plain", 0), ("deep", 2)):
        save_model(folder, name, layers=layers)
    files = {name: WorkerModel(name, str(folder / name / "1" / "model.onnx"), 4) for name in ("plain", "deep")}
    tell = lambda event, **fields: bench.told.append((event, fields))  # noqa: E731
    ask = bench.requests.__getitem__
    return Workers(PLAN, files, Cores(usable_cores()), CPU, timer, bench.events.put_nowait, ask, tell, pytest.fail)


def green(bench, timer, folder):
    """On the imaginary GPU, in this process."""
    driver = FakeCudaDriver()
    runtime = ImaginaryRuntime(driver, {"plain": ImaginaryModel(), "deep": ImaginaryModel()})
    return green_of(bench, timer, lambda: (driver, runtime))


def rehearsed(bench, timer, folder):
    """The same with real models, which run on the CPU."""
    for name, layers in (("plain", 0), ("deep", 2)):
        save_model(folder, name, layers=layers)
    models = {name: ModelSource(str(folder / name / "1" / "model.onnx")) for name in ("plain", "deep")}
    return green_of(bench, timer, lambda: open_rehearsal(models))


def green_of(bench, timer, open_gpu):
    tell = lambda event, **fields: bench.told.append((event, fields))  # noqa: E731
    device = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)
    gpulets = tuple(replace(g, size=Size(64, 50.0), offset=64 * g.id) for g in PLAN.gpulets)
    ask = bench.requests.__getitem__
    emit, now = bench.events.put_nowait, timer.now
    return Green(Plan((device,), gpulets), 0, open_gpu, now, emit, ask, tell, pytest.fail)


def gpu(bench, timer, ground, mechanism):
    """A worker process that holds an imaginary GPU."""
    device = Device(0, find_kind("h200-141gb"), mechanism)
    whole = mechanism is Mechanism.WHOLE
    size = Size(132, 100.0) if whole else Size(64, 50.0)
    gpulets = tuple(replace(g, size=size, offset=0 if whole else 64 * g.id) for g in PLAN.gpulets)
    models = {name: WorkerModel(name, f"{name}.pt2", 4) for name in ("plain", "deep")}
    tell = lambda event, **fields: bench.told.append((event, fields))  # noqa: E731
    ask = bench.requests.__getitem__
    plan = Plan((device,), gpulets)
    emit = bench.events.put_nowait
    return Workers(plan, models, ground, IMAGINARY, timer, emit, ask, tell, pytest.fail, Patience())


def green_worker(bench, timer, folder):
    return gpu(bench, timer, Gpus(), Mechanism.GREEN)


def whole_worker(bench, timer, folder):
    return gpu(bench, timer, Gpus(), Mechanism.WHOLE)


def shares(bench, timer, ground, plan):
    """A process for each gpulet, which sees its share alone."""
    models = {name: WorkerModel(name, f"{name}.pt2", 4) for name in ("plain", "deep")}
    tell = lambda event, **fields: bench.told.append((event, fields))  # noqa: E731
    ask = bench.requests.__getitem__
    emit = bench.events.put_nowait
    return Workers(plan, models, ground, SHARES, timer, emit, ask, tell, pytest.fail, Patience())


def mps(bench, timer, folder):
    """Clients of a daemon."""
    return shares(bench, timer, mps_ground(folder), mps_plan(40, 60, turns=TURNS))


def mig(bench, timer, folder):
    """Processes in instances."""
    return shares(bench, timer, mig_ground(folder)[0], mig_plan(("4g.71gb", 0), ("3g.71gb", 4), turns=TURNS))


IMAGINARY = Program("gpulet.executors.cuda.worker", ("gpulet.executors.cuda.imaginary:open_imaginary",), 8, MIB)
EXECUTORS = {
    "simulated": simulated,
    "cpu": cpu,
    "green": green,
    "rehearsed": rehearsed,
    "green-worker": green_worker,
    "whole": whole_worker,
    "mps": mps,
    "mig": mig,
}
WITH_MODELS = {"cpu": cpu, "rehearsed": rehearsed}


@pytest.fixture(autouse=True)
def shares_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("MIG_FOLDER", "")


@asynccontextmanager
async def carved(make, folder):
    bench = Bench()
    timer = LiveTimer(asyncio.get_running_loop())
    executor = make(bench, timer, folder)
    executor.carve()
    try:
        await bench.until(GpuletUp, 2)
        yield executor, bench
    finally:
        await executor.close()
        timer.close()


async def runs_batches(make, folder):
    async with carved(make, folder) as (executor, bench):
        bench.ask(1, 2, 1.0)
        bench.ask(2, 1, 2.0)
        bench.ask(3, 3, 3.0)
        executor.start(Start(1, 0, "plain", "", 3, (1, 2)))
        executor.start(Start(2, 1, "deep", "", 3, (3,)))
        ended = await bench.until(Finished, 2)
        assert sorted(e.batch for e in ended) == [1, 2]
        shapes = {batch: executor.outputs(batch)[0].shape for batch in (1, 2)}
        assert {shape[0] for shape in shapes.values()} == {3}
        executor.start(Start(3, 0, "deep", "", 1, (2,)))
        (again,) = await bench.until(Finished)
        assert again.batch == 3
        assert len(executor.outputs(3)[0].data) == np.prod(executor_shape(executor, make)) * 4
        assert bench.seen == {GpuletUp: 2, Finished: 3}


def executor_shape(executor, make):
    return (1, 4) if make in WITH_MODELS.values() else (1, 1)


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_start_is_followed_by_one_end_and_its_outputs(name, tmp_path):
    asyncio.run(runs_batches(EXECUTORS[name], tmp_path))


async def keeps_rows_apart(make, folder):
    async with carved(make, folder) as (executor, bench):
        for number, (rows, fill) in enumerate([(2, 1.0), (1, 2.0), (1, 3.0)], start=1):
            bench.ask(number, rows, fill)
        executor.start(Start(1, 0, "plain", "", 4, (1, 2, 3)))
        await bench.until(Finished)
        (result,) = executor.outputs(1)
        found = np.frombuffer(result.data, np.float32).reshape(result.shape)
        assert found[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", WITH_MODELS)
def test_the_rows_of_a_batch_come_back_in_their_order(name, tmp_path):
    asyncio.run(keeps_rows_apart(WITH_MODELS[name], tmp_path))


async def refuses_bad_shapes(make, folder):
    async with carved(make, folder) as (executor, bench):
        bench.requests[1] = Request((bytes(12),), ((1, 3),))
        executor.start(Start(1, 0, "plain", "", 1, (1,)))
        (failed,) = await bench.until(RunFailed)
        assert failed.batch == 1
        bench.ask(2, 1, 5.0)
        executor.start(Start(2, 0, "plain", "", 1, (2,)))
        await bench.until(Finished)


@pytest.mark.parametrize("name", WITH_MODELS)
def test_a_batch_that_the_runtime_refuses_fails_and_the_worker_lives_on(name, tmp_path):
    asyncio.run(refuses_bad_shapes(WITH_MODELS[name], tmp_path))


async def loads_a_detector(folder):
    """Outputs without a row for each input row: requests of this model are run one by one."""
    bench = Bench()
    timer = LiveTimer(asyncio.get_running_loop())
    executor = cpu(bench, timer, folder)
    save_detector(folder, "deep")
    executor.carve()
    await bench.until(GpuletUp, 2)
    assert executor.signatures["plain"].is_batched
    assert not executor.signatures["deep"].is_batched
    bench.ask(1, 2, 1.0)
    executor.start(Start(1, 0, "deep", "", 1, (1,)))
    await bench.until(Finished)
    (result,) = executor.outputs(1)
    assert result.shape == (8, 2)
    executor.start(Start(2, 0, "deep", "", 2, (1, 1)))
    await bench.until(RunFailed)
    await executor.close()
    timer.close()


def test_a_model_whose_outputs_have_other_rows_is_not_batched(tmp_path):
    asyncio.run(loads_a_detector(tmp_path))


async def dies_and_comes_back(make, folder):
    async with carved(make, folder) as (executor, bench):
        first = dict(executor.pids)
        for batch in (1, 2):
            os.kill(executor.pids[0], signal.SIGKILL)
            (down,) = await bench.until(GpuletDown)
            (up,) = await bench.until(GpuletUp)
            assert (down.gpulet, up.gpulet) == (0, 0)
            bench.ask(batch, 1, 5.0)
            executor.start(Start(batch, 0, "plain", "", 1, (batch,)))
            await bench.until(Finished)
        assert executor.pids[1] == first[1]
        assert executor.pids[0] != first[0]


@pytest.mark.parametrize("make", [cpu, mps, mig])
def test_a_dead_worker_is_replaced_again_and_again(make, tmp_path):
    asyncio.run(dies_and_comes_back(make, tmp_path))
