"""What a run was worth: a fold over messages, the same for simulated, live and replayed ones.

An application has a row as a model has; its models' rows count its stage requests, which the total leaves out.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from gpulet.core.counts import Counts, ModelRow, goodput_fairness
from gpulet.core.estimates import EstimateRow, Estimates
from gpulet.core.fairness import jain
from gpulet.core.histogram import Histogram
from gpulet.core.messages import (
    FIRST_STAGE_REQUEST,
    Adopt,
    Answer,
    Arrived,
    BatchId,
    Carve,
    Command,
    Drop,
    Enlist,
    Event,
    Fail,
    Finished,
    Gather,
    GpuletDown,
    Reason,
    Reject,
    RequestId,
    Retire,
    RunFailed,
    Spawn,
    Start,
)
from gpulet.core.phases import Phases
from gpulet.core.usage import NO_TIME, DeviceRow, ModelTime, Usage
from gpulet.plan import Plan
from gpulet.request import Request
from gpulet.units import Duration, Instant


class Rows(TypedDict):
    """What every run's report has: a line for each model, one for all, and how even they are (Jain's index, by what)."""

    models: dict[str, ModelRow]
    total: ModelRow
    fairness: dict[str, float]


class RunReport(Rows):
    """What the core knows of a run."""

    devices: list[DeviceRow]
    estimates: EstimateRow


@dataclass(slots=True)
class _Run:
    start: Start
    since: Instant
    requests: tuple[Request, ...]
    finished: Finished


_UNMEASURED = Finished(0)


class Metrics:
    """Folds every step's messages. Unknown models are counted together under `""`; `phases` is where requests were.

    `changes` counts plans that came into force while it ran. `models` are all names that requests may have, `applications` those among them that only lead to others' runs;
    `stages` counts stage requests once more. `knees` are SMs by model, as `Usage` says; `begins` is when the run does.
    """

    def __init__(
        self,
        models: Sequence[str],
        plan: Plan,
        *,
        knees: Mapping[str, int] | None = None,
        applications: Collection[str] = (),
        begins: Instant = 0,
    ) -> None:
        self.models: dict[str, Counts] = {name: Counts() for name in models}
        self.phases: dict[str, Phases] = {name: Phases() for name in models}
        self.stages = Counts()
        self.changes = 0
        self.estimates = Estimates(models)
        self._has_stages = False
        self.usage = Usage(plan, knees or {}, begins)
        self.gpulets = self.usage.gpulets
        self.reasons: dict[tuple[str, Reason], int] = {}
        self._applications = frozenset(applications)
        self._open: dict[RequestId, Request] = {}
        self._running: dict[BatchId, _Run] = {}

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Take one step's messages into account."""
        for event in events:
            self._take_in(now, event)
        for command in commands:
            match command:
                case Answer():
                    self._answer(now, command)
                case Start():
                    self._start(now, command)
                case Reject() | Drop() | Fail():
                    self._refuse(now, command.request, command.reason)
                case _:
                    self._fold(now, command)

    def _fold(self, now: Instant, command: Command) -> None:
        """What is rarer."""
        match command:
            case Spawn():
                self._open[command.request.id] = command.request
                self._counts(command.request.model).arrived += 1
                self.stages.arrived += 1
                self._has_stages = True
            case Gather():
                request = self._open.pop(command.request)
                self.models[request.model].end(request, now)
                self.phases[request.model].last = now
            case Adopt() | Retire():
                self._change(now, command)
            case _:
                pass

    def _change(self, now: Instant, command: Adopt | Retire) -> None:
        self.changes += isinstance(command, Adopt)
        if isinstance(command, Adopt):
            self.usage.adopt(now, command.plan)
        else:
            self.usage.retire(command.gpulet)

    def _take_in(self, now: Instant, event: Event) -> None:
        match event:
            case Arrived():
                self._open[event.request.id] = event.request
                self._counts(event.request.model).arrived += 1
            case Finished():
                self._running[event.batch].finished = event
            case RunFailed():
                self._lose(now, [event.batch])
            case Enlist():
                name = event.model.name
                self.models[name], self.phases[name] = Counts(), Phases()
                self.estimates.errors[name] = Histogram()
            case GpuletDown():
                self._lose(now, [b for b, run in self._running.items() if run.start.on == event.gpulet])
            case _:
                pass

    def report(self, duration: Duration) -> RunReport:
        """As in `simulate --json`; `duration` is the time of the arrivals."""
        total = Counts()
        for counts in self.models.values():
            total.add(counts)
        total.remove(self.stages)
        times = self.usage.by_model()
        known = {name: counts for name, counts in self.models.items() if name or counts.arrived}
        spent = ModelTime(sum(t.ran for t in times.values()), sum(t.area for t in times.values()))
        return {
            "models": {name: counts.report(duration, times.get(name, NO_TIME)) for name, counts in known.items()},
            "devices": self.usage.report(duration),
            "total": total.report(duration, spent),
            "fairness": self.fairness(),
            "estimates": self.estimates.report(),
        }

    def fairness(self) -> dict[str, float]:
        """Jain's index over what was asked anything: `runtime` and `area` of models, `goodput` of applications as well."""
        asked = {name: counts for name, counts in self.models.items() if name and counts.arrived}
        times = self.usage.by_model()
        run = [times.get(name, NO_TIME) for name in asked if name not in self._applications]
        return {
            "runtime": jain(time.ran for time in run),
            "area": jain(time.area for time in run),
            "goodput": goodput_fairness(asked.values()),
        }

    def waiting(self) -> dict[str, int]:
        """Requests of each model that have not been started; an application's own are in its stages."""
        running = Counter[str]()
        for run in self._running.values():
            running[run.start.model] += len(run.requests)
        return {n: c.unanswered - running[n] for n, c in self.models.items() if n and n not in self._applications}

    def _counts(self, model: str) -> Counts:
        counts = self.models.get(model)
        return counts if counts is not None else self.models.setdefault("", Counts())

    def _start(self, now: Instant, start: Start) -> None:
        requests = tuple([self._open[request_id] for request_id in start.requests])
        self._running[start.batch] = _Run(start, now, requests, _UNMEASURED)
        self.usage.begin(now, start)
        counts = self.models[start.model]
        counts.batches += 1
        counts.rows += start.rows

    def _answer(self, now: Instant, answer: Answer) -> None:
        run = self._running.pop(answer.batch)
        counts = self.models[run.start.model]
        phases = self.phases[run.start.model]
        add = counts.latency.add
        wait = phases.queue.add
        pop = self._open.pop
        since = run.since
        counts.served += len(run.requests)
        for request in run.requests:
            pop(request.id)
            add(now - request.arrival)
            wait(since - request.arrival)
            if now > request.deadline:
                counts.late += 1
        if self._has_stages:
            for request in run.requests:
                if request.id >= FIRST_STAGE_REQUEST:
                    self.stages.end(request, now)
        phases.end(now, now - since, run.finished, run.start.rows, len(run.requests))
        self.estimates.add(run.start, now - since)
        self.usage.end(now, run.start, now - since)
        self._use(now - since, run.start)

    def _use(self, ran: Duration, start: Start) -> None:
        if isinstance(start.on, Carve):
            return
        use = self.gpulets[start.on]
        use.busy += ran
        use.predicted += start.expected
        use.batches += 1
        use.rows += start.rows
        use.run.add(ran)

    def _lose(self, now: Instant, batches: Iterable[BatchId]) -> None:
        for batch in batches:
            run = self._running.pop(batch)
            self.usage.end(now, run.start, now - run.since)

    def _refuse(self, now: Instant, request_id: RequestId, reason: Reason) -> None:
        request = self._open.pop(request_id)
        model = request.model if request.model in self.models else ""  # what clients may make up is not kept
        self._counts(model).refuse(reason)
        if request_id >= FIRST_STAGE_REQUEST:
            self.stages.refuse(reason)
        if model:
            self.phases[model].refused += now - request.arrival
        self.reasons[model, reason] = self.reasons.get((model, reason), 0) + 1
