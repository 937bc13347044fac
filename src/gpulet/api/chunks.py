"""A request's body in chunks, taken off a connection's buffer as it comes (RFC 9112, section 7.1)."""

import re
from http import HTTPStatus
from typing import Final

from gpulet.errors import RequestError

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_LONGEST_LINE: Final = 1024
_MOST_TRAILERS: Final = 8192
_FREE_CHUNKS: Final = 1024
_LEAST_BYTES: Final = 128
"""Beyond the first so many a chunk must bring so much on average: an empty one costs as much time as a full one."""


class Chunks:
    """`body` is all of it once `take` says so; of `most` bytes at most. Extensions and trailers are skipped."""

    def __init__(self, most: int) -> None:
        self.body = bytearray()
        self._most = most
        self._left = 0
        self._ends = False
        self._is_last = False
        self._count = 0
        self._trailers = 0

    def take(self, buffer: bytearray) -> bool:
        """Take what there is off the front; whether the body has ended. Raises `RequestError`: what follows cannot be trusted."""
        while not self._is_last:
            if not (self._data(buffer) and self._end(buffer) and self._begin(buffer)):
                return False
        while (line := self._line(buffer)) is not None:
            if not line:
                return True
            self._trailers += len(line) + 2
            if self._trailers > _MOST_TRAILERS:
                msg = f"trailers are larger than {_MOST_TRAILERS} bytes"
                raise RequestError(msg, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return False

    def _data(self, buffer: bytearray) -> bool:
        """Of the chunk that has begun; whether all of it is there."""
        if self._left and buffer:
            data = buffer[: self._left]
            del buffer[: len(data)]
            self.body += data
            self._left -= len(data)
        return not self._left

    def _end(self, buffer: bytearray) -> bool:
        """The line end behind a chunk's data."""
        if not self._ends:
            return True
        if len(buffer) < 2:  # noqa: PLR2004 (CR and LF)
            return False
        if not buffer.startswith(b"\r\n"):
            msg = "a chunk is not as long as it says"
            raise RequestError(msg)
        del buffer[:2]
        self._ends = False
        return True

    def _begin(self, buffer: bytearray) -> bool:
        """The line before a chunk."""
        line = self._line(buffer)
        if line is None:
            return False
        found = _SIZE.fullmatch(line)
        if found is None:
            msg = f"a chunk's size must be a hexadecimal number, is {line[:40]!r}"
            raise RequestError(msg)
        self._left = int(found[1], 16)
        size = len(self.body) + self._left
        if size > self._most:
            msg = f"body of {size} bytes is larger than {self._most}"
            raise RequestError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._count += 1
        if self._count > _FREE_CHUNKS + size // _LEAST_BYTES:
            msg = f"{self._count} chunks for {size} bytes: at least {_LEAST_BYTES} bytes a chunk are wanted"
            raise RequestError(msg)
        self._ends, self._is_last = self._left > 0, not self._left
        return True

    def _line(self, buffer: bytearray) -> bytes | None:
        end = buffer.find(b"\r\n", 0, _LONGEST_LINE + 2)
        if end < 0:
            if len(buffer) > _LONGEST_LINE:
                msg = f"a line between chunks is longer than {_LONGEST_LINE} bytes"
                raise RequestError(msg)
            return None
        line = bytes(buffer[:end])
        del buffer[: end + 2]
        return line
