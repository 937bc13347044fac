"""The state of the fleet: what waits, what runs, what is free. The scheduler changes it, dispatchers read it."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import chain, islice
from typing import Final

from gpulet.core.messages import BatchId, Load, Loaded, Unload, Unloaded
from gpulet.device import Device
from gpulet.model import Model
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.request import Request
from gpulet.units import Instant


class Central(Enum):
    """The central queue of the request's model and shape class."""

    QUEUE = "central"


CENTRAL: Final = Central.QUEUE
_DEFAULT_PRIORITY = 0
_MOST_QUEUES = 64


class Queue:
    """Requests in order of priority, then arrival. `owner` is the gpulet they are bound to, or `CENTRAL`.

    A central queue holds one model and one shape class; a gpulet's own queue may mix them.
    """

    __slots__ = ("_hasty", "_plain", "_soonest", "model", "owner", "rows", "shape")

    def __init__(self, owner: GpuletId | Central, model: str = "", shape: str = "") -> None:
        self.owner = owner
        self.model = model
        self.shape = shape
        self.rows = 0
        self._plain: deque[Request] = deque()
        self._hasty: dict[int, deque[Request]] = {}
        self._soonest: Instant | None = None

    def __len__(self) -> int:
        return len(self._plain) + sum(map(len, self._hasty.values()))

    def __bool__(self) -> bool:
        return bool(self._plain) or any(self._hasty.values())

    def __iter__(self) -> Iterator[Request]:
        """From the next to be served to the last."""
        if not self._hasty:
            return iter(self._plain)
        return chain(*(self._hasty[p] for p in sorted(self._hasty)), self._plain)

    @property
    def head(self) -> Request:
        """The next to be served; the queue must not be empty."""
        return self._plain[0] if not self._hasty else next(iter(self))

    @property
    def oldest(self) -> Instant:
        """When the one arrived that has waited longest; the queue must not be empty."""
        if not self._hasty:
            return self._plain[0].arrival
        return min(lane[0].arrival for lane in (*self._hasty.values(), self._plain) if lane)

    @property
    def soonest(self) -> Instant:
        """The earliest deadline of all that wait; the queue must not be empty. Kept from one look to the next."""
        if self._soonest is None:
            self._soonest = min(request.deadline for request in self)
        return self._soonest

    def take(self, most_rows: int) -> list[Request]:
        """The longest prefix within `most_rows` that may form a batch; nothing is removed."""
        if len(self._plain) == self.rows and self.owner is CENTRAL and not self._hasty:
            return list(islice(self._plain, most_rows))  # single rows, all alike
        taken: list[Request] = []
        rows = 0
        for request in self:
            rows += request.rows
            if rows > most_rows or (taken and _unlike(request, taken[0])):
                break
            taken.append(request)
        return taken

    def append(self, request: Request) -> None:
        """Add behind those of the same priority."""
        self._lane(request).append(request)
        self.rows += request.rows
        if self._soonest is not None and request.deadline < self._soonest:
            self._soonest = request.deadline

    def restore(self, requests: Sequence[Request]) -> None:
        """Put requests back at the front, in their order."""
        self._soonest = None
        for request in reversed(requests):
            self._lane(request).appendleft(request)
            self.rows += request.rows

    def remove(self, requests: Sequence[Request]) -> None:
        """Remove requests that wait here; cheap when they are the front of the queue."""
        self._soonest = None
        for request in requests:
            lane = self._lane(request)
            if lane[0] is request:
                lane.popleft()
            else:
                lane.remove(request)
            self.rows -= request.rows
        if self._hasty:
            self._hasty = {p: lane for p, lane in self._hasty.items() if lane}

    def _lane(self, request: Request) -> deque[Request]:
        """Priority 0 is the default and goes last; 1 is the most urgent (Triton's order)."""
        if request.priority == _DEFAULT_PRIORITY:
            return self._plain
        return self._hasty.setdefault(request.priority, deque())


def _unlike(one: Request, other: Request) -> bool:
    return one.model != other.model or one.shape != other.shape


class GpuletState:
    """One gpulet: its part of the plan, its own queue, and what it runs. `busy_until` is a prediction."""

    __slots__ = ("busy_until", "id", "is_leaving", "is_up", "planned", "queue", "running")

    def __init__(self, planned: Gpulet) -> None:
        self.planned = planned
        self.id = planned.id
        self.queue = Queue(planned.id)
        self.is_up = False
        self.is_leaving = False
        self.running: BatchId = 0
        self.busy_until: Instant = 0

    @property
    def is_idle(self) -> bool:
        """Up, and runs nothing."""
        return self.is_up and not self.running

    def may_run(self, requests: Iterable[Request]) -> bool:
        """Whether these may wait here, by the plan in force."""
        return not self.is_leaving and {r.model for r in requests} <= set(self.planned.models)


