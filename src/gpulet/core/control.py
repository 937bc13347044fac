"""The core with live control: it watches what it serves, asks for other plans, and changes to one where that pays.

Each change goes the same way. REPLAN: something calls for a plan, and a planner is asked outside. WEIGH: what it gains over
a horizon against what the change costs. BUILD: what the new plan needs comes up beside what serves. ADOPT: at once, gpulet
by gpulet, at batch boundaries. Until then the plan in force has noticed nothing, and whatever fails leaves it so.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from gpulet.core.losses import Losses
from gpulet.core.messages import (
    Adopt,
    Build,
    Built,
    Command,
    DeviceIn,
    DeviceOut,
    Event,
    Explain,
    Force,
    Freeze,
    Hint,
    NotBuilt,
    Replan,
    Replanned,
    Revise,
    Stopping,
)
from gpulet.core.ports import MakeDispatcher, Problem
from gpulet.core.replan import Demand, Estimator
from gpulet.core.scheduler import Scheduler
from gpulet.core.staging import Stage, stage
from gpulet.core.weighing import Offer, Weights, weigh
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.units import NEVER, SECOND, Duration, Instant

_OURS = (Replanned, Force, Freeze, DeviceOut, DeviceIn, Hint, Revise, Built, NotBuilt, Stopping)
_REMEMBERED = 1000
_MOVED = "; rates have moved since"
_NEAR = 0.7, 1.4
"""Of the target that was planned for, and a row more or less."""


@dataclass(frozen=True, slots=True)
class Steering:
    """How plans are changed. `is_advice`: decide and explain, change nothing. `fewest`: use no device that is not needed.

    Where no plan serves `enough` of the demand in time the planner has a `pause`, unless a rate jumps. Below `urgent` what is
    new is built in haste. After a jump the other rates have time to `settle`, for where one rises another may fall. A plan for
    rates that have moved on since is asked for again, so many `tries` in a row. A device whose gpulets have all been down for
    so long is `lost`.
    """

    weights: Weights = field(default_factory=Weights)
    is_advice: bool = False
    fewest: bool = False
    enough: float = 0.99
    urgent: float = 0.95
    settle: Duration = SECOND // 16
    lost: Duration = 5 * SECOND
    tries: int = 2
    pause: Duration = 5 * SECOND


@dataclass(frozen=True, slots=True)
class _Change:
    """One that is under way. `demand` is what it was asked for; `stage` and `chosen` are there once it is decided."""

    number: int
    seen: str
    demand: Demand
    since: Instant
    stage: Stage | None = None
    considered: str = ""
    chosen: str = ""
    is_held: bool = True
    is_urgent: bool = False
    decided: Instant = 0


class Controlled:
    """A scheduler, and what changes its plan. `in_force` is the plan that serves, `before` the one that did until then."""

    def __init__(
        self,
        scheduler: Scheduler,
        problem: Problem,
        plan: Plan,
        estimator: Estimator,
        make: MakeDispatcher,
        steering: Steering = Steering(),
    ) -> None:
        self.fleet = scheduler.fleet
        self.applications = scheduler.applications
        self.in_force = plan
        self.before: Plan | None = None
        self.demand = Demand(problem.demand, problem.demand)
        self.history: deque[tuple[Instant, Explain]] = deque(maxlen=_REMEMBERED)
        self.is_frozen = False
        self.wake_at: Instant = 0
        self._scheduler = scheduler
        self._problem = replace(problem, in_force=plan)
        self._estimator = estimator
        self._make = make
        self._steering = steering
        self._number = 0
        self._change: _Change | None = None
        self._forced: Force | None = None
        self._out: set[int] = set()
        self._told = ""
        self._not_before: Instant = 0
        self._settles: Instant = NEVER
        self._retry_at: Instant = 0
        self._losses = Losses(steering.lost)
        self._tries = 0
        self._is_stopping = False

    @property
    def is_idle(self) -> bool:
        """As the scheduler's."""
        return self._scheduler.is_idle

    @property
    def is_changing(self) -> bool:
        """Whether a change is under way."""
        return self._change is not None or self._scheduler.is_changing

    @property
    def problem(self) -> Problem:
        """What is planned for, as it is now."""
        return self._problem

    @property
    def out(self) -> frozenset[int]:
        """Devices that no plan may use."""
        return frozenset(self._out)

    def holds(self, model: str) -> bool:
        """As the scheduler's."""
        return self._scheduler.holds(model)

    def step(self, now: Instant, *events: Event) -> list[Command]:
        """As the scheduler's, and what live control makes of it."""
        commands = self._scheduler.step(now, *events)
        has_jumped = self._estimator.record(now, events, commands)
        ours = [event for event in events if isinstance(event, _OURS)]
        if ours or has_jumped or now >= min(self._estimator.look_at, self._settles):
            commands += self._steer(now, ours, has_jumped=has_jumped)
        self.wake_at = min(self._scheduler.wake_at, self._estimator.look_at, self._settles)
        return commands

    def _steer(self, now: Instant, events: Sequence[Event], *, has_jumped: bool) -> list[Command]:
        commands: list[Command] = []
        for event in events:
            commands += self._take(now, event)
        if has_jumped or now >= min(self._estimator.look_at, self._settles):
            self.demand = self._estimator.look(now)
            if now >= self._settles:
                self._settles = NEVER
            elif has_jumped and self._settles == NEVER:
                self._not_before = self._settles = now + self._steering.settle
        commands += self._begin(now)
        if any(isinstance(command, Adopt) for command in commands):
            served = self._scheduler.step(now)
            self._estimator.record(now, (), served)
            commands += served
        for command in commands:
            if isinstance(command, Explain):
                self.history.append((now, command))
        return commands

    def _take(self, now: Instant, event: Event) -> Iterable[Command]:
        match event:
            case Replanned():
                return self._replanned(now, event)
            case Built() | NotBuilt():
                return self._built(now, event)
            case Freeze():
                return self._freeze(now, event)
            case Force():
                before, self._forced = self._forced, event
                return _superseded(before, "another plan was asked for since")
            case Stopping():
                self._is_stopping = True
                before, self._forced = self._forced, None
                return _superseded(before, "the server stops")
            case _:
                self._heed(now, event)
        return ()

    def _heed(self, now: Instant, event: Event) -> None:
        """What bears on the next plan."""
        match event:
            case DeviceOut() | DeviceIn():
                self._shift(event)
            case Hint():
                self._estimator.hint(now, event.model, event.rate)
                self._settles = now  # look at once
            case Revise():
                self._revise(event.model)
            case _:
                pass  # the scheduler's alone

    def _freeze(self, now: Instant, event: Freeze) -> Iterator[Command]:
        """A plan that is only being made is not waited for; what is being built already comes into force."""
        self.is_frozen = event.is_on
        yield Explain(0, "asked", "", "the plan is frozen" if event.is_on else "the plan may change again")
        if event.is_on and self._change and self._change.stage is None:
            yield self._stay(now, "", "the plan in force stays: it is frozen")

    def _shift(self, event: DeviceOut | DeviceIn) -> None:
        is_out = isinstance(event, DeviceOut)
        (self._out.add if is_out else self._out.discard)(event.device)
        self._told = f"device {event.device} is {'taken out' if is_out else 'back'}"

    def _revise(self, model: Model) -> None:
        self._problem = replace(self._problem, models={**self._problem.models, model.name: model})
        self._estimator.revise(model)
        self._told = f"model {model.name} has another objective"

    def _begin(self, now: Instant) -> Iterator[Command]:
        """Ask for a plan where something calls for one; one change at a time."""
        if self._is_stopping or self.is_changing:
            return
        if self._forced:
            yield from self._force(now, self._forced)
            return
        self._look_for_lost(now)
        why = self._told or (self.demand.why if now >= self._not_before else "") or self._astray(now)
        if not why or self.is_frozen:
            return
        self._told = ""
        self._number += 1
        self._change = _Change(self._number, why, self.demand, now)
        self.demand = replace(self.demand, why="")  # one answer to one call
        devices = tuple(d.index for d in self._problem.devices if d.index not in self._out)
        fewest = self._steering.fewest
        yield Replan(
            self._number, dict(self.demand.targets), devices, why, fewest, not (fewest and self.demand.has_fallen)
        )

    def _astray(self, now: Instant) -> str:
        """What still stands where nothing may: a change that was to take it away has failed."""
        if now < self._retry_at:
            return ""
        devices = self.in_force.in_use & self._out
        return f"device {min(devices)} is still in use" if devices else ""

    def _look_for_lost(self, now: Instant) -> None:
        """A lost device is out until a gpulet of it comes up, or somebody restores it; the last one stays."""
        lost, back = self._losses.look(now, self.fleet)
        for device in back:
            self._shift(DeviceIn(device))
        for device in lost:
            if {d.index for d in self._problem.devices} - self._out - {device}:
                self._shift(DeviceOut(device))

    def _force(self, now: Instant, forced: Force) -> Iterator[Command]:
        """Without weighing, if it can be at all."""
        self._forced = None
        self._change = _Change(-forced.ticket, "asked", self.demand, now)
        violations = forced.plan.violations()
        if violations:
            yield self._stay(now, f"the plan that was asked for: {violations[0]}", "refused, the plan in force stays")
        else:
            yield from self._go(now, self._staged(forced.plan), "the plan that was asked for", "it")

    def _replanned(self, now: Instant, answer: Replanned) -> Iterable[Command]:
        """What a planner says; nobody asked where the number is not that of the change."""
        change = self._change
        if change is None or change.number != answer.number or change.stage:
            return ()
        if self._tries < self._steering.tries and self._has_moved(change.demand):
            self._tries += 1
            self._change, self._told = None, f"{change.seen.removesuffix(_MOVED)}{_MOVED}"
            return ()
        self._tries = 0
        if answer.plan is None:
            holds = answer.before >= self._steering.enough
            if not holds:
                self._not_before = now + self._steering.pause
            return (self._stay(now, answer.why, "the plan in force stays", holds=holds),)
        if answer.plan.in_use & self._out:
            self._change, self._told = None, "a device that was taken out while a plan was made"
            return ()
        violations = answer.plan.violations()
        if violations:
            why = f"a plan that cannot be: {violations[0]}"
            return (self._stay(now, why, "refused, the plan in force stays"),)
        return self._weighed(now, change, answer, answer.plan)

    def _weighed(self, now: Instant, change: _Change, answer: Replanned, plan: Plan) -> Iterator[Command]:
        staged, steering = self._staged(plan), self._steering
        offer = Offer(sum(change.demand.targets.values()), answer.before, answer.after, self.in_force, staged)
        must = bool(self.in_force.in_use & self._out)
        verdict = weigh(offer, steering.weights, must=must)
        considered = f"{answer.why}; for less: {verdict.considered}" if answer.why else verdict.considered
        if not verdict.is_change or steering.is_advice:
            chosen = f"advice only: {verdict.chosen}" if verdict.is_change else verdict.chosen
            yield self._stay(now, considered, chosen, holds=answer.before >= steering.enough)
            return
        is_held, is_urgent = answer.after >= steering.enough, answer.before < steering.urgent
        self._change = replace(change, is_held=is_held, is_urgent=is_urgent)
        yield from self._go(now, staged, considered, verdict.chosen)

    def _has_moved(self, asked: Demand) -> bool:
        """Whether a plan for that demand is no longer what is wanted."""
        least, most = _NEAR
        pairs = ((asked.targets.get(name, target), target) for name, target in self.demand.targets.items())
        return any(not least * before - 1 <= target <= most * before + 1 for before, target in pairs)

    def _staged(self, plan: Plan) -> Stage:
        usable = [d.index for d in self._problem.devices if d.index not in self._out]
        return stage(plan.unfolded(), self.in_force, usable)

    def _stay(self, now: Instant, considered: str, chosen: str, *, holds: bool = False) -> Explain:
        change, self._change = self._change, None
        assert change, "something was considered"
        self._retry_at = now + self._steering.pause
        if change.number > 0:
            self._estimator.considered(now, change.demand.targets, is_held=holds)
            self.demand = replace(self.demand, why="")
        return Explain(change.number, change.seen, considered, chosen)

    def _go(self, now: Instant, staged: Stage, considered: str, chosen: str) -> Iterator[Command]:
        """Have built what is new; where nothing is, some executors still have something to do."""
        assert self._change, "something was considered"
        self._change = replace(self._change, stage=staged, considered=considered, chosen=chosen, decided=now)
        yield Build(self._change.number, staged.plan, self._change.is_urgent)

    def _built(self, now: Instant, answer: Built | NotBuilt) -> Iterator[Command]:
        change = self._change
        if change is None or change.number != answer.number or change.stage is None:
            return
        if isinstance(answer, NotBuilt):
            yield self._stay(now, change.considered, f"given up, the plan in force stays: {answer.error}")
        else:
            yield from self._adopt(now)

    def _adopt(self, now: Instant) -> Iterator[Command]:
        """The plan is in force from the scheduler's next step on, which is this very instant."""
        change, self._change = self._change, None
        assert change, "something was considered"
        assert change.stage, "and decided"
        self.before, self.in_force = self.in_force, change.stage.plan
        self._problem = replace(self._problem, demand=dict(change.demand.targets), in_force=self.in_force)
        self._estimator.considered(now, change.demand.targets, is_held=change.is_held)
        self.demand = replace(self.demand, why="")
        self._scheduler.adopt(self.in_force, self._make(self._problem, self.in_force))
        planned, built = (change.decided - change.since) / SECOND, (now - change.decided) / SECOND
        took = f"decided after {planned:.3f} s, in force {built:.3f} s later"
        yield Explain(change.number, change.seen, change.considered, f"{change.chosen}; {took}")
        yield Adopt(change.number, self.in_force)


def _superseded(forced: Force | None, why: str) -> tuple[Explain, ...]:
    return (Explain(-forced.ticket, "asked", "the plan that was asked for", f"not begun: {why}"),) if forced else ()
