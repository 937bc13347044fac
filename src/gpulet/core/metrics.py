"""What a run was worth: a fold over messages, the same for simulated, live and replayed ones.

Per model: arrived = served + rejected + expired + cancelled + failed + lost. `lost` is never answered: 0 once nothing
waits or runs. `late` is part of served; attainment = (served - late) / arrived; goodput = (served - late) per second.
An application has a row as a model has; its models' rows count its stage requests, which the total leaves out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from gpulet.core.estimates import EstimateRow, Estimates
from gpulet.core.histogram import Histogram
from gpulet.core.messages import (
    FIRST_STAGE_REQUEST,
    Answer,
    Arrived,
    BatchId,
    Carve,
    Command,
    Drop,
    Event,
    Fail,
    Gather,
    GpuletDown,
    Reason,
    Reject,
    RequestId,
    RunFailed,
    Spawn,
    Start,
)
from gpulet.plan import GpuletId, Plan
from gpulet.request import Request
from gpulet.units import SECOND, Duration, Instant, to_ms


class ModelRow(TypedDict):
    """One model's line of a report: counts, shares of 1, answers per second, milliseconds."""

    arrived: int
    served: int
    late: int
    rejected: int
    expired: int
    cancelled: int
    failed: int
    lost: int
    attainment: float
    goodput: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float


class DeviceRow(TypedDict):
    """Share of a device's SM-time in use, and of its SMs given to gpulets."""

    busy: float
    allocated: float


class Rows(TypedDict):
    """What every run's report has: a line for each model and one for all."""

    models: dict[str, ModelRow]
    total: ModelRow


class RunReport(Rows):
    """What the core knows of a run."""

    devices: list[DeviceRow]
    estimates: EstimateRow


_SUMMED = ("arrived", "served", "late", "rejected", "expired", "cancelled", "failed", "batches", "rows")


@dataclass(slots=True)
class Counts:
    """One model's counters. `latency` counts served requests from arrival; `rows` and `batches` count what started."""

    arrived: int = 0
    served: int = 0
    late: int = 0
    rejected: int = 0
    expired: int = 0
    cancelled: int = 0
    failed: int = 0
    batches: int = 0
    rows: int = 0
    latency: Histogram = field(default_factory=Histogram)
    queued: Duration = 0
    computed: Duration = 0

    @property
    def unanswered(self) -> int:
        """Still waiting or running; lost, once the run is over."""
        return self.arrived - self.served - self.rejected - self.expired - self.cancelled - self.failed

    def add(self, other: "Counts") -> None:
        """Count everything that `other` counted."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)

    def remove(self, other: "Counts") -> None:
        """Forget what `other` counted, all of which is counted here."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) - getattr(other, name))
        self.latency.remove(other.latency)

    def end(self, request: Request, now: Instant) -> None:
        """One request is served."""
        self.served += 1
        self.late += now > request.deadline
        self.latency.add(now - request.arrival)

    def refuse(self, reason: Reason) -> None:
        """One request got no result."""
        setattr(self, _FIELD[reason], getattr(self, _FIELD[reason]) + 1)

    def report(self, duration: Duration) -> ModelRow:
        """The shape of `simulate --json` and `bench --json`."""
        good = self.served - self.late
        p50, p95, p99 = (to_ms(round(self.latency.percentile(p))) for p in (50, 95, 99))
        return {
            "arrived": self.arrived,
            "served": self.served,
            "late": self.late,
            "rejected": self.rejected,
            "expired": self.expired,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "lost": self.unanswered,
            "attainment": good / self.arrived if self.arrived else 1.0,
            "goodput": good * SECOND / duration if duration else 0.0,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "mean_batch": self.rows / self.batches if self.batches else 0.0,
        }


@dataclass(slots=True)
class GpuletUse:
    """One gpulet's batches: how long they ran, how long they were predicted to; `fellows` share its SMs with it."""

    device: int
    sms: int
    fellows: int = 1
    busy: Duration = 0
    predicted: Duration = 0
    batches: int = 0
    rows: int = 0
    run: Histogram = field(default_factory=Histogram)


@dataclass(frozen=True, slots=True)
class _Run:
    start: Start
    since: Instant
    requests: tuple[Request, ...]


