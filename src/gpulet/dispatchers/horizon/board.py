"""One device of the rolling horizon: the SMs that each model is guaranteed, holds, and is saved up for."""

from collections.abc import Mapping

from gpulet.pacing import Option
from gpulet.units import SECOND, Duration, Instant

KEPT = 0.35
"""The part of an unused guarantee that others leave alone while its model does not wait."""
LONGEST_DEBT: Duration = SECOND
"""Whoever took more than its guarantee waits so long at most before it counts as owed again."""
PEAK = 1.0
"""Of a device's bandwidth."""


class Board:
    """One device: SMs guaranteed to and held by each model that is resident, and what is saved up for, by model.

    `due` is when a model's runs since the overload began have used up no more than its guarantee.
    """

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

    @property
    def is_busy(self) -> bool:
        """Whether anything runs."""
        return any(self.held.values())

    def room(self, now: Instant, model: str, free: int) -> int:
        """SMs that a run of this model may take of those that are free: all of them where nothing runs."""
        first = next(iter(self.saving), "")
        if first == model or not self.is_busy:
            return free
        saved = self.saving.get(first, 0)
        own = max(self.smallest[model], round(self.guaranteed[model])) - self.held[model]
        if not (saved or self.held[model]) and self.is_owed(model, now):
            own = free
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
        return self.dram + option.dram <= PEAK or not self.is_busy

    def start(self, now: Instant, model: str, option: Option) -> None:
        """A run of this model takes its SMs: as much of its guarantee as the run's area is used up."""
        if self.is_overloaded:
            part = self.guaranteed[model]
            taken = round(option.size * option.latency / part) if part else LONGEST_DEBT
            self.due[model] = min(max(self.due[model], now) + taken, now + LONGEST_DEBT)
        self.held[model] += option.size
        self.dram += option.dram

    def end(self, model: str, option: Option) -> None:
        """They are free again."""
        self.held[model] -= option.size
        self.dram -= option.dram
