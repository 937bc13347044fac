"""A server that answers right, and load on it with its CPU time counted."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from peers.onnxfiles import Network
from peers.processes import Running, Unavailable
from peers.wire import Wire, ask, grpc_message, numbers, request

_CLIENT = Path(__file__).parent / "client.py"
_START_S = 90.0
_SETTLED_S = 0.1


@dataclass(slots=True)
class Live:
    """A server under test and where it listens: ports by `http`, `grpc`, `metrics`. `grpc` 0: it has none."""

    running: Running
    wire: Wire
    ports: Mapping[str, int]
    folder: Path
    start_s: float = 0.0

    def load(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What the load generator saw, with the server's CPU time per answer meanwhile; raises `Unavailable`."""
        before = self.running.cpu_s()
        told = json.dumps({"port": self.ports["grpc" if job["mode"] == "grpc" else "http"], **job})
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, _CLIENT, told], stdout=pipe, stderr=pipe, text=True) as client:
            self.running.ignore(client.pid)
            try:
                out, said = client.communicate(timeout=job["seconds"] + 60)
            except subprocess.TimeoutExpired:
                client.kill()
                out, said = client.communicate()
        self.running.check()
        if client.returncode:
            msg = f"load generator: {' '.join(said.split())[-200:]}; server: {self.running.last_words()}"
            raise Unavailable(msg)
        result: dict[str, Any] = json.loads(out)
        if not result["answers"]:
            msg = f"no request was answered; server: {self.running.last_words()}"
            raise Unavailable(msg)
        used = self.running.cpu_s() - before
        seconds, answers = result["seconds"], result["answers"]
        costs = {"server_cpu_us": used / answers * 1e6, "server_cores": used / seconds, "per_s": answers / seconds}
        return {**result, **costs}

    def saved(self, network: Network, count: int = 4) -> list[str]:
        """Whole HTTP requests as files, for the load generator."""
        paths = []
        for place, row in enumerate(network.rows(count)):
            path = self.folder / f"{network.name}-{place}.http"
            path.write_bytes(request(self.wire, network, row))
            paths.append(str(path))
        return paths

    def saved_message(self, network: Network) -> str:
        """A gRPC message as a file."""
        path = self.folder / f"{network.name}.grpc"
        path.write_bytes(grpc_message(network, network.rows(1)[0]))
        return str(path)

    def answer(self, question: bytes) -> NDArray[np.float32]:
        """Numbers, or none where it does not answer."""
        try:
            return numbers(self.wire, ask(self.ports["http"], question))
        except (OSError, ValueError):
            return np.empty(0, np.float32)

    def settle(self, network: Network, limit_s: float = 20.0) -> None:
        """Wait until what a load left in its queues is gone."""
        end, question = monotonic() + limit_s, request(self.wire, network, network.rows(1)[0])
        while monotonic() < end:
            began = monotonic()
            if self.answer(question).size and monotonic() - began < _SETTLED_S:
                return
            sleep(_SETTLED_S)

    def await_answers(self, networks: Sequence[Network]) -> None:
        """Until every model answers as ONNX Runtime itself does; raises `Unavailable`."""
        for network in networks:
            row = network.rows(1)[0]
            session = onnxruntime.InferenceSession(network.save(self.folder / "models"))
            expected = session.run(None, {"x": row})[0].ravel()
            answer = self._first_answer(network, request(self.wire, network, row))
            if answer.shape != expected.shape or not np.allclose(answer, expected, rtol=1e-3, atol=1e-3):
                msg = f"{network.name} answers {answer[:3]}, not {expected[:3]}"
                raise Unavailable(msg)

    def _first_answer(self, network: Network, question: bytes) -> NDArray[np.float32]:
        end = monotonic() + _START_S
        while not (answer := self.answer(question)).size:
            self.running.check()
            if monotonic() > end:
                msg = f"no answer of {network.name} within {_START_S:.0f} s: {self.running.last_words()}"
                raise Unavailable(msg)
            sleep(0.05)
        return answer


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], wire: Wire, ports: Mapping[str, int], folder: Path
) -> Iterator[Live]:
    """A server's processes until the block ends; then nothing of them is left."""
    log = folder / "server.log"
    log.write_bytes(b"")
    running = Running(command, environment, log)
    try:
        yield Live(running, wire, ports, folder)
    finally:
        running.stop()
