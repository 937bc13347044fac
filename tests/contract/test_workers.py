"""Workers on GPUs, over processes with an imaginary GPU: deaths, hangs, poison, models that do not load, re-cuts."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import benches
from gpulet.core.messages import Adopt, Build, Built, Finished, GpuletDown, GpuletUp, NotBuilt, RunFailed
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.errors import PlanError, Unproven, Unusable
from gpulet.executors.building import Building
from gpulet.executors.change import Gently
from gpulet.executors.gpus import Gpus
from gpulet.executors.ground import Post
from gpulet.executors.process import Program
from gpulet.executors.recutting import recut, reload
from gpulet.executors.stations import Patience
from gpulet.plan import Gpulet, Plan, Resident, Turn
from gpulet.units import MIB, MS, SECOND
from poison import ENDLESS, POISON

DEADLY = Program("gpulet.executors.cuda.worker", ("poison:open_deadly",), 8, MIB)
PLAIN, DEEP = Turn("plain", 4, 1.0, MS), Turn("deep", 4, 1.0, MS)


def carved(first, ground=None, **named):
    return benches.carved(first, ground or Gpus(), DEADLY, **named)


def plan(*sizes, turns=(PLAIN, DEEP), mechanism=Mechanism.GREEN):
    device = Device(0, find_kind("h200-141gb"), mechanism)
    ends = np.cumsum(sizes)
    gpulets = (Gpulet(i, 0, Size(s, 50.0), int(ends[i]) - s, 10 * MS, turns) for i, s in enumerate(sizes))
    return Plan((device,), tuple(gpulets))


class Alone:
    """A process for each gpulet; `unproven` are the sizes that never can be shown."""

    def __init__(self):
        self.unproven = set()
        self.settled = []
        self.proven = []
        self.dismissed = []
        self.is_closed = False

    def prepare(self, plan):
        return tuple(Post(g.device, (g,), {"SHARE": str(g.size.sms)}, is_alone=True) for g in plan.gpulets)

    def prove(self, post, pid, ready):
        (gpulet,) = post.gpulets
        self.proven.append((gpulet.size.sms, pid))
        if gpulet.size.sms in self.unproven:
            msg = f"gpulet {gpulet.id} is not attached"
            raise Unproven(msg)

    def dismiss(self, post, pid):
        self.dismissed.append(pid)

    def settle(self, plan):
        self.settled.append(tuple(g.size.sms for g in plan.gpulets))

    def close(self):
        self.is_closed = True


@pytest.fixture(autouse=True)
def poison_is_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def test_one_death_takes_all_gpulets_of_a_gpu_and_the_standby_brings_them_back():
    async def run():
        async with carved(plan(64, 64)) as bench:
            (pid,) = set(bench.workers.pids.values())
            os.kill(pid, signal.SIGKILL)
            downs = {(await bench.until(GpuletDown)).gpulet for _ in range(2)}
            ups = {(await bench.until(GpuletUp)).gpulet for _ in range(2)}
            assert downs == ups == {0, 1}
            await bench.serves(1, "deep")

    asyncio.run(run())


def test_a_batch_that_hangs_costs_its_worker_its_life_and_others_serve_on():
    async def run():
        async with carved(plan(64, 64), Alone(), patience=Patience(600 * MS)) as bench:
            pids = bench.workers.pids
            os.kill(pids[0], signal.SIGSTOP)
            bench.start(0)
            await bench.serves(1)
            assert (await bench.until(GpuletDown)).gpulet == 0
            assert (await bench.until(GpuletUp)).gpulet == 0
            assert bench.workers.pids[1] == pids[1]
            assert bench.events_told().count("batch_slow") == 1
            assert "batch_hangs" in bench.events_told()
            await bench.serves(0)

    asyncio.run(run())


def test_a_model_that_kills_its_worker_twice_with_one_request_is_quarantined_and_the_others_serve():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            for _ in range(2):
                bench.start(0, fill=POISON)
                assert (await bench.until(GpuletDown)).gpulet == 0
                assert (await bench.until(GpuletUp)).gpulet == 0
            assert "quarantined" in bench.workers.refused["plain"]
            await bench.serves(0, "deep")
            batch = bench.start(1, "plain")
            assert await bench.until((RunFailed, Finished)) == RunFailed(batch)

    asyncio.run(run())


def test_a_model_that_died_twice_of_different_requests_is_not_quarantined():
    async def run():
        async with carved(plan(64), Alone()) as bench:
            for fill in (1.0, 2.0):
                os.kill(bench.workers.pids[0], signal.SIGSTOP)
                bench.start(0, fill=fill)
                os.kill(bench.workers.pids[0], signal.SIGKILL)
                await bench.until(GpuletUp)
            assert not bench.workers.refused
            await bench.serves(0)

    asyncio.run(run())


def test_a_model_that_does_not_load_is_refused_by_name_and_its_neighbours_serve():
    async def run():
        bad = Turn("bad", 4, 1.0, MS)
        async with carved(plan(64, 64, turns=(PLAIN, bad)), names=("plain", "bad")) as bench:
            assert bench.workers.refused == {"bad": "not a model"}
            await bench.serves(1)
            assert not bench.given_up

    asyncio.run(run())


def test_a_share_that_cannot_be_shown_stops_the_server_before_it_serves():
    async def run():
        ground = Alone()
        ground.unproven = {56}
        async with carved(plan(64, 56), ground, count=1) as bench:
            await bench.soon(lambda: bench.given_up)
            assert "gpulet 1 is not attached" in str(bench.given_up[0])
        assert ground.is_closed

    asyncio.run(run())


def test_a_gpu_of_another_width_than_planned_is_refused_with_both_numbers():
    async def run():
        first = plan(64)
        kind = replace(first.devices[0].kind, sms=140)
        ground = Gpus()
        (post,) = ground.prepare(replace(first, devices=(replace(first.devices[0], kind=kind),)))
        with pytest.raises(Unproven, match="planned with 140 SMs, its GPU has 132"):
            ground.prove(post, 1, type("Ready", (), {"sms": 132})())

    asyncio.run(run())


@pytest.mark.parametrize("ground", [Gpus, Alone])
def test_a_recut_loses_nothing_and_says_what_each_part_took(ground):
    async def run():
        async with carved(plan(64, 64), ground()) as bench:
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 96)))
            served = 0
            while not task.done():
                await bench.serves(served % 2)
                served += 1
            times = task.result()
            assert times.build > 0
            assert min(times.drain, times.swap) >= 0
            assert served > 2
            assert [g.size.sms for g in bench.workers.plan.gpulets] == [32, 96]
            await bench.serves(0)
            await bench.serves(1, "deep")

    asyncio.run(run())


def test_processes_of_gpulets_that_stay_are_not_replaced():
    async def run():
        ground = Alone()
        async with carved(plan(64, 32, 32), ground) as bench:
            before = bench.workers.pids
            await recut(bench.workers, plan(64, 32, 16))
            after = bench.workers.pids
            assert (after[0], after[1]) == (before[0], before[1])
            assert after[2] != before[2]
            assert ground.settled == [(64, 32, 16)]
            await bench.serves(2)

    asyncio.run(run())


def test_a_recut_that_cannot_be_proven_leaves_the_plan_in_force_serving():
    async def run():
        ground = Alone()
        async with carved(plan(64, 64), ground) as bench:
            before = bench.workers.pids
            ground.unproven = {96}
            with pytest.raises(Unusable, match="not attached"):
                await recut(bench.workers, plan(32, 96))
            assert bench.workers.pids == before
            assert ground.settled == [(64, 64)]
            await bench.serves(0)
            await bench.serves(1)
            assert not bench.given_up

    asyncio.run(run())


@pytest.mark.parametrize("ground", [Gpus, Alone])
def test_a_recut_to_a_model_that_does_not_load_leaves_the_plan_in_force(ground):
    async def run():
        async with carved(plan(64, 64), ground(), names=("plain", "deep", "bad")) as bench:
            with pytest.raises(Unusable if ground is Gpus else Exception, match="not a model"):
                await recut(bench.workers, plan(32, 96, turns=(PLAIN, Turn("bad", 4, 1.0, MS))))
            await bench.serves(0)
            await bench.serves(1, "deep")
            assert "bad" not in bench.workers.signatures

    asyncio.run(run())


def test_a_plan_that_cannot_hold_is_refused_before_anything_is_done():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            with pytest.raises(PlanError, match=r"overlaps|ends at"):
                await recut(bench.workers, plan(128, 128))
            await bench.serves(0)

    asyncio.run(run())


def test_a_batch_that_outlasts_the_patience_of_a_recut_ends_it_and_still_runs():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            pid = bench.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            batch = bench.start(0)
            with pytest.raises(Unusable, match=r"did not end within 0\.2 s"):
                await recut(bench.workers, plan(32, 96), SECOND // 5)
            os.kill(pid, signal.SIGCONT)
            assert (await bench.until(Finished)).batch == batch
            await bench.serves(1)

    asyncio.run(run())


def test_what_is_started_while_a_gpulet_drains_runs_on_its_successor():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            pid = bench.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            first = bench.start(0)
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 64), 20 * SECOND))
            await bench.soon(lambda: bench.workers.stations[0].parked is not None)
            parked = bench.start(0)
            os.kill(pid, signal.SIGCONT)
            assert (await bench.until(Finished)).batch == first
            assert (await bench.until(Finished)).batch == parked
            await task
            assert bench.workers.pids[0] != pid

    asyncio.run(run())


def residents(*names):
    first = plan(64)
    return Plan(first.devices, residents=tuple(Resident(0, name) for name in names))


def test_runs_that_bring_their_size_are_carried_out_side_by_side_and_one_after_the_other():
    async def run():
        async with carved(residents("plain", "deep")) as bench:
            await bench.soon(lambda: {"plain", "deep"} <= set(bench.workers.signatures))
            started = [bench.run(sms, model) for sms in (8, 32, 128, 64) for model in ("plain", "deep")]
            ended = [(await bench.until(Finished)).batch for _ in started]
            assert sorted(ended) == started
            shapes = {bench.workers.outputs(batch)[0].shape for batch in started}
            assert shapes == {(2, 1)}

    asyncio.run(run())


def test_a_run_of_a_model_that_is_not_resident_fails_and_a_death_fails_what_ran():
    async def run():
        async with carved(residents("plain")) as bench:
            await bench.soon(lambda: bench.workers.signatures)
            batch = bench.run(8, "deep")
            assert await bench.until(RunFailed) == RunFailed(batch)
            pid = bench.workers.stations[0].worker.pid
            os.kill(pid, signal.SIGSTOP)
            batch = bench.run(8)
            os.kill(pid, signal.SIGKILL)
            assert await bench.until(RunFailed) == RunFailed(batch)
            await bench.soon(lambda: bench.workers.stations[0].is_up)
            batch = bench.run(64)
            assert (await bench.until(Finished)).batch == batch

    asyncio.run(run())


def test_a_recut_goes_from_gpulets_to_runs_of_any_size_and_back():
    async def run():
        async with carved(plan(64, 64)) as bench:
            await recut(bench.workers, residents("plain", "deep"))
            batch = bench.run(128, "deep")
            assert (await bench.until(Finished)).batch == batch
            await recut(bench.workers, plan(32, 96))
            await bench.serves(1, "deep")

    asyncio.run(run())


def test_a_plan_that_cuts_a_device_and_leaves_it_uncut_is_refused():
    async def run():
        both = replace(plan(64), residents=(Resident(0, "deep"),))
        async with carved(plan(64)) as bench:
            with pytest.raises(Unusable, match="device 0 has gpulets and residents"):
                await recut(bench.workers, both)
            await bench.serves(0)

    asyncio.run(run())


def test_a_new_worker_that_dies_before_the_swap_ends_the_recut_and_the_plan_in_force_serves():
    async def run():
        ground = Alone()
        async with carved(plan(64, 64), ground) as bench:
            pid = bench.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            batch = bench.start(0)
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 96), 20 * SECOND))
            await bench.soon(lambda: bench.workers.stations[0].parked is not None)
            os.kill(next(p for sms, p in ground.proven if sms == 96), signal.SIGKILL)
            await bench.soon(lambda: bench.events_told().count("worker_died") == 1)
            os.kill(pid, signal.SIGCONT)
            with pytest.raises(Unusable, match="new worker of gpulet 1 died before the swap"):
                await task
            assert (await bench.until(Finished)).batch == batch
            await bench.serves(0)
            await bench.serves(1, "deep")
            assert [g.size.sms for g in bench.workers.plan.gpulets] == [64, 64]

    asyncio.run(run())


def test_a_worker_that_has_no_time_to_load_is_taken_off_its_ground_before_it_is_killed():
    async def run():
        ground = Alone()
        ground.unproven = {96}
        async with carved(plan(64, 64), ground) as bench:
            with pytest.raises(Unusable, match="not attached"):
                await recut(bench.workers, plan(32, 96))
            mine = {pid for sms, pid in ground.proven if sms == 32}
            assert mine <= set(ground.dismissed)
            assert not set(ground.dismissed) & set(bench.workers.pids.values())

    asyncio.run(run())


def two_devices(*turns):
    """A gpulet on each, with both models loaded."""
    kind = find_kind("h200-141gb")
    devices = tuple(Device(number, kind, Mechanism.GREEN) for number in range(2))
    spare = [tuple({"plain", "deep"} - {turn.model for turn in mine}) for mine in turns]
    gpulets = (Gpulet(g, g, Size(64, 50.0), 0, 10 * MS, turns[g], spare=spare[g]) for g in range(2))
    return Plan(devices, tuple(gpulets))


def test_turns_leave_a_device_whose_worker_is_down_and_come_back():
    async def run():
        first, without = two_devices((PLAIN,), (DEEP,)), two_devices((PLAIN, DEEP), ())
        async with carved(first) as bench:
            building = Building(bench.workers, Gently())
            os.kill(bench.workers.pids[1], signal.SIGKILL)
            assert (await bench.until(GpuletDown)).gpulet == 1
            for number, planned in enumerate((without, first)):
                building.build(Build(number, planned))
                assert await bench.until((Built, NotBuilt)) == Built(number)
                building.adopt(Adopt(number, planned))
                await bench.serves(0, planned.gpulets[0].turns[-1].model)
                await bench.soon(lambda: 1 in bench.up)
            await bench.serves(1, "deep")

    asyncio.run(run())


def test_nobody_is_re_cut_where_a_device_has_no_worker():
    async def run():
        async with carved(two_devices((PLAIN,), (DEEP,))) as bench:
            sent = []
            bench.workers.stations[0].worker.send = sent.append
            os.kill(bench.workers.pids[1], signal.SIGKILL)
            await bench.until(GpuletDown)
            with pytest.raises(Unusable, match="device 1 has no worker now"):
                await recut(bench.workers, two_devices((DEEP,), (PLAIN,)))
            assert sent == []

    asyncio.run(run())


class Slow(Alone):
    """Its later preparations last until they are let go."""

    def __init__(self):
        super().__init__()
        self.go = [threading.Event() for _ in range(9)]
        self.go[0].set()
        self.prepared = 0

    def prepare(self, plan):
        self.prepared += 1
        assert self.go[self.prepared - 1].wait(20)
        return super().prepare(plan)


def test_a_gpulet_that_died_while_another_plan_came_into_force_gets_a_worker_of_that_plan():
    async def run():
        ground = Slow()
        async with carved(plan(64, 64), ground) as bench:
            waiting, on_ground = [], bench.workers.on_ground
            bench.workers.on_ground = lambda call: (waiting.append(call), on_ground(call))[1]
            busier = replace(PLAIN, rate=2.0)
            task = asyncio.ensure_future(recut(bench.workers, plan(64, 64, turns=(busier, DEEP))))
            await bench.soon(lambda: ground.prepared == 2)
            os.kill(bench.workers.pids[1], signal.SIGKILL)
            await bench.soon(lambda: len(waiting) == 2)
            ground.go[1].set()
            await bench.soon(lambda: bench.workers.plan.gpulets[1].turns == (busier, DEEP))
            for gate in ground.go:
                gate.set()
            await task
            await bench.until(GpuletUp)
            await bench.serves(1)
            assert bench.workers.stations[1].post.gpulets == (bench.workers.plan.gpulets[1],)

    asyncio.run(run())


def test_a_worker_that_dies_while_a_batch_is_parked_for_it_gives_both_batches_back_once():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            pid = bench.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            bench.start(0)
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 64), 20 * SECOND))
            await bench.soon(lambda: bench.workers.stations[0].parked is not None)
            bench.start(0)
            os.kill(pid, signal.SIGKILL)
            assert (await bench.until(GpuletDown)).gpulet == 0
            await asyncio.wait((task,))
            await bench.soon(lambda: bench.workers.stations[0].is_up)
            await bench.serves(1)
            assert not any(s.running for s in bench.workers.stations), "what was parked is the core's again"

    asyncio.run(run())


def test_a_front_end_that_stood_still_blames_no_worker():
    async def run():
        async with carved(plan(64, 64), Alone(), patience=Patience(300 * MS)) as bench:
            pids = bench.workers.pids
            batches = {bench.start(0), bench.start(1)}
            time.sleep(1.0)  # noqa: ASYNC251 (that is the point)
            assert {(await bench.until(Finished)).batch for _ in batches} == batches
            await asyncio.sleep(0.6)
            assert bench.workers.pids == pids
            assert "batch_hangs" not in bench.events_told()

    asyncio.run(run())


@pytest.mark.parametrize("ground", [Gpus, Alone])
def test_a_batch_for_a_gpulet_that_a_recut_took_away_goes_back_to_the_core(ground):
    async def run():
        async with carved(plan(64, 64), ground()) as bench:
            await recut(bench.workers, plan(128))
            assert (await bench.until(GpuletDown)).gpulet == 1
            bench.start(1)
            assert (await bench.until(GpuletDown)).gpulet == 1
            await bench.serves(0)

    asyncio.run(run())


def test_a_gpulet_that_was_down_and_is_new_after_a_recut_is_up_for_the_core():
    async def run():
        async with carved(plan(64, 64), Alone()) as bench:
            os.kill(bench.workers.pids[0], signal.SIGKILL)
            assert (await bench.until(GpuletDown)).gpulet == 0
            bench.workers.stations[0].pause_s = 60.0
            await recut(bench.workers, plan(32, 64))
            assert (await bench.until(GpuletUp)).gpulet == 0
            await bench.serves(0)

    asyncio.run(run())


def test_a_recut_that_is_cancelled_leaves_the_plan_in_force_serving():
    async def run():
        async with carved(plan(64, 64)) as bench:
            pid = bench.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 96)))
            await bench.soon(lambda: bench.workers.stations[0].asked is not None)
            task.cancel()
            await asyncio.wait((task,))
            for _ in range(2):
                await bench.until(GpuletUp)
            assert bench.workers.pids[0] != pid
            await bench.serves(0)
            await bench.serves(1, "deep")
            await recut(bench.workers, plan(32, 96))
            await bench.serves(1)

    asyncio.run(run())


def test_a_quarantine_outlives_a_recut():
    async def run():
        async with carved(plan(64, 64)) as bench:
            for _ in range(2):
                bench.start(0, fill=POISON)
                await bench.until(GpuletDown)
                for _ in range(2):
                    await bench.until(GpuletUp)
            await recut(bench.workers, plan(32, 96))
            assert "quarantined" in bench.workers.refused["plain"]
            batch = bench.start(1, "plain")
            assert await bench.until((RunFailed, Finished)) == RunFailed(batch)

    asyncio.run(run())


def test_a_model_that_cannot_be_shown_right_is_refused_by_name_and_its_neighbours_serve():
    async def run():
        off = Turn("off", 4, 1.0, MS)
        async with carved(plan(64, 64, turns=(PLAIN, off)), names=("plain", "off")) as bench:
            assert "off the whole GPU" in bench.workers.refused["off"]
            assert not bench.given_up
            await bench.serves(1)

    asyncio.run(run())


def test_workers_end_with_the_server_even_in_a_recut():
    async def run():
        ground = Alone()
        async with carved(plan(64, 64), ground) as bench:
            os.kill(bench.workers.pids[0], signal.SIGSTOP)
            bench.start(0)
            task = asyncio.ensure_future(recut(bench.workers, plan(32, 96), 20 * SECOND))
            await bench.soon(lambda: len(ground.proven) == 4)
            os.kill(bench.workers.pids[0], signal.SIGCONT)
            task.cancel()
            pids = [pid for _, pid in ground.proven]
        await asyncio.wait((task,))
        await bench.soon(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids))

    asyncio.run(run())


def test_a_worker_with_a_hung_kernel_does_not_outlive_its_front_end():
    """The front-end is gone without a word: its socket closes, and nobody kills anybody."""

    async def run():
        bench = benches.Bench(plan(64), Gpus(), DEADLY, ("plain", "deep"), Patience(60 * SECOND))
        bench.workers.carve()
        await bench.until(GpuletUp)
        bench.start(0, fill=ENDLESS)
        await asyncio.sleep(0.3)
        worker = bench.workers.stations[0].worker
        worker._detach()  # noqa: SLF001 (what the end of our process would do)
        ended = await asyncio.wait_for(asyncio.to_thread(worker._child.wait, 15), 20)  # noqa: SLF001
        assert ended == 1, "by itself, not by a signal"
        await bench.workers.close()
        bench.timer.close()

    asyncio.run(run())


def test_models_of_a_share_come_and_go_beside_serving_and_other_shares_keep_their_workers():
    async def run():
        async with carved(plan(64, 64, turns=(PLAIN, DEEP)), Alone()) as bench:
            every = dict(bench.workers.shelf.wanted)
            task = asyncio.ensure_future(reload(bench.workers, {"plain": every["plain"]}))
            while not task.done():
                await bench.serves(0)
            await task
            batch = bench.start(0, "deep")
            assert await bench.until((RunFailed, Finished)) == RunFailed(batch)
            pids = bench.workers.pids
            await reload(bench.workers, {"plain": every["plain"]})
            assert bench.workers.pids == pids
            await reload(bench.workers, every)
            await bench.serves(1, "deep")
            assert bench.workers.shelf.bytes_of("deep", bench.workers.stations) > 0
            await reload(bench.workers, {})
            assert not bench.workers.pids
            assert {(await bench.until(GpuletDown)).gpulet for _ in range(2)} == {0, 1}
            await reload(bench.workers, every)
            await bench.serves(1, "deep")

    asyncio.run(run())


def test_a_process_that_holds_a_whole_gpu_refuses_to_load_beside_its_plan():
    async def run():
        async with carved(plan(64, 64)) as bench:
            with pytest.raises(Unusable, match="deep: a process that holds a whole GPU loads its models with its plan"):
                await reload(bench.workers, {"plain": bench.workers.shelf.wanted["plain"]})
            await bench.serves(1, "deep")

    asyncio.run(run())
