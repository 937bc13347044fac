"""What is asked of policies: a planner decides in minutes, a dispatcher in milliseconds.

A dispatcher's port carries all five published shapes: an idle gpulet picks from its models' queues; a request is bound
to a gpulet on arrival; one central queue; a size chosen per run (`Carve`); models loaded and evicted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from gpulet.application import Application
from gpulet.core.fleet import CENTRAL, Central, Fleet, GpuletState, Queue
from gpulet.core.messages import Carve, Command, Enlist, Event, Load, Reason, Unload
from gpulet.device import Device
from gpulet.errors import PlanError
from gpulet.interference import Interference
from gpulet.model import Model
from gpulet.plan import GpuletId, Plan
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.rows import SINGLE, RowDistribution
from gpulet.units import NEVER, Duration, Instant

__all__ = [
    "CENTRAL",
    "Changed",
    "Core",
    "Decision",
    "Dispatcher",
    "Infeasible",
    "MakeDispatcher",
    "Place",
    "Planner",
    "Problem",
    "Run",
]

Place: TypeAlias = GpuletId | Central | Reason
"""Where a request waits: one gpulet's queue, its model's central queue, or nowhere (rejected, and why)."""


@dataclass(slots=True)
class Changed:
    """What happened since the dispatcher was last asked. `alarm` says that its own `wake_at` has come.

    `ended` has the requests of each carved run that is over, however it went: it is the one of its device and model.
    """

    queues: list[Queue] = field(default_factory=list)
    gpulets: list[GpuletState] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    ended: list[Sequence[Request]] = field(default_factory=list)
    alarm: bool = False


class Run:
    """Start these waiting requests as one batch: one model, one shape class. `expected` is the predicted time."""

    __slots__ = ("expected", "on", "requests")

    def __init__(self, on: GpuletId | Carve, requests: Sequence[Request], expected: Duration = 0) -> None:
        self.on = on
        self.requests = requests
        self.expected = expected


class Decision:
    """What to start and where, what to give up, what to load, when to ask again; `more`: ask again at once."""

    __slots__ = ("drop", "load", "more", "start", "unload", "wake_at")

    def __init__(
        self,
        start: Sequence[Run] = (),
        *,
        drop: Sequence[Request] = (),
        load: Sequence[Load] = (),
        unload: Sequence[Unload] = (),
        wake_at: Instant = NEVER,
        more: bool = False,
    ) -> None:
        self.start = start
        self.drop = drop
        self.load = load
        self.unload = unload
        self.wake_at = wake_at
        self.more = more


class Core(Protocol):
    """What a driver drives: a scheduler, with live control or without. `wake_at`: when to step even without an event."""

    wake_at: Instant

    @property
    def applications(self) -> Mapping[str, Application]:
        """By name."""
        ...

    def step(self, now: Instant, *events: Event) -> list[Command]:
        """Absorb events, then say what to do."""
        ...

    def holds(self, model: str) -> bool:
        """Whether anything waits or runs for it."""
        ...


class Dispatcher(Protocol):
    """Decides where requests wait and what runs next. It reads the fleet and never changes it."""

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Say where an arriving request waits."""
        ...

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Say what starts now. Starts of one decision must not want the same gpulet, SMs or requests."""
        ...


MakeDispatcher: TypeAlias = Callable[["Problem", Plan], Dispatcher]
"""A dispatcher is made for one plan; a new plan makes a new one."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a planner is given: `demand` in rows/s by model, `in_force` the plan that serves now.

    Safety margins and the front-end's own CPU are already in the profile's latencies, and what applications ask of their
    models is already in the demand. `sent` is what clients themselves send, in requests/s by model or application; where
    nothing is said, it is the demand. `rows` is how many rows a request of a model brings, one where nothing is said.
    `interference` is how neighbours slow each other, where anybody has measured it. `slices` is a budget of compute
    slices for systems that count MIG instances, 0: all there are.
    """

    models: Mapping[str, Model]
    demand: Mapping[str, float]
    devices: tuple[Device, ...]
    profile: Profile
    in_force: Plan = field(default_factory=lambda: Plan(()))
    applications: tuple[Application, ...] = ()
    sent: Mapping[str, float] = field(default_factory=dict)
    interference: Interference | None = None
    rows: Mapping[str, RowDistribution] = field(default_factory=dict)
    slices: int = 0

    def needs_interference(self) -> Interference:
        """The interference model; raises `PlanError` where none was given."""
        if self.interference is None:
            msg = "this system plans with interference: name a file under [interference] (gpulet interference fit)"
            raise PlanError(msg)
        return self.interference

    def overfull(self, plan: Plan) -> str:
        """Why a plan's models do not fit into the devices' memory; empty where they do or nobody knows."""
        return next(plan.overfull({name: model.memory for name, model in self.models.items()}), "")

    def within_memory(self, plan: Plan) -> "Plan | Infeasible":
        """The plan where it is not `overfull`; else a refusal that names the model with the most memory."""
        crowded = self.overfull(plan)
        if not crowded:
            return plan
        name = max(self.models.values(), key=lambda m: m.memory).name
        return Infeasible(name, crowded, "add a device", {name: self.demand.get(name, 0.0)}, plan)

    @property
    def rates(self) -> Mapping[str, float]:
        """Requests/s by everything that clients send requests for."""
        return self.sent or {name: rate / self.rows_of(name).mean for name, rate in self.demand.items()}

    @property
    def is_idle(self) -> bool:
        """Nobody asks anything of any model."""
        return not any(self.demand.values())

    def asked_of(self, name: str) -> float:
        """Requests/s of a model, whether clients send them or applications."""
        return self.demand.get(name, 0.0) / self.rows_of(name).mean

    def rows_of(self, name: str) -> RowDistribution:
        """How many rows a request for this model or application brings."""
        return self.rows.get(name, SINGLE)

    def joined(self, event: Enlist) -> "Problem":
        """With one model more, for which nothing is planned yet."""
        name, rows = event.model.name, self.rows
        return replace(
            self,
            models={**self.models, name: event.model},
            demand={**self.demand, name: 0.0},
            profile=self.profile.joined(event.points),
            rows={**rows, name: event.rows} if event.rows != SINGLE else rows,
        )

    @property
    def sources(self) -> tuple[Model, ...]:
        """Everything that clients may send requests for, an application as if it were a model; what has a rate first."""
        whole = [Model(application.name, application.slo) for application in self.applications]
        if not whole:
            return tuple(self.models.values())
        return tuple(sorted((*self.models.values(), *whole), key=lambda m: not self.rates.get(m.name)))


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No plan holds the demand: which model, what binds, the nearest change that would fit, and what would be served."""

    model: str
    constraint: str
    nearest: str
    unserved: Mapping[str, float]
    partial: Plan

    def __str__(self) -> str:
        return f"model {self.model}: {self.constraint}; {self.nearest}"


Planner: TypeAlias = Callable[[Problem], Plan | Infeasible]
"""Pure and deterministic: the same problem gives the same plan."""
