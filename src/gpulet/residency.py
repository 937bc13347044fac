"""Which of the planned models are loaded: loads and unloads one after the other, beside serving.

A model that was unloaded for being idle, or to make room, sleeps: the next request for it loads it and waits at the door. One
that was unloaded by name stays away until it is loaded by name.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from gpulet.api.control import Control, IndexRow, State
from gpulet.core.messages import Enlist
from gpulet.core.residents import idle, room_for
from gpulet.drivers.door import Door
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import GpuletError, ModelError, RequestError
from gpulet.executors.base import Tell
from gpulet.executors.loading import Loader
from gpulet.executors.wire import WorkerModel
from gpulet.roster import Entry, Found, Roster, Rules
from gpulet.units import MIB, SECOND, Duration

_LOOK: Duration = SECOND // 2
_POLL_S = 0.01
_LONGEST_START: Duration = 60 * SECOND


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a residency asks and tells. `find` reads files and `remember` writes one: both block.

    `arrivals` counts requests; `changed` hears of another version in force; `sizes` are bytes of a copy by digest.
    """

    timer: LiveTimer
    door: Door
    holds: Callable[[str], bool]
    arrivals: Callable[[str], int]
    find: Callable[[str], Found]
    changed: Callable[[str, str], None]
    tell: Tell
    sizes: dict[str, int] = field(default_factory=dict)
    remember: Callable[[Mapping[str, int]], None] = field(default=lambda _: None)


