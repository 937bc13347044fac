"""A plan: which models live on which gpulets, and whether that can be true.

One type carries every published way to share a device:
- gpulets whose models take turns within a duty cycle (gpu-lets, Nexus, PARIS: `gpulets`);
- sizes that change from run to run (D-STACK: `timelines`);
- only which models are resident (Clockwork, Triton: `residents`).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from gpulet.device import Device, Mechanism, Placement, Size, overcut
from gpulet.units import Duration, to_ms

_SOMETHING = 0.3
"""Rows/s: what is asked less often than every few seconds is not told from nothing."""

GpuletId = int
"""Its number, one of its own in a plan. A gpulet that stays from one plan to the next keeps it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One model's turn on a gpulet: at most `batch` rows, `latency` long, `rate` rows/s planned.

    On a gpulet of several processes every one of them has this turn: `rate` is that of all together.
    """

    model: str
    batch: int
    rate: float
    latency: Duration


@dataclass(frozen=True, slots=True)
class Gpulet:
    """A slice of one device: `offset` is its first SM, core or MIG slot.

    `processes` share it (MPS inside MIG): each runs a batch at a time and goes round the turns once in a `duty_cycle`,
    and a turn's latency is that of one batch while the others run theirs. `process` is 0 where all of them are meant;
    in a plan that was `unfolded` it says which one of them this is, from 1. Where nothing is cut, `priority` says who gives way:
    0 goes first. `spare` are models that are loaded here as well, so that a later plan may give them a turn at once.
    """

    id: GpuletId
    device: int
    size: Size
    offset: int
    duty_cycle: Duration
    turns: tuple[Turn, ...]
    processes: int = 1
    process: int = 0
    priority: int = 0
    spare: tuple[str, ...] = ()

    @property
    def held(self) -> frozenset[str]:
        """The models that are loaded here."""
        return frozenset((*self.models, *self.spare))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that take turns here."""
        return tuple(turn.model for turn in self.turns)

    @property
    def replicas(self) -> int:
        """How many processes this stands for, each with a replica of every model here."""
        return 1 if self.process else self.processes

    @property
    def fellows(self) -> int:
        """How many gpulets of the plan share its place, itself among them."""
        return self.processes if self.process else 1

    def apart(self) -> "tuple[Gpulet, ...]":
        """One for each of the processes that this stands for."""
        if self.replicas == 1:
            return (self,)
        turns = tuple(replace(turn, rate=turn.rate / self.processes) for turn in self.turns)
        return tuple(replace(self, turns=turns, process=n) for n in range(1, self.processes + 1))


def placements(gpulets: Iterable[Gpulet]) -> tuple[Placement, ...]:
    """What these gpulets take of their device: fellow processes take their place once."""
    apart = dict.fromkeys((g.size, g.offset, g.processes) for g in gpulets if g.process)
    together = [Placement(g.size, g.offset) for g in gpulets if not g.process]
    return (*together, *(Placement(size, offset) for size, offset, _ in apart))


@dataclass(frozen=True, slots=True)
class TimelineRun:
    """One run of a periodic timeline: from `start` for `length` within the period, on `size` SMs."""

    start: Duration
    length: Duration
    model: str
    size: Size
    batch: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """What one device repeats every `period` (a D-STACK session)."""

    device: int
    period: Duration
    runs: tuple[TimelineRun, ...]


@dataclass(frozen=True, slots=True)
class Resident:
    """A model that is loaded on a device, sharing it by no stated cut; `memory` in bytes.

    `guaranteed` are the SMs that it may always hold there, 0 where nobody guarantees any.
    """

    device: int
    model: str
    memory: int = 0
    guaranteed: float = 0.0


