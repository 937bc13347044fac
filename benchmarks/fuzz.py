"""Malformed requests over HTTP and gRPC, most on kept connections, among good ones whose answers must stay right.

Each must be refused (4xx, 501, 505; gRPC's codes for what a client did), none may be left without an answer, no worker or
server may die; the front-end's memory and descriptors stay as they are, and a good request is answered meanwhile: `probe`
is a process that asks all the time. `heavy` is what the largest single requests cost the front-end's loop in CPU time.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import uvloop
from attack import GOOD, VALUES, WORKERS, Connection, Tally, over_grpc, over_http
from common import record
from framing import FRAMING
from heavy import HEAVY
from malformed import FAMILIES, REGION, REGION_BYTES
from malformed_rpc import RPC_FAMILIES
from onnx import TensorProto
from probing import probe

from servers import Server, command, fleet, save_copy, save_masked, save_model

MODELS = dict.fromkeys(("tiny", "words", "texts", "flags", "two", "free", "masked"), (5000, 5))
KEY = f"gpulet-fuzz-{os.getpid()}"


def drawn(families: dict[str, Any], requests: int, seed: int) -> Iterator[tuple[str, Any]]:
    """So many cases, each family as often as another."""
    random, names = Random(seed), list(families)
    for number in range(requests):
        name = names[number % len(names)]
        yield name, families[name](random)


async def attack(server: Server, plane: str, requests: int, seed: int) -> Tally:
    """All of them, by several workers; memory is looked at each percent of the way."""
    tally = Tally()
    planes = [plane] if plane != "both" else ["http", "grpc"]
    streams = {name: watched(drawn(_families(name), requests // len(planes), seed), tally, server) for name in planes}
    jobs = [over_http(server.port, streams["http"], tally) for _ in range(WORKERS["http"] if "http" in planes else 0)]
    jobs += [over_grpc(server.grpc, streams["grpc"], tally) for _ in range(WORKERS["grpc"] if "grpc" in planes else 0)]
    await asyncio.gather(*jobs)
    return tally


def _families(plane: str) -> dict[str, Any]:
    return FAMILIES | FRAMING if plane == "http" else RPC_FAMILIES


def watched(cases: Iterator[tuple[str, Any]], tally: Tally, server: Server) -> Iterator[tuple[str, Any]]:
    """The same, with a look at the server's memory now and then."""
    for number, case in enumerate(cases):
        if number % 100 == 0:
            tally.memory.append(memory(server.process.pid))
        yield case


def memory(pid: int) -> int:
    """Bytes of a process that are its own."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * 4096


def descriptors(pid: int) -> int:
    """Open files of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def start(folder: Path) -> Server:
    """A server of several models that clients may register memory with."""
    save_model(folder / "models", "tiny")
    save_model(folder / "models", "free", width="width")
    save_masked(folder / "models", "masked")
    save_copy(folder / "models", "words", TensorProto.STRING)
    save_copy(folder / "models", "texts", TensorProto.STRING, width="width")
    save_copy(folder / "models", "flags", TensorProto.BOOL)
    save_copy(folder / "models", "two", TensorProto.INT64, inputs=("a", "b"))
    path = fleet(folder, MODELS, repository=folder / "models", allow_client_shm=True)
    server = Server(subprocess.Popen(command("serve", path), stderr=subprocess.PIPE, text=True))
    server.wait_for("ready")
    return server


def run(requests: int, plane: str, seed: int, *, is_heavy: bool = True) -> dict[str, Any]:
    """A server, attacked; what came of it."""
    shared = Path("/dev/shm", KEY)  # noqa: S108 (the object that is registered)
    shared.write_bytes(bytes(REGION_BYTES))
    try:
        with tempfile.TemporaryDirectory() as folder:
            server = start(Path(folder))
            try:
                return _attacked(server, requests, plane, seed, is_heavy=is_heavy)
            finally:
                server.stop()
                server.process.wait(30)
                server.close()
    finally:
        shared.unlink(missing_ok=True)


def _attacked(server: Server, requests: int, plane: str, seed: int, *, is_heavy: bool) -> dict[str, Any]:
    register = asyncio.run(_register(server.port))
    assert register == 200, register  # noqa: PLR2004 (HTTP)
    before = descriptors(server.process.pid)
    prober = subprocess.Popen(
        [sys.executable, __file__, "--probe", str(server.port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    began = time.perf_counter()
    try:
        tally = uvloop.run(attack(server, plane, requests, seed))
    finally:
        told, _ = prober.communicate()
    seconds = time.perf_counter() - began
    tenth = len(tally.memory) // 10
    heavy = {name: cost(server) for name, cost in HEAVY.items()} if is_heavy else {}
    noise = [e["event"][:200] for e in server.events if e["event"] not in KNOWN]
    return {
        "requests": requests,
        "plane": plane,
        "seed": seed,
        "seconds": round(seconds, 1),
        "outcomes": dict(tally.outcomes.most_common()),
        "wrong": tally.wrong[:50],
        "died": len(server.all("worker_died")) + (server.process.poll() is not None),
        "probe": json.loads(told),
        "memory_mib": {
            "second tenth": round(median(tally.memory[tenth : 2 * tenth]) / 2**20, 1),
            "last tenth": round(median(tally.memory[-tenth:]) / 2**20, 1),
            "least of the last tenth": round(min(tally.memory[-tenth:]) / 2**20, 1),
            "most": round(max(tally.memory) / 2**20, 1),
        },
        "descriptors": [before, descriptors(server.process.pid)],
        "worst_ms": {name: round(ms) for name, ms in sorted(tally.worst_ms.items(), key=lambda i: -i[1])[:8]},
        "heavy_cpu_ms": heavy,
        "noise": [len(noise), *noise[:12]],
        "families": {name: dict(counts) for name, counts in sorted(tally.families.items())},
    }


KNOWN = {"gpulet_up", "ready", "requests_refused", "plan", "gpulet_down", "stopped"}


async def _register(port: int) -> int:
    connection = Connection(port)
    body = json.dumps({"key": f"/{KEY}", "offset": 0, "byte_size": REGION_BYTES}).encode()
    head = f"POST /v2/systemsharedmemory/region/{REGION}/register HTTP/1.1\r\nHost: f\r\nContent-Length: {len(body)}\r\n\r\n"
    await connection.send(head.encode() + body)
    status, _ = await connection.answer()
    connection.close()
    return status


def main() -> None:
    """Both planes, or one."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--plane", choices=["http", "grpc", "both"], default="both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--probe", type=int, default=0, help="the port of a server that runs (used by itself)")
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(options.probe, GOOD, VALUES)))
    else:
        record("fuzz", run(options.requests, options.plane, options.seed))


if __name__ == "__main__":
    main()
