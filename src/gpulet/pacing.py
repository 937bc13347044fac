"""How each model is best run where every run may have a size of its own: as narrow as its objective allows.

SMs give most rows when a run is narrow, since a kernel leaves part of a wide share idle; what bounds the width from
below is time. A request may wait for a batch to assemble and then run, all within the objective, so of all sizes and
batches b the thriftiest is the one of most rows per SM-second with (b - 1) / rate + latency <= stretch x SLO. `stretch`
is the part of the objectives that is planned with: the least that leaves a comfortable part of the SMs free, so that
answers come early while there is room. The rest of the objectives absorbs arrivals that bunch.

Ours. The seeds are in what the numbers of D-STACK say (specification, sections 1.12 and 5): shares below the knee beat
runs at the knee in throughput, sizes should be chosen per run by rows per SM-ms, and batches by slack.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from gpulet.core.ports import Problem
from gpulet.device import Device
from gpulet.efficacy import sizes_of
from gpulet.interference import Footprint, Side, footprint
from gpulet.model import Model
from gpulet.profile import Profile
from gpulet.units import PLAIN, SECOND, Duration

COMFORT = 0.8
"""The part of the SMs that may be planned with before more of the objectives is used up."""
STRETCHES = tuple(percent / 100 for percent in range(20, 92, 2))
"""At most nine tenths of an objective: the rest is for starts that come late."""
WORTH = 0.95
"""An option is worth running while it gives so much of the rows per SM-second of the best."""


@dataclass(frozen=True, slots=True)
class Option:
    """A batch of `rows` on `size` SMs, `latency` long; meanwhile it takes `dram` of the device's bandwidth, 0 if unknown."""

    size: int
    rows: int
    latency: Duration
    dram: float = 0.0

    @property
    def thrift(self) -> float:
        """Rows per SM-nanosecond."""
        return self.rows / (self.size * self.latency)


@dataclass(frozen=True, slots=True)
class Pace:
    """How a model runs at its rate: an option, started `wait` after its first row came, on `area` SMs in the mean."""

    option: Option
    wait: Duration
    area: float


@dataclass(frozen=True, slots=True)
class Level:
    """What may be run, thriftiest first, and the `least` time that any of it takes."""

    options: tuple[Option, ...]
    least: Duration


class Menu:
    """What one model may run, of one shape class.

    With fewer rows than the pace's, what is worth running is measured by the best of as many rows in the time that the
    pace leaves. With a backlog of two full batches it is measured by the best of all: nobody waits for rows then, and
    requests too old for it are better given up, or they would make every batch dear (Nexus' early drop). A request of
    several rows may run at any size that holds it.
    """

    def __init__(
        self, options: Sequence[Option], ways: Sequence[Option], model: Model, rate: float, stretch: float
    ) -> None:
        """`ways` are the options that are not dominated."""
        self.every = options
        self.ways = ways
        limit = round(model.slo * stretch)
        self.slo = model.slo
        self.limit = limit
        found = pace(self.ways, rate, limit)
        self.is_in_time = found is not None
        self.pace = found or Pace(min(self.ways, key=lambda o: (o.latency, o.size)), 0, 0.0)
        self.fastest = min(option.latency for option in options)
        self.smallest = min(option.size for option in options)
        self.largest = max(option.rows for option in options)
        left = max(limit - self.pace.wait, self.pace.option.latency)
        self._levels = [_level(self.ways, rows, left) for rows in range(1, self.pace.option.rows + 1)]
        self._backlog = _level(self.ways, self.largest, limit)
        self._several: dict[tuple[int, int], Level] = {}

    def level(self, rows: int, head: int = 1) -> Level:
        """While so many rows wait, `head` of them in the first request."""
        if head > 1:
            return self._of_several(min(rows, self.largest), head)
        if rows >= 2 * self.largest:
            return self._backlog
        return self._levels[min(rows, len(self._levels)) - 1]

    def _of_several(self, rows: int, head: int) -> Level:
        found = self._several.get((rows, head))
        if found is None:
            options = tuple(option for option in self.every if head <= option.rows <= rows)
            found = self._several[rows, head] = Level(options, min(option.latency for option in options))
        return found


def pace(ways: Sequence[Option], rate: float, limit: Duration) -> Pace | None:
    """The thriftiest that is assembled and run within `limit` at `rate` rows/s; none where nothing is."""
    for option in ways:
        wait = round((option.rows - 1) * SECOND / rate) if rate > 0 else limit * (option.rows - 1)
        if wait + option.latency <= limit:
            return Pace(option, wait, rate / SECOND / option.thrift)
    return None


def _level(ways: Sequence[Option], rows: int, limit: Duration) -> Level:
    few = [option for option in ways if option.rows <= rows]
    best = next((option for option in few if option.latency <= limit), None) or min(few, key=lambda o: o.latency)
    worth = tuple(option for option in ways if option.thrift >= WORTH * best.thrift)
    return Level(worth, min(option.latency for option in worth if option.rows <= rows))


