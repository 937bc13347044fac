"""The mandatory plan of D-STACK (Dhakal, Kulkarni and Ramakrishnan, IEEE TCC 2024): what every session must run.

A session is as long as the largest SLO. Every model runs at least once in each interval of its own SLO, at the size and
batch of its highest efficacy (efficacy.py), and at no instant more SMs run than there are. On several devices every model
is on every device, with an equal part of its demand each: the paper's cluster has no placement beyond that.

The paper says so much (and: the tightest SLO first). How runs are placed is ours: a sweep over time that starts the
ready run with the earliest deadline, of equals the one of larger area. Placing model by model instead, each run at its
earliest hole, fails on the paper's own mix of three. Where the sweep misses a run, it is tried again by least laxity,
then with one model's runs held back for a part of their slack, then with a smaller batch of the model that takes most,
at last with the points of least area; then the demand is refused. Where SLOs do not divide the session, windows shrink
until they do. A model whose demand is more than one run in each SLO carries has as many runs as it needs: the paper
leaves these to the opportunistic pass, which promises nothing.

A promise's latency is what the paper calls it: the batch is assembled, and runs. It bounds no request's wait by the
plan alone: with one run anywhere in each window, two starts can lie nearly two windows apart.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from heapq import heappop, heappush
from math import ceil

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism
from gpulet.efficacy import OperatingPoint, Optimum, assembly, optimum, points_of, sizes_of, within
from gpulet.errors import PlanError
from gpulet.plan import Plan, Promise, Resident, Timeline, TimelineRun
from gpulet.units import SECOND, Duration

_QUARTERS = (1, 2, 3)
_SMALLER = 16
"""So many times a smaller batch is tried."""
_HALVINGS = 10


class Order(Enum):
    """Which of the ready runs starts first."""

    DEADLINE = "earliest deadline"
    LAXITY = "least laxity"


@dataclass(frozen=True, slots=True)
class Need:
    """What a session must hold of one model: `runs`, one in each of as many equal windows, not before `held` in it."""

    model: str
    runs: int
    point: OperatingPoint
    held: Duration = 0

    @property
    def area(self) -> int:
        """SMs times nanoseconds."""
        return self.runs * self.point.size.sms * self.point.latency


@dataclass(slots=True)
class _Lane:
    """One model in a sweep: its next run's window, and when its last one ends."""

    need: Need
    session: Duration
    place: int = 0
    until: Duration = 0
    release: Duration = 0
    deadline: Duration = 0

    def __post_init__(self) -> None:
        self._aim()

    def advance(self, until: Duration) -> None:
        self.place += 1
        self.until = until
        self._aim()

    def _aim(self) -> None:
        runs = self.need.runs
        self.release = self.session * self.place // runs + self.need.held if self.place < runs else self.session
        self.deadline = self.session * (self.place + 1) // runs

    def rank(self, order: Order) -> tuple[int, int, str]:
        point = self.need.point
        due = self.deadline if order is Order.DEADLINE else self.deadline - point.latency
        return due, -point.size.sms * point.latency, self.need.model


def sweep(needs: Sequence[Need], session: Duration, sms: int, order: Order = Order.DEADLINE) -> tuple[TimelineRun, ...]:
    """Place every run of a session by one sweep over time; nothing where a run finds no place in its window."""
    lanes = [_Lane(need, session) for need in needs]
    placed: list[TimelineRun] = []
    ends: list[tuple[Duration, int]] = []
    free, now = sms, 0
    while now < session:
        while ends and ends[0][0] <= now:
            free += heappop(ends)[1]
        ready = [lane for lane in lanes if lane.release <= now and lane.until <= now]
        for lane in sorted(ready, key=lambda lane: lane.rank(order)):
            point = lane.need.point
            end = now + point.latency
            if end > lane.deadline:
                return ()
            if point.size.sms <= free:
                free -= point.size.sms
                heappush(ends, (end, point.size.sms))
                placed.append(TimelineRun(now, point.latency, lane.need.model, point.size, point.batch))
                lane.advance(end)
        upcoming = [lane.release for lane in lanes if lane.release > now]
        now = min([*upcoming, ends[0][0]] if ends else upcoming, default=session)
    return tuple(placed) if all(lane.place == lane.need.runs for lane in lanes) else ()


