"""The core with live control: it watches what it serves, asks for other plans, and changes to one where that pays.

Each change goes the same way. REPLAN: something calls for a plan, and a planner is asked outside. WEIGH: what it gains over
a horizon against what the change costs. BUILD: what the new plan needs comes up beside what serves. ADOPT: at once, gpulet
by gpulet, at batch boundaries. Until then the plan in force has noticed nothing, and whatever fails leaves it so.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from gpulet.core.calls import Calls, Steering
from gpulet.core.messages import (
    Adopt,
    Build,
    Built,
    Command,
    DeviceIn,
    DeviceOut,
    Enlist,
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
from gpulet.core.weighing import Offer, weigh
from gpulet.model import Model
from gpulet.plan import GpuletId, Plan
from gpulet.units import SECOND, Instant

_OURS = frozenset((Replanned, Force, Freeze, DeviceOut, DeviceIn, Hint, Revise, Enlist, Built, NotBuilt, Stopping))
_REMEMBERED = 1000
_STEERING = Steering()
_SINCE = "; since then "
_STOPS = "the server stops"
FROZEN = "the plan is frozen"
_NEAR = 0.7, 1.4
"""Of the target that was planned for, and a row more or less."""


@dataclass(frozen=True, slots=True)
class _Change:
    """One that is under way. `demand` is what it was asked for; `stage` and `chosen` are there once it is decided.

    Unless it `builds` it is for other turns alone. It allows for what is `down`.
    """

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
    builds: bool = True
    down: tuple[GpuletId, ...] = ()


class Controlled:
    """A scheduler, and what changes its plan. `in_force` is the plan that serves, `before` the one that did until then."""

    def __init__(
        self,
        scheduler: Scheduler,
        problem: Problem,
        plan: Plan,
        estimator: Estimator,
        make: MakeDispatcher,
        steering: Steering = _STEERING,
    ) -> None:
        self.fleet = scheduler.fleet
        self.applications = scheduler.applications
        self.in_force = plan
        self.before: Plan | None = None
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
        self._calls = Calls(scheduler.fleet, Demand(problem.demand, problem.demand), estimator, steering)
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
        return frozenset(self._calls.out)

    @property
    def demand(self) -> Demand:
        """What is asked, as it was seen last."""
        return self._calls.demand

    def holds(self, model: str) -> bool:
        """As the scheduler's."""
        return self._scheduler.holds(model)

    def step(self, now: Instant, *events: Event) -> list[Command]:
        """As the scheduler's, and what live control makes of it."""
        commands = self._scheduler.step(now, *events)
        has_jumped = self._estimator.record(now, events, commands)
        ours = [event for event in events if type(event) in _OURS]
        if ours or has_jumped or now >= self._calls.look_at:
            commands += self._steer(now, ours, has_jumped=has_jumped)
        self.wake_at = min(self._scheduler.wake_at, self._calls.look_at)
        return commands

    def _steer(self, now: Instant, events: Sequence[Event], *, has_jumped: bool) -> list[Command]:
        commands: list[Command] = []
        for event in events:
            commands += self._take(now, event)
        if has_jumped or now >= self._calls.look_at:
            self._calls.look(now, has_jumped=has_jumped)
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
                return self._freeze(event)
            case Force():
                before, self._forced = (event, None) if self._is_stopping else (self._forced, event)
                return _superseded(before, _STOPS if self._is_stopping else "another plan was asked for since")
            case Stopping():
                self._is_stopping = True
                before, self._forced = self._forced, None
                return _superseded(before, _STOPS)
            case _:
                self._heed(now, event)
        return ()

    def _heed(self, now: Instant, event: Event) -> None:
        """What bears on the next plan."""
        match event:
            case DeviceOut() | DeviceIn():
                self._calls.shift(event)
            case Hint():
                self._calls.hint(now, event.model, event.rate)
            case Revise():
                self._revise(event.model)
            case Enlist():
                self._problem = self._problem.joined(event)
                self._estimator.enlist(now, event.model)
                self._calls.hint(now, event.model.name, event.rate)
                self._calls.tell(f"model {event.model.name} is new")
            case _:
                pass  # the scheduler's alone

    def _freeze(self, event: Freeze) -> Iterator[Command]:
        """A plan that is only being made is asked for again once it may change; what is being built comes into force."""
        self.is_frozen = event.is_on
        yield Explain(0, "asked", "", FROZEN if event.is_on else "the plan may change again")
        change = self._change
        if event.is_on and change and change.stage is None:
            self._change = None
            self._calls.tell(change.seen, builds=change.builds)
            yield Explain(change.number, change.seen, "", "the plan in force stays: it is frozen")

    def _revise(self, model: Model) -> None:
        self._problem = replace(self._problem, models={**self._problem.models, model.name: model})
        self._estimator.revise(model)
        self._calls.tell(f"model {model.name} has another objective")

    def _begin(self, now: Instant) -> Iterator[Command]:
        """Ask for a plan where something calls for one; one change at a time."""
        if self._is_stopping or self.is_changing:
            return
        if self._forced:
            yield from self._force(now, self._forced)
            return
        call = self._calls.call(now, self.in_force.in_use)
        if call is None or self.is_frozen:
            return
        self._number += 1
        why, builds, usable, down = call.why, call.builds, self._calls.usable, self._calls.down
        self._change = change = _Change(self._number, why, self.demand, now, builds=builds, down=down)
        self._calls.heed(call)
        fewest, demand = self._steering.fewest, change.demand
        is_needed = not (builds and fewest and demand.has_fallen)
        yield Replan(self._number, dict(demand.targets), usable, why, fewest, is_needed, down, builds)

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
        if answer.plan:
            self._calls.planning = now - change.since
        moved = self._moved(change.demand) if self._tries < self._steering.tries else ""
        if moved:
            self._tries += 1
            return self._again(change, moved)
        self._tries = 0
        if answer.plan is None:
            is_held = answer.before >= self._steering.enough
            stays, failed = "the plan in force stays", answer.has_failed
            return (self._stay(now, answer.why, stays, holds=is_held, is_enough=is_held, has_failed=failed),)
        if answer.plan.in_use & self._calls.out:
            return self._again(change, "a device went out")
        violations = answer.plan.violations()
        if violations:
            why = f"a plan that cannot be: {violations[0]}"
            return (self._stay(now, why, "refused, the plan in force stays"),)
        return self._weighed(now, change, answer, answer.plan)

    def _again(self, change: _Change, since: str) -> Iterable[Command]:
        """The answer is to a question of before."""
        self._change = None
        self._calls.tell(f"{change.seen.partition(_SINCE)[0]}{_SINCE}{since}", builds=change.builds)
        return ()

    def _weighed(self, now: Instant, change: _Change, answer: Replanned, plan: Plan) -> Iterator[Command]:
        staged, steering = self._staged(plan), self._steering
        offer = Offer(sum(change.demand.targets.values()), answer.before, answer.after, self.in_force, staged)
        asked = {name: target for name, target in change.demand.targets.items() if name in self._problem.models}
        fed = self.in_force.starved(asked) - plan.starved(asked)
        must = bool(self.in_force.in_use & self._calls.out or fed)
        verdict = weigh(offer, steering.weights, must=must)
        considered = f"{answer.why}; for less: {verdict.considered}" if answer.why else verdict.considered
        if not verdict.is_change or steering.is_advice:
            chosen = f"advice only: {verdict.chosen}" if verdict.is_change else verdict.chosen
            yield self._stay(now, considered, chosen, holds=answer.before >= steering.enough)
            return
        is_held, is_urgent = answer.after >= steering.enough, answer.before < steering.urgent
        self._change = replace(change, is_held=is_held, is_urgent=is_urgent)
        yield from self._go(now, staged, considered, verdict.chosen)

    def _moved(self, asked: Demand) -> str:
        """Who makes a plan for that demand no longer what is wanted."""
        least, most = _NEAR
        for name, target in self.demand.targets.items():
            before = asked.targets.get(name, target)
            if not least * before - 1 <= target <= most * before + 1:
                return f"{name} went from {before:.1f}/s to {target:.1f}/s"
        return ""

    def _staged(self, plan: Plan) -> Stage:
        memory = {name: model.memory for name, model in self._problem.models.items()}
        down = self._change.down if self._change else ()
        return stage(plan.unfolded(), self.in_force, self._calls.usable, memory, down)

    def _stay(
        self,
        now: Instant,
        considered: str,
        chosen: str,
        *,
        holds: bool = False,
        is_enough: bool = True,
        has_failed: bool = False,
    ) -> Explain:
        change, self._change = self._change, None
        assert change, "something was considered"
        if change.number > 0 and change.builds:
            self._calls.decide()
            self._estimator.considered(now, change.demand.targets, is_held=holds)
        if change.builds:
            failed = change.seen if has_failed and change.number > 0 else ""
            self._calls.rest(now, is_held=is_enough, failed=failed)
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
            chosen = f"given up, the plan in force stays: {answer.error}"
            yield self._stay(now, change.considered, chosen, has_failed=True)
            if change.number > 0 and change.builds and not self.in_force.in_use & self._calls.out:
                self._calls.tell(f"{change.seen}, and what was chosen could not be built", builds=False)
        else:
            yield from self._adopt(now)

    def _adopt(self, now: Instant) -> Iterator[Command]:
        """The plan is in force from the scheduler's next step on, which is this very instant."""
        change, self._change = self._change, None
        assert change, "something was considered"
        assert change.stage, "and decided"
        self.before, self.in_force = self.in_force, change.stage.plan
        self._problem = replace(self._problem, demand=dict(change.demand.targets), in_force=self.in_force)
        if change.builds:
            self._calls.adopt(change.down)
        self._estimator.considered(now, change.demand.targets, is_held=change.is_held or not change.builds)
        self._scheduler.adopt(self.in_force, self._make(self._problem, self.in_force))
        planned, built = (change.decided - change.since) / SECOND, (now - change.decided) / SECOND
        took = f"decided after {planned:.3f} s, in force {built:.3f} s later"
        yield Explain(change.number, change.seen, change.considered, f"{change.chosen}; {took}")
        yield Adopt(change.number, self.in_force)


def _superseded(forced: Force | None, why: str) -> tuple[Explain, ...]:
    return (Explain(-forced.ticket, "asked", "the plan that was asked for", f"not begun: {why}"),) if forced else ()
