"""What an infer request says, whatever protocol it came by: the neutral middle between JSON or protobuf and a `Form`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gpulet.executors.base import Buffer

LARGEST_DESCRIPTION: Final = 4 << 20
"""Bytes of a request less its binary tensors, and of any other document: all is read on the loop, and no request may hold
that for more than 100 ms."""
MOST_ELEMENTS: Final = 1 << 18
"""Of a tensor that stands in a description or in an answer's; an image of 3 x 224 x 224 has 150,528."""
MOST_STRINGS: Final = 1 << 16
"""Of a BYTES tensor: each is looked at by itself."""
MOST_DIMENSIONS: Final = 32
MOST_TENSORS: Final = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes in a registered shared memory region."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Given:
    """One input. Its bytes follow the request (`size` of them, -1 where that is not said), or lie at `place`, or are what
    `read` makes of the description itself, which raises `RequestError`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int | None = None
    place: Place | None = None
    read: Callable[[], Buffer] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output: as binary data, or written to `place`, or in the description; its `classes` best elements, or all (0)."""

    name: str
    is_binary: bool
    place: Place | None = None
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """A whole request. Without `outputs` all are wanted, binary where `binary_by_default`; `timeout_us` 0: none is given."""

    inputs: Sequence[Given]
    outputs: Sequence[Wanted] = ()
    request_id: str = ""
    timeout_us: int = 0
    priority: int = 0
    binary_by_default: bool = False
