"""Models come and go on real workers while others are served: nobody's request fails, memory is given back."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

import servers
from gpulet.api.control import State
from gpulet.device import Size
from gpulet.errors import RequestError
from gpulet.executors import gentle
from gpulet.executors.change import Gently
from gpulet.executors.recutting import reload
from gpulet.fleetfile import open_site, usable_cores
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.problems import load_profile, make_problem
from gpulet.serving import make_server
from gpulet.units import MIB, MS, SECOND
from servers import fleet, save_model

WIDTH = 4
HEAVY = {"width": 1024, "layers": 8}
"""32 MiB of weights."""


class Served:
    """A server in this process; its gpulets share the first core unless they are told apart."""

    def __init__(self, folder, layout, start, pinned, memory_mib, cores, **options):
        names = [name for names in layout for name in names]
        if start is not None:
            options |= {"model_control": "explicit", "load_models": list(start)}
        path = fleet(folder, dict.fromkeys(names, (2000, 20)), repository=folder / "models", **options)
        text = path.read_text() + f"[limits]\nmemory_mib = {memory_mib}\n"
        path.write_text(text.replace(f'name = "{pinned}"', f'name = "{pinned}"\npin = true'))
        site = open_site(path)
        problem = make_problem(site, load_profile(site))
        turns = [tuple(Turn(name, 4, 10.0, MS) for name in mine) for mine in layout]
        size = Size(cores, 100 * cores / len(usable_cores()))
        gpulets = tuple(Gpulet(n, 0, size, n, 10 * MS, mine) for n, mine in enumerate(turns))
        self.folder = folder / "models"
        self.server = make_server(site, problem, Plan(site.devices, gpulets))
        self.residency, self.workers = self.server.residency, self.server.executor
        self.client = None

    @property
    def states(self):
        return {row.name: row.state for row in self.residency.index()}

    async def ask(self, model, value=1.0, width=WIDTH, **parameters):
        """(status, the first value of the answer or the error)"""
        tensor = {"name": "x", "shape": [1, width], "datatype": "FP32", "data": [value] * width}
        body = {"inputs": [tensor], "parameters": parameters}
        answer = await self.client.post(f"/v2/models/{model}/infer", json=body)
        told = answer.json()
        return answer.status_code, told["error"] if "error" in told else told["outputs"][0]["data"][0]

    async def until(self, holds):
        for _ in range(1000):
            if holds():
                return
            await asyncio.sleep(0.01)
        pytest.fail("it did not come about in 10 s")


@asynccontextmanager
async def served(folder, *layout, start=None, pinned="", memory_mib=0, cores=1, **options):
    made = Served(folder, layout, start, pinned, memory_mib, cores, **options)
    await made.server.open()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{made.server.ends.http_port}", timeout=20) as client:
            made.client = client
            await made.server.ready()
            yield made
    finally:
        await made.server.close()


@asynccontextmanager
async def asked_all_the_while(here, model):
    """Requests one after the other; every one of them must be answered."""
    answers, is_over = [], asyncio.Event()

    async def ask():
        while not is_over.is_set():
            answers.append(await here.ask(model))

    task = asyncio.ensure_future(ask())
    yield answers
    is_over.set()
    await task
    assert {status for status, _ in answers} == {200}, answers


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_model_leaves_and_comes_back_beside_one_that_serves_and_its_memory_is_given_back(tmp_path):
    save_model(tmp_path / "models", "light")
    save_model(tmp_path / "models", "heavy", **HEAVY)

    async def run():
        async with served(tmp_path, ("light", "heavy")) as here:
            full = here.workers.pids[0]
            with_heavy, size = resident(full), here.workers.shelf.bytes_of("heavy", here.workers.stations)
            assert 25 * MIB < size < 60 * MIB
            async with asked_all_the_while(here, "light"):
                await here.residency.unload("heavy")
                status, error = await here.ask("heavy", width=1024)
                assert (status, "not loaded" in error) == (503, True)
                assert with_heavy - resident(here.workers.pids[0]) > 25 * MIB
                assert not gentle.threads_of(full)
                await here.residency.load("heavy")
                assert (await here.ask("heavy", width=1024))[0] == 200
            threads = gentle.threads_of(here.workers.pids[0])
            assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}

    asyncio.run(run())


def test_a_changed_file_replaces_the_one_that_serves_without_a_failed_request_and_a_broken_one_does_not(tmp_path):
    save_model(tmp_path / "models", "m")

    async def run():
        async with served(tmp_path, ("m",)) as here:
            async with asked_all_the_while(here, "m") as answers:
                save_model(here.folder, "m", layers=1, version=2)
                await here.residency.load("m")
                assert answers[0][1] == 1.0
                assert (await here.ask("m"))[1] != 1.0
                (here.folder / "m" / "3").mkdir()
                (here.folder / "m" / "3" / "model.onnx").write_bytes(b"nonsense")
                with pytest.raises(RequestError, match=r"failed to load 'm', .*(Protobuf|ModelProto|parsing)"):
                    await here.residency.load("m")
                (here.folder / "m" / "3" / "model.onnx").unlink()
                save_model(here.folder, "m", width=5, version=4)
                with pytest.raises(RequestError, match="takes or gives other tensors"):
                    await here.residency.load("m")
            assert (await here.client.get("/v2/models/m")).json()["versions"] == ["2"]
            await here.residency.unload("m")
            await here.residency.load("m")
            assert (await here.ask("m", width=5))[0] == 200
            assert (await here.ask("m"))[0] == 400

    asyncio.run(run())


def test_requests_that_are_here_when_their_model_is_unloaded_are_answered(tmp_path):
    save_model(tmp_path / "models", "m")

    async def run():
        async with served(tmp_path, ("m",)) as here:
            pid = here.workers.pids[0]
            os.kill(pid, signal.SIGSTOP)
            waiting = [asyncio.ensure_future(here.ask("m")) for _ in range(20)]
            await here.until(lambda: here.server.metrics.models["m"].arrived == 20)
            leaving = asyncio.ensure_future(here.residency.unload("m"))
            await here.until(lambda: "m" in here.server.catalog.fleet.closed)
            assert (await here.ask("m"))[0] == 503
            assert not (await here.client.get("/v2/models/m/ready")).json()["ready"]
            os.kill(pid, signal.SIGCONT)
            await leaving
            assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
            assert not here.workers.pids, "a gpulet of which no model is wanted has no worker"
            assert (await here.client.get("/v2/health/ready")).json()["ready"]

    asyncio.run(run())


def test_models_that_nobody_asks_for_sleep_and_wake_with_the_next_request(tmp_path):
    for name in "ab":
        save_model(tmp_path / "models", name)

    async def run():
        async with served(tmp_path, ("a", "b"), idle_unload_s=0.3, pinned="a", journal="journal") as here:
            await here.until(lambda: here.states["b"] is State.UNAVAILABLE)
            assert here.states["a"] is State.READY
            assert (await here.client.get("/v2/models/b/ready")).json()["ready"], "who asks is served"
            assert (await here.ask("b", timeout=1000))[0] == 503, "it is not loaded within its own 1 ms"
            assert (await here.ask("b"))[0] == 200

    asyncio.run(run())
    code, out, _ = servers.run("replay", tmp_path / "journal")
    assert (code, "0 differ" in out) == (0, True), out


def test_the_memory_bound_lets_the_least_recently_used_go_and_never_who_is_pinned(tmp_path):
    for name in "abc":
        save_model(tmp_path / "models", name, **HEAVY)

    async def run():
        async with served(tmp_path, ("a", "b", "c"), start="ab", pinned="a", memory_mib=100) as here:
            await here.ask("b", width=1024)
            await here.residency.load("c")
            assert here.states == {"a": State.READY, "b": State.UNAVAILABLE, "c": State.READY}
            assert (await here.ask("b", width=1024))[0] == 200
            assert here.states == {"a": State.READY, "b": State.READY, "c": State.UNAVAILABLE}

    asyncio.run(run())


def test_a_new_worker_that_dies_costs_its_load_alone(tmp_path):
    for name in "ab":
        save_model(tmp_path / "models", name)

    async def run():
        async with served(tmp_path, ("a", "b"), start="a") as here:
            before, prove, is_known = here.workers.pids, here.workers.ground.prove, threading.Event()
            here.workers.tell = lambda event, **fields: is_known.set() if event == "worker_died" else None

            def kill(post, pid, ready):
                os.kill(pid, signal.SIGKILL)
                assert is_known.wait(10)
                prove(post, pid, ready)

            here.workers.ground.prove = kill
            async with asked_all_the_while(here, "a"):
                with pytest.raises(RequestError, match=r"failed to load 'b', .*died"):
                    await here.residency.load("b")
                here.workers.ground.prove = prove
                assert here.workers.pids == before
                await here.residency.load("b")
            assert (await here.ask("b"))[0] == 200

    asyncio.run(run())


def test_a_worker_that_serves_and_dies_during_a_load_is_replaced_by_the_loaded_one(tmp_path):
    for name in "ab":
        save_model(tmp_path / "models", name)

    async def run():
        async with served(tmp_path, ("a", "b"), start="a") as here:
            loading = asyncio.ensure_future(here.residency.load("b"))
            await here.until(lambda: here.states["b"] is State.LOADING)
            os.kill(here.workers.pids[0], signal.SIGKILL)
            await loading
            assert [(await here.ask(name))[0] for name in "ab"] == [200, 200]

    asyncio.run(run())


def test_a_server_that_stops_during_a_load_leaves_no_process(tmp_path):
    save_model(tmp_path / "models", "m", **HEAVY)

    async def run():
        async with served(tmp_path, ("m",), start=()) as here:
            loading = asyncio.ensure_future(here.residency.load("m"))
            await here.until(lambda: here.workers._crew._hired)  # noqa: SLF001 (who is not at a post yet)
            hired = [worker.pid for worker in here.workers._crew._hired]  # noqa: SLF001
            await here.residency.close()
            with pytest.raises(RequestError, match="the server stops"):
                await loading
        assert not any(gentle.threads_of(pid) for pid in hired)

    asyncio.run(run())


@pytest.mark.skipif(len(usable_cores()) < 2, reason="needs two cores")
def test_operator_threads_of_a_model_that_was_loaded_in_idle_time_serve_as_any_other(tmp_path):
    save_model(tmp_path / "models", "m", **HEAVY)

    async def run():
        async with served(tmp_path, ("m",), start=(), cores=2) as here:
            await here.residency.load("m")
            threads = gentle.threads_of(here.workers.pids[0])
            assert len(threads) > 1
            assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}
            assert (await here.ask("m", width=1024))[0] == 200

    asyncio.run(run())


def test_a_load_that_gets_no_idle_time_goes_on_in_haste(tmp_path):
    for name in "ab":
        save_model(tmp_path / "models", name)

    async def run():
        async with served(tmp_path, ("a", "b"), start="a") as here:
            told = []
            here.workers.tell = lambda event, **fields: told.append(event)
            file = replace_file(here, "b")
            await reload(here.workers, {**here.residency.wanted, "b": file}, SECOND, Gently(most_s=0.0))
            assert told.count("load_hurried") == 1
            assert here.workers.serves("b")

    asyncio.run(run())


def replace_file(here, name):
    """What workers would be given of it."""
    return here.residency._around.find(name).file  # noqa: SLF001


WITHOUT_RIGHTS = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert libc.capset(header, nothing) == 0, ctypes.get_errno()
from gpulet.executors import gentle
policies = lambda: {os.sched_getscheduler(thread) for thread in gentle.threads_of(os.getpid())}
seen = []
gentle.gently(lambda: seen.append(os.sched_getscheduler(0)))
print(gentle.may_return(), seen == [os.SCHED_IDLE])
gentle.restore()
print(policies() <= {os.SCHED_OTHER, os.SCHED_IDLE}, os.sched_getscheduler(os.getpid()) == os.SCHED_OTHER)
"""


def test_a_process_without_rights_loads_in_idle_time_and_serves_as_before():
    done = subprocess.run([sys.executable, "-c", WITHOUT_RIGHTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "True"]
