"""One infer request over HTTP between its bytes and its response."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Protocol

from gpulet.api.compression import deflated, inflated
from gpulet.api.forms import Form
from gpulet.api.front import Front, as_request_error, refusal
from gpulet.api.heads import Head, error_response, response_head
from gpulet.api.infer import Reader
from gpulet.core.messages import Reason
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs


class Connection(Protocol):
    """Where responses go."""

    front: Front

    def flush(self) -> None:
        """Write the responses whose turn has come."""
        ...

    def flush_soon(self) -> None:
        """The same once this turn's commands are carried out."""
        ...


class Exchange:
    """One infer request on a connection: its inputs until it is answered, then its response."""

    __slots__ = (
        "_connection",
        "_form",
        "_head",
        "_is_over",
        "_reader",
        "dims",
        "inputs",
        "keep_alive",
        "name",
        "number",
        "response",
        "rows",
        "traceparent",
    )
    _form: Form
    _reader: Reader

    protocol = "http"

    def __init__(self, connection: Connection, head: Head | None = None, *, keep_alive: bool = False) -> None:
        self._connection = connection
        self._head = head or Head("", "", 0, -1, keep_alive)
        self._is_over = False
        self.keep_alive = self._head.keep_alive and not connection.front.is_leaving
        self.traceparent = self._head.traceparent
        self.response = b""
        self.number = 0

    def read(self, body: Buffer) -> None:
        """Check the request and hand it to the driver; one that is not valid is answered."""
        try:
            if self._head.encoding:
                self._beside(
                    partial(inflated, body, self._head.encoding, self._connection.front.limits.body), self._read
                )
            else:
                self._read(body)
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))

    def _read(self, body: Buffer) -> None:
        front, head = self._connection.front, self._head
        reader = self._reader = front.readers(head.model, head.version).http
        if head.json_bytes > len(body):
            msg = f"Inference-Header-Content-Length is {head.json_bytes}, the body has {len(body)} bytes"
            raise RequestError(msg)
        json_bytes = len(body) if head.json_bytes < 0 else head.json_bytes
        form = self._form = reader.form(body[:json_bytes]) if json_bytes else reader.checker.raw(len(body))
        self.inputs = form.inputs(form.cut(memoryview(body)[json_bytes:]), front.regions)
        self.dims = form.dims
        self.rows = form.rows
        self.name = form.request_id
        self.number = front.submit(self, head.model, form, head.limit)

    def _beside(self, work: partial[bytes], then: "partial[None] | _Taker") -> None:
        """Do what takes long in a thread; nothing comes of it when the client has gone."""

        def done(future: "asyncio.Future[bytes]") -> None:
            if self._is_over:
                return
            error = future.exception()  # not raised here: it would keep the future, that the error, until a collection
            if isinstance(error, Exception):
                self.fail(as_request_error(error))
                return
            try:
                then(future.result())
            except Exception as found:  # noqa: BLE001 (see there)
                self.fail(as_request_error(found))

        packing = self._connection.front.packing
        asyncio.get_running_loop().run_in_executor(packing, work).add_done_callback(done)

    def cancel(self) -> None:
        """The client has gone."""
        self._is_over = True
        self._connection.front.live.cancel(self.number)

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Results have come."""
        try:
            header, json_bytes, data = self._reader.answer(
                self._form, outputs, first_row, self._connection.front.regions
            )
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))
            return
        self.inputs = ()
        if self._head.accepts:
            body = b"".join((header, *data))
            self._beside(partial(deflated, body, self._head.accepts), partial(self._respond, json_bytes))
        else:
            self._respond(json_bytes, header, *data)

    def _respond(self, json_bytes: int, *body: Buffer) -> None:
        head = self._head
        kind = "application/octet-stream" if json_bytes else "application/json"
        load = self._connection.front.load_report(head.load_format) if head.load_format else ""
        top = response_head(
            200,
            sum(map(len, body)),
            kind,
            keep_alive=self.keep_alive,
            json_bytes=json_bytes,
            encoding=head.accepts,
            load=load,
        )
        # One buffer now: the views point into a slot that the next batch overwrites.
        self.response = b"".join((top, *body))
        self._connection.flush_soon()

    def refuse(self, reason: Reason) -> None:
        """The core gave it up."""
        self.inputs = ()
        status = self._connection.front.status(reason)
        retry = status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
        self.response = error_response(status, refusal(reason), self.keep_alive, retry=retry)
        self._connection.flush_soon()

    def fail(self, error: RequestError) -> None:
        """The request is not valid."""
        self.inputs = ()
        self.response = error_response(error.status, str(error), self.keep_alive)
        self._connection.flush_soon()


class _Taker(Protocol):
    def __call__(self, body: bytes, /) -> None: ...
