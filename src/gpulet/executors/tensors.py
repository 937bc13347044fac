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


def filled(signature: Signature, rows: int, shape: str) -> list[tuple[int, ...]]:
    """The inputs' concrete shapes: `rows` first, the class's sizes ("12x7") for the other free dimensions in order, else 1."""
    free = iter([int(n) for n in shape.split("x")] if shape else [])
    shapes: list[tuple[int, ...]] = []
    for tensor in signature.inputs:
        known = tuple(n if n > 0 else next(free, 1) for n in tensor.shape[1:])
        first = (rows,) if signature.is_batched else tuple(max(1, n) for n in tensor.shape[:1])
        shapes.append((*first, *known))
    return shapes


def check_shape(model: str, tensors: Sequence[Tensor], shape: str) -> None:
    """A class must name every free dimension; raises `ModelError`. No class at all stands for ones."""
    free = sum(n == -1 for tensor in tensors for n in tensor.shape[1:])
    given = shape.split("x") if shape else []
    if given and (len(given) != free or not all(n.isdecimal() and int(n) for n in given)):
        msg = f"model {model} has {free} free dimensions beyond its rows; {shape!r} does not fill them"
        raise ModelError(msg)


def drawn(random: np.random.Generator, datatype: str, count: int) -> bytes:
    """Random elements; strings are empty, and BF16's bits are 0 or so."""
    if datatype == STRINGS:
        return pack([b""] * count)
    dtype = NUMPY_TYPES.get(datatype, np.dtype(np.uint16))
    return random.random(count, np.float32).astype(dtype).tobytes()
