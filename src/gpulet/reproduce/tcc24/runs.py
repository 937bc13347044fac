"""Runs of a system over virtual time, as they were seen from outside: who ran, where, on how much, from when to when."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from gpulet.core.messages import Answer, Arrived, BatchId, Carve, Command, Event, Start
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.errors import GpuletError
from gpulet.executors.simulated import Simulated
from gpulet.plan import Plan
from gpulet.request import Request
from gpulet.systems import System, make_scheduler
from gpulet.units import NEVER, Instant


@dataclass(frozen=True, slots=True)
class Ran:
    """One run: `size` in SMs, `rows` in the batch, from `start` to `end`."""

    model: str
    device: int
    size: int
    rows: int
    start: Instant
    end: Instant


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan to serve, and why it is not all that was asked for; empty where it is."""

    plan: Plan
    refusal: str = ""


def planned(system: System, problem: Problem) -> Planned:
    """The system's plan; where it refuses, the plan of what it would serve."""
    try:
        outcome = system.planner(problem)
    except GpuletError as error:
        return Planned(Plan(()), str(error))
    return Planned(outcome.partial, str(outcome)) if isinstance(outcome, Infeasible) else Planned(outcome)


@dataclass(slots=True)
class Watch:
    """Keeps the runs of a simulation; what still ran when it stopped ends as predicted."""

    plan: Plan
    _open: dict[BatchId, tuple[Instant, Start]] = field(default_factory=dict)
    _ran: list[Ran] = field(default_factory=list)

    def __call__(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Take one step's commands into account."""
        for command in commands:
            match command:
                case Start():
                    self._open[command.batch] = now, command
                case Answer() if command.batch in self._open:
                    self._end(command.batch, now)
                case _:
                    pass

    def ran(self) -> list[Ran]:
        """Every run, in order of its start."""
        for batch, (since, start) in list(self._open.items()):
            self._end(batch, since + start.expected)
        return sorted(self._ran, key=lambda ran: (ran.start, ran.model))

    def _end(self, batch: BatchId, end: Instant) -> None:
        since, start = self._open.pop(batch)
        if isinstance(start.on, Carve):
            device, size = start.on.device, start.on.size
        else:
            gpulet = self.plan.gpulets[start.on]
            device, size = gpulet.device, gpulet.size.sms
        self._ran.append(Ran(start.model, device, size, start.rows, since, end))


@dataclass(frozen=True, slots=True)
class Served:
    """What a simulation did: its runs and its counts."""

    ran: list[Ran]
    metrics: Metrics


def serve(
    system: System,
    problem: Problem,
    plan: Plan,
    requests: Iterable[Request],
    limits: Limits,
    until: Instant = NEVER - 1,
) -> Served:
    """Feed the requests, all those that come at 0 at once, and stop at `until`, whatever still waits."""
    plan = plan.unfolded()
    watch = Watch(plan)
    timer = VirtualTimer()
    metrics = Metrics(list(problem.models), plan)
    simulation = Simulation(make_scheduler(system, problem, plan, limits), timer, metrics, [watch])
    executor = Simulated(problem.profile, plan, timer, simulation.feed)
    simulation.attach(executor)
    executor.carve()
    first, coming = _split(requests)
    simulation.feed(*map(Arrived, first))
    simulation.run(coming, until)
    return Served(watch.ran(), metrics)


def _split(requests: Iterable[Request]) -> tuple[list[Request], Iterator[Request]]:
    """Those that are there from the start, and those that come later."""
    coming = iter(requests)
    first: list[Request] = []
    for request in coming:
        if request.arrival > 0:
            return first, chain([request], coming)
        first.append(request)
    return first, coming
