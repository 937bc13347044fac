"""Peers started: their server scripts in their venvs, and grpcio alone."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from peers import venvs
from peers.live import Live, started
from peers.onnxfiles import IDENTITY, Network
from peers.table import PEERS, SERVERS, WAIT_US
from peers.wire import Wire, free_ports, grpc_message

_IMPORTED_S = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How a peer serves: rows of a batch; processes and threads of the heavy model; its own time-out, 0: its default.

    Of gpulet only `way` counts: `cut`, a core for each gpulet, or `whole`, every model on all cores.
    """

    batch: int = 1
    instances: int = 1
    threads: int = 1
    deadline_ms: int = 0
    way: str = ""

    @property
    def name(self) -> str:
        """As in result lines."""
        late = f" {self.deadline_ms} ms" if self.deadline_ms else ""
        return self.way or f"{self.instances}x{self.threads}{late}"


@contextmanager
def served_by_peer(name: str, networks: Sequence[Network], shape: Shape, folder: Path) -> Iterator[Live]:
    """A peer until the block ends."""
    peer = PEERS[name]
    venvs.check(peer)
    ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
    models = [_hosted(network, shape, folder) for network in networks]
    site = folder / f"{name}.json"
    site.write_text(json.dumps({**ports, "deadline_ms": shape.deadline_ms, "models": models}))
    command = [str(peer.python), str(peer.script), str(site)]
    ports["grpc"] *= peer.has_grpc
    began = monotonic()
    with started(command, venvs.environment(peer), peer.wire, ports, folder) as live:
        live.await_answers(networks)
        live.start_s = monotonic() - began
        yield live


def _hosted(network: Network, shape: Shape, folder: Path) -> dict[str, Any]:
    """What servers/hosted.py reads. Heavy rows gain nothing from batches (specs/data_plane); light ones need one process."""
    path = network.save(folder / "models")
    heavy = network.is_heavy
    return {
        "name": network.name,
        "path": "" if network is IDENTITY else str(path),
        "shape": network.shape,
        "outputs": network.outputs,
        "batch": 1 if heavy else shape.batch,
        "wait_us": WAIT_US,
        "instances": shape.instances if heavy else 1,
        "threads": shape.threads if heavy else 1,
        "is_heavy": heavy,
    }


@contextmanager
def served_by_echo(folder: Path) -> Iterator[Live]:
    """A bare asyncio server of grpcio, answering as many bytes as an identity would."""
    ports = {"http": 0, "grpc": free_ports(1)[0]}
    answer = folder / "answer.grpc"
    answer.write_bytes(grpc_message(IDENTITY, IDENTITY.rows(1)[0], is_answer=True))
    command = [sys.executable, str(SERVERS / "echo_server.py"), str(ports["grpc"]), str(answer)]
    with started(command, {}, Wire.BINARY, ports, folder) as live:
        sleep(_IMPORTED_S)  # it answers nothing over HTTP; importing grpcio takes a third of this
        live.running.check()
        yield live
