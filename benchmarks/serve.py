"""Server CPU per request over HTTP: an identity-sized model, binary tensors, 64 connections, closed loop.

CPU is the user and system time of the server and all its workers, divided by the answers; the client is a process of its
own and is not counted. Journal and metrics are on; every request goes through the core and a worker. Beside it, in the
same run, a bare echo of the same size on uvloop, so that a slow minute of the machine shows in both, and a server with live
control, whose planner's process is not counted.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import uvloop
from common import planners, record

from gpulet.httpwire import binary_request
from servers import fleet, save_model, serve

CONNECTIONS = 64
SECONDS = 4.0
REPEATS = 3
TICK = os.sysconf("SC_CLK_TCK")


class Caller(asyncio.Protocol):
    """One connection that always has one request under way."""

    def __init__(self, request: bytes, expect: int, answers: list[int]) -> None:
        self._request = request
        self._expect = expect
        self._answers = answers
        self._got = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._got += len(data)
        if self._got >= self._expect:
            assert data.startswith(b"HTTP/1.1 200"), data
            self._got -= self._expect
            self._answers[0] += 1
            self._transport.write(self._request)


async def call(port: int, expect: int, seconds: float) -> int:
    """The client: how many answers came."""
    answers = [0]
    described = [{"name": "x", "datatype": "FP32", "shape": [1, 16]}]
    request = binary_request("localhost", "identity", described, [bytes(64)])
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS):
        await loop.create_connection(lambda: Caller(request, expect, answers), "127.0.0.1", port)
    await asyncio.sleep(seconds)
    return answers[0]


class Echo(asyncio.Protocol):
    """Answers every read with the same bytes."""

    answer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.answer)


async def echo(answer: bytes) -> None:
    """The bare peer: listens, tells its port, stays."""
    Echo.answer = answer
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and all below it but the planner, as the OS counts it."""
    own = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICK
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_seconds(int(child)) for child in children if int(child) not in planners(pid))


def drive(pid: int, port: int, expect: int) -> tuple[float, float]:
    """(CPU microseconds per request, requests per second) with the client in a process of its own."""
    client = [sys.executable, __file__, "client", str(port), str(expect), str(SECONDS)]
    before, began = cpu_seconds(pid), monotonic()
    done = subprocess.run(client, capture_output=True, text=True, check=True)
    used, took = cpu_seconds(pid) - before, monotonic() - began
    count = int(done.stdout)
    return used / count * 1e6, count / took


def one_answer(port: int) -> bytes:
    """What the server sends for one request."""
    import socket  # noqa: PLC0415 (only here)

    described = [{"name": "x", "datatype": "FP32", "shape": [1, 16]}]
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(binary_request("localhost", "identity", described, [bytes(64)]))
        sleep(0.2)
        return peer.recv(65536)


def measure(folder: Path) -> dict[str, float]:
    """Medians of the repeats: served, with live control, bare, in turn."""
    save_model(folder / "models", "identity", width=16)
    path = fleet(folder, {"identity": (200, 5000)}, repository=folder / "models", journal="journal")
    controlled = folder / "controlled.toml"
    controlled.write_text(f'{path.read_text()}[control]\nmode = "auto"\n'.replace('"journal"', '"journal2"'))
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(file)) for file in (path, controlled)]
        answer = one_answer(servers[0].port)
        bare = subprocess.Popen([sys.executable, __file__, "echo", answer.hex()], stdout=subprocess.PIPE, text=True)
        stack.callback(bare.wait)
        stack.callback(bare.kill)
        assert bare.stdout is not None
        ends = [*((s.process.pid, s.port) for s in servers), (bare.pid, int(bare.stdout.readline()))]
        for pid, port in ends:
            drive(pid, port, len(answer))
        served, watched, echoed = zip(
            *([drive(pid, port, len(answer)) for pid, port in ends] for _ in range(REPEATS)), strict=True
        )
    cpu = [us for us, _ in served]
    return {
        "cpu_us_per_request": median(cpu),
        "least": min(cpu),
        "most": max(cpu),
        "requests_per_second": median([rate for _, rate in served]),
        "live_control_cpu_us": median([us for us, _ in watched]),
        "bare_echo_cpu_us": median([us for us, _ in echoed]),
        "times_bare_echo": median(cpu) / median([us for us, _ in echoed]),
    }


def main(arguments: list[str]) -> None:
    """The benchmark, or one of its processes."""
    match arguments:
        case ["client", port, expect, seconds]:
            print(uvloop.run(call(int(port), int(expect), float(seconds))))
        case ["echo", answer]:
            uvloop.run(echo(bytes.fromhex(answer)))
        case _:
            with tempfile.TemporaryDirectory() as folder:
                record("serve", {"connections": CONNECTIONS, **measure(Path(folder))})


if __name__ == "__main__":
    main(sys.argv[1:])
