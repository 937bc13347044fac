"""DRAIN, SWAP, RESUME: the gpulets of one GPU as they serve, and how a built plan takes over from the one in force.

    RUNNING ──drain──▶ DRAINING ──finish──▶ PAUSED ──swap or abort──▶ RUNNING
       └────────drain, nothing runs───────────▲

A gpulet whose place stays the same is never stopped. The others are paused at a batch boundary, and only when all of
them are, all are swapped at once: so no two gpulets that may run ever have a group in common, and until the swap there
is a way back. What is started meanwhile is parked, one batch a gpulet, and goes to the gpulet that comes after. This has
no clock of its own, no threads and no device; it is called by one thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gpulet.core.messages import BatchId, Carve, Start
from gpulet.errors import ModelError
from gpulet.executors.base import Times
from gpulet.executors.cuda.buddies import Board
from gpulet.executors.cuda.building import Arranged, Built, Clock, Place, Places
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.plan import GpuletId
from gpulet.units import Instant


class State(StrEnum):
    """What a gpulet may do."""

    RUNNING = "running"
    DRAINING = "draining"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Replay:
    """A batch and the graph to replay for it."""

    start: Start
    key: GraphKey


@dataclass(frozen=True, slots=True)
class Resumed:
    """What to do after a swap or an abort: parked batches to run now, and those that no gpulet takes any more."""

    replays: tuple[Replay, ...]
    returned: tuple[Start, ...]
    times: Times


class Station:
    """A gpulet that serves: its place, and the batch that runs there or waits for the swap."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.state = State.RUNNING
        self.running: Replay | None = None
        self.parked: Start | None = None

    def drain(self) -> None:
        """Take no more batches."""
        self.state = State.DRAINING if self.running else State.PAUSED

    def begin(self, start: Start) -> Replay:
        """Run a batch; raises `ModelError` where no graph takes it."""
        assert self.state is State.RUNNING, f"gpulet {start.on} is {self.state}"
        assert self.running is None, f"gpulet {start.on} runs a batch already"
        key = self.place.key(start.model, start.rows, start.shape)
        if key is None:
            msg = f"gpulet {start.on} has no graph of {start.model} for {start.rows} rows"
            raise ModelError(msg)
        self.running = Replay(start, key)
        return self.running