class Metrics:
    """Folds every step's messages. Unknown models are counted together under `""`.

    `models` are all names that requests may have, applications included; `stages` counts stage requests once more.
    """

    def __init__(self, models: Sequence[str], plan: Plan) -> None:
        self.models: dict[str, Counts] = {name: Counts() for name in models}
        self.stages = Counts()
        self.estimates = Estimates(models)
        self._has_stages = False
        self.gpulets = {g.id: GpuletUse(g.device, g.size.sms, g.fellows) for g in plan.gpulets}
        self.reasons: dict[tuple[str, Reason], int] = {}
        self._sms = {d.index: d.kind.sms for d in plan.devices}
        self._carved = dict.fromkeys(self._sms, 0)
        self._allocated = {d: sum(g.size.sms / g.fellows for g in plan.gpulets if g.device == d) for d in self._sms}
        self._open: dict[RequestId, Request] = {}
        self._running: dict[BatchId, _Run] = {}

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Take one step's messages into account."""
        for event in events:
            self._take_in(event)
        for command in commands:
            match command:
                case Answer():
                    self._answer(now, command)
                case Start():
                    self._start(now, command)
                case Reject() | Drop() | Fail():
                    self._refuse(command.request, command.reason)
                case Spawn():
                    self._open[command.request.id] = command.request
                    self._counts(command.request.model).arrived += 1
                    self.stages.arrived += 1
                    self._has_stages = True
                case Gather():
                    request = self._open.pop(command.request)
                    self.models[request.model].end(request, now)
                case _:
                    pass

    def _take_in(self, event: Event) -> None:
        match event:
            case Arrived():
                self._open[event.request.id] = event.request
                self._counts(event.request.model).arrived += 1
            case RunFailed():
                self._running.pop(event.batch, None)
            case GpuletDown():
                self._running = {b: run for b, run in self._running.items() if run.start.on != event.gpulet}
            case _:
                pass

    def report(self, duration: Duration) -> RunReport:
        """`models`, `total`, `devices` and `estimates` as in `simulate --json`; `duration` is the time of the arrivals."""
        total = Counts()
        for counts in self.models.values():
            total.add(counts)
        total.remove(self.stages)
        known = {name: counts.report(duration) for name, counts in self.models.items() if name or counts.arrived}
        return {
            "models": known,
            "devices": self._devices(duration),
            "total": total.report(duration),
            "estimates": self.estimates.report(),
        }

    def _devices(self, duration: Duration) -> list[DeviceRow]:
        """Share of SM-time in use, and share of SMs given to gpulets."""
        if not duration:
            return []
        busy = dict[int, float](self._carved)
        for use in self.gpulets.values():
            busy[use.device] += use.busy * use.sms / use.fellows
        return [
            {"busy": busy[d] / (duration * sms), "allocated": self._allocated[d] / sms} for d, sms in self._sms.items()
        ]

    def _counts(self, model: str) -> Counts:
        counts = self.models.get(model)
        return counts if counts is not None else self.models.setdefault("", Counts())

    def _start(self, now: Instant, start: Start) -> None:
        requests = tuple([self._open[request_id] for request_id in start.requests])
        self._running[start.batch] = _Run(start, now, requests)
        counts = self.models[start.model]
        counts.batches += 1
        counts.rows += start.rows

    def _answer(self, now: Instant, answer: Answer) -> None:
        run = self._running.pop(answer.batch)
        counts = self.models[run.start.model]
        add = counts.latency.add
        pop = self._open.pop
        since = run.since
        counts.served += len(run.requests)
        counts.computed += (now - since) * len(run.requests)
        for request in run.requests:
            pop(request.id)
            add(now - request.arrival)
            counts.queued += since - request.arrival
            if now > request.deadline:
                counts.late += 1
        if self._has_stages:
            for request in run.requests:
                if request.id >= FIRST_STAGE_REQUEST:
                    self.stages.end(request, now)
        self.estimates.add(run.start, now - since)
        self._use(run.start.on, now - since, run.start)

    def _use(self, on: GpuletId | Carve, ran: Duration, start: Start) -> None:
        if isinstance(on, Carve):
            self._carved[on.device] += ran * on.size
            return
        use = self.gpulets[on]
        use.busy += ran
        use.predicted += start.expected
        use.batches += 1
        use.rows += start.rows
        use.run.add(ran)

    def _refuse(self, request_id: RequestId, reason: Reason) -> None:
        model = self._open.pop(request_id).model
        self._counts(model).refuse(reason)
        if request_id >= FIRST_STAGE_REQUEST:
            self.stages.refuse(reason)
        self.reasons[model, reason] = self.reasons.get((model, reason), 0) + 1


_FIELD: Mapping[Reason, str] = {
    Reason.UNKNOWN_MODEL: "rejected",
    Reason.TOO_LARGE: "rejected",
    Reason.QUEUE_FULL: "rejected",
    Reason.LATE: "rejected",
    Reason.STOPPED: "rejected",
    Reason.EXPIRED: "expired",
    Reason.CANCELLED: "cancelled",
    Reason.ABANDONED: "cancelled",
    Reason.RUN_FAILED: "failed",
    Reason.WORKER_LOST: "failed",
}