class DeviceState:
    """One device: the SMs that no running carve holds, and the models that are resident."""

    __slots__ = ("device", "free_sms", "loading", "memory_used", "resident")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.free_sms = device.kind.sms
        self.resident: set[str] = set()
        self.loading: set[str] = set()
        self.memory_used = 0


class Fleet:
    """Everything a dispatcher may read. `closed`: models for which nothing may arrive now.

    `newcomers` are closed until a dispatcher knows them, whether they are opened meanwhile or not.
    """

    __slots__ = ("closed", "devices", "gpulets", "models", "newcomers", "queues", "waiting")

    def __init__(self, models: Mapping[str, Model], plan: Plan) -> None:
        self.models = models
        self.closed: set[str] = set()
        self.newcomers: dict[str, bool] = {}
        self.gpulets = {g.id: GpuletState(g) for g in plan.gpulets}
        self.devices = {d.index: DeviceState(d) for d in plan.devices}
        self.queues: dict[str, dict[str, Queue]] = {name: {} for name in models}
        self.waiting: dict[int, Queue] = {}
        self.settle_in(plan)

    def queue(self, model: str, shape: str) -> Queue:
        """The central queue of a model and shape class."""
        shapes = self.queues[model]
        found = shapes.get(shape)
        if found is None:
            if len(shapes) >= _MOST_QUEUES:  # clients choose shapes: those that nobody waits for are forgotten
                shapes = self.queues[model] = {known: queue for known, queue in shapes.items() if queue}
            found = shapes[shape] = Queue(CENTRAL, model, shape)
        return found

    def central(self, model: str) -> Iterator[Queue]:
        """The central queues of a model that hold requests, one for each shape class."""
        return (queue for queue in self.queues[model].values() if queue)

    def unserved(self, plan: Plan) -> set[str]:
        """The models that a plan says where to run none of: what comes for them waits until its deadline at the most."""
        return {name for name in self.models if plan.in_use and not plan.serves(name)}

    def may_wait(self, request: Request) -> bool:
        """Whether the plan in force lets it wait where it does."""
        owner = self.waiting[request.id].owner
        return owner is CENTRAL or self.gpulets[owner].may_run((request,))

    def filled(self) -> Iterator[Queue]:
        """Every queue that holds requests."""
        yield from (queue for shapes in self.queues.values() for queue in shapes.values() if queue)
        yield from (gpulet.queue for gpulet in self.gpulets.values() if gpulet.queue)

    def settle_in(self, plan: Plan) -> None:
        """The residents of another plan are there."""
        for state in self.devices.values():
            mine = {r.model: r.memory for r in plan.residents if r.device == state.device.index}
            state.resident, state.memory_used = set(mine), sum(mine.values())

    def load(self, load: Load) -> None:
        """A model begins to load; its memory must fit."""
        device = self.devices[load.device]
        device.loading.add(load.model)
        device.memory_used += self.models[load.model].memory
        room = device.device.kind.memory
        assert not room or device.memory_used <= room, f"device {load.device}: {device.memory_used} of {room} bytes"

    def unload(self, unload: Unload) -> None:
        """A model begins to leave: nothing more of it starts here."""
        self.devices[unload.device].resident.discard(unload.model)

    def enlist(self, model: Model) -> None:
        """There is one model more."""
        self.models = {**self.models, model.name: model}
        self.queues[model.name] = {}
        self.newcomers[model.name] = True
        self.closed.add(model.name)

    def introduce(self, names: Iterable[str]) -> None:
        """The dispatcher that is asked from now on knows these."""
        for name in names:
            self.shut(name, is_shut=not self.newcomers.pop(name))

    def shut(self, model: str, *, is_shut: bool) -> None:
        """Nothing may arrive for it from now on, or it may again."""
        if model in self.newcomers:
            self.newcomers[model] = not is_shut
        else:
            (self.closed.add if is_shut else self.closed.discard)(model)

    def settle(self, event: Loaded | Unloaded) -> None:
        """A load or an unload is done."""
        device = self.devices[event.device]
        if isinstance(event, Loaded):
            device.loading.discard(event.model)
            device.resident.add(event.model)
        else:
            device.memory_used -= self.models[event.model].memory
