"""Who has models loaded, as those see it who decide which: a narrow port, and worker processes behind it."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Protocol

from gpulet.core.messages import Enlist
from gpulet.executors.base import Signature
from gpulet.executors.change import Gently
from gpulet.executors.recutting import reload
from gpulet.executors.simulated import EMULATED, Simulated
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.units import Duration


class Loader(Protocol):
    """`signatures` and `refused` tell which models ever were loaded, and which cannot be."""

    signatures: Mapping[str, Signature]
    refused: MutableMapping[str, str]

    async def bring(self, wanted: Mapping[str, WorkerModel]) -> None:
        """Have exactly these loaded; raises `GpuletError`: then it is as before."""
        ...

    def forgive(self, model: str) -> None:
        """One that was refused may be tried again."""
        ...

    def enlist(self, event: Enlist) -> None:
        """There is one model more, which may be brought from now on."""
        ...

    def bytes_of(self, model: str) -> int:
        """What all its copies take; 0 where nobody measured."""
        ...


class WorkerLoader:
    """Each post's next worker comes up beside the one that serves, not while a request `waits`; `patience` is for its last batch."""

    def __init__(self, workers: Workers, patience: Duration, waits: Callable[[], bool]) -> None:
        self._workers = workers
        self._patience = patience
        self._gently = Gently(waits)
        self.signatures: Mapping[str, Signature] = workers.signatures
        self.refused: MutableMapping[str, str] = workers.refused

    async def bring(self, wanted: Mapping[str, WorkerModel]) -> None:
        """As the port says."""
        await self._workers.carved.wait()
        async with self._workers.changing:
            await reload(self._workers, wanted, self._patience, self._gently)

    def forgive(self, model: str) -> None:
        """As the port says."""
        self._workers.shelf.forgive(model)

    def enlist(self, event: Enlist) -> None:
        """What is brought is all that workers need to know."""

    def bytes_of(self, model: str) -> int:
        """As its workers measured."""
        return self._workers.shelf.bytes_of(model, self._workers.stations)


class EmulatedLoader:
    """Emulated devices have nothing to load: models come and go at once."""

    def __init__(self, signatures: dict[str, Signature], simulated: Simulated) -> None:
        self.signatures: Mapping[str, Signature] = signatures
        self._known = signatures
        self._simulated = simulated
        self.refused: MutableMapping[str, str] = {}

    async def bring(self, wanted: Mapping[str, WorkerModel]) -> None:
        """Nothing is to be done."""

    def forgive(self, model: str) -> None:
        """Nothing was refused."""

    def enlist(self, event: Enlist) -> None:
        """It takes what its profile says."""
        self._known[event.model.name] = EMULATED
        self._simulated.learn(event.points)

    def bytes_of(self, model: str) -> int:
        """Nothing."""
        return 0


_FITS: tuple[type[Loader], ...] = (WorkerLoader, EmulatedLoader)
"""The type checker's proof."""
