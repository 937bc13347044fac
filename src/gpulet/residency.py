"""Which of the planned models are loaded: loads and unloads one after the other, beside serving.

A model that was unloaded for being idle, or to make room, sleeps: the next request for it loads it and waits at the door. One
that was unloaded by name stays away until it is loaded by name.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Protocol

from gpulet.api.control import Control, IndexRow, State
from gpulet.core.residents import Loaded, affordable, idle, room_for
from gpulet.drivers.door import Door
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import GpuletError, ModelError, RequestError
from gpulet.executors.base import Signature, Tell
from gpulet.executors.recutting import reload
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.units import MIB, SECOND, Duration, Instant

_LOOK: Duration = SECOND // 2
_POLL_S = 0.01


class Loader(Protocol):
    """Who has models loaded; `signatures` and `refused` tell which ever were, and which cannot be."""

    @property
    def signatures(self) -> Mapping[str, Signature]: ...

    @property
    def refused(self) -> MutableMapping[str, str]: ...

    async def bring(self, wanted: Mapping[str, WorkerModel]) -> None:
        """Have exactly these loaded; raises `GpuletError`: then it is as before."""
        ...

    def forgive(self, model: str) -> None:
        """One that was refused may be tried again."""
        ...

    def bytes_of(self, model: str) -> int:
        """What all its copies take."""
        ...


class WorkerLoader:
    """Worker processes: each post's next worker comes up beside the one that serves."""

    def __init__(self, workers: Workers, patience: Duration) -> None:
        self._workers = workers
        self._patience = patience
        self.signatures = workers.signatures
        self.refused = workers.refused

    async def bring(self, wanted: Mapping[str, WorkerModel]) -> None:
        """As the port says."""
        await reload(self._workers, wanted, self._patience)

    def forgive(self, model: str) -> None:
        """As the port says."""
        self._workers.shelf.forgive(model)

    def bytes_of(self, model: str) -> int:
        """As its workers measured."""
        return self._workers.shelf.bytes_of(model, self._workers.stations)


@dataclass(frozen=True, slots=True)
class Found:
    """A model's file as it is now, and its bytes."""

    version: str
    file: WorkerModel
    size: int


