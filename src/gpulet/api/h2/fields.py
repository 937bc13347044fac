"""Header fields: HPACK in (RFC 7541), remembered by their bytes where that is sound; literals out.

A block that only refers to the table, or spells fields out without adding them, means the same as long as the table does
not change. Clients send such blocks once they have said everything once; what they mean is looked up by their bytes. A
block that adds to the table or resizes it empties that memory.
"""

import re
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import hpack
from hpack.exceptions import HPACKError

from gpulet.api.h2.frames import Code, ConnectionFault

Field = tuple[bytes, bytes]
_Head = TypeVar("_Head")
_CACHE_ENTRIES: Final = 64
_CACHEABLE_BYTES: Final = 2048
_MOST_DIGITS: Final = 4  # of seven bits: beyond any index or length that fits a block
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_WANTED: Final = frozenset((b":method", b":scheme", b":path"))
_HOP_BY_HOP: Final = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))


class Malformed(Exception):  # noqa: N818 (RFC 9113's word, section 8.1.1)
    """Fields that no request may have."""


class FieldReader(Generic[_Head]):
    """Reads the blocks of one connection; `parse` makes a head of a request's fields and raises `Malformed`."""

    def __init__(self, most_bytes: int, parse: Callable[[list[Field]], _Head]) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=most_bytes)
        self._parse = parse
        self._known: dict[bytes, _Head] = {}

    def head(self, block: bytes) -> _Head:
        """A request's; raises `ConnectionFault` for what is no HPACK or too large."""
        known = self._known.get(block)
        if known is not None:
            return known
        is_stable, fields = self._read(block)
        head = self._parse(fields)
        if is_stable and len(block) <= _CACHEABLE_BYTES:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            self._known[block] = head
        return head

    def trailers(self, block: bytes) -> list[Field]:
        """What follows a request's data, as it came."""
        return self._read(block)[1]

    def _read(self, block: bytes) -> tuple[bool, list[Field]]:
        is_stable = keeps_table(block)
        if not is_stable:
            self._known.clear()
        try:
            found = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError as error:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, str(error)) from None
        except (HPACKError, IndexError) as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, f"header fields cannot be read: {error}") from None
        return is_stable, [(bytes(name), bytes(value)) for name, value in found]


def keeps_table(block: bytes) -> bool:
    """Whether a block leaves the table as it is; raises `ConnectionFault` where it ends within a field."""
    at, size, keeps = 0, len(block), True
    while at < size:
        first = block[at]
        if first & 0x80:
            _, at = _number(block, at, 0x7F)
            continue
        if first & 0xE0 == 0x20:  # noqa: PLR2004 (001xxxxx: another size of the table)
            keeps = False
            _, at = _number(block, at, 0x1F)
            continue
        adds = first & 0x40
        keeps = keeps and not adds
        name, at = _number(block, at, 0x3F if adds else 0x0F)
        if not name:
            at = _behind_string(block, at)
        at = _behind_string(block, at)
    return keeps


def _behind_string(block: bytes, at: int) -> int:
    length, at = _number(block, at, 0x7F)
    if at + length > len(block):
        raise ConnectionFault(Code.COMPRESSION_ERROR, "header fields end within a string")
    return at + length


def _number(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """An integer of RFC 7541, 5.1, and where it ends; bounded, as the library's is not."""
    if at >= len(block):
        raise ConnectionFault(Code.COMPRESSION_ERROR, "header fields end within a field")
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for digit in range(_MOST_DIGITS):
        if at >= len(block):
            break
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << 7 * digit
        if byte < 0x80:  # noqa: PLR2004 (the last byte has no high bit)
            return value, at
    raise ConnectionFault(Code.COMPRESSION_ERROR, "a number in header fields has no end")


def request_fields(fields: list[Field]) -> dict[bytes, bytes]:
    """A request's fields by name, of those sent twice the first; raises `Malformed` (RFC 9113, 8.2 and 8.3)."""
    found: dict[bytes, bytes] = {}
    is_regular = False
    for name, value in fields:
        if name[:1] == b":":
            if is_regular or name in found or name not in _PSEUDO:
                msg = f"pseudo-header field {name[:40]!r} is unknown, late or there twice"
                raise Malformed(msg)
            check_value(value)
        else:
            is_regular = True
            check_field(name, value)
        found.setdefault(name, value)
    if not found.keys() >= _WANTED or not found[b":path"]:
        msg = "a request needs :method, :scheme and :path"
        raise Malformed(msg)
    return found


def check_trailers(fields: list[Field]) -> None:
    """What follows a request's data; raises `Malformed`."""
    for name, value in fields:
        check_field(name, value)


def check_field(name: bytes, value: bytes) -> None:
    """A field that is no pseudo-header field."""
    if not _NAME.fullmatch(name) or name in _HOP_BY_HOP or (name == b"te" and value != b"trailers"):
        msg = f"header field {name[:40]!r} is not allowed"
        raise Malformed(msg)
    check_value(value)


def check_value(value: bytes) -> None:
    """Of any field."""
    if value.strip(b" \t") != value or b"\0" in value or b"\r" in value or b"\n" in value:
        msg = f"header field value {value[:40]!r} is not allowed"
        raise Malformed(msg)


def literal(name: bytes, value: bytes) -> bytes:
    """A field spelled out and not added to the table, so that what we send needs no state."""
    return b"\x00" + _sized(name) + _sized(value)


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:  # noqa: PLR2004 (what fits seven bits)
        return bytes((size,)) + text
    digits = bytearray((0x7F,))
    size -= 0x7F
    while size > 0x7F:  # noqa: PLR2004
        digits.append(size & 0x7F | 0x80)
        size >>= 7
    digits.append(size)
    return bytes(digits) + text