@dataclass(frozen=True, slots=True)
class Promise:
    """What a plan promises one model: rows/s asked and planned, and the worst latency against the objective."""

    demand: float
    throughput: float
    worst_latency: Duration
    slo: Duration

    @property
    def headroom(self) -> float:
        """How many times the demand the plan could carry, less one; infinite without demand."""
        return self.throughput / self.demand - 1 if self.demand > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Plan:
    """Devices and what stands on each of them. `violations()` says whether it can be carved and kept.

    `dispatcher` is who must serve it, where its planner chose among several.
    """

    devices: tuple[Device, ...]
    gpulets: tuple[Gpulet, ...] = ()
    timelines: tuple[Timeline, ...] = ()
    residents: tuple[Resident, ...] = ()
    promises: Mapping[str, Promise] = field(default_factory=dict)
    dispatcher: str = ""

    @property
    def devices_used(self) -> int:
        """How many devices carry anything."""
        return len(self.in_use)

    @property
    def in_use(self) -> frozenset[int]:
        """The devices that carry anything."""
        return frozenset(self._used())

    def hosts(self, model: str) -> tuple[Gpulet, ...]:
        """The gpulets on which `model` has a turn."""
        return tuple(g for g in self.gpulets if model in g.models)

    def serves(self, model: str) -> bool:
        """Whether `model` is anywhere in the plan: on a gpulet, in a timeline, or resident."""
        in_time = (run.model for line in self.timelines for run in line.runs)
        return bool(self.hosts(model)) or model in {*in_time, *(r.model for r in self.residents)}

    def starved(self, demand: Mapping[str, float]) -> frozenset[str]:
        """The models of which something is asked, in rows/s, and that are nowhere in the plan."""
        asked = (name for name, rate in demand.items() if rate >= _SOMETHING) if self.in_use else ()
        return frozenset(name for name in asked if not self.serves(name))

    def violations(self) -> tuple[str, ...]:
        """Every reason why this plan cannot hold, one line each; none when it can."""
        return tuple(
            chain(
                self._unknown_devices(),
                self._odd_processes(),
                self._overcut(),
                self._late_turns(),
                self._timelines(),
                self._lean(),
            )
        )

    def without(self, gpulets: Collection[GpuletId]) -> "Plan":
        """The same where these do nothing and hold nothing."""
        if not gpulets:
            return self
        rest = (replace(g, turns=(), spare=()) if g.id in gpulets else g for g in self.gpulets)
        return replace(self, gpulets=tuple(rest))

    def unfolded(self) -> "Plan":
        """The same with a gpulet for each process, since a gpulet runs one batch at a time: for cores and executors.

        Fellow processes stand at one place and have an equal part of the rates each. Where no gpulet stands for several
        processes it is the plan itself.
        """
        if all(g.replicas == 1 for g in self.gpulets):
            return self
        apart = [alone for g in self.gpulets for alone in g.apart()]
        return replace(self, gpulets=tuple(replace(g, id=place) for place, g in enumerate(apart)))

    def folded(self) -> "Plan":
        """The same with one gpulet for all its processes: what `unfolded` undoes, but for the numbers.

        Where fellow processes have other turns, by a later plan, the one gpulet has all of them.
        """
        fellows: dict[tuple[object, ...], list[Gpulet]] = {}
        for g in self.gpulets:
            place = (g.device, g.offset, g.size, g.processes) if g.process else (g.id,)
            fellows.setdefault(place, []).append(g)
        return replace(self, gpulets=tuple(_together(mine) for mine in fellows.values()))

    def _used(self) -> Iterator[int]:
        yield from (g.device for g in self.gpulets)
        yield from (line.device for line in self.timelines)
        yield from (r.device for r in self.residents)

    def _unknown_devices(self) -> Iterator[str]:
        known = {d.index for d in self.devices}
        yield from (f"device {d} is not one of the {len(known)} devices" for d in self._used() if d not in known)
        for number, count in Counter(g.id for g in self.gpulets).items():
            if count > 1:
                yield f"{count} gpulets have the number {number}"

    def _overcut(self) -> Iterator[str]:
        for device in self.devices:
            yield from overcut(device, placements([g for g in self.gpulets if g.device == device.index]))

    def _odd_processes(self) -> Iterator[str]:
        """A plan holds either all processes of a gpulet in one, or every one of them once."""
        apart: dict[tuple[int, int, Size, int], list[int]] = {}
        for g in self.gpulets:
            if not 0 <= g.process <= g.processes or g.processes < 1:
                yield f"gpulet {g.id} is process {g.process} of {g.processes}"
            if g.process:
                apart.setdefault((g.device, g.offset, g.size, g.processes), []).append(g.process)
        for (device, offset, size, processes), there in apart.items():
            if sorted(there) != [*range(1, processes + 1)]:
                what = f"{size.label or f'{size.sms} SMs'} at {offset}"
                found = ", ".join(map(str, sorted(there)))
                yield f"device {device}: {what} has the processes {found}, not each of {processes} once"

    def _late_turns(self) -> Iterator[str]:
        """The turns of each process must fit its duty cycle, cycle plus run every objective (ATC'22, section 4.2)."""
        for g in self.gpulets:
            if sum(t.latency for t in g.turns) > g.duty_cycle:
                busy = to_ms(sum(t.latency for t in g.turns))
                yield f"gpulet {g.id}: turns take {busy:g} ms of a duty cycle of {to_ms(g.duty_cycle):g} ms"
        for name, promise in self.promises.items():
            if promise.worst_latency > promise.slo:
                yield f"model {name}: worst latency {to_ms(promise.worst_latency):g} ms, SLO {to_ms(promise.slo):g} ms"
            if promise.throughput < promise.demand * (1 - 1e-9):
                yield f"model {name}: {promise.throughput:g} rows/s planned of {promise.demand:g}"

    def _timelines(self) -> Iterator[str]:
        sms = {d.index: d.kind.sms for d in self.devices}
        for line in self.timelines:
            for run in line.runs:
                if run.start < 0 or run.start + run.length > line.period:
                    end = to_ms(run.start + run.length)
                    yield f"device {line.device}: {run.model} ends at {end:g} of {to_ms(line.period):g} ms"
                abreast = [r for r in line.runs if r.start <= run.start < r.start + r.length]
                if sum(r.size.sms for r in abreast) > sms.get(line.device, 0):
                    total = sum(r.size.sms for r in abreast)
                    at = to_ms(run.start)
                    yield f"device {line.device} is cut into {total} of its {sms.get(line.device, 0)} SMs at {at:g} ms"

    def overfull(self, memory: Mapping[str, int]) -> Iterator[str]:
        """The devices whose gpulets hold more than their memory, one line each; `memory` in bytes by model, 0 unknown.

        Every process of a gpulet has a replica of its own of each of its models. A MIG instance has memory of its own.
        """
        for device in self.devices:
            mine = [g for g in self.gpulets if g.device == device.index]
            yield from _overfull_instances(device, mine, memory)
            need = sum(g.replicas * memory.get(name, 0) for g in mine for name in g.held)
            if device.kind.memory and need > device.kind.memory:
                yield f"device {device.index}: its gpulets' models need {need} of {device.kind.memory} bytes"

    def _lean(self) -> Iterator[str]:
        for device in self.devices:
            need = sum(r.memory for r in self.residents if r.device == device.index)
            if device.kind.memory and need > device.kind.memory:
                yield f"device {device.index}: residents need {need} of {device.kind.memory} bytes"
            sms = sum(r.guaranteed for r in self.residents if r.device == device.index)
            if sms > device.kind.sms * (1 + 1e-9):
                yield f"device {device.index}: residents are guaranteed {sms:g} of its {device.kind.sms} SMs"


