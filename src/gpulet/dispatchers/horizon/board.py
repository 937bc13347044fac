"""One device of the rolling horizon: the SMs that each model is guaranteed, holds, and is saved up for."""

from collections.abc import Mapping

from gpulet.pacing import Option
from gpulet.units import NEVER, Instant

KEPT = 0.35
"""The part of an unused guarantee that others leave alone while its model does not wait."""
PEAK = 1.0
"""Of a device's bandwidth."""


class Board:
    """One device: SMs guaranteed to and held by each model that is resident, and what is saved up for, by model."""

    __slots__ = ("dram", "due", "guaranteed", "held", "index", "is_overloaded", "planned", "saving", "smallest")

    def __init__(self, index: int, guaranteed: Mapping[str, float], smallest: Mapping[str, int]) -> None:
        self.index = index
        self.is_overloaded = False
        self.planned = guaranteed
        self.guaranteed = dict(guaranteed)
        self.smallest = smallest
        self.held = dict.fromkeys(guaranteed, 0)
        self.due: dict[str, Instant] = dict.fromkeys(guaranteed, 0)
        self.dram = 0.0
        self.saving: dict[str, int] = {}

    def is_owed(self, model: str, now: Instant) -> bool:
        """Whether its runs have taken no more than its guarantee; where there is enough for all, everybody is owed."""
        return self.due[model] <= now or not self.is_overloaded

    def room(self, now: Instant, model: str, free: int) -> int:
        """SMs that a run of this model may take of those that are free."""
        first = next(iter(self.saving), model)
        saved = 0 if first == model else self.saving[first]
        own = free
        if saved or self.held[model] or not self.is_owed(model, now):
            own = max(self.smallest[model], round(self.guaranteed[model])) - self.held[model]
        owed = max(0.0, saved - self.guaranteed.get(first, 0.0)) if saved else 0.0
        for other, part in self.guaranteed.items():
            unused = part - self.held[other]
            if unused > 0 and other != model:
                owed += unused if other in self.saving else KEPT * unused
        return max(min(own, free - saved), int(free - owed))

    def spare(self, model: str, free: int) -> int:
        """SMs that no other model is guaranteed, and nobody saves up for."""
        owed = sum(max(0.0, part - self.held[name]) for name, part in self.guaranteed.items() if name != model)
        return int(free - max(owed, *self.saving.values(), 0))

    def bears(self, option: Option) -> bool:
        """Whether the bandwidth is enough beside what runs."""
        return self.dram + option.dram <= PEAK or not any(self.held.values())

    def start(self, now: Instant, model: str, option: Option) -> None:
        """A run of this model takes its SMs: as much of its guarantee as the run's area is used up."""
        area, guaranteed = option.size * option.latency, self.guaranteed[model]
        self.due[model] = max(self.due[model], now) + round(area / guaranteed) if guaranteed else NEVER
        self.held[model] += option.size
        self.dram += option.dram
        self.saving.pop(model, None)

    def end(self, model: str, option: Option) -> None:
        """They are free again."""
        self.held[model] -= option.size
        self.dram -= option.dram
