"""The whole vocabulary: events go into `Scheduler.step`, commands come out.

Messages carry ids and sizes only. They are structs rather than dataclasses because they are made several times per
request and written to the journal as they are (docs/decisions/0002-structs-for-messages.md).
"""

from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from gpulet.plan import GpuletId
from gpulet.request import Request

RequestId: TypeAlias = int
BatchId: TypeAlias = int
FIRST_STAGE_REQUEST: Final = 2**48
"""Requests that the core itself makes, for the stages of applications, are numbered from here; clients' stay below."""


class Reason(StrEnum):
    """Why a request got no result."""

    UNKNOWN_MODEL = "unknown model"
    TOO_LARGE = "more rows than any batch may have"
    QUEUE_FULL = "queue full"
    LATE = "predicted late"
    EXPIRED = "deadline passed in the queue"
    CANCELLED = "cancelled by the client"
    RUN_FAILED = "its run failed"
    WORKER_LOST = "its worker died"
    STOPPED = "the server stopped"
    ABANDONED = "its application request was given up"
    NOT_LOADED = "its model is not loaded"


class _Message(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=True):
    """A tagged array in the journal."""


class Carve(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A size taken from a device for one run: `device` index, `size` in SMs."""

    device: int
    size: int


# events ---------------------------------------------------------------------------------------------------------------


class Arrived(_Message, frozen=True):
    """A request came in."""

    request: Request


class Finished(_Message, frozen=True):
    """A batch was run; its outputs are there.

    `copied`: how long its inputs were copied to where it ran; `computed`: the time in the runtime; 0: not measured.
    """

    batch: BatchId
    copied: int = 0
    computed: int = 0


class RunFailed(_Message, frozen=True):
    """A batch gave an error of the model's own; running it again would give it again."""

    batch: BatchId


class Cancelled(_Message, frozen=True):
    """The client went away; what still waits is given up."""

    request: RequestId


class GpuletUp(_Message, frozen=True):
    """A gpulet is carved, its models are loaded and warm."""

    gpulet: GpuletId


class GpuletDown(_Message, frozen=True):
    """A gpulet's worker died with whatever it ran."""

    gpulet: GpuletId


class Loaded(_Message, frozen=True):
    """A model is resident on a device."""

    model: str
    device: int


class Unloaded(_Message, frozen=True):
    """A model has left a device."""

    model: str
    device: int


class Opened(_Message, frozen=True):
    """Every worker that is planned with the model has it."""

    model: str


class Closed(_Message, frozen=True):
    """The model is not loaded, or about to leave: what arrives for it is refused, what is here already is served."""

    model: str


class Stopping(_Message, frozen=True):
    """No more arrivals are taken; what waits and runs is finished."""


Event: TypeAlias = (
    Arrived | Finished | RunFailed | Cancelled | GpuletUp | GpuletDown | Loaded | Unloaded | Opened | Closed | Stopping
)


# commands -------------------------------------------------------------------------------------------------------------


class Start(_Message, frozen=True):
    """Run these requests as one batch, on a gpulet or on SMs carved for the run. `expected` is the predicted time."""

    batch: BatchId
    on: GpuletId | Carve
    model: str
    shape: str
    rows: int
    requests: tuple[RequestId, ...]
    expected: int = 0


class Answer(_Message, frozen=True):
    """Send these requests their share of the batch's outputs."""

    batch: BatchId
    requests: tuple[RequestId, ...]


class Reject(_Message, frozen=True):
    """Refuse on arrival."""

    request: RequestId
    reason: Reason


class Drop(_Message, frozen=True):
    """Give up in the queue: expired or cancelled."""

    request: RequestId
    reason: Reason


class Fail(_Message, frozen=True):
    """Answer with an error because its run failed."""

    request: RequestId
    reason: Reason


class Load(_Message, frozen=True):
    """Make a model resident on a device."""

    model: str
    device: int


class Unload(_Message, frozen=True):
    """Take a model off a device."""

    model: str
    device: int


class Spawn(_Message, frozen=True):
    """A request for a stage of an application request is made: it arrives now, and ends as any other does."""

    request: Request
    application: RequestId
    stage: str


class Gather(_Message, frozen=True):
    """Answer an application request with what its leaf stages gave; `batches` are those that they ran in."""

    request: RequestId
    batches: tuple[BatchId, ...]


Command: TypeAlias = Start | Answer | Reject | Drop | Fail | Load | Unload | Spawn | Gather
