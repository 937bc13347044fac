"""What is known of each model that may be loaded: its file, its state, its bytes, when it was asked for."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from gpulet.api.control import IndexRow, State
from gpulet.core.residents import Loaded, affordable
from gpulet.executors.loading import Loader
from gpulet.executors.wire import WorkerModel
from gpulet.units import MIB, SECOND, Duration, Instant


@dataclass(frozen=True, slots=True)
class Found:
    """A model's file as it is now, and its bytes."""

    version: str
    file: WorkerModel
    size: int


@dataclass(frozen=True, slots=True)
class Rules:
    """`memory` bounds the bytes of all that is loaded, `idle` how long a model is kept unasked; 0: not.

    `patience` is for what waits and runs when its model leaves; `copies` are those of the plan.
    """

    memory: int = 0
    idle: Duration = 0
    patience: Duration = 10 * SECOND
    pinned: frozenset[str] = frozenset()
    copies: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """`is_given`: workers are to have it, and do unless they are just starting or refuse it. `size`: of all copies."""

    found: Found
    size: int
    is_given: bool = True
    state: State = State.LOADING
    reason: str = ""
    arrivals: int = 0
    used: Instant = 0

    def leave(self, why: str) -> None:
        """Workers have it no longer."""
        self.is_given, self.state, self.reason = False, State.UNAVAILABLE, why

    def arrive(self, found: Found, now: Instant) -> None:
        """Workers have it."""
        self.found, self.is_given, self.state, self.reason, self.used = found, True, State.READY, "", now


class Roster:
    """Entries by name. `start`: those to be loaded at first; where they do not all fit the memory, the rest is to sleep.

    `sizes` are bytes of a copy by digest, as they were measured before.
    """

    def __init__(self, found: Mapping[str, Found], rules: Rules, sizes: dict[str, int], start: Iterable[str]) -> None:
        self._rules = rules
        self._sizes = sizes
        self.entries = {name: Entry(item, self.expected(name, item)) for name, item in found.items()}
        asked = {name: self.entries[name].size for name in start}
        fits = affordable(asked, rules.pinned, rules.memory) if rules.memory else tuple(asked)
        self.sleeping = tuple(name for name in asked if name not in fits)
        for name in self.entries.keys() - set(fits):
            self.entries[name].leave("unloaded")

    def admit(self, name: str, item: Found, *, is_pinned: bool) -> None:
        """One more, not loaded."""
        pinned = self._rules.pinned | ({name} if is_pinned else set())
        self._rules = replace(self._rules, pinned=pinned)
        self.entries[name] = entry = Entry(item, self.expected(name, item))
        entry.leave("not loaded")

    @property
    def given(self) -> dict[str, WorkerModel]:
        """The files that workers have been given."""
        return {name: entry.found.file for name, entry in self.entries.items() if entry.is_given}

    def index(self) -> list[IndexRow]:
        """By name."""
        return [IndexRow(n, e.found.version, e.state, e.reason) for n, e in sorted(self.entries.items())]

    def expected(self, name: str, item: Found) -> int:
        """As measured before, else what its file has: weights are most of it."""
        return (self._sizes.get(item.file.digest, 0) or item.size) * self._rules.copies.get(name, 1)

    def measure(self, name: str, loader: Loader) -> bool:
        """Take in what it took, where that was measured; whether it is much more or less than was known."""
        entry, size = self.entries[name], loader.bytes_of(name)
        if not size:
            return False
        entry.size = size
        digest, each = entry.found.file.digest, size // self._rules.copies.get(name, 1)
        known, self._sizes[digest] = self._sizes.get(digest, 0), each
        return abs(each - known) > MIB

    def see(self, arrivals: Callable[[str], int], now: Instant) -> None:
        """Who was asked for since the last look."""
        for name, entry in self.entries.items():
            count = arrivals(name)
            if count != entry.arrivals:
                entry.arrivals, entry.used = count, now

    def loaded(self, holds: Callable[[str], bool]) -> list[Loaded]:
        """What could be unloaded."""
        pinned = self._rules.pinned
        return [
            Loaded(name, entry.size, entry.used, name in pinned, holds(name))
            for name, entry in self.entries.items()
            if entry.state is State.READY
        ]

    def learn(self, loader: Loader, now: Instant) -> tuple[list[str], list[str]]:
        """What workers said meanwhile: models that are loaded from the start, and models that are refused."""
        starting = [n for n, e in self.entries.items() if e.is_given and e.state is State.LOADING]
        refused = [n for n, e in self.entries.items() if e.is_given and n in loader.refused]
        risen = [name for name in starting if name in loader.signatures and name not in refused]
        for name in refused:
            self.entries[name].leave(loader.refused[name])
        for name in risen:
            self.entries[name].arrive(self.entries[name].found, now)
        return risen, refused
