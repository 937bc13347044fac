"""MPS daemons of ours, one for each GPU or MIG device that needs one, in one private folder that goes with the last.

A daemon that dies takes its clients with it, and workers started with its environment find no other. It is not started
again behind their back: nothing more is proven on it, and the next `started` puts a new one in its place, which new
workers then get to know.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from gpulet.errors import MpsError, Unproven
from gpulet.executors.mpscontrol import Binary, Client, Daemon, MpsControl

_TRIES = 20
_PAUSE_S = 0.1
"""A client is listed a moment after it has asked for a context; two seconds in all."""
_LAST_WORDS = 300


class OwnedMps(MpsControl, Protocol):
    """A daemon whose life is ours: `gpulet.executors.mpscontrol.Daemon`."""

    @property
    def pid(self) -> int:
        """Of the daemon; 0 while there is none."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether there is one and it has not died."""
        ...

    def start(self) -> None:
        """Start it and wait until it answers; raises `MpsError`."""
        ...

    def stop(self) -> None:
        """Never raises, and leaves no daemon."""
        ...


class Daemons:
    """Ours, by the UUID of the device of each. `folder` is where their private folder is made: a short path."""

    def __init__(
        self,
        binary: Binary,
        folder: Path,
        make: Callable[..., OwnedMps] = Daemon,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._binary = binary
        self._parent = folder
        self._make = make
        self._pause = pause
        self._folder: Path | None = None
        self._count = 0
        self._daemons: dict[str, OwnedMps] = {}

    def __getitem__(self, uuid: str) -> OwnedMps:
        """The one of that device, dead or alive."""
        return self._daemons[uuid]

    def pid(self, uuid: str) -> int:
        """Of that device's daemon; 0: it has none."""
        return self._daemons[uuid].pid if uuid in self._daemons else 0

    @property
    def dead(self) -> tuple[str, ...]:
        """The devices whose daemon has died."""
        return tuple(uuid for uuid, daemon in self._daemons.items() if not daemon.is_running)

    @contextmanager
    def started(self, uuids: Iterable[str], *, is_static: bool = False) -> Iterator[None]:
        """A daemon for each of these, those that ran and those that are started here.

        The latter are stopped again where one does not start (`MpsError`) or the context raises; else they stay.
        """
        before = dict(self._daemons)
        absent = [u for u in dict.fromkeys(uuids) if u not in before or not before[u].is_running]
        new: list[OwnedMps] = []
        try:
            for uuid in absent:
                folder = self._new_folder()
                self._daemons[uuid] = self._make(self._binary, folder, uuid, is_static=is_static)
                new.append(self._daemons[uuid])
                _start(self._daemons[uuid], folder)
            yield
        except BaseException:
            for daemon in new:
                daemon.stop()
            self._daemons = before
            self._tidy()
            raise
        for uuid in before.keys() & set(absent):
            before[uuid].stop()

    def prove(self, uuid: str, pid: int) -> None:
        """Show that a process is a client of that device's daemon; raises `Unproven`."""
        daemon = self._daemons[uuid]
        for attempt in range(_TRIES):
            if not daemon.is_running:
                msg = f"process {pid}: the MPS daemon of {uuid} has died, and its clients with it"
                raise Unproven(msg)
            try:
                if daemon.serves(pid):
                    return
            except MpsError as error:
                msg = f"process {pid} is not shown to be a client of the MPS daemon of {uuid}: {error}"
                raise Unproven(msg) from error
            if attempt < _TRIES - 1:
                self._pause(_PAUSE_S)
        msg = f"process {pid} is not a client of the MPS daemon of {uuid}: it runs without its share"
        raise Unproven(msg)

    def dismiss(self, uuid: str, pid: int) -> None:
        """Before a busy client is killed: killing alone is undefined. A daemon that cannot be asked is left alone."""
        with suppress(MpsError):
            self._daemons[uuid].end_client(pid)

    def keep(self, uuids: Iterable[str]) -> None:
        """Stop all others, and end the clients that they still have."""
        for uuid in self._daemons.keys() - set(uuids):
            daemon = self._daemons.pop(uuid)
            with suppress(MpsError):  # it is stopped in any case
                for pid in daemon.clients() if daemon.is_running else ():
                    daemon.end_client(pid)
            daemon.stop()
        self._tidy()

    def close(self) -> None:
        """Stop all of them; nothing is left."""
        self.keep(())

    def _new_folder(self) -> Path:
        if self._folder is None:
            try:
                self._folder = Path(tempfile.mkdtemp(prefix="gpulet-", dir=self._parent))
            except OSError as error:
                command = "start"
                raise MpsError(command, f"no folder can be made in {self._parent}: {error.strerror}") from None
        self._count += 1
        return self._folder / str(self._count)

    def _tidy(self) -> None:
        if self._folder is not None and not self._daemons:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def client_environment(mps: MpsControl, client: Client, uuid: str) -> dict[str, str]:
    """For a client of the daemon of that device.

    The device stands there by its UUID, which client and daemon mean alike: so it hides what the front-end inherited, and
    a process that misses the daemon still finds no device but its own.
    """
    return {**mps.environment(client, {}), "CUDA_VISIBLE_DEVICES": uuid}


def _start(daemon: OwnedMps, folder: Path) -> None:
    """Start it; what it logged is in the error, for its folder may go with it."""
    try:
        daemon.start()
    except MpsError as error:
        log = folder / "log" / "control.log"
        words = " ".join(log.read_text(errors="replace").split())[-_LAST_WORDS:] if log.exists() else ""
        raise MpsError(error.command, f"{error.why}; it logged: {words}" if words else error.why) from error
