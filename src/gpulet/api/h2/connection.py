"""The server's end of one HTTP/2 connection (RFC 9113), without sockets and without a clock.

`receive` takes bytes and gives events; what must be written meanwhile gathers in `sender.out`. Whoever drives it calls
`refill` once a second: so many control frames and resets a second are a peer's right, more is an attack.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from gpulet.api.h2 import frames
from gpulet.api.h2.events import Drained, Ended, Event, Opened, Received
from gpulet.api.h2.fields import Field, FieldReader, Malformed, check_trailers
from gpulet.api.h2.frames import MOST_ID, Code, ConnectionFault, StreamFault
from gpulet.api.h2.streams import Limits, Stream, Streams

_MOST_BLOCK_FRAMES: Final = 64


class Head(Protocol):
    """What is asked of a parsed request head."""

    @property
    def content_length(self) -> int:
        """-1 where it is not said."""
        ...


_Head = TypeVar("_Head", bound=Head)


@dataclass(slots=True)
class _Block:
    """Header fields whose frames have not all come."""

    stream: int
    is_last: bool
    data: bytearray
    frames: int = 1


class Connection(Streams, Generic[_Head]):
    """`parse` makes a head of a request's fields; `is_over`: write what is left, then close."""

    def __init__(self, limits: Limits, parse: Callable[[list[Field]], _Head]) -> None:
        super().__init__(limits)
        self.is_leaving = False
        self._fields = FieldReader(limits.head, parse)
        self._rest = b""
        self._is_greeted = self._has_settings = False
        self._block: _Block | None = None

    @property
    def is_incomplete(self) -> bool:
        """Whether the peer has begun something that it must go on with at once."""
        return not self._has_settings or bool(self._rest) or self._block is not None

    def receive(self, data: bytes) -> "list[Event[_Head]]":
        """Take bytes off the wire."""
        events: list[Event[_Head]] = []
        if self.is_over:
            return events
        try:
            self._read(self._rest + data if self._rest else data, events)
        except ConnectionFault as fault:
            self._end(fault)
        if self.sender.drained:
            events += map(Drained, self.sender.drained)
            self.sender.drained.clear()
        return events

    def _read(self, data: bytes, events: "list[Event[_Head]]") -> None:
        if not self._is_greeted:
            data = self._greet(data)
        at, size = 0, len(data) if self._is_greeted else 0
        unpack = frames.HEAD.unpack_from
        while size - at >= frames.HEAD_BYTES:
            high, low, kind, flags, stream = unpack(data, at)
            end = at + frames.HEAD_BYTES + (high << 8 | low)
            if end - at > frames.HEAD_BYTES + frames.MOST_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame larger than {frames.MOST_FRAME} bytes")
            if end > size:
                break
            self._take(kind, flags, stream & MOST_ID, data[at + frames.HEAD_BYTES : end], events)
            at = end
        self._rest = data[at:]

    def _greet(self, data: bytes) -> bytes:
        """What is behind the preface, or what there is of it."""
        if not data.startswith(frames.PREFACE[: len(data)]):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "not HTTP/2")
        if len(data) < len(frames.PREFACE):
            return data
        self._is_greeted = True
        return data[len(frames.PREFACE) :]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "header fields were interrupted by another frame")
        if not self._has_settings and (kind != frames.SETTINGS or flags & frames.ACK):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame was not SETTINGS")
        take = self._TAKERS.get(kind)
        if take is None:  # to be ignored (section 5.5)
            self._spend_control()
            return
        try:
            take(self, flags, stream, payload, events)
        except StreamFault as fault:
            self._spend_reset()
            if fault.stream in self.streams:
                events.append(Ended(fault.stream))
            self.reset(fault.stream, fault.code)

    # frames, in the order of RFC 9113, section 6 ---------------------------------------------------------------------

    def _data(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        size = len(payload)
        self._consume(size)
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        stream = self.streams.get(number)
        if stream is None:
            self._absent(number, "DATA")
            return
        if stream.is_received:
            raise StreamFault(number, Code.STREAM_CLOSED)
        stream.room -= size
        if stream.room < 0:
            raise StreamFault(number, Code.FLOW_CONTROL_ERROR)
        is_ended = bool(flags & frames.END_STREAM)
        if not payload and not is_ended:
            self._spend_control()
        if stream.expects >= 0:
            self._match_length(stream, len(payload))
        if is_ended:
            self._received(stream)
        events.append(Received(number, payload, size, is_ended))

    def _consume(self, size: int) -> None:
        """The connection's own window is given back as it is used: what waits is bounded stream by stream."""
        self._room -= size
        if self._room < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._owed += size
        if self._owed * 2 >= self._limits.whole_window:
            self.sender.out.append(frames.window_update(0, self._owed))
            self._room += self._owed
            self._owed = 0

    def _headers(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        if not number & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"HEADERS on stream {number}")
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
        if flags & frames.PRIORITIZED:
            if len(payload) < 5:  # noqa: PLR2004 (a stream and a weight)
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "HEADERS too short for their priority")
            payload = payload[5:]
        is_last = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._take_fields(number, payload, events, is_last=is_last)
        else:
            self._block = _Block(number, is_last, bytearray(payload))

    def _continuation(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        block = self._block
        if block is None or block.stream != number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"CONTINUATION of nothing on stream {number}")
        block.data += payload
        block.frames += 1
        if len(block.data) > 2 * self._limits.head or block.frames > _MOST_BLOCK_FRAMES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "header fields without end")
        if flags & frames.END_HEADERS:
            self._block = None
            self._take_fields(number, bytes(block.data), events, is_last=block.is_last)

    def _take_fields(self, number: int, block: bytes, events: "list[Event[_Head]]", *, is_last: bool) -> None:
        """The block is read in any case: what it adds to the table counts even where the stream does not."""
        try:
            if number <= self._last:
                self._trailers(number, block, events, is_last=is_last)
                return
            self._last = number
            head = self._fields.head(block)
        except Malformed:
            raise StreamFault(number, Code.PROTOCOL_ERROR) from None
        if number > self._accepts_to:
            self._remember(number)
            return
        if len(self.streams) >= self._limits.streams:
            raise StreamFault(number, Code.REFUSED_STREAM)
        stream = Stream(number, self.sender.initial_window, self._limits.window, head.content_length)
        self.streams[number] = stream
        if is_last:
            self._received(stream)
        events.append(Opened(number, head, is_last))

    def _trailers(self, number: int, block: bytes, events: "list[Event[_Head]]", *, is_last: bool) -> None:
        stream = self.streams.get(number)
        if stream is None and number not in self._ended_by_us:
            raise ConnectionFault(Code.STREAM_CLOSED, f"HEADERS on stream {number}, which is closed")
        fields = self._fields.trailers(block)
        if stream is None:
            return
        if stream.is_received:
            raise StreamFault(number, Code.STREAM_CLOSED)
        check_trailers(fields)
        if not is_last:
            raise StreamFault(number, Code.PROTOCOL_ERROR)
        self._received(stream)
        events.append(Received(number, b"", 0, is_ended=True))

    def _priority(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        self._spend_control()
        if not number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(payload) != 5:  # noqa: PLR2004 (a stream and a weight)
            self._check_not_idle(number, "PRIORITY")
            raise StreamFault(number, Code.FRAME_SIZE_ERROR)

    def _rst_stream(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        _check(payload, 4, "RST_STREAM")
        stream = self.streams.pop(number, None)
        if stream is None:
            self._check_not_idle(number, "RST_STREAM")
            self._spend_control()
            return
        self._spend_reset()
        self.sender.forget(stream)
        events.append(Ended(number))

    def _settings(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        self._spend_control()
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"SETTINGS on stream {number}")
        if flags & frames.ACK:
            _check(payload, 0, "the acknowledgement of SETTINGS")
            return
        if len(payload) % frames.PAIR.size:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        self._has_settings = True
        streams = list(self.streams.values())
        for key, value in frames.PAIR.iter_unpack(payload):
            self.sender.adopt(key, value, streams)
        self.sender.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))  # before what they allow (6.5.3)
        self.sender.go_on(streams)
        self._close_finished()

    def _push_promise(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _ping(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        self._spend_control()
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"PING on stream {number}")
        _check(payload, 8, "PING")
        if not flags & frames.ACK:
            self.sender.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _goaway(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        """The peer begins no more streams, and closes when it has its answers."""
        self._spend_control()
        if number:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"GOAWAY on stream {number}")
        if len(payload) < 8:  # noqa: PLR2004 (a stream and a code)
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"GOAWAY of {len(payload)} bytes")
        self.is_leaving = True

    def _window_update(self, flags: int, number: int, payload: bytes, events: "list[Event[_Head]]") -> None:
        _check(payload, 4, "WINDOW_UPDATE")
        size = frames.LONG.unpack(payload)[0] & MOST_ID
        stream = self.streams.get(number) if number else None
        if not number:
            self.sender.grow_all(size)
        elif stream:
            self.sender.grow(stream, size)
        else:
            self._check_not_idle(number, "WINDOW_UPDATE")
        self._close_finished()

    _TAKERS: ClassVar[dict[int, Callable[..., None]]] = {
        frames.DATA: _data,
        frames.HEADERS: _headers,
        frames.PRIORITY: _priority,
        frames.RST_STREAM: _rst_stream,
        frames.SETTINGS: _settings,
        frames.PUSH_PROMISE: _push_promise,
        frames.PING: _ping,
        frames.GOAWAY: _goaway,
        frames.WINDOW_UPDATE: _window_update,
        frames.CONTINUATION: _continuation,
    }


def _check(payload: bytes, size: int, what: str) -> None:
    if len(payload) != size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes")
