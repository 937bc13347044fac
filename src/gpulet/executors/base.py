"""The executor's port: it carries out what the core commands and answers with events.

A live executor also moves payloads. What models take and give is a `Signature`; a batch's results are `Outputs`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import msgspec

from gpulet.core.messages import Adopt, BatchId, Build, Event, Load, RequestId, Retire, Start, Unload
from gpulet.units import Duration, Instant

Emit: TypeAlias = Callable[[Event], None]
"""Hands an event to the driver, at the driver's time."""
Buffer: TypeAlias = bytes | bytearray | memoryview

DATATYPE_SIZES: Mapping[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one element of each Open Inference Protocol datatype that is served; those of BYTES have any length."""


class Tensor(msgspec.Struct, frozen=True):
    """One input or output: an OIP datatype and a shape in which -1 is any size (the first is the rows).

    `dims` are names of the dimensions, where the model gives any: what has the same name has the same length. A dimension
    without one has "".
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...] = ()


class Signature(msgspec.Struct, frozen=True):
    """What a model takes and gives. `is_batched`: the first dimension of every tensor counts rows, any number."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_batched: bool = True
    platform: str = ""


class Result(msgspec.Struct, frozen=True):
    """One output of a batch: `shape` with its rows first, `data` row-major."""

    tensor: Tensor
    shape: tuple[int, ...]
    data: memoryview


Outputs: TypeAlias = Sequence[Result]


class Payload(Protocol):
    """A request's inputs: each tensor's bytes, in the signature's order, with `dims[i]` its shape."""

    inputs: tuple[Buffer, ...]
    dims: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Times:
    """What a re-cut took: `build` beside serving; `drain`, until the last running batch had ended; `swap`, when nothing ran."""

    build: Duration
    drain: Duration
    swap: Duration


class Timer(Protocol):
    """The driver's clock, as an executor may use it."""

    def now(self) -> Instant:
        """The driver's time."""
        ...

    def at(self, when: Instant, wake: Callable[[int], None], token: int) -> None:
        """Call `wake(token)` at `when`; never earlier."""
        ...


class Executor(Protocol):
    """Carries out commands. Every `start` is followed by exactly one Finished, RunFailed or GpuletDown."""

    def start(self, command: Start) -> None:
        """Run a batch."""
        ...

    def load(self, command: Load) -> None:
        """Make a model resident; emits `Loaded`."""
        ...

    def unload(self, command: Unload) -> None:
        """Take a model off; emits `Unloaded`."""
        ...


class Changer(Protocol):
    """Brings other plans up beside the one in force, for a core with live control."""

    def build(self, command: Build) -> None:
        """Bring up what the plan has and nobody has yet, beside what serves.

        Emits `GpuletUp` for each new gpulet that could run batches, then `Built`; or `NotBuilt`, and nothing has changed.
        One that takes over what another leaves is up once that one is retired.
        """
        ...

    def adopt(self, command: Adopt) -> None:
        """The plan that was built is in force: whoever dies from now on is replaced by it."""
        ...

    def retire(self, command: Retire) -> None:
        """Take down a gpulet that runs nothing."""
        ...


def change(changer: Changer, command: Build | Adopt | Retire) -> None:
    """Have it done."""
    match command:
        case Build():
            changer.build(command)
        case Adopt():
            changer.adopt(command)
        case Retire():
            changer.retire(command)


class LiveExecutor(Executor, Protocol):
    """An executor that holds real payloads and results."""

    @property
    def load_times(self) -> Mapping[str, Duration]:
        """How long the last load of each model took, where that is known; changes as models come."""
        ...

    def carve(self) -> None:
        """Begin to make the plan's gpulets; emits `GpuletUp` for each that is loaded, verified and warm."""
        ...

    def outputs(self, batch: BatchId) -> Outputs:
        """The results of a finished batch; valid until the next command is carried out."""
        ...

    async def close(self) -> None:
        """Stop every worker and wait until it is gone."""
        ...


Tell: TypeAlias = Callable[..., None]
"""A structured log line: a name and fields."""
GiveUp: TypeAlias = Callable[[Exception], None]
"""Called when no plan can be carved here: the server cannot go on."""
Payloads: TypeAlias = Callable[[RequestId], Payload]
"""Where an executor finds the inputs of the requests of a batch."""
