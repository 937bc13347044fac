"""The peers: what is installed for each, what it speaks, how much of a run it is worth."""

import os
from dataclasses import dataclass
from pathlib import Path

from peers.wire import Wire

SERVERS = Path(__file__).parent / "servers"
WAIT_US = 2000
"""So long may a request wait for its batch to fill, whoever serves it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server beside ours. `guess` is about its W2 rate on two cores, where the search for it begins."""

    name: str
    packages: tuple[str, ...]
    wire: Wire
    has_grpc: bool
    guess: float
    note: str

    @property
    def venv(self) -> Path:
        """Its own, outside of the repository: `$GPULET_PEERS`, by default `~/.cache/gpulet-peers`."""
        return peers_root() / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.venv / "bin" / "python"

    @property
    def script(self) -> Path:
        """Its server."""
        return SERVERS / f"{self.name}_server.py"


def peers_root() -> Path:
    """Where the venvs are."""
    return Path(os.environ.get("GPULET_PEERS") or Path.home() / ".cache" / "gpulet-peers")


_RUNTIME = "onnxruntime==1.31.1"
PEERS = {
    peer.name: peer
    for peer in (
        Peer("mosec", ("mosec==0.9.8", _RUNTIME, "numpy"), Wire.RAW, False, 8000, "raw bytes; one process an instance"),
        Peer(
            "pytriton",
            ("nvidia-pytriton==0.7.0", _RUNTIME, "numpy<2"),
            Wire.BINARY,
            True,
            1500,
            "Triton 2.51.0, Python backend; Triton's own C++ backends are in no package: quoted",
        ),
        Peer("kserve", ("kserve==0.20.0", _RUNTIME, "numpy"), Wire.BINARY, True, 600, "does not batch by itself"),
        Peer("litserve", ("litserve==0.2.17", _RUNTIME, "numpy"), Wire.RAW, False, 400, "raw bytes, fast_queue"),
        Peer("mlserver", ("mlserver==1.7.1", _RUNTIME, "numpy"), Wire.JSON, True, 600, "JSON over HTTP, no pool"),
        Peer("ray", ("ray[serve]==2.60.0", _RUNTIME, "numpy"), Wire.RAW, False, 100, "raw bytes over its HTTP proxy"),
    )
}
"""Most important first. mlserver: specs/data_plane does not say which version; 1.7.1 is the last one that can be installed."""

QUOTED = {
    "W1 HTTP, CPU us": 35,
    "W1 gRPC, CPU us": 51,
    "W2 requests/s": 15_000,
    "W2 CPU us": 56,
    "W4 level, one instance of one thread": 1,
}
"""NVIDIA Triton's own C++ server and ONNX Runtime backend, from specs/data_plane (November 2026, two cores of another machine)."""
