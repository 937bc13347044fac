"""What a front-end and its workers say to each other: small messages on a socket, tensors in a shared block.

The block is an anonymous memory file of equal slots (`slots.py`). A slot holds one batch: its inputs from the slot's first
byte, its outputs from its middle. Every tensor begins on a 64-byte boundary, so that a runtime need not copy it.
"""

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from gpulet.device import Kind
from gpulet.executors.base import Signature
from gpulet.plan import GpuletId, Plan
from gpulet.units import PLAIN, Duration

ALIGNMENT = 64
LARGEST_MESSAGE = 1 << 17
"""Beyond it a message would not fit the socket's buffer: the kernel's default is 208 KiB."""


class WorkerModel(msgspec.Struct, frozen=True):
    """A model a worker loads: its file, the largest batch and the shape classes it is warmed for; `digest` of its contents.

    Without `batches` its first dimension does not count rows, whatever it looks like (heeded by workers of cores).
    """

    name: str
    path: str
    max_batch: int
    shapes: tuple[str, ...] = (PLAIN,)
    digest: str = ""
    batches: bool = True


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """A tagged array on the wire."""


class Assign(_Message, frozen=True):
    """To a fresh worker: become a gpulet of these cores, with these models. `threads` is for each model's operators.

    `is_gentle`: others are served meanwhile, so load in the idle time of `spare` cores, or of its own where there are none.
    `priority` is the gpulet's among those that share its cores.
    """

    cores: tuple[int, ...]
    threads: int
    models: tuple[WorkerModel, ...]
    slots: int = 1
    is_gentle: bool = False
    spare: tuple[int, ...] = ()
    priority: int = 0


class Prepare(_Message, frozen=True):
    """To a worker of cores that stands by: have these models loaded already, and no others, in idle time; it does not answer.

    `threads` is as in `Assign`, which finds them loaded.
    """

    threads: int
    models: tuple[WorkerModel, ...]


class Move(_Message, frozen=True):
    """To a worker of cores that runs nothing: be another gpulet, of these cores, with these of its models. It is `Ready` again."""

    cores: tuple[int, ...]
    models: tuple[str, ...]


class Occupy(_Message, frozen=True):
    """To a fresh worker: hold a GPU, and carve what `plan` has on that device, of these models.

    `environment` is set before CUDA starts. On a device of mechanism `whole` nothing is cut: what the worker sees is all.
    """

    environment: Mapping[str, str]
    plan: Plan
    device: int
    models: tuple[WorkerModel, ...]
    slots: int


class Recut(_Message, frozen=True):
    """Bring another plan for the same device into force while serving; `patience` is for the last batches."""

    plan: Plan
    patience: Duration


class RunBatch(_Message, frozen=True):
    """Run the batch in a slot; `shapes` of its inputs, rows first.

    `shape` is its shape class; `gpulet` and `sms` say where, in a worker that has several: SMs are for this run alone.
    """

    batch: int
    model: str
    shapes: tuple[tuple[int, ...], ...]
    slot: int = 0
    shape: str = PLAIN
    gpulet: GpuletId = 0
    sms: int = 0


class Prove(_Message, frozen=True):
    """To a fresh worker: show what green contexts do on a GPU and how near these models stay to themselves, then end.

    `kind` is what plans count on; without SMs they count on nothing.
    """

    environment: Mapping[str, str]
    kind: Kind
    models: tuple[WorkerModel, ...] = ()


ToWorker: TypeAlias = Assign | Prepare | Move | Occupy | Recut | RunBatch | Prove


class ModelReady(msgspec.Struct, frozen=True):
    """One model's loading: its signature, or why it cannot be served.

    `took` with its warm-up and the `bytes` of memory that it took are 0 where nobody measured.
    """

    name: str
    signature: Signature
    error: str = ""
    took: Duration = 0
    bytes: int = 0


class Ready(_Message, frozen=True):
    """Loaded and warm. `allowed`: the cores each of the worker's threads may use; `sms`: the SMs that its blocks ran on."""

    models: tuple[ModelReady, ...]
    allowed: tuple[tuple[int, ...], ...] = ()
    sms: int = 0


class Refused(_Message, frozen=True):
    """What was asked cannot be: `is_final` where the worker ends for it; a re-cut leaves the plan in force."""

    error: str
    is_final: bool


class Recutted(_Message, frozen=True):
    """The next plan is in force, with these models; nanoseconds of building beside serving, of draining, of swapping."""

    models: tuple[ModelReady, ...]
    build: Duration
    drain: Duration
    swap: Duration


class Done(_Message, frozen=True):
    """The batch's outputs are in its slot; `shapes` in the signature's order. `took` nanoseconds in the runtime."""

    batch: int
    shapes: tuple[tuple[int, ...], ...]
    took: int


class Failed(_Message, frozen=True):
    """The runtime refused the batch."""

    batch: int
    error: str


class Returned(_Message, frozen=True):
    """A gpulet takes these batches no more, which had not begun; or, without any, it is up again."""

    gpulet: GpuletId
    is_up: bool
    batches: tuple[int, ...] = ()


class Told(_Message, frozen=True):
    """A line for the front-end's log."""

    event: str
    fields: Mapping[str, str]


class Shown(_Message, frozen=True):
    """One thing that was to be proven, or could not be; `is_needed` where nothing serves without it."""

    name: str
    is_shown: bool
    says: str
    numbers: Mapping[str, int | float | list[int]]
    is_needed: bool = True


class Proven(_Message, frozen=True):
    """All that was to be shown was tried."""


FromWorker: TypeAlias = Ready | Refused | Recutted | Done | Failed | Returned | Told | Shown | Proven


def align(offset: int) -> int:
    """The next tensor boundary at or after `offset`."""
    return -(-offset // ALIGNMENT) * ALIGNMENT
