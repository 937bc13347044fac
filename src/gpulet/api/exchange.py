"""One infer request between its bytes and its response, and what all of them share."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from gpulet.api.catalog import Catalog
from gpulet.api.gathered import GatheredReader
from gpulet.api.heads import Head, error_response, response_head
from gpulet.api.infer import Reader
from gpulet.core.messages import Reason
from gpulet.drivers.live import Live
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs


class Connection(Protocol):
    """Where responses go."""

    front: "Front"

    def flush(self) -> None:
        """Write the responses whose turn has come."""
        ...


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
        self._answered: list[Connection] = []

    def flush_soon(self, connection: Connection) -> None:
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

    def forget(self, model: str) -> None:
        """Another file of it is served from now on."""
        self._readers.pop(model, None)

    def _make_reader(self, name: str, version: str) -> Reader:
        if name not in self.catalog.signatures:
            self.catalog.wake(name)
            msg = f"model {name} is still loading"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        served = self.catalog.models[name]
        signature = self.catalog.signatures[name]
        if name in self.catalog.applications:
            return GatheredReader(name, version, signature, served.model.max_batch)
        return Reader(name, version, signature, served.model.max_batch, served.shapes)

    def status(self, reason: Reason) -> int:
        """The HTTP status of a refusal (Triton's mapping; overload is 429 unless 503 is asked for)."""
        match reason:
            case Reason.UNKNOWN_MODEL:
                return HTTPStatus.NOT_FOUND
            case Reason.TOO_LARGE | Reason.CANCELLED | Reason.ABANDONED:
                return HTTPStatus.BAD_REQUEST
            case Reason.QUEUE_FULL | Reason.LATE:
                return self.limits.overload_status
            case Reason.EXPIRED | Reason.STOPPED | Reason.WORKER_LOST | Reason.NOT_LOADED:
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

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
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
