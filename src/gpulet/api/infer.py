"""Infer requests of the Open Inference Protocol v2: bytes to checked tensors, results to bytes.

Clients repeat themselves, so what a JSON header means is kept by its bytes (`Form`), and so is the answer's header.
Sizes, shapes and datatypes are checked before anything is allocated; every refusal is a `RequestError`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, Final

import msgspec
import numpy as np
import orjson
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from gpulet.api.buckets import Classes, Fit
from gpulet.api.documents import InputDoc, OutputDoc, RequestDoc, RequestParameters
from gpulet.errors import RequestError
from gpulet.executors.base import DATATYPE_SIZES, Buffer, Outputs, Result, Signature, Tensor
from gpulet.units import US, Duration

_CACHE_ENTRIES: Final = 512
_CACHEABLE_BYTES: Final = 4096
_LARGEST_TIMEOUT_US: Final = 2**53

_NUMPY: Final = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


_decode = msgspec.json.Decoder(RequestDoc).decode


@dataclass(slots=True)
class Form:
    """What a JSON header means, apart from the bytes that follow it.

    `spans` are the inputs' places in those bytes, `arrays` what stood in the JSON itself; in the signature's order.
    """

    rows: int
    shape: str
    dims: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int], ...]
    arrays: tuple[Buffer, ...]
    binary_bytes: int
    request_id: str
    timeout: Duration
    priority: int
    wanted: tuple[tuple[str, bool], ...]
    fit: Fit
    answers: dict[Any, bytes] = field(default_factory=dict)

    def inputs(self, body: memoryview) -> tuple[Buffer, ...]:
        """The tensors' bytes; `body` is what follows the JSON."""
        if not self.spans:
            return self.fit.pad(self.arrays)
        if len(body) != self.binary_bytes:
            msg = f"binary data is {len(body)} bytes, the inputs name {self.binary_bytes}"
            raise RequestError(msg)
        return self.fit.pad(tuple([body[start:end] for start, end in self.spans]))


