"""One infer request over gRPC between its message and its answer, whatever carries both."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from gpulet.api.forms import Form
from gpulet.api.front import Front, Readers, as_request_error, refusal
from gpulet.api.rpc.infer import as_varint, parse, split
from gpulet.api.rpc.messages import MESSAGES
from gpulet.api.rpc.status import RpcError, Status
from gpulet.core.messages import Reason
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs
from gpulet.units import Duration

_CACHE_ENTRIES: Final = 512
_CACHEABLE_BYTES: Final = 4096
MOST_STREAMED: Final = 64
"""Requests of one stream that may wait at a time."""
_StreamResponse: Final = MESSAGES["ModelStreamInferResponse"]
_INFER_RESPONSE: Final = b"\x12"  # field 2 of it, length-delimited
_FINAL: Final = MESSAGES["ModelInferResponse"]()
_FINAL.parameters["triton_final_response"].bool_param = True  # type: ignore[attr-defined] # known at run time
_FINAL_BYTES: Final = _FINAL.SerializeToString()


class Call:
    """One infer request: its inputs until it is over. Then `done` is called, once, with `parts` of a message or an `error`.

    The parts are views that hold until `done` returns.
    """

    __slots__ = (
        "_done",
        "_form",
        "_front",
        "_has_limit",
        "_readers",
        "dims",
        "error",
        "inputs",
        "is_over",
        "name",
        "number",
        "parts",
        "rows",
        "traceparent",
    )

    protocol = "grpc"

    def __init__(self, front: Front, traceparent: str, done: "Callable[[Call], None]") -> None:
        self._front = front
        self._done = done
        self.traceparent = traceparent
        self.name = ""
        self.number = 0
        self.inputs: tuple[Buffer, ...] = ()
        self.parts: Sequence[Buffer] = ()
        self.error: RequestError | None = None
        self.is_over = False

    def begin(self, model: str, readers: Readers, form: Form, raws: Sequence[memoryview], limit: Duration) -> None:
        """Hand it to the driver; raises `RequestError`."""
        self._readers, self._form, self._has_limit = readers, form, bool(limit)
        self.inputs = form.inputs(raws, self._front.regions)
        self.dims, self.rows, self.name = form.dims, form.rows, form.request_id
        self.number = self._front.submit(self, model, form, limit)

    def answer(self, outputs: Outputs, first_row: int) -> None:
        """Results have come: views into a slot that the next batch overwrites."""
        self.inputs = ()
        if self.is_over:
            return
        try:
            self.parts = self._readers.rpc.answer(self._form, outputs, first_row, self._front.regions)
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))
            return
        self._end()

    def refuse(self, reason: Reason) -> None:
        """The core gave it up."""
        self.inputs = ()
        message = refusal(reason)
        match reason:
            case Reason.CANCELLED | Reason.ABANDONED:
                self.fail(RpcError(message, Status.CANCELLED))
            case Reason.EXPIRED if self._has_limit:
                self.fail(RpcError(message, Status.DEADLINE_EXCEEDED))
            case _:
                self.fail(RequestError(message, self._front.status(reason)))

    def fail(self, error: RequestError) -> None:
        """It has no result."""
        if not self.is_over:
            self.error = error.with_traceback(None)  # whose frames hold this call
            self._end()

    def cancel(self) -> None:
        """Nobody waits any more."""
        if not self.is_over:
            self.is_over = True
            self._front.live.cancel(self.number)

    def _end(self) -> None:
        self.is_over = True
        self._done(self)
        self.parts = ()


class Infer:
    """Makes calls of messages; remembers the descriptions it has seen."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._known: dict[tuple[bytes, tuple[int, ...]], tuple[str, str, Readers, Form]] = {}

    def begin(self, message: Buffer, limit: Duration, traceparent: str, done: Callable[[Call], None]) -> Call:
        """A call that has begun, or is over already; `limit` is how long its client waits, 0: it does not say, below: too late."""
        call = Call(self._front, traceparent, done)
        if limit < 0:
            call.fail(RpcError(refusal(Reason.EXPIRED), Status.DEADLINE_EXCEEDED))
            return call
        try:
            description, raws = split(message)
            model, readers, form = self._form(description, tuple([len(raw) for raw in raws]))
            call.begin(model, readers, form, raws, limit)
        except Exception as error:  # noqa: BLE001 (see there)
            call.inputs = ()
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


def streamed(call: Call) -> bytes:
    """A ModelStreamInferResponse, of an error as well; every request has one answer, which so is its last."""
    if call.error:
        response: Any = _StreamResponse(error_message=str(call.error))
        response.infer_response.id = call.name
        told: bytes = response.SerializeToString()
        return told
    size = sum(map(len, call.parts)) + len(_FINAL_BYTES)
    return b"".join((_INFER_RESPONSE, as_varint(size), *call.parts, _FINAL_BYTES))
