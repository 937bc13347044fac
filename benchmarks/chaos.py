"""Faults while two models are served at 70 % of what this machine serves in time: what is lost (nothing), wrong (nothing), late (some).

`kills`: kill -9 of one worker every 5 s, of both models in turn. `often`: every 2 s. `stops`: a worker stands still for good, until it is
given up. `slow`: one that stands still half of the time. `planner`: the planner's process is killed while rates cross. `memory`: no
shared memory is to be had for new workers while one is killed, by a limit on the server's own files. `crash`: one input kills the
worker that runs it; its model is quarantined after the second time, the other is served on. `term`: SIGTERM under load. Only our own
processes are touched. Clock jumps are in the simulation of faults (`tests/faults.py`), where the clock is ours.
"""

import asyncio
import json
import os
import resource
import signal
import subprocess
import tempfile
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import uvloop
from common import planners, record
from rivals import DEADLY, NAMES, WIDTH, fleet_file, prepare, save_deadly, stepped, stream

from gpulet.fleetfile import open_site
from gpulet.loadgen import Outcome, drive
from gpulet.model import Model
from gpulet.problems import load_profile
from gpulet.units import MS, SECOND
from gpulet.workload import Arrivals
from servers import Server, command

LAYERS, SLO_MS, LOAD, ROWS = 36, 100.0, 0.7, 4
MORTAL = "eve"
Harm = Callable[["Scene"], Awaitable[None]]
"""Does something to a server, again and again until it is cancelled."""


@dataclass(slots=True)
class Scene:
    """A server under load."""

    server: Server
    seconds: float
    answers: list[str] = field(default_factory=list)

    def workers(self) -> list[dict[str, Any]]:
        """The latest worker of each gpulet that has one now."""
        return [worker for worker in self.server.workers.values() if is_alive(worker["pid"])]


def is_alive(pid: int) -> bool:
    """Whether that process runs or stands still; what is dead and unburied is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def signalled(pid: int, number: signal.Signals) -> None:
    """It may have ended meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kills(every_s: float) -> Harm:
    """Each gpulet's worker in turn."""

    async def harm(scene: Scene) -> None:
        turn = 0
        while True:
            await asyncio.sleep(every_s)
            workers = sorted(scene.workers(), key=lambda w: w["gpulet"])
            if workers:
                signalled(workers[turn % len(workers)]["pid"], signal.SIGKILL)
            turn += 1

    return harm


async def stops(scene: Scene) -> None:
    """Every 15 s one stands still; nobody lets it go on."""
    turn = 0
    while True:
        await asyncio.sleep(5 if not turn else 15)
        workers = sorted(scene.workers(), key=lambda w: w["gpulet"])
        if workers:
            signalled(workers[turn % len(workers)]["pid"], signal.SIGSTOP)
        turn += 1


async def slow(scene: Scene) -> None:
    """One of them runs 10 ms of every 20."""
    pid = min(scene.workers(), key=lambda w: w["gpulet"])["pid"]
    try:
        while is_alive(pid):
            signalled(pid, signal.SIGSTOP)
            await asyncio.sleep(0.01)
            signalled(pid, signal.SIGCONT)
            await asyncio.sleep(0.01)
    finally:
        signalled(pid, signal.SIGCONT)


async def planner(scene: Scene) -> None:
    """Whatever plans, every two seconds."""
    while True:
        await asyncio.sleep(2)
        for pid in planners(scene.server.process.pid):
            signalled(pid, signal.SIGKILL)


async def memory(scene: Scene) -> None:
    """For three seconds the server may make no file of a MiB, so no block for a worker."""
    pid = scene.server.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    while True:
        await asyncio.sleep(5)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, before[1]))
        try:
            for worker in scene.workers():  # the standby takes over from the first; for the second there is none
                signalled(worker["pid"], signal.SIGKILL)
            await asyncio.sleep(3)
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        await asyncio.sleep(7)


async def crash(scene: Scene) -> None:
    """A model of its own answers, is asked what kills it, and is asked again: what each answer was."""
    for number in (1, 1, DEADLY, 1, 1):
        await asyncio.sleep(scene.seconds / 6)
        scene.answers.append(await asyncio.to_thread(ask, scene.server.port, number))
    await asyncio.sleep(scene.seconds)


def ask(port: int, number: int) -> str:
    """The status, and why where it is an error."""
    tensor = {"name": "x", "shape": [1, WIDTH], "datatype": "FP32", "data": [number] * WIDTH}
    answer = httpx.post(f"http://127.0.0.1:{port}/v2/models/{MORTAL}/infer", json={"inputs": [tensor]}, timeout=10)
    return f"{number}: {answer.status_code} {answer.json().get('error', '')}".rstrip()


async def term(scene: Scene) -> None:
    """While load goes on for as long as clients that see the end coming still have connections to ask on."""
    await asyncio.sleep(scene.seconds - 0.4)
    scene.server.stop()
    await asyncio.sleep(scene.seconds)


async def nothing(scene: Scene) -> None:
    """For comparison."""
    await asyncio.sleep(scene.seconds)


