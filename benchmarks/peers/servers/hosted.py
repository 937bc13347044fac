"""What every peer's server script is told: its ports and its models, as JSON in the file named on its command line.

It runs in the peer's own venv: the standard library, numpy and ONNX Runtime only.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Hosted:
    """A model to serve: `shape` of one row, `outputs` of one row; without a `path` it answers what it was asked.

    `batch` rows at most, for which the first waits `wait_us`; 1: not batched. `is_heavy`: too long for an event loop.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: int
    wait_us: int
    instances: int
    threads: int
    is_heavy: bool

    def run(self) -> Run:
        """Rows in, rows out."""
        if not self.path:
            return lambda rows: rows
        import onnxruntime  # noqa: PLC0415 (identity needs none)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # As our own workers: a spinning thread burns a core that the front-end or a neighbour needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda rows: session.run(None, {name: rows})[0]

    def row(self, body: bytes) -> np.ndarray:
        """One row from its bytes."""
        return np.frombuffer(body, np.float32).reshape(self.shape)

    def answers(self, run: Run, bodies: list[bytes]) -> list[bytes]:
        """Rows as bytes through one run."""
        return [row.tobytes() for row in run(np.stack([self.row(body) for body in bodies]))]


@dataclass(frozen=True)
class Site:
    """Everything that a server is told; `deadline_ms` 0: its own default."""

    http: int
    grpc: int
    metrics: int
    deadline_ms: int
    models: tuple[Hosted, ...]


def read_site() -> Site:
    """The file on the command line."""
    told = json.loads(Path(sys.argv[1]).read_text())
    models = [Hosted(**{**m, "shape": tuple(m["shape"]), "outputs": tuple(m["outputs"])}) for m in told.pop("models")]
    return Site(models=tuple(models), **told)
