"""HTTP on the hot path: infer requests are read from the bytes, everything else goes to the ASGI app.

A connection reads head by head. A head that was seen before is looked up by its bytes; a new one is parsed by
httptools. Infer requests become `Exchange`s whose answers leave in the order of their requests (pipelining); any other
request is handed to uvicorn's protocol, of which this is a subclass, and the connection goes on when that has answered.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gpulet.api.catalog import Catalog
from gpulet.api.heads import CACHE_ENTRIES, Head, error_response, parse_head, response_head
from gpulet.api.infer import Reader
from gpulet.core.messages import Reason
from gpulet.drivers.live import Live
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs

_HEAD_END: Final = b"\r\n\r\n"
_MOST_PIPELINED: Final = 64
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a connection, in bytes; `overload_status` answers what is predicted late or finds a full queue."""

    body: int
    head: int
    connections: int
    overload_status: int


class Front:
    """What all connections share: the driver, the catalog, the readers, the heads that were seen."""

    def __init__(self, live: Live, catalog: Catalog, limits: HttpLimits) -> None:
        self.live = live
        self.catalog = catalog
        self.limits = limits
        self.heads: dict[bytes, Head] = {}
        self.connections = 0
        self._readers: dict[str, Reader] = {}
        self._answered: list[InferProtocol] = []

    def flush_soon(self, connection: "InferProtocol") -> None:
        """Write this connection's answers once this turn's commands are carried out.

        A write to a socket costs as much as all of the core; the next batch need not wait for the answers of the last.
        """
        if not self._answered:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answered.append(connection)

    def _flush(self) -> None:
        answered, self._answered = self._answered, []
        for connection in dict.fromkeys(answered):
            connection.flush()

    def reader(self, head: Head) -> Reader:
        """Who reads requests for this model; raises `RequestError` where it is unknown or not ready."""
        served = self.catalog.models.get(head.model)
        if head.model in self.catalog.refused:
            msg = f"model {head.model} could not be loaded: {self.catalog.refused[head.model]}"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        if served is None:
            msg = f"unknown model {head.model!r}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        if head.version not in {"", served.version}:
            msg = f"model {head.model} has version {served.version}, not {head.version}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        reader = self._readers.get(head.model)
        if reader is None:
            reader = self._readers[head.model] = self._make_reader(head.model, served.version)
        return reader

    def _make_reader(self, name: str, version: str) -> Reader:
        if name not in self.catalog.signatures:
            msg = f"model {name} is still loading"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        served = self.catalog.models[name]
        return Reader(name, version, self.catalog.signatures[name], served.model.max_batch, served.shapes)

    def status(self, reason: Reason) -> int:
        """The HTTP status of a refusal (Triton's mapping; overload is 429 unless 503 is asked for)."""
        match reason:
            case Reason.UNKNOWN_MODEL:
                return HTTPStatus.NOT_FOUND
            case Reason.TOO_LARGE | Reason.CANCELLED:
                return HTTPStatus.BAD_REQUEST
            case Reason.QUEUE_FULL | Reason.LATE:
                return self.limits.overload_status
            case Reason.EXPIRED | Reason.STOPPED | Reason.WORKER_LOST:
                return HTTPStatus.SERVICE_UNAVAILABLE
            case Reason.RUN_FAILED:
                return HTTPStatus.INTERNAL_SERVER_ERROR


