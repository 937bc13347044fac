"""Clockwork's controller (Gujarati et al., OSDI 2020; its code's INFER5): nothing starts that is predicted late.

A device runs one batch at a time, all of it. How long a batch takes is predicted as the longest of the last ten of its
model and size; the profile stands in until there are ten. For each model and size there is a strategy, whose priority is
the latest start of its front request; an idle device takes the first strategy that its queue fills, a strategy's queue
being the requests that would be in time in a batch of that size. What would be late even alone is dropped.

Each waiting request is a demand of its prediction over its objective. Devices that hold a model share its demand by the
inverse of their load; the model with most demand left over is loaded next, onto the least loaded device that lacks it.
Models without demand are evicted for it, least recently used first, then such as have less demand.

Departures: a device is given work when it is idle, not up to 10 ms ahead, so nothing is rejected for starting too late.
Loads are not predicted. The 16 MB pages of the weights cache are bytes. Requests of several rows count by rows: a batch of
any number of rows goes by the next larger size, and the largest that a model may have is a size too.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from gpulet.core.fleet import CENTRAL, DeviceState, Fleet, Queue
from gpulet.core.messages import Carve, Load, Reason, RequestId, Unload
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Plan
from gpulet.profile import Profile
from gpulet.request import Request
from gpulet.units import MS, NEVER, Duration, Instant


@dataclass(frozen=True, slots=True)
class Control:
    """The constants of the code; `safety` is taken off every objective, batches longer than `longest` never run."""

    safety: Duration = 5 * MS
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    longest: Duration = 250 * MS
    window: int = 10


CONTROL = Control()


@dataclass(frozen=True, slots=True)
class _Key:
    """What durations are alike: those of one model, shape class and size of batch, on devices of so many SMs."""

    sms: int
    model: str
    shape: str
    batch: int


class Predictions:
    """The longest of the last durations."""

    def __init__(self, profile: Profile, window: int) -> None:
        self._profile = profile
        self._window = window
        self._last: dict[_Key, deque[Duration]] = {}

    def of(self, key: _Key) -> Duration:
        """How long such a batch takes."""
        last = self._last.get(key)
        if last is None:
            profiled = self._profile.latency(key.model, key.sms, key.batch, key.shape)
            last = self._last[key] = deque([profiled], self._window)
        return max(last)

    def add(self, key: _Key, duration: Duration) -> None:
        """One more duration; the profile's is forgotten with the tenth."""
        self.of(key)
        self._last[key].append(duration)


@dataclass(frozen=True, slots=True)
class _Running:
    device: int
    key: _Key
    since: Instant


@dataclass(slots=True)
class _Tallies:
    """How much each model wants, and how loaded each device is with what it holds."""

    demand: dict[str, float]
    load: dict[int, float] = field(default_factory=dict)
    unserved: dict[str, float] = field(default_factory=dict)