@dataclass(frozen=True, slots=True)
class Rules:
    """`memory` bounds the bytes of all that is loaded and `idle` how long it is kept unasked; 0: not. `copies` by the plan."""

    memory: int = 0
    idle: Duration = 0
    patience: Duration = 10 * SECOND
    pinned: frozenset[str] = frozenset()
    copies: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a residency asks and tells: `find` reads files and blocks, as `remember` does; `arrivals` counts requests.

    `sizes` are bytes of a copy by digest, as measured before; `changed` hears of another version in force.
    """

    timer: LiveTimer
    door: Door
    holds: Callable[[str], bool]
    arrivals: Callable[[str], int]
    find: Callable[[str], Found]
    changed: Callable[[str, str], None]
    tell: Tell
    sizes: dict[str, int] = field(default_factory=dict)
    remember: Callable[[str, int], None] = field(default=lambda _digest, _size: None)


@dataclass(slots=True)
class _Model:
    """`is_given`: workers are to have it, and do unless they are just starting or refuse it."""

    found: Found
    size: int
    is_given: bool = True
    state: State = State.LOADING
    reason: str = ""
    arrivals: int = 0
    used: Instant = 0


class Residency:
    """The states of models and the one task at a time that changes them. `start`: those to be loaded at first; None: all.

    Where not all that shall be loaded fits the memory, the rest sleeps.
    """

    def __init__(
        self,
        found: Mapping[str, Found],
        rules: Rules,
        around: Surroundings,
        start: Iterable[str] | None = None,
    ) -> None:
        self._rules = rules
        self._around = around
        self._models = {name: _Model(item, self._expected(name, item)) for name, item in found.items()}
        self._lock = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loader: Loader
        asked = tuple(self._models) if start is None else tuple(start)
        fits = asked
        if rules.memory:
            fits = affordable({name: self._models[name].size for name in asked}, rules.pinned, rules.memory)
        self._sleeping_first = tuple(name for name in asked if name not in fits)
        for name in self._models.keys() - set(fits):
            model = self._models[name]
            model.is_given, model.state, model.reason = False, State.UNAVAILABLE, "unloaded"

    @property
    def wanted(self) -> dict[str, WorkerModel]:
        """The files that workers should have loaded now."""
        return {name: model.found.file for name, model in self._models.items() if model.is_given}

    def begin(self, loader: Loader) -> None:
        """Who loads is there, and was given `wanted`."""
        self._loader = loader
        door = self._around.door
        for name, model in self._models.items():
            if model.state is State.UNAVAILABLE:
                door.close(name, sleeps=name in self._sleeping_first)
        door.wake = self.wake
        self._do(self._watch())

    async def load(self, name: str) -> None:
        """As `Control` says. Who asks for a load that is on its way waits for that one."""
        self._known(name, "load")
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = self._do(self._load(name))
            task.add_done_callback(lambda task: self._loaded_or_not(name, task))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            msg = f"failed to load '{name}', the server stops"
            raise RequestError(msg, 503) from None

    async def unload(self, name: str) -> None:
        """As `Control` says. It is refused from now on, even where another load is still going on."""
        model = self._known(name, "unload")
        self._around.door.close(name, sleeps=False)
        async with self._lock:
            self._learn()
            if model.state is State.UNAVAILABLE:
                self._around.door.close(name, sleeps=False)
                model.reason = "unloaded"
                return
            try:
                await self._take_off((name,), "unloaded", sleeps=False)
            except GpuletError as error:
                msg = f"failed to unload '{name}', {error}"
                raise RequestError(msg) from error

    def index(self, *, ready: bool = False) -> list[IndexRow]:
        """As `Control` says."""
        self._learn()
        rows = [IndexRow(n, m.found.version, m.state, m.reason) for n, m in sorted(self._models.items())]
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

    def _loaded_or_not(self, name: str, task: asyncio.Task[None]) -> None:
        """Whoever waited may have gone: the error is told to those who stayed."""
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
        async with self._lock:
            self._learn()
            model = self._models[name]
            try:
                item = await asyncio.to_thread(self._around.find, name)
                if model.state is State.READY and item == model.found:
                    return
                await self._load_file(name, model, item)
            except GpuletError as error:
                msg = str(error).removeprefix(f"model {name}: ")
                raise RequestError(f"failed to load '{name}', {msg}") from error  # noqa: EM102, TRY003 (Triton's words)

    async def _load_file(self, name: str, model: _Model, item: Found) -> None:
        """A file that cannot be loaded leaves what serves; where nothing does, it is refused by name."""
        began, old = self._around.timer.now(), model.state
        await self._make_room(name, self._expected(name, item))
        known, refused = self._loader.signatures.get(name), self._loader.refused.get(name, "")
        model.state = State.READY if old is State.READY else State.LOADING
        self._loader.forgive(name)
        try:
            await self._loader.bring({**self.wanted, name: item.file})
        except BaseException as error:
            model.state = old
            if refused:
                self._loader.refused[name] = refused
            if isinstance(error, ModelError) and old is not State.READY:
                self._refuse(name, model, str(error))
            raise
        self._admit(name, model, item)
        await self._shrink(name)
        if known not in {None, self._loader.signatures[name]}:
            self._around.door.refuse(name)  # who waits has sent what the file before it took
        self._around.door.open(name)
        took_s = round((self._around.timer.now() - began) / SECOND, 3)
        self._around.tell("model_loaded", model=name, version=item.version, took_s=took_s, bytes=model.size)

    def _admit(self, name: str, model: _Model, item: Found) -> None:
        model.found, model.is_given, model.state, model.reason = item, True, State.READY, ""
        self._measure(name, model)
        model.used = self._around.timer.now()
        self._around.changed(name, item.version)

    def _refuse(self, name: str, model: _Model, why: str) -> None:
        model.reason = why.removeprefix(f"model {name}: ")
        self._loader.refused[name] = model.reason
        self._around.door.close(name, sleeps=False)

    async def _make_room(self, name: str, needs: int) -> None:
        """For what it is expected to take; raises `RequestError` with the numbers where that cannot be had."""
        if not self._rules.memory:
            return
        others = [model for model in self._loaded() if model.name != name]
        room = room_for(needs, others, self._rules.memory)
        if room.lacks:
            held = sum(model.bytes for model in others)
            msg = (
                f"it takes {needs / MIB:.0f} MiB; others that are pinned or in use hold {held / MIB:.0f} of "
                f"{self._rules.memory / MIB:.0f} MiB, {room.lacks / MIB:.0f} are lacking"
            )
            raise RequestError(msg)
        if room.unload:
            await self._take_off(room.unload, "unloaded to make room", sleeps=True)

    async def _shrink(self, name: str) -> None:
        """It took more than was expected: others go, or it does itself."""
        try:
            await self._make_room(name, self._models[name].size)
        except RequestError:
            await self._take_off((name,), "unloaded, for it does not fit", sleeps=True)
            raise

    async def _take_off(self, names: tuple[str, ...], why: str, *, sleeps: bool) -> None:
        for name in names:
            self._around.door.close(name, sleeps=sleeps)
            self._models[name].state = State.UNLOADING
        await self._drained(names)
        left = {name: file for name, file in self.wanted.items() if name not in names}
        try:
            await self._loader.bring(left)
        except BaseException:
            for name in names:
                self._models[name].state = State.READY
                self._around.door.open(name)
            raise
        for name in names:
            model = self._models[name]
            model.is_given, model.state, model.reason = False, State.UNAVAILABLE, why
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
            await asyncio.sleep(min(_LOOK, self._rules.idle / 4 or _LOOK) / SECOND)
            self._learn()
            self._see()
            if self._rules.idle and self._idle():
                async with self._lock:
                    names = self._idle()
                    if names:
                        await self._let_go(names)

    async def _let_go(self, names: tuple[str, ...]) -> None:
        try:
            await self._take_off(names, "unloaded, for nobody asked for it", sleeps=True)
        except GpuletError as error:
            self._around.tell("unload_failed", models=names, error=str(error))

    def _idle(self) -> tuple[str, ...]:
        return idle(self._loaded(), self._around.timer.now(), self._rules.idle)

    def _see(self) -> None:
        now = self._around.timer.now()
        for name, model in self._models.items():
            count = self._around.arrivals(name)
            if count != model.arrivals:
                model.arrivals, model.used = count, now

    def _loaded(self) -> list[Loaded]:
        self._see()
        pinned, holds = self._rules.pinned, self._around.holds
        return [
            Loaded(name, model.size, model.used, name in pinned, holds(name))
            for name, model in self._models.items()
            if model.state is State.READY
        ]

    def _learn(self) -> None:
        """What workers said meanwhile: of the models to begin with, and of those that went into quarantine."""
        for name, model in self._models.items():
            if model.is_given and name in self._loader.refused:
                model.is_given, model.state, model.reason = False, State.UNAVAILABLE, self._loader.refused[name]
                self._around.door.close(name, sleeps=False)
            elif model.is_given and model.state is State.LOADING and name in self._loader.signatures:
                model.state = State.READY
                model.used = self._around.timer.now()
                self._measure(name, model)

    def _measure(self, name: str, model: _Model) -> None:
        size = self._loader.bytes_of(name)
        if not size:
            return
        model.size, each = size, size // self._rules.copies.get(name, 1)
        digest = model.found.file.digest
        if digest and abs(each - self._around.sizes.get(digest, 0)) > MIB:
            self._around.sizes[digest] = each
            self._do(asyncio.to_thread(self._around.remember, digest, each))

    def _expected(self, name: str, item: Found) -> int:
        """As measured before, else what its file has: weights are most of it."""
        each = self._around.sizes.get(item.file.digest, 0) or item.size
        return each * self._rules.copies.get(name, 1)

    def _known(self, name: str, verb: str) -> _Model:
        if name not in self._models:
            msg = f"failed to {verb} '{name}', no version is available"
            raise RequestError(msg)
        return self._models[name]

    def _do(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


_FITS: type[Control] = Residency
"""The type checker's proof."""
