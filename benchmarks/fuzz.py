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
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import uvloop
from common import record
from heavy import HEAVY
from malformed import FAMILIES, REGION, REGION_BYTES, Case, binary, infer
from malformed_rpc import RPC_FAMILIES, SERVICE, RpcCase, good
from onnx import TensorProto
from probing import probe

from gpulet.api.rpc.messages import MESSAGES
from servers import Server, command, fleet, save_copy, save_masked, save_model

MODELS = dict.fromkeys(("tiny", "words", "texts", "flags", "two", "free", "masked"), (5000, 5))
VALUES = b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40"
GOOD = infer({"inputs": [binary(16)], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, "tiny", VALUES)
PATIENCE_S = 10.0
KEY = f"gpulet-fuzz-{os.getpid()}"
WORKERS = {"http": 6, "grpc": 4}
ALLOWED = {501, 505, *range(400, 500)}
OVERLOAD = {429, 503}
CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
}


@dataclass(slots=True)
class Tally:
    """What came of the requests; `wrong` are those that had another fate than they may."""

    outcomes: Counter[str] = field(default_factory=Counter)
    families: dict[str, Counter[str]] = field(default_factory=dict)
    worst_ms: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def add(self, family: str, outcome: str, began: float, *, is_right: bool, detail: object = "") -> None:
        """One request."""
        self.outcomes[outcome if is_right else "wrong"] += 1
        self.families.setdefault(family, Counter())[outcome] += 1
        self.worst_ms[family] = max(self.worst_ms.get(family, 0.0), 1e3 * (time.perf_counter() - began))
        if not is_right:
            self.wrong.append(f"{family}: {outcome}: {str(detail)[:300]}")


@dataclass(slots=True)
class Connection:
    """One kept-alive connection of a worker, opened again when it has been closed."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        """Whole; what the server takes no more of is no error, its answer says why."""
        if self.writer is None or self.writer.is_closing() or (self.reader and self.reader.at_eof()):
            self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self.writer.write(data)
        with suppress(ConnectionError):
            await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next one."""
        return await asyncio.wait_for(self._answer(), PATIENCE_S)

    async def _answer(self) -> tuple[int, bytes]:
        assert self.reader
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        body = await self.reader.readexactly(size)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Leave."""
        if self.writer:
            self.writer.close()
        self.writer = None


async def over_http(port: int, cases: Iterator[tuple[str, Case]], tally: Tally) -> None:
    """One worker: malformed ones, and a good one after each few."""
    connection = Connection(port)
    for number, (family, case) in enumerate(cases):
        began = time.perf_counter()
        try:
            await connection.send(case.data)
            if case.is_cut:
                connection.close()
                tally.add(family, "left", began, is_right=True)
                continue
            status, body = await connection.answer()
            is_right = status in ALLOWED or (case.may_pass and status == 200) or status in OVERLOAD  # noqa: PLR2004 (HTTP)
            tally.add(family, str(status), began, is_right=is_right, detail=(body[:150], case.data[:300]))
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            tally.add(family, "silence", began, is_right=False, detail=(repr(error), case.data[:300]))
            connection.close()
        if case.closes:
            connection.close()
        if number % 8 == 0:
            await good_over_http(connection, tally)
    connection.close()
    await asyncio.sleep(0)  # asyncio closes in the turn that follows


async def good_over_http(connection: Connection, tally: Tally) -> None:
    """Its answer is what was sent."""
    began = time.perf_counter()
    try:
        await connection.send(GOOD)
        status, body = await connection.answer()
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        connection.close()
        tally.add("good", "silence", began, is_right=False, detail=error)
        return
    is_right = (status == 200 and body.endswith(VALUES)) or status in OVERLOAD  # noqa: PLR2004 (HTTP)
    tally.add("good", str(status), began, is_right=is_right, detail=body[:200])


async def over_grpc(address: str, cases: Iterator[tuple[str, RpcCase]], tally: Tally) -> None:
    """The same on one channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        for number, (family, case) in enumerate(cases):
            began = time.perf_counter()
            outcome, detail = await (streamed(channel, case) if case.is_stream else called(channel, case))
            is_right = (
                outcome in {code.name for code in CODES} or outcome == "left" or (outcome == "OK" and case.may_pass)
            )
            tally.add(family, outcome, began, is_right=is_right, detail=(detail, case.messages[0][:200]))
            if number % 8 == 0:
                await good_over_grpc(channel, tally)


async def called(channel: grpc.aio.Channel, case: RpcCase) -> tuple[str, str]:
    """The outcome of a call, and what was told."""
    call = channel.unary_unary(case.method)(case.messages[0], timeout=PATIENCE_S)
    if case.is_cancelled:
        await asyncio.sleep(0)
        call.cancel()
        return "left", ""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def streamed(channel: grpc.aio.Channel, case: RpcCase) -> tuple[str, str]:
    """A stream must answer each of its messages, and end."""
    call = channel.stream_stream(case.method)(iter(case.messages), timeout=PATIENCE_S)
    if case.is_cancelled:
        await call.read()
        call.cancel()
        return "left", ""
    try:
        answers = [MESSAGES["ModelStreamInferResponse"].FromString(answer) async for answer in call]
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    right: Any = [a for a in answers if a.infer_response.raw_output_contents]  # type: ignore[attr-defined] # known at run time
    is_right = len(answers) == len(case.messages) and len(right) >= 2  # noqa: PLR2004 (the first and the last)
    return ("OK", "") if is_right else ("unanswered", f"{len(answers)} answers, {len(right)} good ones")


async def good_over_grpc(channel: grpc.aio.Channel, tally: Tally) -> None:
    """Its answer is what was sent."""
    began = time.perf_counter()
    try:
        data = await channel.unary_unary(SERVICE + "ModelInfer")(good(VALUES), timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        is_right = error.code() is grpc.StatusCode.UNAVAILABLE
        tally.add("good", error.code().name, began, is_right=is_right, detail=error.details())
        return
    tally.add("good", "OK", began, is_right=data.endswith(VALUES), detail=data[:200])


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
    return FAMILIES if plane == "http" else RPC_FAMILIES


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
            "at 10 %": round(tally.memory[tenth] / 2**20, 1),
            "end": round(tally.memory[-1] / 2**20, 1),
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
