"""What is asked, and when that calls for a new plan: a fold over messages.

`Watch` is ours: it looks many times a second and at every jump of a rate; the artifact's rule is in `epochs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

from gpulet.core.counts import OUTCOMES
from gpulet.core.messages import Answer, Arrived, Command, Drop, Event, Fail, Gather, Reject, Spawn
from gpulet.core.rates import Rate
from gpulet.model import Model
from gpulet.request import Request
from gpulet.units import SECOND, Duration, Instant, to_ms


@dataclass(frozen=True, slots=True)
class Demand:
    """Rows/s by model: what comes (`rates`), and what to plan for (`targets`). `why` is empty where nothing calls for a plan.

    `has_fallen`: less is asked of some model, so that devices may be spared.
    """

    rates: Mapping[str, float]
    targets: Mapping[str, float]
    why: str = ""
    has_fallen: bool = False


class Estimator(Protocol):
    """Watches messages; `look_at` is when it wants `look` called next, at the latest."""

    look_at: Instant

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> bool:
        """Take one step into account; whether to look at once."""
        ...

    def look(self, now: Instant) -> Demand:
        """What is asked now, and whether that calls for another plan than the one in force."""
        ...

    def considered(self, now: Instant, targets: Mapping[str, float], *, is_held: bool) -> None:
        """A plan for these was adopted or decided against; whether the one in force now holds them."""
        ...

    def hint(self, now: Instant, model: str, rate: float) -> None:
        """Somebody knows better: so many rows/s are coming."""
        ...

    def revise(self, model: Model) -> None:
        """A model has another objective."""
        ...

    def enlist(self, now: Instant, model: Model) -> None:
        """There is one model more, of which nothing is known."""
        ...


@dataclass(frozen=True, slots=True)
class Watching:
    """How closely rates are watched.

    Every `look` at least. A plan is asked for when a target is more than `rise` above what was planned, or for `patience` long more than
    `fall` below; `lead` is how far ahead a trend is followed: as long as a change takes. `sigmas`: how sure a target is
    of the rate; `burst_sigmas`: how much of bursts beyond Poisson's is planned for, both in standard deviations. `strain`
    is what a target grows by when a model keeps missing more than `misses` of its objectives within its planned rate.
    """

    look: Duration = SECOND // 10
    rise: float = 0.1
    fall: float = 0.2
    patience: Duration = 3 * SECOND
    lead: Duration = 2 * SECOND
    sigmas: float = 1.0
    burst_sigmas: float = 2.33
    misses: float = 0.01
    strain: float = 1.25
    most_strain: float = 2.0


_HINTED: Duration = 60 * SECOND
"""For so long a rate that somebody knew of is planned for, whether it comes or not."""
_WINDOW: Duration = 2 * SECOND
_LEAST_COUNT = 20
_BAD, _TOO_BAD = 3.0, 4.0
"""A window is as bad as its misses are times what is allowed, `_BAD` at most; what is beyond 1 adds up (a CUSUM test) until
something is wrong with a plan: in two windows or more."""
_RELIEF = 0.99
"""Of a strain beyond 1 is left after each quiet window."""


@dataclass(slots=True)
class _Watched:
    """One model: its rate, what was planned for it, since when less is asked, and how it fares in this window."""

    rate: Rate
    slo: Duration
    planned: float
    held: float
    low_since: Instant = -1
    excess: float = 0.0
    open: int = 0
    ended: int = 0
    missed: int = 0
    strain: float = 1.0
    is_strained: bool = False
    hinted: float = 0.0
    hint_ends: Instant = 0


class Watch:
    """Ours. `demand` is what the plan in force was made for, rows/s by model."""

    def __init__(
        self, models: Mapping[str, Model], demand: Mapping[str, float], now: Instant = 0, rules: Watching = Watching()
    ) -> None:
        self._rules = rules
        self._models = {
            name: _Watched(
                Rate(now, demand.get(name, 0.0), 1.0), model.slo, demand.get(name, 0.0), demand.get(name, 0.0)
            )
            for name, model in models.items()
        }
        self._open: dict[int, Request] = {}
        self._window_ends = now + _WINDOW
        self.look_at: Instant = now + rules.look

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> bool:
        """Arrivals are counted, and what becomes of them."""
        has_jumped = False
        for event in events:
            if isinstance(event, Arrived):
                has_jumped |= self._arrive(now, event.request)
        return self._fold(now, commands) or has_jumped

    def _fold(self, now: Instant, commands: Sequence[Command]) -> bool:
        has_jumped = False
        for command in commands:
            match command:
                case Answer():
                    for number in command.requests:
                        self._end(number, now)
                case Gather():
                    self._end(command.request, now)
                case Spawn():
                    has_jumped |= self._arrive(now, command.request)
                case Reject() | Drop() | Fail():
                    self._lose(command)
                case _:
                    pass
        return has_jumped

    def _arrive(self, now: Instant, request: Request) -> bool:
        watched = self._models.get(request.model)
        if watched is None:
            return False
        self._open[request.id] = request
        watched.open += 1
        return watched.rate.arrive(now, request.rows)

    def _end(self, number: int, now: Instant) -> None:
        request = self._open.pop(number, None)
        if request:
            watched = self._models[request.model]
            watched.open -= 1
            watched.ended += 1
            watched.missed += now > request.deadline

    def _lose(self, command: Reject | Drop | Fail) -> None:
        request = self._open.pop(command.request, None)
        if request is None:
            return
        watched = self._models[request.model]
        watched.open -= 1
        if OUTCOMES[command.reason] != "cancelled":
            watched.ended += 1
            watched.missed += 1

    def look(self, now: Instant) -> Demand:
        """Rates as they are, and the first thing that calls for another plan."""
        self.look_at = now + self._rules.look
        for watched in self._models.values():
            watched.rate.look(now)
        if now >= self._window_ends:
            self._judge_window(now)
        targets = {name: self._target(watched, now) for name, watched in self._models.items()}
        rates = {name: watched.rate.mean for name, watched in self._models.items()}
        rises, falls = self._rise(targets), self._fall(now, targets)
        return Demand(rates, targets, rises or falls, bool(falls))

    def considered(self, now: Instant, targets: Mapping[str, float], *, is_held: bool) -> None:
        """From here on the band is around these. Who misses objectives is only strained within what is held."""
        for name, watched in self._models.items():
            watched.planned = targets.get(name, 0.0)
            watched.held = watched.planned if is_held else 0.0
            watched.low_since = -1
            watched.is_strained = False
            watched.excess = 0.0

    def hint(self, now: Instant, model: str, rate: float) -> None:
        """As sure as ten seconds of arrivals, and nothing less is planned for in the next minute."""
        watched = self._models[model]
        watched.rate = Rate(now, rate, 10.0)
        watched.hinted, watched.hint_ends = rate, now + _HINTED

    def revise(self, model: Model) -> None:
        """What bursts need depends on it."""
        self._models[model.name].slo = model.slo

    def enlist(self, now: Instant, model: Model) -> None:
        """Nothing was planned for it."""
        self._models[model.name] = _Watched(Rate(now, 0.0, 1.0), model.slo, 0.0, 0.0)

    def _target(self, watched: _Watched, now: Instant) -> float:
        """The rate, as high as it may be and as it will be when a change is through, with room for its bursts."""
        rules, rate = self._rules, watched.rate
        sure = max(rate.mean, rate.ahead(rules.lead)) + rules.sigmas * rate.error()
        window_s = watched.slo / 2 / SECOND
        bursts = rules.burst_sigmas * (sqrt(rate.dispersion) - 1) * sqrt(sure / window_s) if sure > 0 else 0.0
        hinted = watched.hinted if now < watched.hint_ends else 0.0
        return max(hinted, watched.strain * (sure + bursts))

    def _rise(self, targets: Mapping[str, float]) -> str:
        """Who asks for more than was planned, or does not get what was."""
        rules = self._rules
        for name, watched in self._models.items():
            rate, planned = watched.rate, watched.planned
            if watched.is_strained:
                return f"{name} misses its objective of {to_ms(watched.slo):g} ms at {rate.mean:.1f}/s"
            if targets[name] > planned * (1 + rules.rise) + 2 * rules.sigmas * rate.error():
                return f"{name} rose to {rate.mean:.1f}/s, target {targets[name]:.1f}, planned for {planned:.1f}"
        return ""

    def _fall(self, now: Instant, targets: Mapping[str, float]) -> str:
        """Who has asked for less long enough."""
        rules, why = self._rules, ""
        for name, watched in self._models.items():
            if targets[name] >= watched.planned * (1 - rules.fall):
                watched.low_since = -1
            elif watched.low_since < 0:
                watched.low_since = now
            elif now - watched.low_since >= rules.patience and not why:
                rate = f"{watched.rate.mean:.1f}/s, target {targets[name]:.1f}"
                why = f"{name} fell to {rate}, planned for {watched.planned:.1f}"
        return why

    def _judge_window(self, now: Instant) -> None:
        """Who misses objectives, or has too many waiting, although little more came than was planned, needs more."""
        self._window_ends, rules = now + _WINDOW, self._rules
        for watched in self._models.values():
            missed, ended = watched.missed, watched.ended
            watched.missed = watched.ended = 0
            is_near = watched.rate.mean <= watched.held * (1 + rules.rise) and watched.rate.jumped < now - _WINDOW
            # By Little's law those would be late whose number is more than comes within an objective.
            has_queue = watched.open > max(_LEAST_COUNT, watched.rate.mean * watched.slo / SECOND)
            share = missed / ended if ended >= _LEAST_COUNT else 0.0
            badness = _BAD if has_queue else min(_BAD, share / rules.misses)
            watched.excess = max(0.0, watched.excess + badness - 1) if is_near else 0.0
            if not is_near or badness <= 1:
                watched.strain = 1 + (watched.strain - 1) * _RELIEF
            if watched.excess >= _TOO_BAD:
                self._strain(watched)

    def _strain(self, watched: _Watched) -> None:
        """What a bit more than was planned is missed by asks for a plan for that; what is missed within it, for more than comes."""
        watched.excess = 0.0
        if watched.rate.mean > watched.held:
            watched.is_strained = True
            return
        before, watched.strain = watched.strain, min(self._rules.most_strain, watched.strain * self._rules.strain)
        watched.is_strained = watched.strain > before
