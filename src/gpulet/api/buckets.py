"""Shape classes of requests: exactly those that are served, or buckets, to which smaller requests are padded with zeros.

Padding lets requests of different lengths share a batch; the model must mask it. What comes out is cut back to the request's
own lengths wherever an output's dimension has the name of an input's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TypeAlias

import numpy as np

from gpulet.errors import RequestError
from gpulet.executors.base import DATATYPE_SIZES, Buffer, Outputs, Result, Signature
from gpulet.executors.bytestrings import STRINGS
from gpulet.executors.tensors import class_lengths, free_axes
from gpulet.units import PLAIN

Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Fit:
    """A request's place in a shape class: its inputs' shapes as they came and as they run, in the signature's order.

    `lengths` maps a dimension's name to its length in the class and to the request's own.
    """

    shape: str
    given: Shapes
    dims: Shapes
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_padded(self) -> bool:
        """Whether anything is longer as it runs than as it came."""
        return self.given != self.dims

    def pad(self, inputs: tuple[Buffer, ...]) -> tuple[Buffer, ...]:
        """The inputs with zeros behind what came, in each dimension."""
        if self.given == self.dims:
            return inputs
        return tuple(map(_padded, inputs, self.given, self.dims))

    def cut(self, outputs: Outputs, rows: slice) -> Outputs:
        """These rows of the outputs, less what padding added."""
        return [self._cut(result, rows) for result in outputs]

    def _cut(self, result: Result, rows: slice) -> Result:
        names = result.tensor.dims[1:] or ("",) * len(result.shape[1:])
        own = [self._own(name, n) for name, n in zip(names, result.shape[1:], strict=True)]
        size = DATATYPE_SIZES[result.tensor.datatype]
        whole = np.frombuffer(result.data, np.uint8).reshape(*result.shape, size)
        part = whole[(rows, *map(slice, own))] if result.shape else whole
        return Result(result.tensor, part.shape[:-1], part.reshape(-1).data)

    def _own(self, name: str, found: int) -> int:
        """The request's own length of a dimension, if it is as long as in the class; else what was found."""
        ran, own = self.lengths.get(name, (found, found))
        return own if found == ran else found


def _padded(data: Buffer, given: tuple[int, ...], dims: tuple[int, ...]) -> Buffer:
    """Whatever the datatype is: its bytes are one more dimension."""
    came = np.frombuffer(data, np.uint8).reshape(*given, -1)
    runs = np.zeros((*dims, came.shape[-1]), np.uint8)
    runs[tuple(map(slice, given))] = came
    return runs.reshape(-1).data


@dataclass(frozen=True, slots=True)
class _Bucket:
    shape: str
    lengths: tuple[int, ...]


class Classes:
    """The shape classes of one model; none: each request's own. `pads`: they are buckets.

    Raises `RequestError` for a bucket that does not fill the model's free dimensions.
    """

    def __init__(self, name: str, signature: Signature, shapes: Sequence[str] = (), *, pads: bool = False) -> None:
        if pads and any(t.datatype == STRINGS for t in (*signature.inputs, *signature.outputs)):
            msg = f"model {name} takes or gives BYTES, which cannot be padded: serve it without pad"
            raise RequestError(msg)
        self._name = name
        self._inputs = signature.inputs
        self._axes = free_axes(signature.inputs)
        self._shapes = {self._spelled(shape): shape for shape in shapes}
        self._buckets = sorted((self._bucket(shape) for shape in shapes), key=self._elements) if pads else []

    def fit(self, given: Shapes) -> Fit:
        """The class of these inputs, in the signature's order; raises `RequestError` where there is none."""
        own = self._free(given)
        self._refuse_unequal(own)
        if self._buckets:
            return self._padded(given, own)
        shape = "x".join(map(str, own)) if own else PLAIN
        if self._shapes and shape not in self._shapes:
            served = ", ".join(sorted(self._shapes.values()))
            msg = f"model {self._name} is served with free dimensions {served}, not {shape}"
            raise RequestError(msg)
        return Fit(self._shapes.get(shape, shape), given, given)

    def _padded(self, given: Shapes, own: tuple[int, ...]) -> Fit:
        """The smallest bucket that holds it."""
        for bucket in self._buckets:
            if all(n <= most for n, most in zip(own, bucket.lengths, strict=True)):
                lengths = dict(zip(self._axes, zip(bucket.lengths, own, strict=True), strict=True))
                return Fit(bucket.shape, given, self._dims(given, bucket.lengths), lengths)
        asked = dict.fromkeys(_told(name, n) for name, n in zip(self._axes, own, strict=True))
        msg = f"model {self._name}: its buckets are {', '.join(b.shape for b in self._buckets)}; none holds "
        raise RequestError(msg + " by ".join(asked))

    def _refuse_unequal(self, own: tuple[int, ...]) -> None:
        first: dict[str, int] = {}
        for name, n in zip(self._axes, own, strict=True):
            if first.setdefault(name, n) != n:
                msg = f"model {self._name}: its inputs must agree in {name!r}; it is {first[name]} and {n}"
                raise RequestError(msg)

    def _free(self, given: Shapes) -> tuple[int, ...]:
        """Free dimensions beyond the rows, in order."""
        return tuple(
            n
            for tensor, dims in zip(self._inputs, given, strict=True)
            for n, want in zip(dims[1:], tensor.shape[1:], strict=True)
            if want == -1
        )

    def _dims(self, given: Shapes, lengths: tuple[int, ...]) -> Shapes:
        """The inputs' shapes with other free dimensions."""
        free = iter(lengths)
        return tuple(
            (*dims[:1], *(next(free) if want == -1 else want for want in tensor.shape[1:]))
            for tensor, dims in zip(self._inputs, given, strict=True)
        )

    def _spelled(self, shape: str) -> str:
        """With every free dimension in order; as it is where it does not fill them: no request has it."""
        lengths = class_lengths(self._inputs, shape)
        return shape if lengths is None else "x".join(map(str, lengths))

    def _bucket(self, shape: str) -> _Bucket:
        lengths = class_lengths(self._inputs, shape)
        if lengths is None:
            msg = f"model {self._name} has {len(self._axes)} free dimensions beyond its rows; bucket {shape!r} does not fill them"
            raise RequestError(msg)
        return _Bucket(shape, lengths)

    def _elements(self, bucket: _Bucket) -> int:
        """Of one row of all inputs: the smaller bucket costs less."""
        return sum(map(prod, self._dims(((1,),) * len(self._inputs), bucket.lengths)))


def _told(axis: str, n: int) -> str:
    return str(n) if axis.startswith("#") else f"{axis} = {n}"
