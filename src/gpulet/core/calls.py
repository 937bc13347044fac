"""What calls for another plan: rates, devices that come and go, objectives, and what was to change and could not."""

from dataclasses import dataclass, field, replace

from gpulet.core.fleet import Fleet
from gpulet.core.losses import Losses
from gpulet.core.messages import DeviceIn, DeviceOut
from gpulet.core.replan import Demand, Estimator
from gpulet.core.weighing import Weights
from gpulet.plan import GpuletId
from gpulet.units import NEVER, SECOND, Duration, Instant


@dataclass(frozen=True, slots=True)
class Steering:
    """How plans are changed. `is_advice`: decide and explain, change nothing. `fewest`: use no device that is not needed.

    Where no plan serves `enough` of the demand in time the planner has a `pause`, unless a rate jumps. Below `urgent` what is
    new is built in haste. After a jump rates have time to `settle`, for what is seen first is not sure yet, and where one rises
    another may fall: no longer than a plan takes to be made, `planning` at first, which is all that haste could lose. A plan
    for rates that have moved on since is asked for again, so many `tries` in a row. A device whose gpulets have all been down for so long is
    `lost`; a gpulet that is down for longer than most replacements take is `missed`: others are to have its turns meanwhile.
    """

    weights: Weights = field(default_factory=Weights)
    is_advice: bool = False
    fewest: bool = False
    enough: float = 0.99
    urgent: float = 0.95
    settle: Duration = SECOND // 4
    planning: Duration = SECOND // 2
    lost: Duration = 5 * SECOND
    missed: Duration = SECOND
    tries: int = 2
    pause: Duration = 5 * SECOND


_LONGEST_PAUSE: Duration = 300 * SECOND


class Calls:
    """Of one fleet. `demand` is what was seen at the last look; `failed` called for a change that is to be tried again.

    `missed` are gpulets that went down or came back: whoever builds would be in the way of their own replacements.
    """

    def __init__(self, fleet: Fleet, demand: Demand, estimator: Estimator, steering: Steering) -> None:
        self.demand = demand
        self.planning = steering.planning
        self._devices = frozenset(fleet.devices)
        self._fleet = fleet
        self._estimator = estimator
        self._steering = steering
        self._losses = Losses(steering.lost, steering.missed)
        self._down: frozenset[GpuletId] = frozenset()
        self._drained: set[int] = set()
        self._missing: set[int] = set()
        self.failed = ""
        self.missed = ""
        self._told = ""
        self._pause = steering.pause
        self._not_before: Instant = 0
        self._retry_at: Instant = 0
        self._settles: Instant = NEVER

    @property
    def look_at(self) -> Instant:
        """When to look next, at the latest."""
        return min(self._estimator.look_at, self._settles)

    @property
    def out(self) -> set[int]:
        """The devices that no plan may use: somebody took them out, or they are lost."""
        return self._drained | self._missing

    @property
    def usable(self) -> tuple[int, ...]:
        """The devices that plans may use."""
        return tuple(sorted(self._devices - self.out))

    @property
    def down(self) -> tuple[GpuletId, ...]:
        """The gpulets of the plan in force that plans may not count on."""
        return tuple(sorted(self._down))

    def look(self, now: Instant, *, has_jumped: bool) -> None:
        """See what is asked. After a jump nothing is called for until the others had time to settle."""
        self.demand = self._estimator.look(now)
        self._look_for_lost(now)
        if now >= self._settles:
            self._settles = NEVER
        elif has_jumped and self._settles == NEVER:
            settle = min(self._steering.settle, self.planning)
            if settle:
                self._settles = now + settle
            self._not_before = now + settle

    def hint(self, now: Instant, model: str, rate: float) -> None:
        """Somebody knows better: look at once."""
        self._estimator.hint(now, model, rate)
        self._settles = now

    def tell(self, why: str) -> None:
        """Such a thing calls for a plan, whatever the rates are."""
        self._told = f"{self._told}; {why}" if self._told else why

    def shift(self, event: DeviceOut | DeviceIn) -> None:
        """Plans may use a device no more, or again: somebody says so."""
        if isinstance(event, DeviceOut):
            self._drained.add(event.device)
            self.tell(f"device {event.device} is taken out")
        else:
            self._drained.discard(event.device)
            self._missing.discard(event.device)
            self._losses.devices.forgive(event.device)
            self.tell(f"device {event.device} is back")

    def why(self, now: Instant, in_use: frozenset[int]) -> str:
        """What calls for a plan now, empty for nothing; `in_use` are the devices of the plan in force."""
        seen = self.demand.why if now >= self._not_before else ""
        failed = self.failed if now >= self._retry_at else ""
        return self._told or seen or failed or self.missed or self._astray(now, in_use)

    def answer(self) -> None:
        """A call is heeded once."""
        self._told = self.missed = ""
        self.decide()

    def decide(self) -> None:
        """What was seen so far has been decided; what was told meanwhile has not."""
        self.demand = replace(self.demand, why="")
        self.failed = ""

    def adopt(self, unbuilt: str = "") -> None:
        """A plan has come into force; `unbuilt` is what it is only instead of, which is still to be tried again."""
        self.decide()
        self.failed = unbuilt
        if not unbuilt:
            self._pause = self._steering.pause

    def rest(self, now: Instant, *, is_held: bool = True, failed: str = "", unbuilt: str = "") -> None:
        """Nothing changes: what could not be done is tried again later, and where too little is held rates wait as well.

        `failed` is what called for a change that failed and might not the next time: that is tried ever more seldom. `unbuilt`
        is as for `adopt`.
        """
        self.failed = failed or unbuilt
        if not unbuilt:
            self._retry_at = now + self._pause
        if failed:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not is_held:
            self._not_before = now + self._steering.pause

    def _astray(self, now: Instant, in_use: frozenset[int]) -> str:
        """What still stands where nothing may: a change that was to take it away has failed."""
        devices = in_use & self.out if now >= self._retry_at else frozenset()
        return f"device {min(devices)} is still in use" if devices else ""

    def _look_for_lost(self, now: Instant) -> None:
        """A lost device is out until a gpulet of it comes up, or somebody restores it; the last one that plans may use stays."""
        self._losses.look(now, self._fleet)
        before, self._down = self._down, frozenset(self._losses.gpulets.lost)
        missed = [f"gpulet {gpulet} stays down" for gpulet in sorted(self._down - before)]
        back = sorted((before - self._down) & self._fleet.gpulets.keys())
        self.missed = "; ".join([*missed, *(f"gpulet {gpulet} is up again" for gpulet in back)]) or self.missed
        lost = self._losses.devices.lost
        for device in sorted(self._missing - lost):
            self._missing.discard(device)
            self.tell(f"device {device} is back")
        for device in sorted(lost - self.out):
            if {*self.usable} - {device}:
                self._missing.add(device)
                self.tell(f"device {device} is lost")
