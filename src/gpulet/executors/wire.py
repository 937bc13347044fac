"""What a front-end and its workers say to each other: small messages on a socket, tensors in a shared block.

The block is an anonymous memory file with one slot: inputs of the running batch from byte 0, outputs from
`Assign.outputs_at`. Every tensor begins on a 64-byte boundary, so that the runtime need not copy it.
"""

from typing import TypeAlias

import msgspec

from gpulet.executors.base import Signature
from gpulet.units import PLAIN

ALIGNMENT = 64
LARGEST_MESSAGE = 1 << 17


class WorkerModel(msgspec.Struct, frozen=True):
    """A model a worker loads: the ONNX file, the largest batch and the shape classes it is warmed for."""

    name: str
    path: str
    max_batch: int
    shapes: tuple[str, ...] = (PLAIN,)


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A tagged array on the wire."""


class Assign(_Message, frozen=True):
    """To a fresh worker: become a gpulet of these cores, with these models. `threads` is for each model's operators."""

    cores: tuple[int, ...]
    threads: int
    models: tuple[WorkerModel, ...]
    outputs_at: int


class RunBatch(_Message, frozen=True):
    """Run the batch in the slot: `model` by its place in `Assign.models`, `shapes` of its inputs, rows first."""

    batch: int
    model: int
    shapes: tuple[tuple[int, ...], ...]


ToWorker: TypeAlias = Assign | RunBatch


class ModelReady(msgspec.Struct, frozen=True):
    """One model's loading: its signature, or why it cannot be served."""

    name: str
    signature: Signature
    error: str = ""


class Ready(_Message, frozen=True):
    """Loaded and warm; `allowed` are the cores each of the worker's threads may use, as the OS tells it."""

    models: tuple[ModelReady, ...]
    allowed: tuple[tuple[int, ...], ...]


class Done(_Message, frozen=True):
    """The batch's outputs are in the slot; `shapes` in the signature's order. `took` nanoseconds in the runtime."""

    batch: int
    shapes: tuple[tuple[int, ...], ...]
    took: int


class Failed(_Message, frozen=True):
    """The runtime refused the batch."""

    batch: int
    error: str


FromWorker: TypeAlias = Ready | Done | Failed


def align(offset: int) -> int:
    """The next tensor boundary at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
