"""The open streams of a connection: their rooms and windows, how they end, and what a peer may do a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gpulet.api.h2 import frames
from gpulet.api.h2.frames import MOST_ID, Code, ConnectionFault, Setting, StreamFault
from gpulet.api.h2.sending import Outlet, Sender
from gpulet.executors.base import Buffer

_MOST_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may do: `head` bytes of header fields, `window` bytes under way to a stream; a second refills budgets.

    Clients whose deadlines pass reset as many streams as they open: in overload that is honest, and what waits is bounded.
    """

    head: int
    streams: int = 1024
    window: int = 1 << 20
    whole_window: int = 1 << 24
    controls: int = 10_000
    controls_per_second: int = 5_000
    resets: int = 10_000
    resets_per_second: int = 5_000


class Stream(Outlet):
    """A request that is not yet over at both ends; `room` is what the peer may still send, `owed` what it may be given."""

    __slots__ = ("expects", "is_received", "owed", "room")

    def __init__(self, number: int, window: int, room: int, expects: int) -> None:
        super().__init__(number, window)
        self.room = room
        self.owed = 0
        self.expects = expects
        self.is_received = False


class Streams:
    """What the server does on a connection; `is_over`: write what is left, then close."""

    def __init__(self, limits: Limits) -> None:
        self.sender = Sender()
        self.streams: dict[int, Stream] = {}
        self.is_over = False
        self._limits = limits
        self._last = 0
        self._accepts_to = MOST_ID
        self._room = limits.whole_window
        self._owed = 0
        self._controls, self._resets = limits.controls, limits.resets
        self._ended_by_us: dict[int, None] = {}
        said = {
            Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            Setting.INITIAL_WINDOW_SIZE: limits.window,
            Setting.MAX_HEADER_LIST_SIZE: limits.head,
        }
        self.sender.out.append(frames.settings(said))
        if limits.whole_window > frames.WINDOW:
            self.sender.out.append(frames.window_update(0, limits.whole_window - frames.WINDOW))

    def respond(self, number: int, head: bytes, parts: Sequence[Buffer], size: int, trailers: bytes) -> None:
        """A whole response: blocks around `size` bytes of data, which are copied."""
        stream = self.streams.get(number)
        if stream is None:
            return
        if not self.sender.respond(stream, head, parts, size, trailers):
            self.sender.head(stream, head)
            self.sender.data(stream, b"".join(parts))
            self.sender.finish(stream, trailers)
        self._close_finished()

    def begin(self, number: int, head: bytes) -> None:
        """A response whose data comes by and by."""
        if number in self.streams:
            self.sender.head(self.streams[number], head)

    def send(self, number: int, data: bytes) -> None:
        """Some of it."""
        if number in self.streams:
            self.sender.data(self.streams[number], data)

    def finish(self, number: int, trailers: bytes) -> None:
        """The end of a response; of one that has not begun, all of it."""
        if number in self.streams:
            self.sender.finish(self.streams[number], trailers)
            self._close_finished()

    def waiting(self, number: int) -> int:
        """Bytes of a response that the peer has no room for."""
        stream = self.streams.get(number)
        return stream.waiting if stream else 0

    def credit(self, number: int, size: int) -> None:
        """There is room for so much more of a request."""
        stream = self.streams.get(number)
        if stream is None or stream.is_received:
            return
        stream.owed += size
        if stream.owed * 2 >= self._limits.window:
            self.sender.out.append(frames.window_update(number, stream.owed))
            stream.room += stream.owed
            stream.owed = 0

    def reset(self, number: int, code: Code) -> None:
        """End a stream without an answer."""
        stream = self.streams.pop(number, None)
        if stream:
            self.sender.forget(stream)
        self._remember(number)
        self.sender.out.append(frames.rst_stream(number, code))

    def ask_alive(self) -> None:
        """A peer that is there answers; that it does is all that is looked at."""
        self.sender.out.append(frames.frame(frames.PING, 0, 0, b"gpulet??"))

    def leave(self, *, is_final: bool) -> None:
        """Tell the peer to go elsewhere with its next request: first that it should, finally from which stream on it must."""
        if self.is_over:
            return
        self._accepts_to = self._last if is_final else MOST_ID
        self.sender.out.append(frames.goaway(self._accepts_to, Code.NO_ERROR))

    def fail(self, code: Code, why: str) -> None:
        """End the connection."""
        self._end(ConnectionFault(code, why))

    def refill(self) -> None:
        """A second has passed."""
        limits = self._limits
        self._controls = min(limits.controls, self._controls + limits.controls_per_second)
        self._resets = min(limits.resets, self._resets + limits.resets_per_second)

    # rules for those below -------------------------------------------------------------------------------------------

    def _end(self, fault: ConnectionFault) -> None:
        if not self.is_over:
            self.is_over = True
            self.streams.clear()
            self.sender.out.append(frames.goaway(self._last, fault.code, str(fault)))

    def _match_length(self, stream: Stream, size: int) -> None:
        """A request must not be longer than it said."""
        stream.expects -= size
        if stream.expects < 0:
            raise StreamFault(stream.number, Code.PROTOCOL_ERROR)

    def _received(self, stream: Stream) -> None:
        """All of a request has come."""
        if stream.expects > 0:
            raise StreamFault(stream.number, Code.PROTOCOL_ERROR)
        stream.is_received = True

    def _close_finished(self) -> None:
        """Streams whose last frame is out are over; a peer that is still sending is told that it need not."""
        for outlet in self.sender.finished:
            stream = self.streams.pop(outlet.number, None)
            if stream and not stream.is_received:
                self._remember(stream.number)
                self.sender.out.append(frames.rst_stream(stream.number, Code.NO_ERROR))
        self.sender.finished.clear()

    def _remember(self, number: int) -> None:
        """What the peer sent before it heard that this stream is over is passed over."""
        if len(self._ended_by_us) >= _MOST_REMEMBERED:
            del self._ended_by_us[next(iter(self._ended_by_us))]
        self._ended_by_us[number] = None

    def _absent(self, number: int, what: str) -> None:
        self._check_not_idle(number, what)
        if number not in self._ended_by_us:
            raise ConnectionFault(Code.STREAM_CLOSED, f"{what} on stream {number}, which is closed")

    def _check_not_idle(self, number: int, what: str) -> None:
        if not number & 1 or number > self._last:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"{what} on stream {number}, which was not opened")

    def _spend_control(self) -> None:
        self._controls -= 1
        if self._controls < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many control frames")

    def _spend_reset(self) -> None:
        self._resets -= 1
        if self._resets < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many streams reset")