class Residency:
    """One task at a time changes what is loaded. `start`: the models to begin with; None: all."""

    def __init__(
        self, found: Mapping[str, Found], rules: Rules, around: Surroundings, start: Iterable[str] | None = None
    ) -> None:
        self._rules = rules
        self._around = around
        self._roster = Roster(found, rules, around.sizes, found if start is None else start)
        self._lock, self._writing = asyncio.Lock(), asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loader: Loader

    @property
    def wanted(self) -> dict[str, WorkerModel]:
        """The files that workers are to have loaded."""
        return self._roster.given

    def attach(self, loader: Loader) -> None:
        """Say who loads, and was given `wanted`."""
        self._loader = loader

    def begin(self) -> None:
        """From now on requests may come."""
        door = self._around.door
        for name, entry in self._roster.entries.items():
            if not entry.is_given:
                door.close(name, sleeps=name in self._roster.sleeping)
        door.wake = self.wake
        self._do(self._watch())

    def admit(self, event: Enlist, found: Found, *, is_pinned: bool) -> None:
        """There is one model more, not loaded."""
        self._roster.admit(event.model.name, found, is_pinned=is_pinned)
        self._loader.enlist(event)

    def dismiss(self, name: str) -> None:
        """It is none after all."""
        self._roster.entries.pop(name, None)

    async def load(self, name: str) -> None:
        """As `Control` says. Who asks for a load that is on its way waits for that one."""
        self._known(name, "load")
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = self._do(self._load(name))
            task.add_done_callback(lambda task: self._ended(name, task))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            msg = f"failed to load '{name}', the server stops"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE) from None

    async def unload(self, name: str) -> None:
        """As `Control` says. It is refused from now on, even where another load is still going on."""
        entry = self._known(name, "unload")
        self._around.door.close(name, sleeps=False)
        async with self._lock:
            self._learn()
            if not entry.is_given:
                self._around.door.close(name, sleeps=False)
                entry.leave("unloaded")
                return
            try:
                await self._take_off((name,), "unloaded", sleeps=False)
            except GpuletError as error:
                msg = f"failed to unload '{name}', {error}"
                raise RequestError(msg) from error

    def index(self, *, ready: bool = False) -> list[IndexRow]:
        """As `Control` says."""
        self._learn()
        rows = self._roster.index()
        return [row for row in rows if row.state is State.READY] if ready else rows

    def wake(self, name: str) -> None:
        """A request waits for it."""
        if name in self._around.door.asleep and name not in self._loads:
            self._do(self._wake(name))

    async def close(self) -> None:
        """Give up what is going on; nobody waits any longer."""
        self._around.door.shut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        """Who asked may have gone: the error is told to those who stayed."""
        del self._loads[name]
        if not task.cancelled():
            task.exception()

    async def _wake(self, name: str) -> None:
        try:
            await self.load(name)
        except RequestError as error:
            self._around.tell("load_failed", model=name, error=str(error))
            self._around.door.refuse(name)

    async def _load(self, name: str) -> None:
        entry = self._roster.entries[name]
        await self._started(name, entry)
        async with self._lock:
            self._learn()
            try:
                item = await asyncio.to_thread(self._around.find, name)
                if entry.state is not State.READY or item != entry.found:
                    await self._load_file(name, entry, item)
                else:
                    self._around.door.open(name)  # an unload that waits for its turn has closed it
            except GpuletError as error:
                msg = f"failed to load '{name}', {_why(name, error)}"
                raise RequestError(msg) from error

    async def _started(self, name: str, entry: Entry) -> None:
        """Workers that are just starting may have it already."""
        give_up = self._around.timer.now() + _LONGEST_START
        while entry.is_given and entry.state is State.LOADING:
            if self._around.timer.now() >= give_up:
                msg = f"failed to load '{name}', its worker has been starting for {_LONGEST_START / SECOND:g} s"
                raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
            self._learn()
            await asyncio.sleep(_POLL_S)

    async def _load_file(self, name: str, entry: Entry, item: Found) -> None:
        began, known = self._around.timer.now(), self._loader.signatures.get(name)
        await self._make_room(name, self._roster.expected(name, item))
        await self._bring_in(name, entry, item)
        self._measure(name)
        self._around.changed(name, item.version)
        await self._make_fit(name, entry)
        if known not in {None, self._loader.signatures.get(name)}:
            self._around.door.refuse(name)  # who waits has sent what the file before it took
        self._around.door.open(name)
        took_s = round((self._around.timer.now() - began) / SECOND, 3)
        self._around.tell("model_loaded", model=name, version=item.version, took_s=took_s, bytes=entry.size)

    async def _bring_in(self, name: str, entry: Entry, item: Found) -> None:
        """A file that cannot be loaded leaves what serves; where nothing does, the model is refused by name."""
        old, refused = entry.state, self._loader.refused.get(name, "")
        entry.state = State.READY if old is State.READY else State.LOADING
        self._loader.forgive(name)
        try:
            await self._loader.bring({**self.wanted, name: item.file})
        except BaseException as error:
            entry.state = old
            if isinstance(error, ModelError) and not entry.is_given:
                refused = entry.reason = _why(name, error)
                self._around.door.close(name, sleeps=False)
            if refused:
                self._loader.refused[name] = refused
            raise
        entry.arrive(item, self._around.timer.now())

    async def _make_room(self, name: str, needs: int) -> None:
        """For what it is expected to take; raises `RequestError` with the numbers where that cannot be had."""
        if not self._rules.memory:
            return
        self._see()
        others = [model for model in self._roster.loaded(self._around.holds) if model.name != name]
        room = room_for(needs, others, self._rules.memory)
        if room.lacks:
            held, most = sum(model.bytes for model in others), self._rules.memory
            msg = f"it takes {_mib(needs)} of {_mib(most)} MiB, the others hold {_mib(held)}; with those unloaded that are "
            raise RequestError(msg + f"neither pinned nor in use {_mib(room.lacks)} are lacking")
        if room.unload:
            await self._take_off(room.unload, "unloaded to make room", sleeps=True)

    async def _make_fit(self, name: str, entry: Entry) -> None:
        """Where it took more than was expected, others go, or it does itself."""
        try:
            await self._make_room(name, entry.size)
        except RequestError:
            await self._take_off((name,), "unloaded, for it does not fit", sleeps=True)
            raise

    async def _take_off(self, names: tuple[str, ...], why: str, *, sleeps: bool) -> None:
        entries = [self._roster.entries[name] for name in names]
        before = [entry.state for entry in entries]
        for name, entry in zip(names, entries, strict=True):
            self._around.door.close(name, sleeps=sleeps)
            entry.state = State.UNLOADING
        try:
            await self._drained(names)
            await self._loader.bring({name: file for name, file in self.wanted.items() if name not in names})
        except BaseException:
            for name, entry, state in zip(names, entries, before, strict=True):
                entry.state = state
                self._around.door.open(name)
            raise
        for name, entry in zip(names, entries, strict=True):
            entry.leave(why)
            self._around.tell("model_unloaded", model=name, why=why)

    async def _drained(self, names: tuple[str, ...]) -> None:
        """What is here is answered first, unless it takes too long."""
        give_up = self._around.timer.now() + self._rules.patience
        await asyncio.sleep(_POLL_S)  # the core has not heard yet that they are closed
        while any(self._around.holds(name) for name in names):
            if self._around.timer.now() >= give_up:
                self._around.tell("unload_incomplete", models=names, after_s=self._rules.patience / SECOND)
                return
            await asyncio.sleep(_POLL_S)

    async def _watch(self) -> None:
        """Look who is asked for, and let go who is not."""
        while True:
            await asyncio.sleep(min(_LOOK, self._rules.idle // 4 or _LOOK) / SECOND)
            self._learn()
            if self._idle():
                async with self._lock:
                    await self._let_go(self._idle())

    async def _let_go(self, names: tuple[str, ...]) -> None:
        try:
            if names:
                await self._take_off(names, "unloaded, for nobody asked for it", sleeps=True)
        except GpuletError as error:
            self._around.tell("unload_failed", models=names, error=str(error))

    def _idle(self) -> tuple[str, ...]:
        self._see()
        if not self._rules.idle:
            return ()
        return idle(self._roster.loaded(self._around.holds), self._around.timer.now(), self._rules.idle)

    def _see(self) -> None:
        self._roster.see(self._around.arrivals, self._around.timer.now())

    def _learn(self) -> None:
        risen, refused = self._roster.learn(self._loader, self._around.timer.now())
        for name in risen:
            self._measure(name)
        for name in refused:
            self._around.door.close(name, sleeps=False)

    def _measure(self, name: str) -> None:
        if self._roster.measure(name, self._loader):
            self._do(self._remember())

    async def _remember(self) -> None:
        async with self._writing:
            try:
                await asyncio.to_thread(self._around.remember, dict(self._around.sizes))
            except OSError as error:
                self._around.tell("sizes_not_kept", error=str(error))

    def _known(self, name: str, verb: str) -> Entry:
        if name not in self._roster.entries:
            msg = f"failed to {verb} '{name}', no version is available"
            raise RequestError(msg)
        return self._roster.entries[name]

    def _do(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _why(name: str, error: BaseException) -> str:
    return str(error).removeprefix(f"model {name}: ")


def _mib(size: int) -> str:
    return f"{size / MIB:.0f}"


_FITS: type[Control] = Residency
"""The type checker's proof."""
