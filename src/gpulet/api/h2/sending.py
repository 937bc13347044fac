"""What leaves a connection: frames in order, data as far as the peer's windows allow (RFC 9113, section 5.2)."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from gpulet.api.h2 import frames
from gpulet.api.h2.frames import Code, ConnectionFault, Setting, StreamFault
from gpulet.executors.base import Buffer

_SHRINK_TABLE: Final = b"\x20"  # a dynamic table of 0 bytes: we use none
_TABLE_BYTES: Final = 4096
_HEADERS: Final = bytes((frames.HEADERS, frames.END_HEADERS))
_LAST_HEADERS: Final = bytes((frames.HEADERS, frames.END_HEADERS | frames.END_STREAM))
_DATA: Final = bytes((frames.DATA, 0))


class Outlet:
    """What one stream has still to send: data in `queue`, then its `trailers`."""

    __slots__ = ("is_done", "is_held", "number", "queue", "trailers", "waiting", "window")

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.queue: deque[memoryview] = deque()
        self.waiting = 0
        self.trailers = b""
        self.is_done = False
        self.is_held = False


class Sender:
    """One connection's. `out` are the frames to be written; `waiting` bytes wait for windows.

    `drained` and `finished` are streams whose queue was held up and has emptied, or that have ended, since somebody cleared these lists.
    Streams that wait for the connection's window take turns, frame by frame; those that wait for their own do not stand
    in their way.
    """

    def __init__(self) -> None:
        self.out: list[bytes | memoryview] = []
        self.waiting = 0
        self._window = frames.WINDOW
        self._initial = frames.WINDOW
        self._most_frame = frames.MOST_FRAME
        self._table = _TABLE_BYTES
        self._shrinks = False
        self._turns: dict[int, Outlet] = {}
        self.drained: list[int] = []
        self.finished: list[Outlet] = []

    @property
    def initial_window(self) -> int:
        """Of a new stream."""
        return self._initial

    def respond(self, outlet: Outlet, head: bytes, parts: Sequence[Buffer], size: int, trailers: bytes) -> bool:
        """A whole response at once: `head` and `trailers` are blocks, `parts` have `size` bytes; whether the windows had room."""
        if size > outlet.window or size > self._window or size > self._most_frame or self._shrinks:
            return False
        outlet.window -= size
        self._window -= size
        outlet.is_done = True
        self.finished.append(outlet)
        number = outlet.number.to_bytes(4, "big")
        self.out.append(
            b"".join(
                (
                    len(head).to_bytes(3, "big"),
                    _HEADERS,
                    number,
                    head,
                    size.to_bytes(3, "big"),
                    _DATA,
                    number,
                    *parts,
                    len(trailers).to_bytes(3, "big"),
                    _LAST_HEADERS,
                    number,
                    trailers,
                )
            )
        )
        return True

    def head(self, outlet: Outlet, block: bytes, *, is_last: bool = False) -> None:
        """A block of header fields, which fits a frame; those that end a stream pass by no data of it."""
        if self._shrinks:
            self._shrinks = False
            block = _SHRINK_TABLE + block
        flags = frames.END_HEADERS | (frames.END_STREAM if is_last else 0)
        if is_last:
            outlet.is_done = True
            self.finished.append(outlet)
        self.out.append(frames.frame(frames.HEADERS, flags, outlet.number, block))

    def data(self, outlet: Outlet, data: bytes) -> None:
        """Bytes of a stream."""
        if data:
            outlet.queue.append(memoryview(data))
            outlet.waiting += len(data)
            self.waiting += len(data)
        self._go_on(outlet)
        outlet.is_held = bool(outlet.queue)

    def finish(self, outlet: Outlet, trailers: bytes) -> None:
        """End a stream once its data is out."""
        outlet.trailers = trailers
        if not outlet.queue:
            self.head(outlet, trailers, is_last=True)

    def forget(self, outlet: Outlet) -> None:
        """Send nothing more of it."""
        self.waiting -= outlet.waiting
        outlet.waiting = 0
        outlet.queue.clear()
        outlet.is_done = True
        self._turns.pop(outlet.number, None)

    def grow(self, outlet: Outlet, size: int) -> None:
        """The peer takes more of a stream; raises `StreamFault`."""
        if not size:
            raise StreamFault(outlet.number, Code.PROTOCOL_ERROR)
        outlet.window += size
        if outlet.window > frames.MOST_WINDOW:
            raise StreamFault(outlet.number, Code.FLOW_CONTROL_ERROR)
        self._go_on(outlet)

    def grow_all(self, size: int) -> None:
        """The peer takes more on the connection; raises `ConnectionFault`."""
        if not size:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a WINDOW_UPDATE of 0 bytes")
        self._window += size
        if self._window > frames.MOST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window larger than 2^31-1")
        self._take_turns()

    def adopt(self, setting: int, value: int, outlets: Sequence[Outlet]) -> None:
        """What the peer says of itself, to `go_on` with once it is acknowledged; raises `ConnectionFault`."""
        match setting:
            case Setting.ENABLE_PUSH if value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
            case Setting.INITIAL_WINDOW_SIZE:
                self._resize(value, outlets)
            case Setting.MAX_FRAME_SIZE:
                if not frames.MOST_FRAME <= value < 1 << 24:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
                self._most_frame = min(value, 4 * frames.MOST_FRAME)  # longer ones would keep others waiting
            case Setting.HEADER_TABLE_SIZE:
                self._shrinks = self._shrinks or value < self._table
                self._table = 0 if self._shrinks else self._table
            case _:
                pass  # MAX_CONCURRENT_STREAMS is about streams of ours; what is unknown is ignored (6.5.2)

    def _resize(self, value: int, outlets: Sequence[Outlet]) -> None:
        """Open streams' windows follow, below 0 too (6.9.2)."""
        if value > frames.MOST_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE is {value}")
        change, self._initial = value - self._initial, value
        for outlet in outlets:
            outlet.window += change
            if outlet.window > frames.MOST_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a stream's window is larger than 2^31-1")

    def go_on(self, outlets: Sequence[Outlet]) -> None:
        """Send what their windows have come to allow."""
        for outlet in outlets:
            self._go_on(outlet)

    def _go_on(self, outlet: Outlet) -> None:
        if outlet.queue and outlet.window > 0:
            self._turns[outlet.number] = outlet
            self._take_turns()

    def _take_turns(self) -> None:
        turns = self._turns
        while turns and self._window > 0:
            number, outlet = next(iter(turns.items()))
            del turns[number]
            if outlet.window <= 0:  # the peer took it back meanwhile (6.9.2)
                continue
            self._one_frame(outlet)
            if outlet.queue and outlet.window > 0:
                turns[number] = outlet

    def _one_frame(self, outlet: Outlet) -> None:
        piece = outlet.queue[0]
        size = min(len(piece), outlet.window, self._window, self._most_frame)
        self.out.append(frames.HEAD.pack(size >> 8, size & 0xFF, frames.DATA, 0, outlet.number))
        if size == len(piece):
            self.out.append(outlet.queue.popleft())
        else:
            self.out.append(piece[:size])
            outlet.queue[0] = piece[size:]
        outlet.window -= size
        outlet.waiting -= size
        self._window -= size
        self.waiting -= size
        if not outlet.queue:
            if outlet.is_held:
                self.drained.append(outlet.number)
                outlet.is_held = False
            if outlet.trailers:
                self.head(outlet, outlet.trailers, is_last=True)
