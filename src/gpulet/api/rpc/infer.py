"""Infer requests over gRPC: a message's bytes to a form, results to a message's bytes.

A request is a description (fields 1 to 6) and raw tensors (field 7) that libraries write last. Only the description is
parsed, once for all requests that repeat it; the tensors are views of the message.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from gpulet.api.answers import NUMPY, Answered, Labels, answer_of, rows_of
from gpulet.api.asking import LARGEST_DESCRIPTION, MOST_DIMENSIONS, MOST_TENSORS, Asked, Given, Place, Wanted
from gpulet.api.forms import Checker, Form
from gpulet.api.regions import Regions
from gpulet.api.rpc.messages import MESSAGES
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs, Signature
from gpulet.executors.bytestrings import STRINGS, pack

_Request: Final = MESSAGES["ModelInferRequest"]
_Response: Final = MESSAGES["ModelInferResponse"]
_RAW_INPUT: Final = 0x3A  # field 7, length-delimited
_RAW_OUTPUT: Final = b"\x32"  # field 6, length-delimited
_CACHE_ENTRIES: Final = 512
_CACHEABLE_BYTES: Final = 4096
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    STRINGS: "bytes_contents",
}


def split(message: Buffer) -> tuple[bytes, list[memoryview]]:
    """The description and the raw tensors, as views where they come last. Raises `RequestError` for what is no message."""
    view, end, size, fields = memoryview(message), 0, len(message), 0
    while end < size and message[end] != _RAW_INPUT:
        end, fields = _skip(message, end), fields + 1
        if fields > MOST_TENSORS:
            msg = f"a request has {MOST_TENSORS} fields at most"
            raise RequestError(msg)
    if end > LARGEST_DESCRIPTION:
        msg = f"a request without its raw contents is {LARGEST_DESCRIPTION} bytes at most, not {end}"
        raise RequestError(msg)
    description = bytes(message[:end])
    raws: list[memoryview] = []
    while end < size:
        if len(raws) >= MOST_TENSORS:
            msg = f"a request has {MOST_TENSORS} raw contents at most"
            raise RequestError(msg)
        if message[end] != _RAW_INPUT:
            return _parsed(message)
        length, end = _varint(message, end + 1)
        raws.append(view[end : end + length])
        end += length
    if end != size:
        raise _invalid()
    return description, raws


def _parsed(message: Buffer) -> tuple[bytes, list[memoryview]]:
    """The same where other fields follow raw tensors, which is allowed and nobody does."""
    if len(message) > LARGEST_DESCRIPTION:
        msg = "raw_input_contents must come last in a request of this size"
        raise RequestError(msg)
    whole: Any = parse(bytes(message))
    raws = [memoryview(raw) for raw in whole.raw_input_contents]
    del whole.raw_input_contents[:]
    return whole.SerializeToString(), raws


def _skip(message: Buffer, at: int) -> int:
    """Behind the field at this place."""
    tag, at = _varint(message, at)
    match tag & 7:
        case 0:
            return _varint(message, at)[1]
        case 1:
            return at + 8
        case 2:
            length, at = _varint(message, at)
            return at + length
        case 5:
            return at + 4
        case _:
            raise _invalid()


def _varint(message: Buffer, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:  # noqa: PLR2004 (ten bytes of seven bits)
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:  # noqa: PLR2004 (the last byte has no high bit)
            return value, at
        shift += 7
    raise _invalid()


def _invalid() -> RequestError:
    return RequestError("request is not valid: not a ModelInferRequest")


def parse(description: bytes) -> Message:
    """A description; raises `RequestError`."""
    try:
        return _Request.FromString(description)
    except DecodeError:
        raise _invalid() from None


class RpcReader:
    """Reads requests for one model, answers them; the descriptions it has seen are the service's to remember."""

    def __init__(self, version: str, checker: Checker, labels: Labels | None = None) -> None:
        self.version = version
        self.signature: Signature = checker.signature
        self._checker = checker
        self._labels = labels or {}

    def form(self, request: Any, raw_sizes: Sequence[int]) -> Form:
        """What a parsed description asks for; raises `RequestError` for all that it may not."""
        return self._checker.form(_asked(request, raw_sizes))

    def answer(self, form: Form, outputs: Outputs, first_row: int, regions: Regions) -> list[Buffer]:
        """The parts of a ModelInferResponse; raises `RequestError`."""
        outputs, first_row = form.own(outputs, first_row, is_batched=self.signature.is_batched)
        plain = self._plain(form, outputs, first_row)
        if plain is not None:
            return plain
        answered = answer_of(form, self.signature, outputs, first_row, regions, self._labels)
        head = self._head(form, answered)
        return _joined(head, [b"" if a.wanted.place else a.data for a in answered])

    def _plain(self, form: Form, outputs: Outputs, first_row: int) -> list[Buffer] | None:
        """The same for an answer that was described before."""
        by_name = {result.tensor.name: result for result in outputs}
        chosen = [by_name[wanted.name] for wanted in form.wanted]
        from_dim = 1 if self.signature.is_batched else 0
        head = form.answers.get(tuple([result.shape[from_dim:] for result in chosen]))
        if head is None:
            return None
        if not from_dim:
            return _joined(head, [result.data for result in chosen])
        return _joined(head, [rows_of(result, first_row, form.rows) for result in chosen])

    def _head(self, form: Form, answered: Sequence[Answered]) -> bytes:
        response: Any = _Response(model_name=self._checker.name, model_version=self.version, id=form.request_id)
        for a in answered:
            output = response.outputs.add(name=a.wanted.name, datatype=a.datatype, shape=a.shape)
            if a.wanted.place:
                output.parameters["shared_memory_region"].string_param = a.wanted.place.region
                output.parameters["shared_memory_byte_size"].int64_param = a.size
        head: bytes = response.SerializeToString()
        if not any(a.wanted.place or a.wanted.classes for a in answered):
            from_dim = 1 if self.signature.is_batched else 0
            form.remember(tuple([a.shape[from_dim:] for a in answered]), head)
        return head


