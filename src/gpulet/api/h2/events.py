"""What the peer of a connection did, as its driver is told."""

from typing import Generic, TypeAlias, TypeVar

import msgspec

_Head = TypeVar("_Head")


class Opened(msgspec.Struct, Generic[_Head], frozen=True, gc=False):
    """A request begins; `is_ended`: and has no data."""

    stream: int
    head: _Head
    is_ended: bool


class Received(msgspec.Struct, frozen=True, gc=False):
    """Data of a request; `size` with its padding, to be given back by `credit` when there is room for more."""

    stream: int
    data: bytes
    size: int
    is_ended: bool


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A stream is over before its response was: the peer took it back, or broke a rule on it."""

    stream: int


class Drained(msgspec.Struct, frozen=True, gc=False):
    """All data given for this stream has left it."""

    stream: int


Event: TypeAlias = Opened[_Head] | Received | Ended | Drained