class Exchange:
    """One infer request on a connection: its inputs until it is answered, then its response."""

    __slots__ = (
        "_connection",
        "_form",
        "_reader",
        "dims",
        "inputs",
        "keep_alive",
        "name",
        "number",
        "response",
        "rows",
    )

    def __init__(self, connection: "InferProtocol", keep_alive: bool) -> None:
        self._connection = connection
        self.keep_alive = keep_alive
        self.response: tuple[Buffer, ...] = ()
        self.number = 0

    def read(self, head: Head, body: bytes) -> None:
        """Check the request and hand it to the driver; raises `RequestError`."""
        front = self._connection.front
        reader = self._reader = front.reader(head)
        json_bytes = head.json_bytes if head.json_bytes >= 0 else len(body)
        if json_bytes > len(body):
            msg = f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes"
            raise RequestError(msg)
        form = self._form = reader.form(body[:json_bytes])
        self.inputs = form.inputs(memoryview(body)[json_bytes:])
        self.dims = form.dims
        self.rows = form.rows
        self.name = form.request_id
        live = front.live
        slo = front.catalog.models[head.model].model.slo
        is_hard = 0 < form.timeout < slo
        deadline = live.timer.now() + (form.timeout if is_hard else slo)
        self.number = live.submit(self, head.model, deadline, shape=form.shape, priority=form.priority, hard=is_hard)

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Results have come."""
        header, json_bytes, data = self._reader.answer(self._form, outputs, first_row)
        self.inputs = ()
        if not json_bytes:
            self._respond((response_head(200, len(header), "application/json", keep_alive=self.keep_alive), header))
            return
        length = json_bytes + sum(map(len, data))
        kind = "application/octet-stream"
        top = response_head(200, length, kind, keep_alive=self.keep_alive, json_bytes=json_bytes)
        self._respond((top, header, *data))

    def refuse(self, reason: Reason) -> None:
        """The core gave it up."""
        self.inputs = ()
        front = self._connection.front
        status = front.status(reason)
        retry = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        self._respond(error_response(status, f"request was not served: {reason}", self.keep_alive, retry=retry))

    def _respond(self, response: tuple[Buffer, ...]) -> None:
        # One buffer now: the views point into a slot that the next batch overwrites. Written later: see `Front.flush_soon`.
        self.response = (b"".join(response),)
        self._connection.front.flush_soon(self._connection)

    def fail(self, error: RequestError) -> None:
        """The request is not valid."""
        self.response = error_response(error.status, str(error), self.keep_alive)
        self._connection.flush()


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
            self.front.live.cancel(exchange.number)
        self._exchanges.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_opaque:
            super().data_received(data)
            return
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._buffer += data
        if not self._handed_over:
            self._read()

    def on_response_complete(self) -> None:
        """Uvicorn has answered the request that was handed over; go on reading."""
        super().on_response_complete()
        # uvicorn has armed a timer that only its own requests would disarm; ours do not pass there.
        self._unset_keepalive_if_required()
        self._handed_over = False
        if not self._is_opaque and not self.transport.is_closing():
            self.loop.call_soon(self._read)

    def resume_writing(self) -> None:
        """The client reads again: go on answering and reading."""
        super().resume_writing()
        self.transport.resume_reading()
        self.loop.call_soon(self._read)

    def flush(self) -> None:
        """Write the answers whose turn has come."""
        exchanges = self._exchanges
        if self.transport.is_closing():
            return
        while exchanges and exchanges[0].response:
            exchange = exchanges.popleft()
            self.transport.write(exchange.response[0] if len(exchange.response) == 1 else b"".join(exchange.response))
            if not exchange.keep_alive:
                self.transport.close()
                return
        if not exchanges and self._buffer:  # a full pipeline, or a request for uvicorn, has waited for this
            self.transport.resume_reading()
            self.loop.call_soon(self._read)

    def _read(self) -> None:
        """Take whole requests off the buffer, as far as they go."""
        buffer = self._buffer
        while buffer and not self._handed_over and not self._is_opaque and not self.transport.is_closing():
            if len(self._exchanges) >= _MOST_PIPELINED or self.flow.write_paused:
                self.transport.pause_reading()  # until `flush` or `resume_writing`
                self._set_timeout(waits=False)
                return
            end = buffer.find(_HEAD_END)
            if end < 0:
                if len(buffer) > self.front.limits.head:
                    self._refuse(
                        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                        f"request head is larger than {self.front.limits.head} bytes",
                    )
                break
            if not self._take(bytes(buffer[: end + 4])):
                break
        self._set_timeout(waits=bool(buffer) and not self._handed_over and not self._exchanges)

    def _take(self, raw: bytes) -> bool:
        """Take the request of this head if all of it is there; whether the buffer may hold another."""
        head = self._head(raw)
        if head is None:
            return False
        if head.is_chunked or not head.model:
            return self._hand_over(raw, head)
        if head.body > self.front.limits.body:
            self._refuse(413, f"body of {head.body} bytes is larger than {self.front.limits.body}")
            return False
        if head.body < 0:
            self._refuse(411, "an infer request needs a Content-Length")
            return False
        end = len(raw) + head.body
        if len(self._buffer) < end:
            self._continue(head)
            return False
        self._is_continued = False
        self._set_timeout(waits=False)
        body = bytes(memoryview(self._buffer)[len(raw) : end])
        del self._buffer[:end]
        exchange = Exchange(self, head.keep_alive)
        self._exchanges.append(exchange)
        try:
            exchange.read(head, body)
        except RequestError as error:
            exchange.fail(error)
        return True

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
                head = parse_head(raw, self.front.limits.head)
            except RequestError as error:
                self._refuse(error.status, str(error))
                return None
            if len(heads) >= CACHE_ENTRIES:
                heads.clear()
            heads[raw] = head
        return head

    def _hand_over(self, raw: bytes, head: Head) -> bool:
        """Give one request to uvicorn, once the answers before it are out (`flush` comes back here)."""
        if self._exchanges:
            return False
        if head.body > self.front.limits.body:
            self._refuse(413, f"body of {head.body} bytes is larger than {self.front.limits.body}")
            return False
        if head.is_chunked:  # its end is uvicorn's to find: the rest of this connection is uvicorn's
            self._is_opaque = True
            data, self._buffer = bytes(self._buffer), bytearray()
            super().data_received(data)
            return False
        end = len(raw) + max(0, head.body)
        if len(self._buffer) < end:
            return False
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._handed_over = True
        super().data_received(data)
        return False

    def _refuse(self, status: int, message: str) -> None:
        """Answer in turn and close: what follows on this connection cannot be trusted."""
        self._is_refused = True
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
