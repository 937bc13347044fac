"""A model's turn on one gpulet, as a dispatcher sees it: how long runs take there, and what they turn out to take."""

from typing import Final

from gpulet.plan import Gpulet, GpuletId
from gpulet.profile import Curve, Profile
from gpulet.units import PLAIN, Duration

_UP: Final = 0.09
_DOWN: Final = 0.01
"""Of the planned run: nine small steps down undo one up, so one run in ten is longer."""
_STEP: Final = 0.05
_PART: Final = 0.05
"""Of a run in the mean."""


class Host:
    """One model's turn on one gpulet. `credit` is what it has served, in time at its planned throughput.

    `slowdown` is what the plan allows for neighbours: the planned latency over the profile's. `throughput` is the planned one,
    `rate`, as runs are now. `others` is how long the other models' turns here take together.
    """

    __slots__ = (
        "_built",
        "_curves",
        "_least",
        "_long",
        "_mean",
        "_most",
        "_planned",
        "_processes",
        "_profile",
        "_round",
        "batch",
        "credit",
        "duty",
        "gpulet",
        "model",
        "others",
        "rate",
        "size",
        "slowdown",
        "throughput",
    )

    def __init__(self, gpulet: Gpulet, model: str, batch: int, profile: Profile, slo: Duration) -> None:
        self.gpulet: GpuletId = gpulet.id
        self.model = model
        self.size = gpulet.size.sms
        self._processes = gpulet.processes
        self._profile = profile
        alone = profile.curve(model, self.size, PLAIN, self._processes)
        self.batch = min(batch, len(alone))
        self._planned = next(turn.latency for turn in gpulet.turns if turn.model == model)
        self.slowdown = max(1.0, self._planned / alone[self.batch - 1])
        self._mean, self._long = 0.0, 0.0
        self._built = (0.0, 0.0)
        self._least = min(0, alone[self.batch - 1] - self._planned)
        self._most = max(0.0, slo / 2 - self.slowdown * alone[0])
        self._curves: dict[str, tuple[Curve, Curve, Curve]] = {}
        self.duty = gpulet.duty_cycle
        self._round = sum(turn.latency for turn in gpulet.turns)
        self.others = self._round - self._planned
        self.rate = self.throughput = self.batch / self._round
        self.credit = 0.0

    def curve(self, shape: str) -> Curve:
        """Latency by rows of a shape class here, as runs are now in the mean."""
        return (self._curves.get(shape) or self._made(shape))[0]

    def long(self, shape: str) -> Curve:
        """The same of long runs: one in ten takes longer."""
        return (self._curves.get(shape) or self._made(shape))[1]

    def planned(self, shape: str) -> Curve:
        """The same as the plan has it."""
        return (self._curves.get(shape) or self._made(shape))[2]

    def full(self, shape: str) -> int:
        """Rows of a full batch here."""
        return min(self.batch, len(self.curve(shape)))

    def learn(self, excess: Duration) -> None:
        """A run took so much longer than planned. Never less is expected than the profile says, nor so much more that one row
        would not fit half of the objective: a machine that hangs is not learned from. Curves follow in steps.
        """
        bounded = min(max(excess, self._least), self._most)
        self._mean += _PART * (bounded - self._mean)
        up, down = self._long + _UP * self._planned, self._long - _DOWN * self._planned
        self._long = min(up, bounded) if bounded > self._long else max(down, self._least)
        self.throughput = self.batch / (self._round + self._mean)
        now = self._mean, max(self._mean, self._long)
        if any(abs(a - b) > _STEP * self._planned for a, b in zip(now, self._built, strict=True)):
            self._built = now
            self._curves.clear()

    def relent(self) -> None:
        """No run came about for what was learned: believe it a little less."""
        self.learn(self._least)

    def _made(self, shape: str) -> tuple[Curve, Curve, Curve]:
        alone = self._profile.curve(self.model, self.size, shape, self._processes)
        planned = alone if self.slowdown == 1 else tuple(round(latency * self.slowdown) for latency in alone)

        def later(excess: float) -> Curve:
            return tuple(max(a, round(p + excess)) for a, p in zip(alone, planned, strict=True)) if excess else planned

        usual, long = map(later, self._built)
        made = self._curves[shape] = usual, long, planned
        return made
