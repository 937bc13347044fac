"""Signatures with their numbers filled in: numpy's types, and the concrete shapes of a batch."""

from collections.abc import Sequence

import numpy as np

from gpulet.errors import ModelError
from gpulet.executors.base import Signature, Tensor
from gpulet.executors.bytestrings import STRINGS, pack

NUMPY_TYPES = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}


def free_axes(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """A name for each free dimension beyond the rows, in order; nameless ones get one of their own, as no model has it."""
    names: list[str] = []
    for tensor in tensors:
        dims = tensor.dims or ("",) * len(tensor.shape)
        free = [name for name, n in zip(dims[1:], tensor.shape[1:], strict=True) if n == -1]
        names += [name or f"#{len(names) + i}" for i, name in enumerate(free)]
    return tuple(names)


def class_lengths(tensors: Sequence[Tensor], shape: str) -> tuple[int, ...] | None:
    """What a shape class makes of each free dimension: "12x12x7" in order, or "12x7" where the first two have one name.

    No class at all stands for ones; None where a class does not fill them.
    """
    axes = free_axes(tensors)
    given = shape.split("x") if shape else ["1"] * len(axes)
    if not all(n.isdecimal() and int(n) for n in given):
        return None
    sizes = [int(n) for n in given]
    if len(sizes) == len(axes):
        return tuple(sizes)
    distinct = list(dict.fromkeys(axes))
    if len(sizes) != len(distinct):
        return None
    by_name = dict(zip(distinct, sizes, strict=True))
    return tuple(by_name[name] for name in axes)


def filled(signature: Signature, rows: int, shape: str) -> list[tuple[int, ...]]:
    """The inputs' concrete shapes: `rows` first, the class's sizes for the other free dimensions, else 1."""
    free = iter(class_lengths(signature.inputs, shape) or ())
    shapes: list[tuple[int, ...]] = []
    for tensor in signature.inputs:
        known = tuple(n if n != -1 else next(free, 1) for n in tensor.shape[1:])
        first = (rows,) if signature.is_batched else tuple(max(1, n) for n in tensor.shape[:1])
        shapes.append((*first, *known))
    return shapes


def check_shape(model: str, tensors: Sequence[Tensor], shape: str) -> None:
    """A class must fill every free dimension; raises `ModelError`. No class at all stands for ones."""
    if class_lengths(tensors, shape) is None:
        axes = free_axes(tensors)
        named = f", {len(set(axes))} by name" if len(set(axes)) < len(axes) else ""
        msg = f"model {model} has {len(axes)} free dimensions beyond its rows{named}; {shape!r} does not fill them"
        raise ModelError(msg)


def drawn(random: np.random.Generator, datatype: str, count: int) -> bytes:
    """Random elements; strings are empty, and BF16's bits are 0 or so."""
    if datatype == STRINGS:
        return pack([b""] * count)
    dtype = NUMPY_TYPES.get(datatype, np.dtype(np.uint16))
    return random.random(count, np.float32).astype(dtype).tobytes()
