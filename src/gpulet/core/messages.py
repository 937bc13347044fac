"""The whole vocabulary: events go into `Scheduler.step`, commands come out.

Messages carry ids and sizes only. They are structs rather than dataclasses because they are made several times per
request and written to the journal as they are (docs/decisions/0002-structs-for-messages.md).
"""

from enum import StrEnum
from typing import Final, TypeAlias

import msgspec

from gpulet.model import Model
from gpulet.plan import GpuletId, Plan
from gpulet.profile import Point
from gpulet.request import Request
from gpulet.rows import SINGLE, RowDistribution

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


class Replanned(_Message, frozen=True):
    """What became of `Replan` of that number: a plan, or none and why; what share of the demand each would serve in time.

    `before` is predicted for the plan in force, `after` for the new one.
    """

    number: int
    plan: Plan | None
    why: str = ""
    before: float = 1.0
    after: float = 1.0
    has_failed: bool = False


class Force(_Message, frozen=True):
    """Somebody wants this plan, whatever is predicted; `ticket` is theirs: the change's number is its negative."""

    ticket: int
    plan: Plan


class Freeze(_Message, frozen=True):
    """The plan in force stays, whatever happens, until it is thawed (`is_on` false) or another is forced."""

    is_on: bool


class DeviceOut(_Message, frozen=True):
    """No plan may use this device from now on: it is to be drained, or lost."""

    device: int


class DeviceIn(_Message, frozen=True):
    """It may be used again."""

    device: int


class Hint(_Message, frozen=True):
    """Somebody knows that so many rows/s of a model are coming."""

    model: str
    rate: float


class Revise(_Message, frozen=True):
    """A model has another objective, or other bounds, from now on."""

    model: Model


class Enlist(_Message, frozen=True):
    """There is one model more: its part of the profile, and so many rows/s of it are coming.

    It may be asked for (`Opened`) once a dispatcher knows it, which is with the next plan.
    """

    model: Model
    points: tuple[Point, ...]
    rate: float
    rows: RowDistribution = SINGLE


class Built(_Message, frozen=True):
    """All that the plan of `Build` of that number needs stands beside what serves: loaded, proven, warm."""

    number: int


class NotBuilt(_Message, frozen=True):
    """A step of that `Build` failed, and what it had brought up is taken down again."""

    number: int
    error: str


Event: TypeAlias = (
    Arrived
    | Finished
    | RunFailed
    | Cancelled
    | GpuletUp
    | GpuletDown
    | Loaded
    | Unloaded
    | Opened
    | Closed
    | Stopping
    | Replanned
    | Force
    | Freeze
    | DeviceOut
    | DeviceIn
    | Hint
    | Revise
    | Enlist
    | Built
    | NotBuilt
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


class Replan(_Message, frozen=True):
    """Plan for this demand, rows/s by model, on these devices; answered by `Replanned`. `why` is what was seen.

    `fewest`: on as few of the devices as will do. `is_needed`: a plan in force that holds is to be left alone. `down`: gpulets
    of the plan in force that do not come back. `builds`: more than other turns on the gpulets that there are will do.
    """

    number: int
    demand: dict[str, float]
    devices: tuple[int, ...]
    why: str
    fewest: bool = False
    is_needed: bool = True
    down: tuple[GpuletId, ...] = ()
    builds: bool = True


class Build(_Message, frozen=True):
    """Bring up what this plan needs beside what serves; answered by `Built` or `NotBuilt`. A gpulet that stays has its number.

    `is_urgent`: the plan in force loses more than building in haste would.
    """

    number: int
    plan: Plan
    is_urgent: bool = False


class Adopt(_Message, frozen=True):
    """The plan is in force: what it does not have starts nothing more, and what is new starts once its place is free."""

    number: int
    plan: Plan


class Retire(_Message, frozen=True):
    """A gpulet runs nothing and is in no plan in force: its worker may go."""

    gpulet: GpuletId


class Explain(_Message, frozen=True):
    """Why a change is begun, carried out, or left: what was seen, what was considered, what was chosen."""

    number: int
    seen: str
    considered: str
    chosen: str


Command: TypeAlias = (
    Start | Answer | Reject | Drop | Fail | Load | Unload | Spawn | Gather | Replan | Build | Adopt | Retire | Explain
)
