"""When gpu-lets plans anew, as its artifact does it (specification, section 2.5; its constants are in no paper).

Counters are read every 500 ms into an EWMA; at the end of an epoch of 20 s the targets are compared with those planned for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpulet.core.messages import Arrived, Command, Event, Spawn
from gpulet.core.replan import Demand
from gpulet.model import Model
from gpulet.units import SECOND, Duration, Instant


@dataclass(frozen=True, slots=True)
class EpochRules:
    """The artifact's constants (specification, section 2.5)."""

    epoch: Duration = 20 * SECOND
    reading: Duration = SECOND // 2
    headroom: float = 1.2
    low_headroom: float = 1.5
    low_rate: float = 125.0
    growth: float = 1.05
    growth_rate: float = 10.0
    fall: float = 0.9

    @property
    def alpha(self) -> float:
        """Of the EWMA: 2 / (N + 1) for the N readings of an epoch."""
        return 2 / (self.epoch // self.reading + 1)


@dataclass(slots=True)
class Smoothed:
    """The artifact's estimate: an EWMA of the readings of each model's counter, and the targets made of it."""

    rules: EpochRules = field(default_factory=EpochRules)
    rates: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)

    def read(self, name: str, count: int) -> None:
        """One reading: so many rows came since the last."""
        rate = count * SECOND / self.rules.reading
        before = self.rates.get(name, rate)
        self.rates[name] = before + self.rules.alpha * (rate - before)

    def targets(self) -> dict[str, float]:
        """1.2 times the estimate, 1.5 times below 125/s; models with less than 1/s are dropped."""
        rules = self.rules
        wanted = {n: r * (rules.headroom if r >= rules.low_rate else rules.low_headroom) for n, r in self.rates.items()}
        return {name: target if self.rates[name] >= 1 else 0.0 for name, target in wanted.items()}

    def moved(self) -> str:
        """The first model of which the target grew by more than 5 % or 10/s, or fell by more than 10 %; empty where none did."""
        rules = self.rules
        for name, target in self.targets().items():
            planned = self.planned.get(name, 0.0)
            if target > min(rules.growth * planned, planned + rules.growth_rate):
                return f"{name}: target rose to {target:.1f}/s, planned for {planned:.1f}"
            if target < rules.fall * planned:
                return f"{name}: target fell to {target:.1f}/s, planned for {planned:.1f}"
        return ""


class Epochs:
    """The artifact's, as an estimator: whatever happens, it decides at the end of an epoch."""

    def __init__(
        self,
        models: Mapping[str, Model],
        demand: Mapping[str, float],
        now: Instant = 0,
        rules: EpochRules = EpochRules(),
    ) -> None:
        self._smoothed = Smoothed(rules, {name: demand.get(name, 0.0) for name in models}, dict(demand))
        self._counts = dict.fromkeys(models, 0)
        self._epoch_ends = now + rules.epoch
        self.look_at: Instant = now + rules.reading

    def record(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> bool:
        """Arrivals are counted, second stages too."""
        requests = [event.request for event in events if isinstance(event, Arrived)]
        requests += [command.request for command in commands if isinstance(command, Spawn)]
        for request in requests:
            if request.model in self._counts:
                self._counts[request.model] += request.rows
        return False

    def look(self, now: Instant) -> Demand:
        """A reading; at the end of an epoch, a decision."""
        rules = self._smoothed.rules
        if now < self.look_at:  # no reading is shorter than another
            return Demand(dict(self._smoothed.rates), self._smoothed.targets())
        self.look_at = now + rules.reading
        for name, count in self._counts.items():
            self._smoothed.read(name, count)
            self._counts[name] = 0
        why = ""
        if now >= self._epoch_ends:
            self._epoch_ends = now + rules.epoch
            why = self._smoothed.moved()
        return Demand(dict(self._smoothed.rates), self._smoothed.targets(), why, has_fallen=bool(why))

    def considered(self, now: Instant, targets: Mapping[str, float], *, is_held: bool) -> None:
        """Targets that later ones are compared with."""
        self._smoothed.planned = dict(targets)

    def hint(self, now: Instant, model: str, rate: float) -> None:
        """Taken for the estimate."""
        self._smoothed.rates[model] = rate

    def revise(self, model: Model) -> None:
        """Objectives do not count here."""

    def enlist(self, now: Instant, model: Model) -> None:
        """It is counted from now on."""
        self._counts[model.name] = 0