def _joined(head: bytes, tensors: Sequence[Buffer]) -> list[Buffer]:
    parts: list[Buffer] = [head]
    for data in tensors:
        parts += (_RAW_OUTPUT, as_varint(len(data)), data)
    return parts


def as_varint(value: int) -> bytes:
    """A number as protobuf writes lengths."""
    found = bytearray()
    while value > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _asked(request: Any, raw_sizes: Sequence[int]) -> Asked:
    """Either every input that is not in shared memory has raw contents, or none has (the protocol's rule)."""
    placed = [_place(item.parameters) for item in request.inputs]
    unplaced = sum(place is None for place in placed)
    if raw_sizes and len(raw_sizes) != unplaced:
        msg = f"{len(raw_sizes)} raw_input_contents for {unplaced} inputs"
        raise RequestError(msg)
    sizes = iter(raw_sizes)
    given = [
        _given(item, place, next(sizes, None) if place is None else None)
        for item, place in zip(request.inputs, placed, strict=True)
    ]
    parameters = request.parameters
    timeout, priority = _whole(parameters, "timeout"), _whole(parameters, "priority")
    wanted = [_wanted(item) for item in request.outputs]
    return Asked(given, wanted, request.id, timeout, priority, binary_by_default=True)


def _given(item: Any, place: Place | None, raw_size: int | None) -> Given:
    has_contents = item.HasField("contents")
    if has_contents and (place or raw_size is not None):
        msg = f"input {item.name!r} must be given once: as contents, raw or in shared memory"
        raise RequestError(msg)
    if len(item.shape) > MOST_DIMENSIONS:
        msg = f"input {item.name!r} has {len(item.shape)} dimensions, {MOST_DIMENSIONS} at most"
        raise RequestError(msg)
    shape = tuple(item.shape)
    read = partial(_read, item.name, item.datatype, shape, item.contents) if has_contents else None
    return Given(item.name, item.datatype, shape, raw_size, place, read)


def _read(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Buffer:
    """Typed contents, flat."""
    key = _CONTENTS.get(datatype)
    if key is None:
        msg = f"input {name!r}: {datatype} travels as raw contents only"
        raise RequestError(msg)
    values, count = getattr(contents, key), prod(shape)
    if len(values) != count:
        msg = f"input {name!r}: {key} has {len(values)} elements, shape {list(shape)} says {count}"
        raise RequestError(msg)
    if datatype == STRINGS:
        return pack(values)
    try:
        return np.array(values, NUMPY[datatype]).tobytes()
    except OverflowError as error:
        msg = f"input {name!r}: {key} is not {datatype}: {error}"
        raise RequestError(msg) from None


def _wanted(item: Any) -> Wanted:
    return Wanted(
        item.name, is_binary=True, place=_place(item.parameters), classes=_whole(item.parameters, "classification")
    )


def _place(parameters: Mapping[str, Any]) -> Place | None:
    if "shared_memory_region" not in parameters:
        return None
    size, offset = _whole(parameters, "shared_memory_byte_size"), _whole(parameters, "shared_memory_offset")
    return Place(parameters["shared_memory_region"].string_param, offset, size)


def _whole(parameters: Mapping[str, Any], key: str) -> int:
    """A parameter that must be a whole number; 0 where it is not there."""
    if key not in parameters:
        return 0
    kind = parameters[key].WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        msg = f"parameter {key} must be a whole number, is a {kind}"
        raise RequestError(msg)
    return int(getattr(parameters[key], kind))