class Cut:
    """The gpulets of one GPU, and the runs on it that bring a size of their own."""

    def __init__(self, clock: Clock) -> None:
        self.stations: dict[GpuletId, Station] = {}
        self._arranged = Arranged({}, {}, frozenset())
        self._board = Board({})
        self._parked_runs: list[Start] | None = None
        self._clock = clock
        self._running: dict[BatchId, Station] = {}
        self._next: Built | None = None
        self._asked: Instant = 0
        self._drained: Instant = 0

    @property
    def keys(self) -> frozenset[GraphKey]:
        """The graphs that must not be given up: those of the plan in force, of the next one, and of what runs."""
        own = {key for station in self.stations.values() for key in station.place.keys}
        running = {s.running.key for s in self._running.values() if s.running}
        return frozenset(own | running | self._arranged.runs | (self._next.keys if self._next else frozenset()))

    @property
    def models(self) -> frozenset[str]:
        """Those of the plan in force."""
        return frozenset(key.model for key in self._arranged.keys)

    @property
    def is_drained(self) -> bool:
        """Whether all gpulets that were asked to are paused."""
        is_waited_for = self._parked_runs is not None and not self._board.is_idle
        return not is_waited_for and all(station.state is not State.DRAINING for station in self.stations.values())

    def start(self, command: Start) -> Replay | None:
        """Run a batch where it is to run; None: that is re-cut, or taken, and it waits. Raises `ModelError`."""
        if isinstance(command.on, Carve):
            return self._start_run(command)
        station = self.stations[command.on]
        if station.state is State.RUNNING:
            return self._begin(station, command)
        assert station.running is None, f"gpulet {command.on} runs a batch already"
        assert station.parked is None, f"gpulet {command.on} has a batch parked already"
        station.parked = command
        return None

    def finish(self, batch: BatchId) -> tuple[Replay, ...]:
        """A batch has ended, however it did; runs that waited for its place and begin now."""
        station = self._running.pop(batch, None)
        begun = () if station else tuple(self._replay(*pair) for pair in self._board.finish(batch))
        if station:
            station.running = None
            if station.state is State.DRAINING:
                station.state = State.PAUSED
        if self._next and self.is_drained:
            self._drained = self._clock()
        return begun

    def _start_run(self, command: Start) -> Replay | None:
        if self._parked_runs is not None:
            self._parked_runs.append(command)
            return None
        self._refuse_unknown(command)
        interval = self._board.start(command)
        return None if interval is None else self._replay(command, interval)

    def _refuse_unknown(self, command: Start) -> None:
        menu = self._board.menus.get(command.model)
        spot = menu[0].interval if menu else None
        if spot is None or self._arranged.run(command.model, command.rows, command.shape, spot) is None:
            msg = f"its device has no graph of {command.model} for {command.rows} rows"
            raise ModelError(msg)

    def _replay(self, command: Start, interval: Interval) -> Replay:
        key = self._arranged.run(command.model, command.rows, command.shape, interval)
        assert key, "a model has the same graphs on all its places"
        return Replay(command, key)

    def drain(self, built: Built) -> None:
        """Stop the gpulets whose place changes, each behind the batch that it runs."""
        assert self._next is None, "one re-cut at a time"
        self._next = built
        self._asked = self._drained = self._clock()
        for gpulet, station in self.stations.items():
            if not _stays(gpulet, station, built.places):
                station.drain()
        if built.arranged.menus != self._arranged.menus:
            self._parked_runs = []

    def swap(self) -> Resumed:
        """The next plan is in force from here on."""
        assert self._next is not None, "no plan to swap in"
        assert self.is_drained, "a gpulet still runs on its old place"
        began = self._clock()
        built, self._next, old = self._next, None, self.stations
        self.stations = {gpulet: self._take_over(gpulet, place, old) for gpulet, place in built.places.items()}
        if built.arranged.menus != self._arranged.menus:
            self._board = Board(built.arranged.menus)
        self._arranged = built.arranged
        parked = self._take_parked(old.values())
        times = Times(built.took, self._drained - self._asked, self._clock() - began)
        return self._resume(parked, times)

    def abort(self) -> Resumed:
        """The plan in force stays in force."""
        assert self._next is not None, "no plan to give up"
        built, self._next = self._next, None
        for station in self.stations.values():
            station.state = State.RUNNING
        parked = self._take_parked(self.stations.values())
        return self._resume(parked, Times(built.took, self._clock() - self._asked, 0))

    def _take_over(self, gpulet: GpuletId, place: Place, old: dict[GpuletId, Station]) -> Station:
        """A gpulet that stays keeps its station, and what runs there."""
        station = old.get(gpulet)
        if station is None or station.place.interval != place.interval:
            return Station(place)
        station.place = place
        return station

    def _resume(self, parked: list[Start], times: Times) -> Resumed:
        replays: list[Replay] = []
        returned: list[Start] = []
        for start in parked:
            try:
                replay = self.start(start) if isinstance(start.on, Carve) or start.on in self.stations else None
            except ModelError:
                returned.append(start)
                continue
            if replay:
                replays.append(replay)
            elif not isinstance(start.on, Carve):
                returned.append(start)
        return Resumed(tuple(replays), tuple(returned), times)

    def _take_parked(self, stations: Iterable[Station]) -> list[Start]:
        runs, self._parked_runs = self._parked_runs or [], None
        return [*_take_parked(stations), *runs]

    def _begin(self, station: Station, start: Start) -> Replay:
        replay = station.begin(start)
        self._running[start.batch] = station
        return replay


def _stays(gpulet: GpuletId, station: Station, places: Places) -> bool:
    return gpulet in places and places[gpulet].interval == station.place.interval


def _take_parked(stations: Iterable[Station]) -> list[Start]:
    taken: list[Start] = []
    for station in stations:
        if station.parked:
            taken.append(station.parked)
            station.parked = None
    return taken
