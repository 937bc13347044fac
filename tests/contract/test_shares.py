"""Workers by MPS and MIG, over processes as wide as their shares: deaths, a daemon's death, re-cuts."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from benches import carved
from fake_grounds import GPU, SHARES, mig_ground, mig_plan, mps_ground, mps_plan
from fake_mps import is_alive, told
from gpulet.core.messages import GpuletDown, GpuletUp
from gpulet.device import Mechanism
from gpulet.errors import Unusable
from gpulet.executors.recutting import recut
from gpulet.executors.stations import Patience
from gpulet.plan import Turn
from gpulet.units import MS

TURNS = (Turn("plain", 4, 1.0, MS), Turn("deep", 4, 1.0, MS))
HALVES = mig_plan(("4g.71gb", 0), ("3g.71gb", 4), turns=TURNS)


def percents(*shares):
    return mps_plan(*shares, turns=TURNS)


@pytest.fixture(autouse=True)
def shares_are_found(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("MIG_FOLDER", str(tmp_path))


def daemon_of(ground):
    return ground._daemons.pid(GPU)  # noqa: SLF001 (to end it)


def test_a_share_of_another_width_than_its_percentage_never_serves(tmp_path, monkeypatch):
    async def run():
        ground = mps_ground(tmp_path)
        monkeypatch.setattr("gpulet.executors.mps.client_environment", without_share)
        async with carved(percents(40), ground, SHARES, count=0) as bench:
            await bench.soon(lambda: bench.given_up)
            assert "counts 132 SMs; 40 %" in str(bench.given_up[0])
            assert "its share is not kept" in str(bench.given_up[0])

    asyncio.run(run())


def without_share(mps, client, uuid):
    environment = {**mps.environment(client, {}), "CUDA_VISIBLE_DEVICES": uuid}
    del environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"]
    return environment


def test_a_client_that_hangs_is_taken_off_its_daemon_while_it_lives(tmp_path):
    async def run():
        ground = mps_ground(tmp_path)
        async with carved(percents(40, 60), ground, SHARES, patience=Patience(300 * MS)) as bench:
            pids = bench.workers.pids
            os.kill(pids[0], signal.SIGSTOP)
            bench.start(0)
            assert (await bench.until(GpuletDown)).gpulet == 0
            assert (await bench.until(GpuletUp)).gpulet == 0
            assert f"ended the living client {pids[0]}" in told(tmp_path)
            assert f"ended the living client {pids[1]}" not in told(tmp_path)
            assert bench.workers.pids[1] == pids[1]
            await bench.serves(0)

    asyncio.run(run())


def test_a_daemon_that_dies_takes_its_clients_and_their_successors_have_another(tmp_path):
    async def run():
        ground = mps_ground(tmp_path)
        async with carved(percents(40, 60), ground, SHARES) as bench:
            daemon, pids = daemon_of(ground), bench.workers.pids
            before = {s.post.environment["CUDA_MPS_PIPE_DIRECTORY"] for s in bench.workers.stations}
            os.kill(daemon, signal.SIGKILL)
            assert {(await bench.until(GpuletDown)).gpulet for _ in range(2)} == {0, 1}
            assert {(await bench.until(GpuletUp)).gpulet for _ in range(2)} == {0, 1}
            assert not {*pids.values()} & {*bench.workers.pids.values()}
            after = {s.post.environment["CUDA_MPS_PIPE_DIRECTORY"] for s in bench.workers.stations}
            assert len(before) == len(after) == 1
            assert before != after
            assert is_alive(daemon_of(ground))
            await bench.serves(0)
            await bench.serves(1, "deep")
            assert not bench.given_up
            last = daemon_of(ground)
        assert not is_alive(last)

    asyncio.run(run())


def test_a_recut_under_mps_prepares_clients_beside_those_that_serve_and_loses_nothing(tmp_path):
    async def run():
        ground = mps_ground(tmp_path)
        async with carved(percents(40, 60), ground, SHARES) as bench:
            daemon, old = daemon_of(ground), bench.workers.pids
            task = asyncio.ensure_future(recut(bench.workers, percents(60, 40)))
            served = 0
            while not task.done():
                await bench.serves(served % 2)
                served += 1
            assert task.result().build > 0
            assert served > 2
            assert daemon_of(ground) == daemon
            assert not {*old.values()} & {*bench.workers.pids.values()}
            assert not any(is_alive(pid) for pid in old.values())
            await bench.serves(0)
            await bench.serves(1, "deep")
            assert "worker_died" not in bench.events_told()

    asyncio.run(run())


def test_a_client_whose_share_stays_in_a_recut_stays(tmp_path):
    async def run():
        async with carved(percents(40, 60), mps_ground(tmp_path), SHARES) as bench:
            first = bench.workers.pids[0]
            await recut(bench.workers, percents(40, 30, 30))
            assert bench.workers.pids[0] == first
            assert len(set(bench.workers.pids.values())) == 3
            for gpulet in range(3):
                await bench.serves(gpulet)

    asyncio.run(run())


def test_a_mig_recut_that_needs_slots_of_workers_is_refused_and_the_plan_in_force_serves(tmp_path):
    async def run():
        ground, nvml = mig_ground(tmp_path)
        async with carved(HALVES, ground, SHARES) as bench:
            before, standing = bench.workers.pids, nvml.standing()
            small = mig_plan(("2g.35gb", 0), ("1g.18gb", 2), ("3g.71gb", 4), turns=TURNS)
            with pytest.raises(Unusable, match=r"cannot be made beside 4g.71gb at 0, where workers serve"):
                await recut(bench.workers, small)
            assert nvml.standing() == standing
            assert bench.workers.pids == before
            assert bench.workers.plan == HALVES
            await bench.serves(0)
            await bench.serves(1, "deep")
        assert not nvml.standing()

    asyncio.run(run())


def test_a_mig_recut_into_free_slots_is_made_beside_what_serves(tmp_path):
    async def run():
        ground, nvml = mig_ground(tmp_path)
        async with carved(mig_plan(("3g.71gb", 4), turns=TURNS), ground, SHARES) as bench:
            first = bench.workers.pids[0]
            await recut(bench.workers, mig_plan(("3g.71gb", 4), ("2g.35gb", 0), turns=TURNS))
            assert bench.workers.pids[0] == first
            assert {(label, start) for _, label, start, _ in nvml.standing()} == {("3g.71gb", 4), ("2g.35gb", 0)}
            await bench.serves(0)
            await bench.serves(1)
            assert bench.workers.plan.devices[0].mechanism is Mechanism.MIG

    asyncio.run(run())


def test_a_dead_worker_of_an_instance_is_replaced_in_the_same_instance(tmp_path):
    async def run():
        ground, nvml = mig_ground(tmp_path)
        async with carved(HALVES, ground, SHARES) as bench:
            standing = nvml.standing()
            os.kill(bench.workers.pids[1], signal.SIGKILL)
            assert (await bench.until(GpuletDown)).gpulet == 1
            assert (await bench.until(GpuletUp)).gpulet == 1
            assert nvml.standing() == standing
            await bench.serves(1)

    asyncio.run(run())
