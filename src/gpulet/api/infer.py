"""Infer requests of the Open Inference Protocol v2 over HTTP: bytes to forms, results to bytes."""

from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from math import prod
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from msgspec import UNSET
from numpy.typing import NDArray

from gpulet.api.answers import NUMPY, Answered, Labels, answer_of, rows_of
from gpulet.api.asking import LARGEST_DESCRIPTION, MOST_ELEMENTS, MOST_STRINGS, Asked, Given, Place, Wanted
from gpulet.api.documents import InputDoc, OutputDoc, RequestDoc, RequestParameters, TensorParameters
from gpulet.api.forms import Checker, Form
from gpulet.api.regions import Regions
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer, Outputs, Signature
from gpulet.executors.bytestrings import STRINGS, pack, unpack

_CACHE_ENTRIES: Final = 512
_CACHEABLE_BYTES: Final = 4096
_UINT64_END: Final = 1 << 64
_NO_PARAMETERS: Final = TensorParameters()

_decode = msgspec.json.Decoder(RequestDoc).decode


class Reader:
    """Reads requests for one model; remembers the headers it has seen."""

    def __init__(self, version: str, checker: Checker, labels: Labels | None = None) -> None:
        self.version = version
        self.checker = checker
        self.signature: Signature = checker.signature
        self._labels = labels or {}
        self._forms: dict[bytes, Form] = {}

    def form(self, text: Buffer) -> Form:
        """What this JSON asks for; raises `RequestError` for all that it may not, at once where it is too long."""
        if len(text) > LARGEST_DESCRIPTION:
            msg = f"{len(text)} bytes of JSON are larger than {LARGEST_DESCRIPTION}: send tensors as binary data"
            raise RequestError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        header = bytes(text)
        known = self._forms.get(header)
        if known is not None:
            return known
        form = self.checker.form(_asked(header))
        if form.raw_sizes and len(header) <= _CACHEABLE_BYTES:
            if len(self._forms) >= _CACHE_ENTRIES:
                self._forms.clear()
            self._forms[header] = form
        return form

    def answer(
        self, form: Form, outputs: Outputs, first_row: int, regions: Regions
    ) -> tuple[bytes, int, Sequence[Buffer]]:
        """The answer's JSON, its length where binary data follows (else 0), and that data. Raises `RequestError`."""
        outputs, first_row = form.own(outputs, first_row, is_batched=self.signature.is_batched)
        plain = self._plain(form, outputs, first_row)
        if plain is not None:
            return plain
        answered = answer_of(form, self.signature, outputs, first_row, regions, self._labels)
        header = self._header(form, answered)
        binary = [a.data for a in answered if a.wanted.is_binary and not a.wanted.place]
        return header, len(header) if binary else 0, binary

    def _plain(self, form: Form, outputs: Outputs, first_row: int) -> tuple[bytes, int, Sequence[Buffer]] | None:
        """The same for an answer that was described before: all binary, of the same shapes."""
        by_name = {result.tensor.name: result for result in outputs}
        chosen = [by_name[wanted.name] for wanted in form.wanted]
        from_dim = 1 if self.signature.is_batched else 0  # the rows are the form's own
        key = tuple([result.shape[from_dim:] for result in chosen])
        header = form.answers.get(key)
        if header is None:
            return None
        if not from_dim:
            return header, len(header), [result.data for result in chosen]
        return header, len(header), [rows_of(result, first_row, form.rows) for result in chosen]

    def _header(self, form: Form, answered: Sequence[Answered]) -> bytes:
        head = {"model_name": self.checker.name, "model_version": self.version}
        identity = {"id": form.request_id} if form.request_id else {}
        header = orjson.dumps({**head, **identity, "outputs": [_describe(a) for a in answered]})
        if all(a.wanted.is_binary and not a.wanted.place and a.datatype != STRINGS for a in answered):
            from_dim = 1 if self.signature.is_batched else 0
            form.remember(tuple([a.shape[from_dim:] for a in answered]), header)
        return header


def _asked(header: bytes) -> Asked:
    try:
        doc = _decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        msg = f"request is not valid: {error}"
        raise RequestError(msg) from None
    parameters = doc.parameters or RequestParameters()
    outputs = [_wanted(item, default=parameters.binary_data_output) for item in doc.outputs or ()]
    return Asked(
        [_given(item) for item in doc.inputs],
        outputs,
        doc.id,
        parameters.timeout,
        parameters.priority,
        parameters.binary_data_output,
    )


def _given(item: InputDoc) -> Given:
    parameters = item.parameters or _NO_PARAMETERS
    place, size = _place(parameters), parameters.binary_data_size
    if (place is not None) + (size is not UNSET) + (item.data is not UNSET) > 1:
        msg = f"input {item.name!r} must be given once: as data, as binary data or in shared memory"
        raise RequestError(msg)
    if size is not UNSET and size < 0:
        msg = f"input {item.name!r}: binary_data_size must not be below 0, is {size}"
        raise RequestError(msg)
    read = None if item.data is UNSET else partial(_read, item.name, item.datatype, item.shape, item.data)
    return Given(item.name, item.datatype, item.shape, None if size is UNSET else size, place, read)


