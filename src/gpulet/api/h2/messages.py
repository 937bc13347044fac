"""gRPC's messages in a stream of data: a flag, four bytes of length, the message."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from gpulet.api.rpc.status import RpcError, Status
from gpulet.executors.base import Buffer

PREFIX_BYTES: Final = 5
_SMALL: Final = 1024
_GATHERED: Final = 1 << 16
_LARGE: Final = 1 << 16


def prefixed(message: bytes) -> bytes:
    """A message as it travels, not packed."""
    return prefix(len(message)) + message


def prefix(size: int) -> bytes:
    """What stands before a message that is not packed."""
    return size.to_bytes(PREFIX_BYTES, "big")


class MessageReader:
    """Cuts messages of at most `most_bytes` out of chunks; `held` bytes have come and were not yet taken.

    A large message grows as it comes: to join one of 60 MiB at its end would hold the loop for 30 ms.
    """

    __slots__ = ("_at", "_chunks", "_grown", "_is_packed", "_most_bytes", "_wants", "held")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._chunks: deque[bytes | bytearray] = deque()
        self._grown = bytearray()
        self._at = 0
        self._wants = -1
        self._is_packed = False
        self.held = 0

    @property
    def is_within(self) -> bool:
        """Whether a message has begun and not all of it was taken."""
        return self._wants >= 0 or self.held > 0

    def feed(self, chunk: bytes) -> None:
        """More has come; small chunks are gathered, since each object costs as much as 50 bytes."""
        if not chunk:
            return
        self.held += len(chunk)
        last = self._chunks[-1] if self._chunks else b""
        if isinstance(last, bytearray) and len(last) < _GATHERED and len(chunk) < _SMALL:
            last += chunk
        else:
            self._chunks.append(bytearray(chunk) if last and len(chunk) < _SMALL else chunk)

    def take(self) -> tuple[Buffer, bool] | None:
        """The next whole message, and whether it is packed; raises `RpcError`."""
        if self._wants < 0:
            if self.held < PREFIX_BYTES:
                return None
            self._open(self._cut(PREFIX_BYTES))
        if self._wants >= _LARGE:
            self._grow()
        if self.held < self._wants:
            return None
        message = self._cut(self._wants) if self._wants < _LARGE else self._whole()
        self._wants = -1
        return message, self._is_packed

    def _open(self, head: bytes) -> None:
        size = int.from_bytes(head[1:], "big")
        if head[0] > 1:
            msg = f"request is not valid: a message begins with {head[0]}, not with 0 or 1"
            raise RpcError(msg, Status.INVALID_ARGUMENT)
        if size > self._most_bytes:
            msg = f"message of {size} bytes is larger than {self._most_bytes}"
            raise RpcError(msg, Status.RESOURCE_EXHAUSTED)
        self._is_packed = head[0] == 1
        self._wants = size

    def _grow(self) -> None:
        """By what has come of it."""
        loose, missing = self.held - len(self._grown), self._wants - len(self._grown)
        for piece in self._pieces(min(loose, missing)):
            self._grown += piece

    def _whole(self) -> bytearray:
        message, self._grown = self._grown, bytearray()
        self.held -= len(message)
        return message

    def _cut(self, size: int) -> bytes:
        """Bytes that are there; each is copied once, however many chunks or messages they lie in."""
        self.held -= size
        pieces = list(self._pieces(size))
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, size: int) -> Iterator[bytes | bytearray]:
        """So many bytes of the chunks, in which they are no more."""
        while size:
            first = self._chunks[0]
            piece = first[self._at : self._at + size]
            size -= len(piece)
            self._at += len(piece)
            if self._at == len(first):
                self._chunks.popleft()
                self._at = 0
            yield piece