class Pacing:
    """Every model's menu on devices that are alike. `area` is the SMs that all paces take in the mean, on all of them."""

    def __init__(self, problem: Problem, devices: Sequence[Device]) -> None:
        self._models = problem.models
        self._sms = sum(device.kind.sms for device in devices)
        self._ways = _Ways(problem, devices[0])
        paces = self._settle(problem.demand)
        if problem.interference is not None:
            self._ways.crowd({name: (one.option, _abreast(one) / len(devices)) for name, one in paces.items()})
            self._settle(problem.demand)

    def at(self, demand: Mapping[str, float]) -> "Pacing":
        """The same for other rates (rows/s by model); how neighbours slow each other is left as it is."""
        other = copy(self)
        other._settle(demand)  # noqa: SLF001 (of its own class)
        return other

    def menu(self, name: str, shape: str = PLAIN) -> Menu:
        """The menu of a shape class. Nobody says how a rate divides among classes: each is paced by all of it."""
        found = self._menus.get((name, shape))
        if found is None:
            of = self._ways.of(name, shape), self._ways.undominated(name, shape)
            found = Menu(*of, self._models[name], self._demand.get(name, 0.0), self.stretch)
            self._menus[name, shape] = found
        return found

    def _settle(self, demand: Mapping[str, float]) -> dict[str, Pace]:
        """By the least stretch under which all models are in time and SMs are left; else by the largest."""
        self._demand = demand
        self._menus: dict[tuple[str, str], Menu] = {}
        paces: dict[str, Pace] = {}
        ways = {name: self._ways.undominated(name) for name in self._models}
        for self.stretch in STRETCHES:
            limits = {name: round(model.slo * self.stretch) for name, model in self._models.items()}
            found = {n: pace(ways[n], demand.get(n, 0.0), limit) for n, limit in limits.items()}
            paces = {name: one for name, one in found.items() if one is not None}
            if len(paces) == len(limits) and sum(one.area for one in paces.values()) <= COMFORT * self._sms:
                break
        self.area = sum(one.area for one in paces.values())
        return paces


def _abreast(one: Pace) -> float:
    """How many runs of a model are in progress in the mean."""
    return one.area / one.option.size


class _Ways:
    """The options of every model and shape class on one kind of device, slowed by those who run beside in the mean."""

    def __init__(self, problem: Problem, device: Device) -> None:
        self._problem = problem
        self._device = device
        self._found: dict[tuple[str, str], tuple[Option, ...]] = {}
        self._undominated: dict[tuple[str, str], tuple[Option, ...]] = {}
        self._company: list[tuple[Side, str, float]] = []

    def of(self, name: str, shape: str = PLAIN) -> tuple[Option, ...]:
        """Thriftiest first."""
        found = self._found.get((name, shape))
        if found is None:
            found = options(self._problem.profile, self._problem.models[name], self._device, shape)
            if self._company:
                slowed = (replace(option, latency=self._slowed(name, option)) for option in found)
                found = tuple(sorted(slowed, key=_worst_last))
            self._found[name, shape] = found
        return found

    def undominated(self, name: str, shape: str = PLAIN) -> tuple[Option, ...]:
        """Those that are worth a look for single rows."""
        found = self._undominated.get((name, shape))
        if found is None:
            found = self._undominated[name, shape] = undominated(self.of(name, shape))
        return found

    def crowd(self, company: Mapping[str, tuple[Option, float]]) -> None:
        """Say what each model runs, and how many of its runs are on a device in the mean."""
        self._company = [(self._footprint(n, option).side, n, count) for n, (option, count) in company.items()]
        self._found, self._undominated = {}, {}

    def _slowed(self, name: str, option: Option) -> Duration:
        interference = self._problem.needs_interference()
        mine = self._footprint(name, option)
        costs = [
            (interference.pair(mine.side, side) - 1) * (max(0.0, count - 1) if other == name else count)
            for side, other, count in self._company
        ]
        return max(1, round(option.latency * mine.slowed(min(1 + sum(costs), interference.ceiling)) / mine.latency))

    def _footprint(self, name: str, option: Option) -> Footprint:
        share = option.size / self._device.kind.sms
        return footprint(self._problem.profile, name, option.size, share, option.rows)


def options(profile: Profile, model: Model, device: Device, shape: str = PLAIN) -> tuple[Option, ...]:
    """Every size and batch that was measured, thriftiest first; one at least.

    Raises `ProfileError` for a model that nobody measured, or at no size that the device has.
    """
    found: list[Option] = []
    for size in sizes_of(profile, model.name, device, shape):
        uses = profile.uses(model.name, size.sms)
        for rows, latency in enumerate(profile.curve(model.name, size.sms, shape)[: model.max_batch], start=1):
            found.append(Option(size.sms, rows, max(1, latency), uses[min(rows, len(uses)) - 1].dram))
    return tuple(sorted(found, key=_worst_last))


def _worst_last(option: Option) -> tuple[float, int, int]:
    return -option.thrift, option.size, option.rows


def undominated(options: Iterable[Option]) -> tuple[Option, ...]:
    """Those that no thriftier one beats in everything: no more rows to wait for, no more SMs, no more time."""
    kept: list[Option] = []
    for one in options:
        if not any(o.rows <= one.rows and o.size <= one.size and o.latency <= one.latency for o in kept):
            kept.append(one)
    return tuple(kept)