def _wanted(item: OutputDoc, *, default: bool) -> Wanted:
    parameters = item.parameters or _NO_PARAMETERS
    is_binary = default if parameters.binary_data is UNSET else parameters.binary_data
    return Wanted(item.name, is_binary, _place(parameters), parameters.classification)


def _place(parameters: TensorParameters) -> Place | None:
    if not parameters.shared_memory_region:
        return None
    size = parameters.shared_memory_byte_size
    return Place(parameters.shared_memory_region, parameters.shared_memory_offset, size)


def _describe(answered: Answered) -> dict[str, Any]:
    wanted = answered.wanted
    doc: dict[str, Any] = {"name": wanted.name, "datatype": answered.datatype, "shape": answered.shape}
    if wanted.place:
        return doc  # as Triton has it: its C++ client takes any parameters for those of binary data
    if wanted.is_binary:
        doc["parameters"] = {"binary_data_size": answered.size}
    else:
        doc["data"] = _values(answered)
    return doc


def _values(answered: Answered) -> list[Any]:
    """A flat list for JSON; raises `RequestError` for what JSON has no form of."""
    count = prod(answered.shape)
    if count > (MOST_STRINGS if answered.datatype == STRINGS else MOST_ELEMENTS):
        msg = f"output {answered.wanted.name!r} has {count} elements, too many for JSON: ask for binary data"
        raise RequestError(msg)
    if answered.datatype == STRINGS:
        return [element.decode("utf-8", "replace") for element in unpack(memoryview(answered.data), count)]
    if answered.datatype not in NUMPY:
        msg = f"output {answered.wanted.name!r}: {answered.datatype} travels as binary data only"
        raise RequestError(msg)
    values: list[Any] = np.frombuffer(answered.data, NUMPY[answered.datatype]).tolist()
    return values


def _read(name: str, datatype: str, shape: tuple[int, ...], data: msgspec.Raw) -> Buffer:
    """A tensor that stands in the JSON, flat or nested."""
    if datatype in {"FP16", "BF16"}:
        msg = f"input {name!r}: {datatype} travels as binary data only"
        raise RequestError(msg)
    count, text = prod(shape), bytes(data)
    if count > MOST_ELEMENTS:
        msg = f"input {name!r} has {count} elements, too many for JSON: send binary data"
        raise RequestError(msg)
    try:
        array = (
            _strings(orjson.loads(text)) if datatype == STRINGS else _array(_loaded(text, datatype, count), datatype)
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        msg = f"input {name!r}: data is not {datatype}: {str(error)[:120]}"
        raise RequestError(msg) from None
    if array.size != prod(shape) or array.shape not in {shape, (array.size,)}:
        msg = f"input {name!r}: data has shape {list(array.shape)}, shape says {list(shape)}"
        raise RequestError(msg)
    return pack(array.ravel().tolist()) if datatype == STRINGS else array.tobytes()


def _loaded(text: bytes, datatype: str, count: int) -> Any:
    """Numbers; numpy would take booleans among them for 0 and 1."""
    if text.count(b",") >= count:
        msg = f"found more than {count} values"
        raise ValueError(msg)
    if datatype != "BOOL" and (b"true" in text or b"false" in text):
        msg = "found booleans"
        raise ValueError(msg)
    return orjson.loads(text)


def _strings(values: Any) -> NDArray[Any]:
    """Of `bytes`; numpy would make numbers strings."""
    raw = np.asarray(values, dtype=object)
    if not all(isinstance(value, str) for value in raw.flat):
        msg = "found other values than strings, or rows of different lengths"
        raise ValueError(msg)
    encoded = np.empty(raw.shape, object)
    encoded.ravel()[:] = [value.encode() for value in raw.flat]
    return encoded


def _array(values: Any, datatype: str) -> NDArray[Any]:
    """Integers must be integers and in range, booleans booleans; numpy alone would convert them silently."""
    raw = np.asarray(values, object if datatype == "UINT64" else None)
    if raw.dtype == object and all(isinstance(value, int) and 0 <= value < _UINT64_END for value in raw.flat):
        raw = raw.astype(np.uint64)  # numpy alone makes floats of numbers on both sides of 2^63
    is_real = datatype.startswith("FP")
    kinds = "iuf" if is_real else "b" if datatype == "BOOL" else "iu"
    if raw.size and raw.dtype.kind not in kinds:
        msg = f"found {raw.dtype.name if raw.dtype.kind in 'iufb' else 'other values'}"
        raise ValueError(msg)
    if datatype.startswith(("INT", "UINT")) and raw.size:
        bounds = np.iinfo(NUMPY[datatype])
        if raw.min() < bounds.min or raw.max() > bounds.max:
            msg = f"{raw.min()} to {raw.max()} is out of range"
            raise ValueError(msg)
    with np.errstate(over="ignore"):
        array: NDArray[Any] = raw.astype(NUMPY[datatype])
    if is_real and not np.isfinite(array).all():
        msg = "a number is out of range"
        raise ValueError(msg)
    return array
