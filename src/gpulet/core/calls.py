"""What calls for another plan: rates, devices that come and go, objectives, and what was to change and could not."""

from collections.abc import Collection
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


@dataclass(frozen=True, slots=True)
class Call:
    """Why there should be a plan. Unless it `builds`, other turns on the gpulets that there are have to do."""

    why: str
    builds: bool = True


class Calls:
    """Of one fleet. `demand` is what was seen at the last look."""

    def __init__(self, fleet: Fleet, demand: Demand, estimator: Estimator, steering: Steering) -> None:
        self.demand = demand
        self.planning = steering.planning
        self._devices = frozenset(fleet.devices)
        self._fleet = fleet
        self._estimator = estimator
        self._steering = steering
        self._losses = Losses(steering.lost, steering.missed)
        self._allowed_for: frozenset[GpuletId] = frozenset()
        self._drained: set[int] = set()
        self._missing: set[int] = set()
        self._told = ""
        self._failed = ""
        self._turns = ""
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
        """The gpulets of the plan in force that plans may not count on: a replacement is on its way, or cannot be had."""
        return tuple(sorted(self._losses.gpulets.lost))

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

    def tell(self, why: str, *, builds: bool = True) -> None:
        """Such a thing calls for a plan, whatever the rates are; or for other turns."""
        if builds:
            self._told = f"{self._told}; {why}" if self._told else why
        else:
            self._turns = why

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

    def call(self, now: Instant, in_use: frozenset[int]) -> Call | None:
        """What calls for a plan now; `in_use` are the devices of the plan in force.

        Building beside the replacements of what is down would be in their way.
        """
        seen = self.demand.why if now >= self._not_before else ""
        failed = self._failed if now >= self._retry_at else ""
        missed = self._missed()
        why = self._told or seen or failed or (missed if not self.down else "")
        if not why and (self._turns or missed):
            return Call(self._turns or missed, builds=False)
        why = why or self._astray(now, in_use)
        return Call(why) if why else None

    def heed(self, call: Call) -> None:
        """A plan is asked for, once; what failed is not tried again by other turns."""
        self._turns = ""
        self._allowed_for = frozenset(self.down)
        if call.builds:
            self._told = ""
            self.decide()

    def decide(self) -> None:
        """What was seen so far has been decided; what was told meanwhile has not."""
        self.demand = replace(self.demand, why="")
        self._failed = ""

    def adopt(self, down: Collection[GpuletId]) -> None:
        """A plan has come into force that allows for these being down."""
        self.decide()
        self._turns = ""
        self._allowed_for = frozenset(down)
        self._pause = self._steering.pause

    def rest(self, now: Instant, *, is_held: bool = True, failed: str = "") -> None:
        """Nothing changes: what could not be done is tried again later, and where too little is held rates wait as well.

        `failed` is what called for a change that failed and might not the next time: that is tried ever more seldom.
        """
        self._retry_at = now + self._pause
        self._failed = failed
        if failed:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not is_held:
            self._not_before = now + self._steering.pause

    def _astray(self, now: Instant, in_use: frozenset[int]) -> str:
        """What still stands where nothing may: a change that was to take it away has failed."""
        devices = in_use & self.out if now >= self._retry_at else frozenset()
        return f"device {min(devices)} is still in use" if devices else ""

    def _missed(self) -> str:
        """Which gpulets are down, or up, though the last plan that was asked for thinks otherwise."""
        down = {*self.down}
        gone = [f"gpulet {gpulet} stays down" for gpulet in sorted(down - self._allowed_for)]
        back = sorted((self._allowed_for - down) & self._fleet.gpulets.keys())
        return "; ".join([*gone, *(f"gpulet {gpulet} is up again" for gpulet in back)])

    def _look_for_lost(self, now: Instant) -> None:
        """A lost device is out until a gpulet of it comes up, or somebody restores it; the last one that plans may use stays."""
        self._losses.look(now, self._fleet)
        self._allowed_for &= self._fleet.gpulets.keys()
        lost = self._losses.devices.lost
        for device in sorted(self._missing - lost):
            self._missing.discard(device)
            self.tell(f"device {device} is back")
        for device in sorted(lost - self.out):
            if {*self.usable} - {device}:
                self._missing.add(device)
                self.tell(f"device {device} is lost")
