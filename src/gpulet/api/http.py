"""HTTP on the hot path: infer requests are read from the bytes, everything else goes to the ASGI app.

A connection reads head by head. A head that was seen before is looked up by its bytes; a new one is parsed by
httptools. Infer requests become `Exchange`s whose answers leave in the order of their requests (pipelining); any other
request is handed to uvicorn's protocol, of which this is a subclass, and the connection goes on when that has answered.
"""

import asyncio
from collections import deque
from http import HTTPStatus
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gpulet.api.asking import LARGEST_DESCRIPTION
from gpulet.api.chunks import Chunks
from gpulet.api.exchange import Exchange
from gpulet.api.front import Front
from gpulet.api.heads import CACHE_ENTRIES, CACHEABLE_BYTES, Head, parse_head
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_LARGE: Final = 1 << 16
_MOST_PIPELINED: Final = 64
_PATIENCE_S: Final = 30.0
_LINGER_S: Final = 1.0


class InferProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, front: Front, config: Config, state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, state, app_state)
        self.front = front
        self._buffer = bytearray()
        self._exchanges: deque[Exchange] = deque()
        self._handed_over = False
        self._is_opaque = False
        self._is_refused = False
        self._is_continued = False
        self._chunked: tuple[Head, Chunks] | None = None
        self._fed = 0
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn narrows it
        super().connection_made(transport)
        self.front.connections += 1
        if self.front.connections > self.front.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"more than {self.front.limits.connections} connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.front.connections -= 1
        self._set_timeout(waits=False)
        for exchange in self._exchanges:
            exchange.cancel()
        self._exchanges.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_opaque:
            self._feed(data)
            return
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._buffer += data
        if not self._handed_over:
            self._read()
        elif len(self._buffer) > self.front.limits.head:  # wait with more until uvicorn has answered
            self.transport.pause_reading()

    def on_headers_complete(self) -> None:
        """What is handed over with its body need not be asked for it."""
        self.expect_100_continue = self.expect_100_continue and self._is_opaque
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Uvicorn has answered the request that was handed over; go on reading."""
        super().on_response_complete()
        # uvicorn has armed a timer that only its own requests would disarm; ours do not pass there.
        self._set_timeout(waits=False)
        if not self._is_opaque:
            self._unset_keepalive_if_required()
        self._handed_over = False
        self.transport.resume_reading()
        if not self._is_opaque and not self.transport.is_closing():
            self.loop.call_soon(self._read)

    def resume_writing(self) -> None:
        """The client reads again: go on answering and reading."""
        super().resume_writing()
        self.transport.resume_reading()
        self.loop.call_soon(self._read)

    def flush_soon(self) -> None:
        """Write answers once this turn's commands are carried out: see `Front.flush_soon`."""
        self.front.flush_soon(self)

    def flush(self) -> None:
        """Write the answers whose turn has come."""
        exchanges = self._exchanges
        if self.transport.is_closing():
            return
        while exchanges and exchanges[0].response:
            exchange = exchanges.popleft()
            self.transport.write(exchange.response)
            if not exchange.keep_alive:
                self._leave()
                return
        if not exchanges and self._buffer:  # a full pipeline, or a request for uvicorn, has waited for this
            self.transport.resume_reading()
            self.loop.call_soon(self._read)

    def _leave(self) -> None:
        """What a refused client still sends is dropped for a while: a close at once would reset it under its answer."""
        limit = self.front.limits.connections
        if self._is_refused and self.transport.can_write_eof() and self.front.connections <= limit:
            self.transport.resume_reading()
            self.transport.write_eof()
            self.loop.call_later(_LINGER_S, self.transport.close)
        else:
            self.transport.close()

    def _read(self) -> None:
        """Take whole requests off the buffer, as far as they go."""
        while (
            (buffer := self._buffer)
            and not self._handed_over
            and not self._is_opaque
            and not self.transport.is_closing()
        ):
            if len(self._exchanges) >= _MOST_PIPELINED or self.flow.write_paused:
                self.transport.pause_reading()  # until `flush` or `resume_writing`
                self._set_timeout(waits=False)
                return
            if not (self._take_chunks(*self._chunked) if self._chunked else self._take_head(buffer)):
                break
        is_inside = bool(self._buffer or self._chunked)
        self._set_timeout(waits=is_inside and not self._handed_over and not self._exchanges)

    def _take_head(self, buffer: bytearray) -> bool:
        """Take the next request if its head is there, as `_take` does."""
        while buffer.startswith(_LINE_END):  # allowed before a request, and not the end of a head
            del buffer[:2]
        end = buffer.find(_HEAD_END)
        if end >= 0:
            return self._take(bytes(buffer[: end + 4]))
        if len(buffer) > self.front.limits.head:
            too_large = f"request head is larger than {self.front.limits.head} bytes"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, too_large)
        return False

    def _take(self, raw: bytes) -> bool:
        """Take the request of this head if all of it is there; whether the buffer may hold another."""
        head = self._head(raw)
        if head is None:
            return False
        if not head.model:
            return self._hand_over(raw, head)
        if not self._admit(head):
            return False
        if head.is_chunked:
            self._chunked = head, Chunks(self.front.limits.body)
            del self._buffer[: len(raw)]
            self._continue(head)
            return True
        end = len(raw) + head.body
        if len(self._buffer) < end:
            self._continue(head)
            return False
        self._begin(head, self._cut(len(raw), end))
        return True

    def _take_chunks(self, head: Head, chunks: Chunks) -> bool:
        """Go on with a body in chunks; whether it is whole."""
        try:
            if not chunks.take(self._buffer):
                return False
        except RequestError as error:
            self._refuse(error.status, str(error))
            return False
        self._chunked = None
        self._begin(head, memoryview(chunks.body))
        return True

    def _begin(self, head: Head, body: Buffer) -> None:
        """The request is whole."""
        self._is_continued = False
        self._set_timeout(waits=False)
        exchange = Exchange(self, head)
        self._exchanges.append(exchange)
        exchange.read(body)

    def _cut(self, begin: int, end: int) -> Buffer:
        """A body, and what is before it, off the buffer. Large ones leave with it: to copy 60 MiB would hold the loop for 30 ms."""
        buffer = self._buffer
        if end - begin < _LARGE:
            body = bytes(memoryview(buffer)[begin:end])
            del buffer[:end]
            return body
        self._buffer = buffer[end:]
        del buffer[end:]
        return memoryview(buffer)[begin:]

    def _admit(self, head: Head) -> bool:
        """Whether its body may come; what it may not is answered."""
        if not head.is_allowed:
            self._refuse(HTTPStatus.UNAUTHORIZED, "a bearer token is wanted")
        elif head.body > self.front.limits.body:
            self._refuse(413, f"body of {head.body} bytes is larger than {self.front.limits.body}")
        elif head.body < 0 and not head.is_chunked:
            self._refuse(411, "an infer request needs a Content-Length, or comes in chunks")
        return not self._is_refused

    def _continue(self, head: Head) -> None:
        """A client that asked whether to send its body is told so, once, when nothing stands before the answer."""
        if head.expects_continue and not self._is_continued and not self._exchanges:
            self._is_continued = True
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head(self, raw: bytes) -> Head | None:
        """The parsed head; `None` after one that is no HTTP was refused."""
        heads = self.front.heads
        head = heads.get(raw)
        if head is None:
            try:
                head = parse_head(raw, self.front.limits.head, self.front.token)
            except RequestError as error:
                self._refuse(error.status, str(error))
                return None
            if len(raw) <= CACHEABLE_BYTES:
                if len(heads) >= CACHE_ENTRIES:
                    heads.clear()
                heads[raw] = head
        return head

    def _hand_over(self, raw: bytes, head: Head) -> bool:
        """Give one request to uvicorn, once the answers before it are out (`flush` comes back here)."""
        if self._exchanges:
            return False
        if head.body > LARGEST_DESCRIPTION:
            self._refuse(413, f"body of {head.body} bytes is larger than {LARGEST_DESCRIPTION}")
            return False
        if head.is_chunked:  # its end is uvicorn's to find, so it is the last on this connection
            self._is_opaque = True
            data = bytes(self._buffer)
            self._buffer.clear()
            self._set_timeout(waits=True)
            self._feed(data)
            return False
        end = len(raw) + max(0, head.body)
        if len(self._buffer) < end:
            self._continue(head)
            return False
        self._is_continued = False
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._handed_over = True
        super().data_received(data)
        return False

    def _feed(self, data: bytes) -> None:
        """To uvicorn, which bounds neither heads nor trailers."""
        self._fed += len(data)
        if self._fed > 2 * LARGEST_DESCRIPTION:
            self._refuse(413, f"request is larger than {2 * LARGEST_DESCRIPTION} bytes")
            return
        super().data_received(data)
        if self.cycle is not None:
            self.cycle.keep_alive = False
            self._set_timeout(waits=self.cycle.more_body)

    def _refuse(self, status: int, message: str) -> None:
        """Answer in turn and close: what follows on this connection cannot be trusted."""
        self._is_refused, self._chunked = True, None
        if self._is_opaque and self.cycle is not None:
            self._is_opaque, self.cycle.disconnected = False, True
            self.cycle.message_event.set()
        self._buffer.clear()
        self._set_timeout(waits=False)
        last = Exchange(self, keep_alive=False)
        self._exchanges.append(last)
        last.fail(RequestError(message, status))

    def _set_timeout(self, *, waits: bool) -> None:
        """A request that stays incomplete for long ends its connection."""
        if waits and self._timeout is None:
            self._timeout = self.loop.call_later(_PATIENCE_S, self._refuse, 408, "request incomplete")
        elif not waits and self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
