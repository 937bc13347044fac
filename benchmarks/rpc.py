"""Server CPU per request over gRPC: an identity-sized model, 64 calls in flight, closed loop; both planes and a bare peer.

The calls share one connection, or have one each (`apart`).

CPU is the user and system time of the server and all its workers, divided by the answers. Beside the planes, in turn and in
the same run: an echo of the same answer on a bare `grpc.aio` server, and our own plane's front-end process alone. The load
generator (`h2load.py`) is a process of its own, is not counted, and prints its own CPU.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import grpc
import uvloop
from common import record
from h2load import identity
from serve import cpu_seconds

from servers import Server, command, fleet, save_model

IN_FLIGHT = 64
SECONDS = 4.0
REPEATS = 5
WIDTH = 16
HERE = Path(__file__).parent


class Echo(grpc.GenericRpcHandler):
    """Answers every call with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self._handler = grpc.unary_unary_rpc_method_handler(self._echo)
        self._answer = answer

    async def _echo(self, message: bytes, context: object) -> bytes:
        return self._answer

    def service(self, handler_call_details: object) -> object:
        """The only handler."""
        return self._handler


async def echo(answer: bytes) -> None:
    """The bare peer: listens, tells its port, stays."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def own_seconds(pid: int) -> float:
    """The front-end process without its workers."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_seconds(pid) - sum(cpu_seconds(int(child)) for child in children)


def drive(pid: int, port: int, connections: int) -> dict[str, float]:
    """Microseconds of CPU per request, of all processes, of the front end alone, of the generator; requests per second."""
    asked = (port, connections, IN_FLIGHT // connections, SECONDS, WIDTH)
    generator = [sys.executable, str(HERE / "h2load.py"), *map(str, asked)]
    before, before_own = cpu_seconds(pid), own_seconds(pid)
    done = subprocess.run(generator, capture_output=True, text=True, check=True)
    used, used_own = cpu_seconds(pid) - before, own_seconds(pid) - before_own
    answers, failures, generators = map(float, done.stdout.split())
    assert not failures, f"{failures} of {answers} calls failed"
    each = 1e6 / answers
    return {"all": used * each, "front": used_own * each, "generator": generators * each, "rate": answers / SECONDS}


def start(folder: Path, plane: str) -> Server:
    """A server of this plane."""
    path = folder / plane
    path.mkdir()
    save_model(path / "models", "identity", width=WIDTH)
    file = fleet(path, {"identity": (200, 5000)}, repository=path / "models", journal="journal", grpc_plane=plane)
    server = Server(subprocess.Popen(command("serve", file), stderr=subprocess.PIPE, text=True))
    server.wait_for("ready")
    return server


def measure(folder: Path) -> dict[str, object]:
    """All three in turn, so that a slow minute shows in all."""
    servers = {plane: start(folder, plane) for plane in ("own", "grpcio")}
    answer = identity(WIDTH).hex()
    bare = subprocess.Popen([sys.executable, __file__, "echo", answer], stdout=subprocess.PIPE, text=True)
    assert bare.stdout is not None
    ends = {plane: (s.process.pid, int(s.grpc.rpartition(":")[2])) for plane, s in servers.items()}
    ends["bare"] = (bare.pid, int(bare.stdout.readline()))
    ports = {name: (*end, 1) for name, end in ends.items()} | {
        f"{name}_apart": (*ends[name], IN_FLIGHT) for name in ("own", "bare")
    }
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ports}
    try:
        for end in ports.values():
            drive(*end)
        for _ in range(REPEATS):
            for name, end in ports.items():
                runs[name].append(drive(*end))
    finally:
        bare.kill()
        bare.wait()
        for server in servers.values():
            server.stop()
            server.process.wait(30)
            server.close()
    return summary(runs)


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    """Medians, spreads, and the ratios that are asked for."""
    told: dict[str, object] = {}
    for name, each in runs.items():
        told[name] = {key: round(median(run[key] for run in each), 1) for key in each[0]}
        told[f"{name}_spread"] = [round(f(run["all"] for run in each), 1) for f in (min, max)]
    for one, other in (("own", "bare"), ("grpcio", "bare"), ("own", "grpcio"), ("own_apart", "bare_apart")):
        ratios = [a["all"] / b["all"] for a, b in zip(runs[one], runs[other], strict=True)]
        told[f"{one}_to_{other}"] = [round(f(ratios), 3) for f in (min, median, max)]
    return told


def main(arguments: list[str]) -> None:
    """The benchmark, or its peer."""
    match arguments:
        case ["echo", answer]:
            uvloop.run(echo(bytes.fromhex(answer)))
        case _:
            with tempfile.TemporaryDirectory() as folder:
                record("rpc", {"in_flight": IN_FLIGHT, "seconds": SECONDS, **measure(Path(folder))})


if __name__ == "__main__":
    main(sys.argv[1:])
