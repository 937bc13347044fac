"""Infer requests checked against what their model takes: sizes, shapes, datatypes, before anything is allocated.

Clients repeat themselves, so what a description means is kept by its bytes (`Form`). Every refusal is a `RequestError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final, TypeAlias

from gpulet.api.asking import MOST_STRINGS, Asked, Given, Place, Wanted
from gpulet.api.buckets import Classes, Fit, Shapes
from gpulet.api.regions import Regions
from gpulet.errors import RequestError
from gpulet.executors.base import DATATYPE_SIZES, Buffer, Outputs, Signature, Tensor
from gpulet.executors.bytestrings import LENGTH_BYTES, STRINGS, ends
from gpulet.units import US, Duration

_LARGEST_TIMEOUT_US: Final = 2**53
_LAST_PRIORITY: Final = 2**32 - 1
_MOST_ANSWERS: Final = 64

Source: TypeAlias = int | Place | Buffer
"""Where an input's bytes are: the number of a binary tensor that follows the description, a region, or here."""


@dataclass(slots=True)
class Form:
    """What a description means, apart from the bytes that follow it: `raw_sizes` of them, in the order of the request.

    `sources`, `dims` and `strings` (elements of BYTES inputs, else -1) are in the signature's order. `answers` keeps the
    description of answers by their free dimensions.
    """

    rows: int
    shape: str
    dims: tuple[tuple[int, ...], ...]
    sources: tuple[Source, ...]
    strings: tuple[int, ...]
    raw_sizes: tuple[int, ...]
    request_id: str
    timeout: Duration
    priority: int
    wanted: tuple[Wanted, ...]
    fit: Fit
    is_plain: bool = False
    answers: dict[Shapes, bytes] = field(default_factory=dict)

    def cut(self, body: memoryview) -> list[memoryview]:
        """The binary tensors of what follows the description; raises `RequestError` where its size is another."""
        raws: list[memoryview] = []
        end = 0
        for size in self.raw_sizes:
            raws.append(body[end : end + size])
            end += size
        if len(body) != end:
            msg = f"binary data is {len(body)} bytes, the inputs name {end}"
            raise RequestError(msg)
        return raws

    def inputs(self, raws: Sequence[memoryview], regions: Regions) -> tuple[Buffer, ...]:
        """The tensors' bytes, in the signature's order; raises `RequestError`."""
        if self.is_plain:
            return tuple([raws[source] for source in self.sources])  # type: ignore[index] # as `is_plain` says
        return self.fit.pad(tuple([self._fetch(place, raws, regions) for place in range(len(self.sources))]))

    def remember(self, shapes: Shapes, header: bytes) -> None:
        """How an answer of these shapes is described; where shapes depend on values there may be any number of them."""
        if len(self.answers) >= _MOST_ANSWERS:
            self.answers.clear()
        self.answers[shapes] = header

    def own(self, outputs: Outputs, first_row: int, *, is_batched: bool) -> tuple[Outputs, int]:
        """The outputs and where this request's rows begin in them, less what padding added."""
        if not self.fit.is_padded:
            return outputs, first_row
        return self.fit.cut(outputs, slice(first_row, first_row + self.rows) if is_batched else slice(None)), 0

    def _fetch(self, place: int, raws: Sequence[memoryview], regions: Regions) -> Buffer:
        source, count = self.sources[place], self.strings[place]
        data: Buffer
        if isinstance(source, int):
            data = raws[source]
        elif isinstance(source, Place):
            data = regions.read(source)
        else:
            data = source
        return data if count < 0 else _whole_strings(memoryview(data), count)


def _whole_strings(data: memoryview, count: int) -> Buffer:
    if count > MOST_STRINGS:
        msg = f"BYTES tensor: {MOST_STRINGS} elements at most, not {count}"
        raise RequestError(msg)
    try:
        found = ends(data, count)
    except ValueError as error:
        msg = f"BYTES tensor: {error}"
        raise RequestError(msg) from None
    try:
        for begin, end in zip((0, *found), found, strict=False):
            str(
                data[begin + LENGTH_BYTES : end], "utf-8"
            )  # a run that cannot read it would fail for its neighbours too
    except UnicodeDecodeError as error:
        msg = f"BYTES tensor: an element is not UTF-8: {error}"
        raise RequestError(msg) from None
    end = found[-1] if found else 0
    if end != len(data):
        msg = f"BYTES tensor: {len(data)} bytes, its {count} elements are {end}"
        raise RequestError(msg)
    return data