def place(needs: Sequence[Need], session: Duration, sms: int, *, searches: bool = True) -> tuple[TimelineRun, ...]:
    """By the sweep in one of its orders, then with one model's runs held back; nothing where none of them places all."""
    if any(need.point.latency > session // need.runs for need in needs):
        return ()
    if sum(need.area for need in needs) > session * sms:
        return ()
    for order in Order:
        placed = sweep(needs, session, sms, order)
        if placed:
            return placed
    for held in _held_back(needs, session) if searches else ():
        placed = sweep(held, session, sms)
        if placed:
            return placed
    return ()


def _held_back(needs: Sequence[Need], session: Duration) -> Iterator[list[Need]]:
    for at, need in enumerate(needs):
        slack = session // need.runs - need.point.latency
        for quarter in _QUARTERS:
            yield [*needs[:at], replace(need, held=slack * quarter // 4), *needs[at + 1 :]]


def dstack(problem: Problem, *, points: Mapping[str, OperatingPoint] | None = None) -> Plan | Infeasible:
    """A timeline for each device. `points` are taken as they are where they are given: somebody's published ones.

    Raises `PlanError` on devices whose shares cannot change from run to run.
    """
    for device in problem.devices:
        if device.mechanism in {Mechanism.MIG, Mechanism.WHOLE}:
            msg = f"device {device.index}: dstack sets the size of every run on mps, green and cpu devices, not on "
            raise PlanError(msg + f"{device.mechanism}")
    sessions = _Sessions(problem, points or {})
    crowded = sessions.crowded()
    if crowded:
        return crowded
    timelines = sessions.timelines(problem.demand)
    return sessions.plan(problem.demand, timelines) if timelines else sessions.refusal()


class _Sessions:
    """The session of every device, for one demand or another."""

    def __init__(self, problem: Problem, points: Mapping[str, OperatingPoint]) -> None:
        self._problem = problem
        self._points = points
        self._every: dict[tuple[Device, str], list[OperatingPoint]] = {}
        self._kinds: dict[Device, Device] = {}
        for device in problem.devices:
            self._kinds[device] = next((d for d in self._kinds if _is_alike(d, device)), device)
        self._alike = tuple(dict.fromkeys(self._kinds.values()))

    def timelines(self, demand: Mapping[str, float], *, searches: bool = True) -> tuple[Timeline, ...]:
        """One for each device; none where the demand does not fit."""
        active = {name: rate for name, rate in demand.items() if rate > 0}
        session = max((self._problem.models[name].slo for name in active), default=SECOND)
        parts = {name: rate / len(self._problem.devices) for name, rate in active.items()}
        runs: dict[Device, tuple[TimelineRun, ...]] = {}
        for device in self._alike:
            runs[device] = self._placed(device, parts, session, searches=searches) if parts else ()
            if parts and not runs[device]:
                return ()
        return tuple(Timeline(device.index, session, runs[alike]) for device, alike in self._kinds.items())

    def plan(self, demand: Mapping[str, float], timelines: tuple[Timeline, ...]) -> Plan:
        """The timelines with what they promise."""
        problem = self._problem
        residents = [Resident(d.index, m.name, m.memory) for d in problem.devices for m in problem.models.values()]
        promises: dict[str, Promise] = {}
        for name, model in problem.models.items():
            mine = [(line, run) for line in timelines for run in line.runs if run.model == name]
            rate = sum(run.batch * SECOND / line.period for line, run in mine)
            part = 0.0 if name in self._points else demand.get(name, 0.0) / len(problem.devices)
            worst = max((run.length + assembly(run.batch, part) for _, run in mine), default=0)
            promises[name] = Promise(demand.get(name, 0.0), rate, worst, model.slo)
        return Plan(problem.devices, timelines=timelines, residents=tuple(residents), promises=promises)

    def crowded(self) -> Infeasible | tuple[()]:
        """Why every model does not fit into every device's memory; nothing where they do."""
        models = self._problem.models.values()
        need = sum(model.memory for model in models)
        for device in self._problem.devices:
            if device.kind.memory and need > device.kind.memory:
                largest = max(models, key=lambda m: m.memory)
                why = f"every model lives on every device: device {device.index} needs {need} of {device.kind.memory} bytes"
                unserved = {largest.name: self._problem.demand.get(largest.name, 0.0)}
                return Infeasible(largest.name, why, "leave a model out", unserved, Plan(self._problem.devices))
        return ()

    def refusal(self) -> Infeasible:
        """Models are admitted by their SLO, the tightest first, each with as much of its demand as still fits."""
        models = self._problem.models
        admitted: dict[str, float] = {}
        unserved: dict[str, float] = {}
        for name in sorted(models, key=lambda name: (models[name].slo, name)):
            demand = self._problem.demand.get(name, 0.0)
            admitted[name] = self._most(name, admitted)
            if admitted[name] < demand:
                unserved[name] = demand - admitted[name]
        first = next(iter(unserved))
        demand, carried = self._problem.demand[first], admitted[first]
        rest = self.plan(admitted, self.timelines(admitted, searches=False))
        why = f"a session does not hold its runs beside those of tighter SLOs: {carried:.1f} of {demand:.1f} rows/s fit"
        nearest = f"lower its rate by {unserved[first]:.1f}/s"
        found = [optimum(self._points_of(first, device), models[first]) for device in self._alike]
        if first not in self._points and not any(isinstance(best, Optimum) for best in found):
            why, nearest = f"{found[0]}: 0 of {demand:.1f} rows/s", "raise its SLO"
        return Infeasible(first, why, nearest, unserved, rest)

    def _most(self, name: str, admitted: Mapping[str, float]) -> float:
        """By halving, as if what fits at a rate did at every lower one."""
        demand = self._problem.demand.get(name, 0.0)

        def fits(part: float) -> bool:
            return bool(self.timelines({**admitted, name: demand * part}, searches=False))

        if fits(1.0):
            return demand
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return demand * low

    def _points_of(self, name: str, device: Device) -> list[OperatingPoint]:
        if (device, name) not in self._every:
            profile = self._problem.profile
            self._every[device, name] = points_of(profile, name, sizes_of(profile, name, device))
        return self._every[device, name]

    def _placed(
        self, device: Device, rates: Mapping[str, float], session: Duration, *, searches: bool
    ) -> tuple[TimelineRun, ...]:
        """With the best points, then with others."""
        options: dict[str, Sequence[Need]] = {}
        for name, rate in rates.items():
            options[name] = self._options(device, name, rate, session)
            if not options[name]:
                return ()
        for needs in _choices(options, _SMALLER if searches else 0):
            placed = place(needs, session, device.kind.sms, searches=searches)
            if placed:
                return placed
        return ()

    def _options(self, device: Device, name: str, rate: float, session: Duration) -> list[Need]:
        """What one model could ask of a session, the highest efficacy first."""
        model = self._problem.models[name]
        given = self._points.get(name)
        points = [given] if given else within(self._points_of(name, device), model, rate)
        windows = -(-session // model.slo)
        return [Need(name, max(windows, ceil(rate * session / SECOND / p.batch - 1e-9)), p) for p in points]


def _is_alike(one: Device, other: Device) -> bool:
    return (one.kind, one.mechanism) == (other.kind, other.mechanism)


def _choices(options: Mapping[str, Sequence[Need]], smaller: int) -> Iterator[list[Need]]:
    """The most efficacious; then, one after the other, a smaller batch of who takes the largest area; the least areas."""
    chosen = {name: needs[0] for name, needs in options.items()}
    yield list(chosen.values())
    for _ in range(smaller):
        largest = max(chosen.values(), key=lambda need: need.area)
        less = [n for n in options[largest.model] if n.point.batch < largest.point.batch and n.area < largest.area]
        if not less:
            break
        chosen[largest.model] = less[0]
        yield list(chosen.values())
    yield [min(needs, key=lambda need: need.area) for needs in options.values()]
