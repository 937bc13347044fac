"""A gpulet that comes is like one that goes, but on other cores: its worker moves, and nothing is loaded."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

import benches
from gpulet.core.messages import Adopt, Build, Built, GpuletDown, GpuletUp, Retire
from gpulet.device import Device, Mechanism, Size, cpu_kind
from gpulet.errors import Unproven
from gpulet.executors.building import Building
from gpulet.executors.change import Gently
from gpulet.executors.cpu import Cores
from gpulet.executors.gentle import threads_of
from gpulet.executors.process import CPU
from gpulet.executors.recutting import reload
from gpulet.executors.wire import WorkerModel
from gpulet.fleetfile import usable_cores
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import MS
from servers import save_model

FIRST, LAST = usable_cores()[0], usable_cores()[-1]
THREE = (FIRST, FIRST, LAST)
"""A device of three cores, on a machine that may have fewer."""


def plan(*gpulets):
    """Of (number, offset, cores, models)."""
    device = Device(0, cpu_kind(3), Mechanism.CPU)
    made = (
        Gpulet(number, 0, Size(cores, 100 * cores / 3), offset, 10 * MS, tuple(Turn(m, 4, 1.0, MS) for m in models))
        for number, offset, cores, models in gpulets
    )
    return Plan((device,), tuple(made))


MIDDLE = plan((0, 1, 1, ["plain"]))
RIGHT = plan((1, 0, 2, ["deep"]), (2, 2, 1, ["plain"]))
"""Two cores in a row are only free once the one in the middle is."""


class Doubtful(Cores):
    """`doubts` are raised, one for each proof."""

    def __init__(self, cores):
        super().__init__(cores)
        self.doubts = []

    def prove(self, post, pid, ready):
        super().prove(post, pid, ready)
        if self.doubts:
            raise self.doubts.pop()


def allowed(pid):
    return {core for thread in threads_of(pid) for core in os.sched_getaffinity(thread)}


class Changing:
    """Workers and their changes of plan, as the core would ask for them."""

    def __init__(self, bench, ground):
        self.bench, self.ground, self.workers = bench, ground, bench.workers
        self.building = Building(bench.workers, Gently())

    async def build(self, planned, *up):
        """Built, with these gpulets up by then."""
        self.building.build(Build(1, planned))
        for number in up:
            assert (await self.bench.until(GpuletUp)).gpulet == number
        assert await self.bench.until((Built, GpuletUp)) == Built(1), self.bench.told

    async def change(self, planned, *up, gone):
        await self.build(planned, *up)
        self.building.adopt(Adopt(1, planned))
        for number in gone:
            self.building.retire(Retire(number))

    async def comes_up(self):
        return (await self.bench.until(GpuletUp)).gpulet


@asynccontextmanager
async def changing(folder, planned=MIDDLE):
    """Two models, one layer deep and none."""
    models = {}
    for name, layers in (("plain", 0), ("deep", 2)):
        save_model(folder, name, layers=layers)
        models[name] = WorkerModel(name, str(folder / name / "1" / "model.onnx"), 4)
    ground = Doubtful(THREE)
    async with benches.carved(planned, ground, CPU, models) as bench:
        yield Changing(bench, ground)


def test_a_worker_moves_once_its_gpulet_is_retired(tmp_path):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            assert allowed(before) == {FIRST}
            await made.build(RIGHT, 1)
            await made.bench.serves(0)
            made.building.adopt(Adopt(1, RIGHT))
            made.building.retire(Retire(0))
            assert await made.comes_up() == 2
            assert (made.workers.pids[2], allowed(before)) == (before, {LAST})
            await made.bench.serves(2)
            await made.bench.serves(1, "deep")
            assert set(made.workers.pids) == {1, 2}

    asyncio.run(run())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((2, 2, 1, ["deep"]), id="other models"),
        pytest.param((2, 2, 1, ["plain", "deep"]), id="more models"),
        pytest.param((2, 0, 2, ["plain"]), id="another size"),
    ],
)
def test_what_is_not_alike_is_built_beside_what_serves(tmp_path, other):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            await made.build(plan(other), 2)
            assert made.workers.pids[2] != before

    asyncio.run(run())


def test_what_is_needed_no_more_is_left_behind(tmp_path):
    async def run():
        async with changing(tmp_path, plan((0, 1, 1, ["plain", "deep"]), (1, 2, 1, ["deep"]))) as made:
            before = made.workers.pids
            there = plan((2, 0, 2, ["plain"]), (3, 2, 1, ["deep"]))
            await made.change(there, 2, gone=[0, 1])
            assert await made.comes_up() == 3
            assert made.workers.pids[3] == before[1], "who has to leave least behind"
            await made.bench.serves(3, "deep")

    asyncio.run(run())


def test_a_model_left_behind_is_loaded_no_more(tmp_path):
    async def run():
        async with changing(tmp_path, plan((0, 1, 1, ["plain", "deep"]))) as made:
            before = made.workers.pids[0]
            await made.change(plan((1, 2, 1, ["plain"])), gone=[0])
            assert await made.comes_up() == 1
            assert made.workers.pids[1] == before
            assert not made.workers.serves("deep")
            await made.bench.serves(1)

    asyncio.run(run())


def test_one_worker_moves_once(tmp_path):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            await made.change(plan((1, 0, 1, ["plain"]), (2, 2, 1, ["plain"])), 2, gone=[0])
            assert await made.comes_up() == 1
            assert made.workers.pids[1] == before != made.workers.pids[2]

    asyncio.run(run())


async def dies_before(made, pid):
    await made.build(RIGHT, 1)
    made.building.adopt(Adopt(1, RIGHT))
    os.kill(pid, signal.SIGKILL)
    assert (await made.bench.until(GpuletDown)).gpulet == 0
    made.building.retire(Retire(0))


async def dies_on_its_way(made, pid):
    os.kill(pid, signal.SIGSTOP)
    await made.change(RIGHT, 1, gone=[0])
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("dies", [dies_before, dies_on_its_way])
def test_where_the_worker_that_is_to_move_dies_another_takes_its_place(tmp_path, dies):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            await dies(made, before)
            assert await made.comes_up() == 2
            assert made.workers.pids[2] != before
            await made.bench.serves(2)

    asyncio.run(run())


@pytest.mark.parametrize("doubt", [Unproven("it is doubted"), KeyError("a bug of the ground's")])
def test_what_cannot_be_proven_where_it_moved_is_replaced(tmp_path, doubt):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            await made.build(RIGHT, 1)
            made.ground.doubts.append(doubt)
            made.building.adopt(Adopt(1, RIGHT))
            made.building.retire(Retire(0))
            assert await made.comes_up() == 2
            assert made.workers.pids[2] != before
            assert "carving_refused" in made.bench.events_told()

    asyncio.run(run())


def test_a_worker_without_turns_is_replaced_as_well_for_it_may_get_some(tmp_path):
    async def run():
        (resting,) = MIDDLE.gpulets
        idle = replace(MIDDLE, gpulets=(replace(resting, turns=(), spare=("plain",)),))
        async with changing(tmp_path) as made:
            await made.change(idle, gone=[])
            os.kill(made.workers.pids[0], signal.SIGKILL)
            assert (await made.bench.until(GpuletDown)).gpulet == 0
            assert await made.comes_up() == 0
            await made.change(MIDDLE, gone=[])
            await made.bench.serves(0)

    asyncio.run(run())


def test_other_models_that_are_loaded_meanwhile_are_not_lost(tmp_path):
    async def run():
        async with changing(tmp_path) as made:
            await made.build(RIGHT, 1)
            made.building.adopt(Adopt(1, RIGHT))
            await reload(made.workers, {})
            made.building.retire(Retire(0))
            assert set(made.workers.pids) == set()

    asyncio.run(run())


def test_a_worker_that_moves_and_leaves_again_ends(tmp_path):
    async def run():
        async with changing(tmp_path) as made:
            before = made.workers.pids[0]
            os.kill(before, signal.SIGSTOP)
            await made.change(RIGHT, 1, gone=[0])
            await made.change(plan((1, 0, 2, ["deep"])), gone=[2])
            os.kill(before, signal.SIGCONT)
            await made.bench.soon(lambda: not os.path.exists(f"/proc/{before}"))  # noqa: PTH110
            assert set(made.workers.pids) == {1}
            await made.bench.serves(1, "deep")

    asyncio.run(run())
