"""The load generator, a process of its own: a job as JSON on its command line, what it saw as JSON on its output.

Its CPU time per request is part of that: where it is near the server's, the generator is the bottleneck.
"""

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic, process_time
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpulet.loadgen import Outcome, Stream, drive
from gpulet.model import Model
from gpulet.units import SECOND, from_ms
from gpulet.workload import drawn, poisson
from peers.grpcload import Calls
from peers.wire import HOST

_OK = b"HTTP/1.1 200"
_END = b"\r\n\r\n"
_ACCEPTED_S = 0.5
"""uvicorn takes up to 0.3 ms for each of 512 connections, in which nothing is answered in time."""


class Caller(asyncio.Protocol):
    """One connection that always has one request under way; an answer as long as the one before is not searched."""

    answers = 0
    errors = 0

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = b""
        self._expected = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if len(self._buffer) != self._expected and not self._is_whole():
            return
        if self._buffer.startswith(_OK):
            Caller.answers += 1
        else:
            Caller.errors += 1
        self._buffer = b""
        self._transport.write(self._request)

    def _is_whole(self) -> bool:
        head, end, body = self._buffer.partition(_END)
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if not end or len(body) < int(length or 0):
            return False
        self._expected = len(self._buffer)
        return True


def bytes_of(path: str) -> bytes:
    """A whole request that the command has written down."""
    return Path(path).read_bytes()


async def http(job: dict[str, Any]) -> dict[str, Any]:
    """So many connections, each with one request under way."""
    loop, request = asyncio.get_running_loop(), bytes_of(job["request"])
    for _ in range(job["in_flight"]):
        await loop.create_connection(lambda: Caller(request), HOST, job["port"])
    await asyncio.sleep(job["seconds"])
    return {"answers": Caller.answers, "errors": Caller.errors}


async def grpc(job: dict[str, Any]) -> dict[str, Any]:
    """One connection with so many calls under way."""
    loop, message = asyncio.get_running_loop(), bytes_of(job["request"])
    authority = f"{HOST}:{job['port']}".encode()
    _, calls = await loop.create_connection(lambda: Calls(authority, message, job["in_flight"]), HOST, job["port"])
    await asyncio.sleep(job["seconds"])
    return {"answers": calls.answers, "errors": calls.errors + calls.closed.is_set()}


async def poisson_load(job: dict[str, Any]) -> dict[str, Any]:
    """Open loop. Every model has connections of its own: an overloaded one must not keep another from being asked."""
    duration = round(job["seconds"] * SECOND)
    runs = []
    for place, told in enumerate(job["streams"]):
        model = Model(told["model"], from_ms(told["slo_ms"]))
        arrivals = drawn((model,), {model.name: told["rate"]}, duration, job["seed"] * 100 + place, poisson)
        requests = {1: [bytes_of(path) for path in told["requests"]]}
        stream = Stream(model.name, model.slo, requests)
        counts = {"connections": told["connections"], "pause_s": _ACCEPTED_S}
        runs.append(drive(HOST, job["port"], [stream], arrivals, **counts))
    outcomes = await asyncio.gather(*runs)
    models: dict[str, Any] = {}
    for outcome in outcomes:
        models |= summary(outcome, duration)
    answers = sum(m["served"] for m in models.values())
    # Each outcome's CPU time is this whole process's from its start on, without connecting: the longest says it all.
    used = max(o.client_cpu_us * c.arrived for o in outcomes for c in o.counts.values())
    return {"models": models, "answers": answers, "client_cpu_us": used / max(1, answers)}


def summary(outcome: Outcome, duration: int) -> dict[str, Any]:
    """One model's line, without what a client does not know."""
    kept = ("arrived", "served", "late", "rejected", "expired", "failed", "lost")
    shown = ("attainment", "goodput", "p50_ms", "p99_ms")
    report = outcome.report(duration)
    errors = dict(sorted(report["errors"].items(), key=lambda item: -item[1])[:3])
    return {
        name: {**{key: row[key] for key in (*kept, *shown)}, "errors": errors}  # type: ignore[literal-required]
        for name, row in report["models"].items()
    }


async def measured(job: dict[str, Any]) -> dict[str, Any]:
    """The job's result with the time it took and what this process spent."""
    before, began = process_time(), monotonic()
    result = await {"http": http, "grpc": grpc, "open": poisson_load}[job["mode"]](job)
    used, took = process_time() - before, monotonic() - began
    return {"client_cpu_us": used / max(1, result["answers"]) * 1e6, "seconds": took, **result}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measured(json.loads(sys.argv[1])))))
