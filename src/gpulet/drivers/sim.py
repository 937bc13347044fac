"""Virtual time: a heap of wake-ups, a stream of arrivals, and the same core that serves.

Of things due at one instant, what was scheduled first comes first; arrivals come last.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from gpulet.core.control import Controlled
from gpulet.core.messages import (
    Adopt,
    Answer,
    Arrived,
    Build,
    Command,
    Drop,
    Event,
    Explain,
    Fail,
    Gather,
    Load,
    Reject,
    Replan,
    Replanned,
    Retire,
    Spawn,
    Start,
    Unload,
)
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Core
from gpulet.core.scheduler import Scheduler
from gpulet.executors.base import Changer, Executor, change
from gpulet.executors.simulated import Simulated
from gpulet.interference import Interference
from gpulet.plan import Plan
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.units import NEVER, SECOND, Duration, Instant
from gpulet.workload import Arrivals

Observe = Callable[[Instant, Sequence[Event], Sequence[Command]], None]
"""Sees every step: a journal, or a test."""


Plans = Callable[[Replan], Replanned]
"""A planner asked while a run goes on."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Who `plans` while a run goes on, and how long that and building take by the virtual clock."""

    plans: Plans
    plan_time: Duration = 0
    build_time: Duration = 0


class Recorder(Protocol):
    """Folds every step into what a run was worth."""

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Take one step's messages into account."""
        ...


class VirtualTimer:
    """The simulator's clock and its heap."""

    def __init__(self) -> None:
        self.instant: Instant = 0
        self.heap: list[tuple[Instant, int, Callable[[int], None], int]] = []
        self._serial = 0

    def now(self) -> Instant:
        """Virtual time."""
        return self.instant

    def at(self, when: Instant, wake: Callable[[int], None], token: int) -> None:
        """Call `wake(token)` at virtual time `when`."""
        self._serial += 1
        heappush(self.heap, (when, self._serial, wake, token))


class Simulation:
    """Drives one core and one executor through a workload. Whoever `plans` takes `plan_time` by the virtual clock."""

    def __init__(
        self,
        scheduler: Core,
        timer: VirtualTimer,
        metrics: Recorder,
        observers: Sequence[Observe] = (),
        plans: Plans | None = None,
        plan_time: Duration = 0,
    ) -> None:
        self._plans = plans
        self._plan_time = plan_time
        self._scheduler = scheduler
        self._timer = timer
        self._metrics = metrics
        self._observers = tuple(observers)
        self._executor: Executor
        self._changer: Changer

    def attach(self, executor: Executor, changer: Changer | None = None) -> None:
        """Say who carries out commands, and changes plans if the core does; they answer through `feed`."""
        self._executor = executor
        if changer:
            self._changer = changer

    def run(self, requests: Iterable[Request], until: Instant = NEVER - 1) -> None:
        """Feed every request at its arrival and go on until nothing is left to happen by `until`."""
        for request in requests:
            arrival = request.arrival
            self._advance(arrival)
            self._timer.instant = arrival
            self.feed(Arrived(request))
        self._advance(until)

    def feed(self, *events: Event) -> None:
        """One step now."""
        now = self._timer.instant
        commands = self._scheduler.step(now, *events)
        self._metrics.record(now, events, commands)
        for observe in self._observers:
            observe(now, events, commands)
        for command in commands:
            match command:
                case Start():
                    self._executor.start(command)
                case Load():
                    self._executor.load(command)
                case Unload():
                    self._executor.unload(command)
                case Replan() | Build() | Adopt() | Retire():
                    self._change(command)
                case Answer() | Reject() | Drop() | Fail() | Spawn() | Gather() | Explain():
                    pass

    def _change(self, command: Replan | Build | Adopt | Retire) -> None:
        if isinstance(command, Replan):
            self._replan(command)
        else:
            change(self._changer, command)

    def _replan(self, command: Replan) -> None:
        assert self._plans, "a core that asks for plans has a planner"
        answer = self._plans(command)
        self._timer.at(self._timer.now() + self._plan_time, lambda _: self.feed(answer), 0)

    def _advance(self, until: Instant) -> None:
        """Let everything happen that is due at or before `until`."""
        heap, scheduler = self._timer.heap, self._scheduler
        while True:
            due = heap[0][0] if heap else NEVER
            wake_at = scheduler.wake_at
            if min(due, wake_at) > until:
                return
            if due <= wake_at:
                self._timer.instant, _, wake, token = heappop(heap)
                wake(token)
            else:
                self._timer.instant = wake_at
                self.feed()


_LONGEST_END: Duration = 3600 * SECOND


def simulate(
    scheduler: Scheduler | Controlled,
    profile: Profile,
    plan: Plan,
    arrivals: Arrivals,
    observers: Sequence[Observe] = (),
    *,
    interference: Interference | None = None,
    knees: Mapping[str, int] | None = None,
    changes: Changes | None = None,
) -> Metrics:
    """Run a workload through a core on the simulated executor; what it was worth.

    The plan is the core's, or that one folded; `knees` are for the metrics, SMs by model. `changes` is for a core with
    live control: it goes on watching for as long as there are arrivals, and until the last of them has ended.
    """
    plan = plan.unfolded()
    timer = VirtualTimer()
    names = dict.fromkeys([*(model.name for model in arrivals.models), *scheduler.fleet.models])
    metrics = Metrics(list(names), plan, knees=knees, applications=scheduler.applications)
    plans, plan_time, build_time = (changes.plans, changes.plan_time, changes.build_time) if changes else (None, 0, 0)
    simulation = Simulation(scheduler, timer, metrics, observers, plans, plan_time)
    executor = Simulated(profile, plan, timer, simulation.feed, interference=interference, build_time=build_time)
    simulation.attach(executor, executor)
    executor.carve()
    if not changes:
        simulation.run(arrivals.requests())
        return metrics
    ends = arrivals.duration
    simulation.run(arrivals.requests(), ends)
    while not scheduler.is_idle and ends < arrivals.duration + _LONGEST_END:
        ends += SECOND
        simulation.run((), ends)
    return metrics
