"""What is asked of a model runtime (PyTorch, ONNX Runtime) on one GPU: load, capture, replay.

Weights are loaded once for the GPU. A graph is captured on the stream of one share and runs on that share's SMs for
ever after, whatever stream it is replayed on; so there is one for each (model, shape, bucket, interval). Everything a graph
needs is allocated by its capture; a replay allocates nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from gpulet.executors.base import Buffer, Signature
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ports import Mark
from gpulet.units import PLAIN

Tensors: TypeAlias = Sequence[Sequence[Buffer]]
"""For each tensor of the signature, the parts that follow one another: one for each request."""


class GraphKey(NamedTuple):
    """What a graph is for: a model, the largest batch it takes, the SMs it runs on, and its inputs' shape class."""

    model: str
    bucket: int
    interval: Interval
    shape: str = PLAIN

    def __str__(self) -> str:
        of = f" of {self.shape}" if self.shape else ""
        return f"{self.model} x {self.bucket}{of} on {self.interval}"


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on the GPU: a model's `weights`, once; a graph's own buffers (`staging`), what it takes of its share's `pool`.

    `session`: what a runtime that is bound to a stream holds for the model on each share, whatever the bucket.
    """

    weights: int
    staging: int
    pool: int
    session: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """One output of a batch: its shape, rows first, and row-major data that stands until the next replay of its graph."""

    shape: tuple[int, ...]
    data: memoryview


class Graph(Protocol):
    """A captured batch with its own input and output buffers. One replay at a time."""

    def replay(self, rows: int, inputs: Tensors) -> Mark:
        """Copy `rows` rows in, zeros behind them, and launch; the mark is reached when the outputs are there."""
        ...

    def outputs(self, rows: int) -> Sequence[Answered]:
        """The first `rows` rows of what the last replay gave."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class ModelRuntime(Protocol):
    """Models on one GPU; all of it is called by the builder's thread alone, `Graph.replay` by its gpulet's."""

    def need(self, key: GraphKey) -> Need:
        """What it takes: estimated before it was captured, measured afterwards."""
        ...

    def load(self, model: str) -> Signature:
        """Put the weights on the GPU; raises `ModelError`, `DeviceFull`."""
        ...

    def unload(self, model: str) -> None:
        """Take them off."""
        ...

    def capture(self, key: GraphKey, share: Share) -> Graph:
        """Warm up and capture on the share's stream, in its pool, and replay once; raises `ModelError`, `DeviceFull`."""
        ...

    def error(self, key: GraphKey, graph: Graph) -> float:
        """The largest relative difference of a replay from the same rows on the whole GPU."""
        ...
