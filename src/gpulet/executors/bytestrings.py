"""BYTES tensors: elements of any length, each as a little-endian 4-byte length and its bytes (Triton's raw form)."""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final

_LENGTH: Final = Struct("<I")
LENGTH_BYTES: Final = _LENGTH.size
STRINGS: Final = "BYTES"


def pack(elements: Iterable[bytes]) -> bytes:
    """The raw form."""
    parts: list[bytes] = []
    for element in elements:
        parts += (_LENGTH.pack(len(element)), element)
    return b"".join(parts)


def ends(data: memoryview, count: int) -> list[int]:
    """Where each of the first `count` elements ends; raises `ValueError` where they are not all there."""
    found: list[int] = []
    end, size = 0, len(data)
    for number in range(count):
        if end + _LENGTH.size > size or end + _LENGTH.size + (length := _LENGTH.unpack_from(data, end)[0]) > size:
            msg = f"{size} bytes hold {number} whole elements, the shape says {count}"
            raise ValueError(msg)
        end += _LENGTH.size + length
        found.append(end)
    return found


def unpack(data: memoryview, count: int) -> Iterator[bytes]:
    """The first `count` elements; raises `ValueError` as `ends` does."""
    begin = 0
    for end in ends(data, count):
        yield bytes(data[begin + _LENGTH.size : end])
        begin = end