def _together(fellows: Sequence[Gpulet]) -> Gpulet:
    """Processes of one place as one gpulet."""
    first = fellows[0]
    if not first.process:
        return first
    turns: dict[str, Turn] = {}
    for turn in (turn for g in fellows for turn in g.turns):
        known = turns.get(turn.model)
        turns[turn.model] = replace(turn, rate=turn.rate + known.rate) if known else turn
    spare = {name for g in fellows for name in g.spare} - set(turns)
    duty = max(first.duty_cycle, sum(turn.latency for turn in turns.values()))
    return replace(first, process=0, duty_cycle=duty, turns=tuple(turns.values()), spare=tuple(sorted(spare)))


def _overfull_instances(device: Device, gpulets: Iterable[Gpulet], memory: Mapping[str, int]) -> Iterator[str]:
    """Where the memory of a MIG type is known; fellow processes add up."""
    if device.mechanism is not Mechanism.MIG:
        return
    room = {t.label: t.memory for t in device.kind.mig_types}
    for g in gpulets:
        need = g.fellows * g.replicas * sum(memory.get(name, 0) for name in g.held)
        if g.process < 2 and need > (room.get(g.size.label) or need):  # noqa: PLR2004 (its first process speaks for all)
            what = f"device {device.index}: {g.size.label} at {g.offset}"
            yield f"{what}: its models need {need} of {room[g.size.label]} bytes"