class Clockwork:
    """One central queue for each model; devices are idle, or run a batch of a resident model."""

    def __init__(self, problem: Problem, plan: Plan, *, control: Control = CONTROL) -> None:
        self._models = problem.models
        self._profile = problem.profile
        self._control = control
        self._predictions = Predictions(problem.profile, control.window)
        self._sms = sorted({device.kind.sms for device in plan.devices})
        self._room = max((device.kind.memory or NEVER for device in plan.devices), default=0)
        self._waiting: dict[tuple[str, str], Queue] = {}
        self._running: dict[RequestId, _Running] = {}
        self._used: dict[tuple[int, str], Instant] = {}
        self._awaited: dict[int, int] = {}
        self._loaded: dict[tuple[int, str], Instant] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no device can hold, or run soon enough, is refused."""
        if self._models[request.model].memory > self._room:
            return Reason.LATE
        most = max(self._most(request.model, request.shape, sms) for sms in self._sms)
        if request.rows > most:
            return Reason.TOO_LARGE
        return Reason.LATE if self._is_late(now, request) else CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Drop what is late, start one batch, or load one model, and be asked again."""
        self._learn(now, changed)
        self._waiting.update({(queue.model, queue.shape): queue for queue in changed.queues})
        self._waiting = {key: queue for key, queue in self._waiting.items() if queue}
        late = [request for queue in self._waiting.values() for request in self._late(now, queue)]
        if late:
            return Decision(drop=late, more=True)
        for device in fleet.devices.values():
            run = self._infer(now, device) if device.free_sms == device.device.kind.sms else None
            if run:
                return Decision([run], more=True)
        return self._fetch(now, fleet)

    # predictions ------------------------------------------------------------------------------------------------------

    def _learn(self, now: Instant, changed: Changed) -> None:
        for requests in changed.ended:
            ran = self._running.pop(requests[0].id, None)
            if ran:
                self._predictions.add(ran.key, now - ran.since)

    def _most(self, model: str, shape: str, sms: int) -> int:
        most = min(self._models[model].max_batch, self._control.batches[-1])
        return min(most, self._profile.max_batch(model, sms, shape))

    def _sizes(self, model: str, shape: str, sms: int) -> list[tuple[_Key, Duration]]:
        """The sizes a batch may have, ascending, with their predictions."""
        most = self._most(model, shape, sms)
        keys = [_Key(sms, model, shape, n) for n in dict.fromkeys((*self._control.batches, most)) if n <= most]
        predicted = ((key, self._predictions.of(key)) for key in sorted(keys, key=lambda key: key.batch))
        return [(key, took) for key, took in predicted if took <= self._control.longest]

    def _alone(self, model: str, shape: str, rows: int) -> Duration:
        """The least that so many rows take anywhere; `NEVER` where none may run them."""
        sizes = (found for sms in self._sms for found in self._sizes(model, shape, sms))
        return min((took for key, took in sizes if key.batch >= rows), default=NEVER)

    def _is_late(self, now: Instant, request: Request) -> bool:
        return now + self._alone(request.model, request.shape, request.rows) > self._due(request)

    def _due(self, request: Request) -> Instant:
        return request.deadline - self._control.safety

    def _late(self, now: Instant, queue: Queue) -> Iterator[Request]:
        """From the front, those that even alone would be late."""
        for request in queue:
            if not self._is_late(now, request):
                return
            yield request

    # running ----------------------------------------------------------------------------------------------------------

    def _infer(self, now: Instant, device: DeviceState) -> Run | None:
        """The batch of the first strategy, by latest start, that its queue fills."""
        sms = device.device.kind.sms
        queues = [queue for (model, _), queue in self._waiting.items() if model in device.resident]
        strategies = (found for queue in queues for found in self._strategies(now, queue, sms))
        first = min(strategies, key=lambda found: found[0], default=None)
        if first is None:
            return None
        _, key, took, requests = first
        self._running[requests[0].id] = _Running(device.device.index, key, now)
        self._used[device.device.index, key.model] = now
        return Run(Carve(device.device.index, sms), requests, took)

    def _strategies(
        self, now: Instant, queue: Queue, sms: int
    ) -> "Iterator[tuple[Instant, _Key, Duration, list[Request]]]":
        """Latest start, size, prediction and batch of the sizes that what waits would fill in time."""
        below = 0
        for key, took in self._sizes(queue.model, queue.shape, sms):
            requests, rows = self._batch(now + took, queue, key.batch)
            if rows == key.batch or (rows > below and rows > len(requests)):
                yield self._due(requests[0]) - took, key, took, requests
            below = key.batch

    def _batch(self, end: Instant, queue: Queue, most: int) -> tuple[list[Request], int]:
        """As many as fit of those that may end then, in their order, and their rows."""
        requests: list[Request] = []
        rows = 0
        for request in queue:
            if rows == most:
                break
            if self._due(request) >= end and rows + request.rows <= most:
                requests.append(request)
                rows += request.rows
        return requests, rows

    # loading ----------------------------------------------------------------------------------------------------------

    def _fetch(self, now: Instant, fleet: Fleet) -> Decision:
        """Load the model with most unserved demand that can be; or make room for it first."""
        for index, least in list(self._awaited.items()):
            if fleet.devices[index].memory_used <= least:
                del self._awaited[index]
        if not any(self._lacks(device) for device in fleet.devices.values()):
            return Decision()
        tallies = self._tally(fleet)
        for model in sorted(tallies.unserved, key=lambda name: -tallies.unserved[name]):
            lacking = [d for d in fleet.devices.values() if model not in d.resident and self._is_free(d)]
            for device in sorted(lacking, key=lambda d: tallies.load[d.device.index]):
                found = self._load(now, model, device, tallies)
                if found:
                    return found
        return Decision()

    def _lacks(self, device: DeviceState) -> bool:
        return any(model not in device.resident for model, _ in self._waiting)

    def _is_free(self, device: DeviceState) -> bool:
        """It neither loads nor makes room."""
        return not device.loading and device.device.index not in self._awaited

    def _tally(self, fleet: Fleet) -> _Tallies:
        demand: dict[str, float] = {}
        for (model, shape), queue in self._waiting.items():
            wanted = sum(self._alone(model, shape, request.rows) for request in queue) / self._models[model].slo
            demand[model] = demand.get(model, 0.0) + wanted
        holders = {m: [i for i, d in fleet.devices.items() if m in d.resident | d.loading] for m in demand}
        even = dict.fromkeys(fleet.devices, 0.0)
        for model, held in holders.items():
            for index in held:
                even[index] += demand[model] / len(held)
        parts: dict[tuple[str, int], float] = {}
        tallies = _Tallies(demand, dict.fromkeys(fleet.devices, 0.0))
        for model, held in holders.items():
            weight = sum(1 / even[index] for index in held)
            for index in held:
                parts[model, index] = demand[model] / even[index] / weight
                tallies.load[index] += parts[model, index]
        for model, held in holders.items():
            left = demand[model] - sum(parts[model, i] / max(1.0, tallies.load[i]) for i in held)
            if left > _NOTHING:
                tallies.unserved[model] = left
        return tallies

    def _load(self, now: Instant, model: str, device: DeviceState, tallies: _Tallies) -> Decision | None:
        """Into the room that there is; else evict, and load once it is there."""
        need, index = self._models[model].memory, device.device.index
        short = need - (device.device.kind.memory - device.memory_used) if device.device.kind.memory else 0
        if short <= 0:
            self._loaded[index, model] = now
            return Decision(load=[Load(model, index)], more=True)
        victims: list[str] = []
        for victim in self._victims(now, device, tallies, tallies.unserved[model]):
            victims.append(victim)
            short -= self._models[victim].memory
            if short <= 0:
                self._awaited[index] = device.memory_used - sum(self._models[name].memory for name in victims)
                return Decision(unload=[Unload(name, index) for name in victims], more=True)
        return None

    def _victims(self, now: Instant, device: DeviceState, tallies: _Tallies, wanted: float) -> list[str]:
        """Who may go, the first first; not who came this instant, or instant loads would never end."""
        index, demand = device.device.index, tallies.demand
        busy = {ran.key.model for ran in self._running.values() if ran.device == index}
        able = [name for name in sorted(device.resident - busy) if demand.get(name, 0.0) < wanted]
        able = [name for name in able if self._models[name].memory and self._loaded.get((index, name), -1) < now]
        return sorted(able, key=lambda name: (name in demand, self._used.get((index, name), 0)))


_NOTHING = 1e-9