class Checker:
    """Makes forms for one model. `shapes`: the only shape classes that are served, where there are any; `pads`: as buckets."""

    def __init__(
        self, name: str, signature: Signature, max_batch: int, shapes: Sequence[str] = (), *, pads: bool = False
    ) -> None:
        self.name = name
        self.signature = signature
        self._max_batch = max_batch
        self._classes = Classes(name, signature, shapes, pads=pads)
        self._inputs: Mapping[str, Tensor] = {t.name: t for t in signature.inputs}
        self._outputs = {t.name: t for t in signature.outputs}

    def form(self, asked: Asked) -> Form:
        """What is asked for, checked; raises `RequestError` for all that it may not."""
        given = {item.name: item for item in asked.inputs}
        self._check_names(asked.inputs, given)
        ordered = [given[t.name] for t in self.signature.inputs]
        rows = self._check_shapes(ordered)
        raw = {item.name: number for number, item in enumerate(i for i in asked.inputs if i.size is not None)}
        sources = tuple(raw[i.name] if i.size is not None else self._source(i) for i in ordered)
        fit = self._classes.fit(tuple(item.shape for item in ordered))
        strings = tuple(prod(i.shape) if i.datatype == STRINGS else -1 for i in ordered)
        return Form(
            rows,
            fit.shape,
            fit.dims,
            sources,
            strings,
            tuple(self._raw_size(given[name]) for name in raw),
            asked.request_id,
            _timeout(asked),
            _priority(asked),
            self._wanted(asked),
            fit,
            is_plain=len(raw) == len(ordered) and max(strings, default=-1) < 0 and not fit.is_padded,
        )

    def raw(self, body_bytes: int) -> Form:
        """The whole body is the only input: one row, its one free dimension by its size. Raises `RequestError`."""
        if len(self.signature.inputs) != 1:
            msg = f"model {self.name} has {len(self.signature.inputs)} inputs: a raw request is for models of one input"
            raise RequestError(msg)
        (tensor,) = self.signature.inputs
        shape = _raw_shape(tensor, body_bytes, is_batched=self.signature.is_batched)
        return self.form(Asked([Given(tensor.name, tensor.datatype, shape, body_bytes)], binary_by_default=True))

    def _check_names(self, inputs: Sequence[Given], given: Mapping[str, Given]) -> None:
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

    def _check_shapes(self, inputs: Sequence[Given]) -> int:
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

    def _check_shape(self, item: Given, tensor: Tensor) -> None:
        if item.datatype != tensor.datatype:
            msg = f"model {self.name}: input {item.name!r} is {tensor.datatype}, not {item.datatype}"
            raise RequestError(msg)
        fits = len(item.shape) == len(tensor.shape) and all(
            n > 0 and want in {n, -1} for n, want in zip(item.shape, tensor.shape, strict=True)
        )
        if not fits:
            msg = f"model {self.name}: input {item.name!r} has shape {list(tensor.shape)}, not {list(item.shape)}"
            raise RequestError(msg)
        needed = prod(item.shape) * DATATYPE_SIZES.get(tensor.datatype, 0)
        size = item.place.size if item.place else item.size if item.size is not None else -1
        if needed and size not in {-1, needed}:
            key = "shared_memory_byte_size" if item.place else "binary_data_size"
            msg = f"input {item.name!r} of shape {list(item.shape)} is {needed} bytes, {key} is {size}"
            raise RequestError(msg)

    def _raw_size(self, item: Given) -> int:
        size = DATATYPE_SIZES.get(item.datatype)
        return prod(item.shape) * size if size else -1 if item.size is None else item.size

    def _source(self, item: Given) -> Source:
        if item.place:
            return item.place
        if item.read is None:
            msg = f"input {item.name!r} has neither data nor binary_data_size"
            raise RequestError(msg)
        return item.read()

    def _wanted(self, asked: Asked) -> tuple[Wanted, ...]:
        if not asked.outputs:
            return tuple(Wanted(name, asked.binary_by_default) for name in self._outputs)
        for item in asked.outputs:
            if item.name not in self._outputs:
                msg = f"model {self.name} has no output {item.name!r}; it gives {', '.join(self._outputs)}"
                raise RequestError(msg)
            self._check_classes(item)
        if len({item.name for item in asked.outputs}) < len(asked.outputs):
            msg = f"model {self.name}: an output is wanted twice"
            raise RequestError(msg)
        return tuple(asked.outputs)

    def _check_classes(self, item: Wanted) -> None:
        if item.classes < 0:
            msg = f"output {item.name!r}: classification must not be below 0, is {item.classes}"
            raise RequestError(msg)
        if item.classes and self._outputs[item.name].datatype in {STRINGS, "BF16", "BOOL"}:
            msg = f"output {item.name!r} is {self._outputs[item.name].datatype}, which has no best classes"
            raise RequestError(msg)


def _raw_shape(tensor: Tensor, size: int, *, is_batched: bool) -> tuple[int, ...]:
    shape = (1, *tensor.shape[1:]) if is_batched else tensor.shape
    free = [place for place, n in enumerate(shape) if n == -1]
    if len(free) > 1:
        msg = f"input {tensor.name!r} has shape {list(tensor.shape)}: a raw request does not say which"
        raise RequestError(msg)
    if not free:
        return shape
    known = prod(n for n in shape if n > 0) * DATATYPE_SIZES.get(tensor.datatype, size or 1)
    return tuple(max(1, size // known) if n == -1 else n for n in shape)


def _timeout(asked: Asked) -> Duration:
    """In nanoseconds; 0 when the client gave none."""
    if not 0 <= asked.timeout_us < _LARGEST_TIMEOUT_US:
        msg = f"timeout must be above 0 microseconds, is {asked.timeout_us}"
        raise RequestError(msg)
    return asked.timeout_us * US


def _priority(asked: Asked) -> int:
    if not 0 <= asked.priority <= _LAST_PRIORITY:
        msg = f"priority must be 0 to {_LAST_PRIORITY}, is {asked.priority}"
        raise RequestError(msg)
    return asked.priority
