"""What the repository endpoints ask of whoever loads and unloads models, in Triton's words."""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Protocol

from gpulet.errors import RequestError


class State(StrEnum):
    """Of a model, as Triton names them."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One model of the repository: `reason` says why it is not there."""

    name: str
    version: str
    state: State
    reason: str = ""


class Control(Protocol):
    """Loads and unloads by name; all of it on the loop."""

    async def load(self, name: str) -> None:
        """Until it is served, as its files are now; raises `RequestError`: what served before serves on."""
        ...

    async def unload(self, name: str) -> None:
        """Until its memory is given back; requests are refused at once. Raises `RequestError`."""
        ...

    def index(self, *, ready: bool = False) -> list[IndexRow]:
        """Every model, or those that are ready."""
        ...


class ReadOnly:
    """Where the control mode is not explicit: what there is may be listed, nothing else."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def load(self, name: str) -> None:
        """Refused."""
        raise RequestError(_NOT_ALLOWED, HTTPStatus.SERVICE_UNAVAILABLE)

    async def unload(self, name: str) -> None:
        """Refused."""
        raise RequestError(_NOT_ALLOWED, HTTPStatus.SERVICE_UNAVAILABLE)

    def index(self, *, ready: bool = False) -> list[IndexRow]:
        """As it is."""
        return self._control.index(ready=ready)


_NOT_ALLOWED = "explicit model load / unload is not allowed if polling is enabled"
_FITS: type[Control] = ReadOnly
"""The type checker's proof."""
