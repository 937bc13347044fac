"""Loading and unloading models while serving: what the protocol asks of whoever does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gpulet.api.catalog import Catalog
from gpulet.errors import RequestError


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One model of the repository index; `state` is READY, UNAVAILABLE, LOADING or UNLOADING, `reason` says why."""

    name: str
    version: str
    state: str
    reason: str = ""


class Control(Protocol):
    """Loads and unloads; both are done when they return, and raise `RequestError`."""

    async def load(self, name: str) -> None:
        """Load a model, or again what changed on disk; the one that serves does so until then."""
        ...

    async def unload(self, name: str) -> None:
        """Answer what waits, then give the memory back."""
        ...

    def index(self) -> Sequence[IndexRow]:
        """All models of the repository."""
        ...


class NoControl:
    """Models are loaded with the server and stay."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def load(self, name: str) -> None:
        """Raises `RequestError`."""
        raise _refused(name, "load")

    async def unload(self, name: str) -> None:
        """Raises `RequestError`."""
        raise _refused(name, "unload")

    def index(self) -> Sequence[IndexRow]:
        """The catalog's models."""
        return [self._row(name, served.version) for name, served in self._catalog.models.items()]

    def _row(self, name: str, version: str) -> IndexRow:
        if name in self._catalog.refused:
            return IndexRow(name, version, "UNAVAILABLE", self._catalog.refused[name])
        is_ready = self._catalog.is_ready(name)
        return IndexRow(name, version, "READY" if is_ready else "LOADING", "" if is_ready else "loading")


def _refused(name: str, what: str) -> RequestError:
    return RequestError(f"{what} of {name[:256]!r} is not allowed: [server] model_control is none")
