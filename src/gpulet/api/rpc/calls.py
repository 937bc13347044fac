"""One infer request over gRPC between its message and its answer; single ones and streams of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

import grpc

from gpulet.api.forms import Form
from gpulet.api.front import Front, Readers, as_request_error, refusal
from gpulet.api.rpc.infer import as_varint, parse, split
from gpulet.api.rpc.messages import MESSAGES
from gpulet.core.messages import Reason
from gpulet.errors import RequestError
from gpulet.executors.base import Outputs
from gpulet.units import SECOND, Duration

_CACHE_ENTRIES: Final = 512
_CACHEABLE_BYTES: Final = 4096
_MOST_STREAMED: Final = 64
_StreamResponse: Final = MESSAGES["ModelStreamInferResponse"]
_INFER_RESPONSE: Final = b"\x12"  # field 2 of it, length-delimited
_FINAL: Final = MESSAGES["ModelInferResponse"]()
_FINAL.parameters["triton_final_response"].bool_param = True  # type: ignore[attr-defined] # known at run time
_FINAL_BYTES: Final = _FINAL.SerializeToString()
_CODES: Final = {
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.TOO_MANY_REQUESTS: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
}


class Context(Protocol):
    """What of a call's context is used."""

    def time_remaining(self) -> float | None: ...

    def invocation_metadata(self) -> Sequence[tuple[str, str]] | None: ...


class RpcError(RequestError):
    """A refusal that has a status of gRPC's own."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: RequestError) -> grpc.StatusCode:
    """The gRPC status of a refusal."""
    return error.code if isinstance(error, RpcError) else _CODES.get(HTTPStatus(error.status), _INVALID)


_INVALID: Final = grpc.StatusCode.INVALID_ARGUMENT


class Call:
    """One infer request: its inputs until its answer is there."""

    __slots__ = (
        "_form",
        "_front",
        "_has_limit",
        "_readers",
        "dims",
        "done",
        "inputs",
        "name",
        "number",
        "rows",
        "traceparent",
    )

    protocol = "grpc"

    def __init__(self, front: Front, traceparent: str) -> None:
        self._front = front
        self.traceparent = traceparent
        self.done: asyncio.Future[bytes | RequestError] = asyncio.get_running_loop().create_future()
        self.number = 0

    def begin(self, model: str, readers: Readers, form: Form, raws: Sequence[memoryview], limit: Duration) -> None:
        """Hand it to the driver; raises `RequestError`."""
        self._readers, self._form, self._has_limit = readers, form, bool(limit)
        self.inputs = form.inputs(raws, self._front.regions)
        self.dims, self.rows, self.name = form.dims, form.rows, form.request_id
        self.number = self._front.submit(self, model, form, limit)

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Results have come: views into a slot that the next batch overwrites."""
        self.inputs = ()
        if self.done.done():
            return
        try:
            parts = self._readers.rpc.answer(self._form, outputs, first_row, self._front.regions)
            self.done.set_result(b"".join(parts))
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))

    def refuse(self, reason: Reason) -> None:
        """The core gave it up."""
        self.inputs = ()
        message = refusal(reason)
        match reason:
            case Reason.CANCELLED | Reason.ABANDONED:
                self.fail(RpcError(message, grpc.StatusCode.CANCELLED))
            case Reason.EXPIRED if self._has_limit:
                self.fail(RpcError(message, grpc.StatusCode.DEADLINE_EXCEEDED))
            case _:
                self.fail(RequestError(message, self._front.status(reason)))

    def fail(self, error: RequestError) -> None:
        """It has no result. The error is told, not raised: its traceback would keep message and call until a collection."""
        if not self.done.done():
            self.done.set_result(error.with_traceback(None))

    def leave(self) -> None:
        """Nobody will ask what became of it."""
        if not self.done.done():
            self.cancel()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._front.live.cancel(self.number)
        self.done.cancel()


class Infer:
    """ModelInfer and ModelStreamInfer, from bytes to bytes; remembers the descriptions it has seen."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._known: dict[tuple[bytes, tuple[int, ...]], tuple[str, str, Readers, Form]] = {}

    async def one(self, message: bytes, context: Any) -> bytes:
        """ModelInfer."""
        call = self._begin(message, context)
        try:
            answer = await call.done
        finally:
            if call.done.cancelled():
                call.cancel()
        if isinstance(answer, RequestError):
            await context.abort(code_of(answer), str(answer))
            raise answer  # never: `abort` raises
        return answer

    async def stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """ModelStreamInfer: answers in the order of their requests; a bad request does not end the stream."""
        calls: asyncio.Queue[Call | None] = asyncio.Queue(_MOST_STREAMED)
        reading = asyncio.create_task(self._read(messages, context, calls))
        call: Call | None = None
        try:
            while (call := await calls.get()) is not None:
                yield await _streamed(call)
        finally:
            reading.cancel()
            left = [call, *(calls.get_nowait() for _ in range(calls.qsize()))]
            for each in left:
                if each:
                    each.leave()

    async def _read(self, messages: AsyncIterator[bytes], context: Any, calls: "asyncio.Queue[Call | None]") -> None:
        call: Call | None = None
        try:
            async for message in messages:
                call = self._begin(message, context)
                await calls.put(call)
                call = None
        except grpc.RpcError:
            pass  # the client has gone: what has come is answered to nobody
        except Exception as error:  # noqa: BLE001 (see there; without an end the answers would wait for ever)
            as_request_error(error)
        finally:
            if call:  # the answers have ended before there was room for it
                call.leave()
        await calls.put(None)

    def _begin(self, message: bytes, context: Context) -> Call:
        """A call that has begun, or failed."""
        call = Call(self._front, _traceparent(context))
        try:
            limit = _limit(context)
            description, raws = split(message)
            model, readers, form = self._form(description, tuple([len(raw) for raw in raws]))
            call.begin(model, readers, form, raws, limit)
        except Exception as error:  # noqa: BLE001 (see there)
            call.name = ""
            call.fail(as_request_error(error))
        return call

    def _form(self, description: bytes, raw_sizes: tuple[int, ...]) -> tuple[str, Readers, Form]:
        known = self._known.get((description, raw_sizes))
        if known is not None:
            model, version, readers, form = known
            if self._front.readers(model, version) is readers:
                return model, readers, form
        request: Any = parse(description)
        readers = self._front.readers(request.model_name, request.model_version)
        form = readers.rpc.form(request, raw_sizes)
        if raw_sizes and len(description) <= _CACHEABLE_BYTES:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            self._known[description, raw_sizes] = (request.model_name, request.model_version, readers, form)
        return request.model_name, readers, form


_ENDLESS_S: Final = 365 * 86400.0


def _limit(context: Context) -> Duration:
    """How long the client waits, 0 where it does not say; raises `RpcError` where that is over."""
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise RpcError(refusal(Reason.EXPIRED), grpc.StatusCode.DEADLINE_EXCEEDED)
    return round(remaining * SECOND) if remaining is not None and remaining < _ENDLESS_S else 0


def _traceparent(context: Context) -> str:
    return next((str(value) for key, value in context.invocation_metadata() or () if key == "traceparent"), "")


async def _streamed(call: Call) -> bytes:
    """A ModelStreamInferResponse, of an error as well; every request has one answer, which so is its last."""
    answer = await call.done
    if isinstance(answer, RequestError):
        response: Any = _StreamResponse(error_message=str(answer))
        response.infer_response.id = call.name
        told: bytes = response.SerializeToString()
        return told
    size = len(answer) + len(_FINAL_BYTES)
    return b"".join((_INFER_RESPONSE, as_varint(size), answer, _FINAL_BYTES))