@asynccontextmanager
async def harmed(harm: Harm, scene: Scene) -> AsyncIterator[None]:
    """Inside, harm is done."""
    task = asyncio.ensure_future(harm(scene))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def load(scene: Scene, harm: Harm, arrivals: Arrivals) -> Outcome:
    """Both models from one client, and the harm."""
    streams = [stream(model, seed) for seed, model in enumerate(arrivals.models)]
    async with harmed(harm, scene):
        return await drive("127.0.0.1", scene.server.port, streams, arrivals, connections=256)


def run(path: Path, harm: Harm, arrivals: Arrivals) -> dict[str, Any]:
    """One scene with a fresh server; what the client saw, how long each gpulet was without a worker."""
    server = Server(subprocess.Popen(command("serve", path), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        scene = Scene(server, arrivals.duration / SECOND)
        outcome = uvloop.run(load(scene, harm, arrivals))
        server.stop()
        code = server.process.wait(30)
    finally:
        server.close()
    report = outcome.report(arrivals.duration)
    keys = ("arrived", "served", "late", "rejected", "expired", "failed", "lost", "attainment", "p99_ms")
    away = outages(server)
    return {
        "models": {name: {key: row[key] for key in keys} for name, row in report["models"].items()},  # type: ignore[literal-required] # keys of a row
        "wrong": sum(report["wrong"].values()),
        "errors": report["errors"],
        "deaths": len(server.all("worker_died")),
        "changes": [{key: told[key] for key in ("seen", "considered", "chosen")} for told in server.all("plan")],
        "back_after_ms": {"median": median(away), "most": max(away)} if away else {},
        "exit_code": code,
        **({"answers": scene.answers} if scene.answers else {}),
    }


def outages(server: Server) -> list[float]:
    """Milliseconds from each death to the next gpulet that is up, by the server's log."""
    died: list[datetime] = []
    away: list[float] = []
    for event in server.events:
        if event["event"] in {"worker_died", "gpulet_up"} and "time" in event:
            at = datetime.fromisoformat(event["time"].replace(",", "."))
            if event["event"] == "worker_died":
                died.append(at)
            elif died:
                away.append((at - died.pop(0)).total_seconds() * 1000)
    return away


def capacity(path: Path, models: Sequence[Model], a_core: float) -> float:
    """Requests/s of each that are served in time when far too many come: what the machine does beside front-end and client."""
    rates = dict.fromkeys(NAMES, 1.5 * a_core)
    served = run(path, nothing, stepped(models, [(12.0, rates)], 2))["models"].values()
    return median([row["attainment"] * row["arrived"] / 12.0 for row in served])


def scenes(seconds: float) -> dict[str, tuple[Harm, float, bool]]:
    """Each with its length, and whether rates cross."""
    return {
        "nothing": (nothing, min(60.0, seconds), False),
        "kills": (kills(5.0), seconds, False),
        "often": (kills(2.0), min(60.0, seconds), False),
        "stops": (stops, min(60.0, seconds), False),
        "slow": (slow, min(30.0, seconds), False),
        "planner": (planner, min(60.0, seconds), True),
        "memory": (memory, min(60.0, seconds), False),
        "crash": (crash, min(30.0, seconds), False),
        "term": (term, min(20.0, seconds), False),
    }


def main() -> None:
    """All scenes, or those that are named."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*")
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    chosen: Sequence[str] = options.scenes or list(scenes(1))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, LAYERS)
        save_deadly(folder / "models", MORTAL)
        first = fleet_file(folder, "profile", dict.fromkeys(NAMES, 1.0), SLO_MS, {})
        subprocess.run(command("profile", first, "--budget", "0.5"), check=True, stdout=subprocess.DEVNULL)
        a_core = ROWS * SECOND / load_profile(open_site(first)).latency(NAMES[0], 1, ROWS)
        models = [Model(name, round(SLO_MS * MS)) for name in NAMES]
        frozen = fleet_file(folder, "frozen", dict.fromkeys(NAMES, 0.5 * a_core), SLO_MS, {"mode": "off"})
        a_core = capacity(frozen, models, a_core)
        even = dict.fromkeys(NAMES, LOAD * a_core)
        uneven = [
            dict(zip(NAMES, pair, strict=True)) for pair in ((1.1 * a_core, 0.3 * a_core), (0.3 * a_core, 1.1 * a_core))
        ]
        for scene in chosen:
            harm, seconds, crosses = scenes(options.seconds)[scene]
            steps = [(10.0, uneven[n % 2]) for n in range(round(seconds / 10))] if crosses else [(seconds, even)]
            mortal = {MORTAL: 1.0} if harm is crash else {}
            path = fleet_file(folder, scene, {**steps[0][1], **mortal}, SLO_MS, {"mode": "auto"})
            result[scene] = run(path, harm, stepped(models, steps, 1))
            print(scene, json.dumps(result[scene]), flush=True)
    record("chaos", {"capacity_per_s": 2 * a_core, "load": LOAD, **result})


if __name__ == "__main__":
    main()