class Reader:
    """Reads requests for one model; remembers the headers it has seen."""

    def __init__(
        self,
        name: str,
        version: str,
        signature: Signature,
        max_batch: int,
        shapes: Sequence[str] = (),
        *,
        pads: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.signature = signature
        self._max_batch = max_batch
        self._classes = Classes(name, signature, shapes, pads=pads)
        self._inputs = {t.name: t for t in signature.inputs}
        self._forms: dict[bytes, Form] = {}

    def form(self, header: bytes) -> Form:
        """What this JSON asks for; raises `RequestError` for all that it may not."""
        known = self._forms.get(header)
        if known is not None:
            return known
        form = self._parse(header)
        if form.spans and len(header) <= _CACHEABLE_BYTES:
            if len(self._forms) >= _CACHE_ENTRIES:
                self._forms.clear()
            self._forms[header] = form
        return form

    def _parse(self, header: bytes) -> Form:
        try:
            doc = _decode(header)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            msg = f"request is not valid: {error}"
            raise RequestError(msg) from None
        given = {item.name: item for item in doc.inputs}
        self._check_names(doc.inputs, given)
        ordered = [given[t.name] for t in self.signature.inputs]
        rows = self._check_shapes(ordered)
        spans = _spans(doc.inputs)
        parameters = doc.parameters or RequestParameters()
        fit = self._classes.fit(tuple(item.shape for item in ordered))
        return Form(
            rows,
            fit.shape,
            fit.dims,
            tuple(spans[item.name] for item in ordered) if spans else (),
            () if spans else tuple(self._array(item) for item in ordered),
            sum(end - start for start, end in spans.values()),
            doc.id,
            _timeout(parameters),
            parameters.priority,
            self._wanted(doc.outputs, parameters),
            fit,
        )

    def _check_names(self, inputs: Sequence[InputDoc], given: dict[str, InputDoc]) -> None:
        if len(given) != len(inputs):
            msg = f"model {self.name}: an input is given twice"
            raise RequestError(msg)
        for item in inputs:
            if item.name not in self._inputs:
                msg = f"model {self.name} has no input {item.name!r}; it takes {', '.join(self._inputs)}"
                raise RequestError(msg)
        missing = [name for name in self._inputs if name not in given]
        if missing:
            msg = f"model {self.name}: input {missing[0]!r} is missing"
            raise RequestError(msg)

    def _check_shapes(self, inputs: Sequence[InputDoc]) -> int:
        """Every shape must fit the signature, and all inputs must have the same rows."""
        for item in inputs:
            self._check_shape(item, self._inputs[item.name])
        if not self.signature.is_batched:
            return 1
        rows = {item.shape[0] for item in inputs}
        if len(rows) > 1:
            msg = f"model {self.name}: inputs have {', '.join(map(str, sorted(rows)))} rows"
            raise RequestError(msg)
        count = rows.pop()
        if not 1 <= count <= self._max_batch:
            msg = f"model {self.name} takes 1 to {self._max_batch} rows, not {count}"
            raise RequestError(msg)
        return count

    def _check_shape(self, item: InputDoc, tensor: Tensor) -> None:
        if item.datatype != tensor.datatype:
            msg = f"model {self.name}: input {item.name!r} is {tensor.datatype}, not {item.datatype}"
            raise RequestError(msg)
        fits = len(item.shape) == len(tensor.shape) and all(
            n > 0 and want in {n, -1} for n, want in zip(item.shape, tensor.shape, strict=True)
        )
        if not fits:
            msg = f"model {self.name}: input {item.name!r} has shape {list(tensor.shape)}, not {list(item.shape)}"
            raise RequestError(msg)
        bytes_needed = prod(item.shape) * DATATYPE_SIZES[tensor.datatype]
        size = item.parameters.binary_data_size if item.parameters else UNSET
        if size is not UNSET and size != bytes_needed:
            msg = f"input {item.name!r} of shape {list(item.shape)} is {bytes_needed} bytes, binary_data_size is {size}"
            raise RequestError(msg)

    def _array(self, item: InputDoc) -> Buffer:
        """A tensor that stands in the JSON, flat or nested."""
        if item.datatype == "FP16":
            msg = f"input {item.name!r}: FP16 travels as binary data only"
            raise RequestError(msg)
        if item.data is UNSET:
            msg = f"input {item.name!r} has neither data nor binary_data_size"
            raise RequestError(msg)
        try:
            values = orjson.loads(bytes(item.data))
            array = _array(values, item.datatype)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            msg = f"input {item.name!r}: data is not {item.datatype}: {str(error)[:120]}"
            raise RequestError(msg) from None
        if array.size != prod(item.shape) or array.shape not in {item.shape, (array.size,)}:
            msg = f"input {item.name!r}: data has shape {list(array.shape)}, shape says {list(item.shape)}"
            raise RequestError(msg)
        return array.tobytes()

    def _wanted(
        self, outputs: list[OutputDoc] | UnsetType, parameters: RequestParameters
    ) -> tuple[tuple[str, bool], ...]:
        """Which outputs, and whether each is binary."""
        everywhere = parameters.binary_data_output
        names = [t.name for t in self.signature.outputs]
        if not outputs:
            return tuple((name, everywhere) for name in names)
        for item in outputs:
            if item.name not in names:
                msg = f"model {self.name} has no output {item.name!r}; it gives {', '.join(names)}"
                raise RequestError(msg)
        return tuple((item.name, _is_binary(item, default=everywhere)) for item in outputs)

    def answer(self, form: Form, outputs: Outputs, first_row: int) -> tuple[bytes, int, list[Buffer]]:
        """The answer's JSON, its length where binary data follows (else 0), and that data."""
        if form.fit.is_padded:
            mine = slice(first_row, first_row + form.rows) if self.signature.is_batched else slice(None)
            outputs, first_row = form.fit.cut(outputs, mine), 0
        by_name = {result.tensor.name: result for result in outputs}
        chosen = [(by_name[name], is_binary) for name, is_binary in form.wanted]
        if all(is_binary for _, is_binary in chosen):
            from_dim = 1 if self.signature.is_batched else 0  # the rows are the form's own
            key = tuple([result.shape[from_dim:] for result, _ in chosen])
            header = form.answers.get(key)
            if header is None:
                header = form.answers[key] = self._header(form, chosen, first_row)
        else:
            header = self._header(form, chosen, first_row)
        binary: list[Buffer] = [self._rows(form, result, first_row) for result, is_binary in chosen if is_binary]
        return header, len(header) if binary else 0, binary

    def _header(self, form: Form, chosen: Sequence[tuple[Result, bool]], first_row: int) -> bytes:
        outputs: list[dict[str, Any]] = []
        for result, is_binary in chosen:
            data = self._rows(form, result, first_row)
            doc: dict[str, Any] = {
                "name": result.tensor.name,
                "datatype": result.tensor.datatype,
                "shape": (form.rows, *result.shape[1:]) if self.signature.is_batched else result.shape,
            }
            if is_binary:
                doc["parameters"] = {"binary_data_size": len(data)}
            else:
                doc["data"] = _values(data, result.tensor.datatype)
            outputs.append(doc)
        head = {"model_name": self.name, "model_version": self.version}
        return orjson.dumps({**head, **({"id": form.request_id} if form.request_id else {}), "outputs": outputs})

    def _rows(self, form: Form, result: Result, first_row: int) -> memoryview:
        if not self.signature.is_batched:
            return result.data
        row_bytes = len(result.data) // result.shape[0]
        return result.data[first_row * row_bytes : (first_row + form.rows) * row_bytes]


def _spans(inputs: Sequence[InputDoc]) -> dict[str, tuple[int, int]]:
    """Places of binary inputs, in the order of the request; all inputs are binary, or none."""
    sizes = [item.parameters.binary_data_size if item.parameters else UNSET for item in inputs]
    known = [size for size in sizes if size is not UNSET]
    if not known:
        return {}
    if len(known) < len(inputs) or any(item.data is not UNSET for item in inputs):
        msg = "inputs must be all binary or all JSON"
        raise RequestError(msg)
    ends = [0]
    for size in known:
        ends.append(ends[-1] + size)
    return {item.name: span for item, span in zip(inputs, pairwise(ends), strict=True)}


def _array(values: Any, datatype: str) -> NDArray[Any]:
    """Integers must be integers and in range, booleans booleans; numpy alone would convert them silently."""
    raw = np.asarray(values)
    is_real = datatype.startswith("FP")
    kinds = "iuf" if is_real else "b" if datatype == "BOOL" else "iu"
    if raw.size and raw.dtype.kind not in kinds:
        msg = f"found {raw.dtype.name if raw.dtype.kind in 'iufb' else 'other values'}"
        raise ValueError(msg)
    if datatype.startswith(("INT", "UINT")) and raw.size:
        bounds = np.iinfo(_NUMPY[datatype])
        if raw.min() < bounds.min or raw.max() > bounds.max:
            msg = f"{raw.min()} to {raw.max()} is out of range"
            raise ValueError(msg)
    return raw.astype(_NUMPY[datatype])


def _values(data: memoryview, datatype: str) -> list[Any]:
    """A flat list for JSON."""
    values: list[Any] = np.frombuffer(data, _NUMPY[datatype]).tolist()
    return values


def _is_binary(item: OutputDoc, *, default: bool) -> bool:
    chosen = item.parameters.binary_data if item.parameters else UNSET
    return default if chosen is UNSET else chosen


def _timeout(parameters: RequestParameters) -> Duration:
    """In nanoseconds; 0 when the client gave none."""
    if parameters.priority < 0:
        msg = f"priority must not be below 0, is {parameters.priority}"
        raise RequestError(msg)
    if parameters.timeout is UNSET or parameters.timeout == 0:
        return 0
    if not 0 < parameters.timeout < _LARGEST_TIMEOUT_US:
        msg = f"timeout must be above 0 microseconds, is {parameters.timeout}"
        raise RequestError(msg)
    return parameters.timeout * US
