"""Tensors between a shared block and ONNX Runtime on the CPU, those included that numpy has no type for.

BF16 travels as its bits (numpy's uint16), BYTES as packed elements, which ONNX holds as text: UTF-8.
"""

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime import OrtValue

from gpulet.executors.base import Signature
from gpulet.executors.bytestrings import STRINGS, ends, pack, unpack
from gpulet.executors.tensors import NUMPY_TYPES
from gpulet.executors.wire import align

BITS = "BF16"
_BF16 = 16  # onnx.TensorProto.BFLOAT16
_OBJECT = np.dtype(object)

Array = NDArray[Any]


def numpy_type(datatype: str) -> np.dtype[Any]:
    """Of the arrays that stand for tensors of a datatype."""
    return _OBJECT if datatype == STRINGS else np.dtype(np.uint16) if datatype == BITS else NUMPY_TYPES[datatype]


def blank(dims: Sequence[int], datatype: str) -> Array:
    """Zeros, or empty strings."""
    return np.full(dims, "", _OBJECT) if datatype == STRINGS else np.zeros(dims, numpy_type(datatype))


def read(block: memoryview, offset: int, dims: tuple[int, ...], datatype: str) -> tuple[Array, int]:
    """A tensor of a block, and where the next may begin."""
    count = prod(dims)
    if datatype == STRINGS:
        end = ends(block[offset:], count)[-1] if count else 0
        values = np.empty(count, _OBJECT)
        values[:] = [element.decode() for element in unpack(block[offset : offset + end], count)]
        return values.reshape(dims), align(offset + end)
    dtype = numpy_type(datatype)
    return np.frombuffer(block, dtype, count, offset).reshape(dims), align(offset + count * dtype.itemsize)


def stored(array: Array) -> Array:
    """As it is written to a block."""
    if array.dtype != _OBJECT:
        return array
    return np.frombuffer(pack([str(value).encode() for value in array.flat]), np.uint8)


def run(session: ort.InferenceSession, signature: Signature, inputs: Sequence[Array]) -> list[Array]:
    """One run of a session."""
    names = [t.name for t in signature.inputs]
    if all(t.datatype != BITS for t in (*signature.inputs, *signature.outputs)):
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs
    feeds = {t.name: _value(t.datatype, array) for t, array in zip(signature.inputs, inputs, strict=True)}
    values = session.run_with_ort_values([t.name for t in signature.outputs], feeds)
    return [_bits(v) if t.datatype == BITS else v.numpy() for t, v in zip(signature.outputs, values, strict=True)]


def _value(datatype: str, array: Array) -> OrtValue:
    if datatype == BITS:
        return OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BF16)
    return OrtValue.ortvalue_from_numpy(array)


def _bits(value: OrtValue) -> Array:
    """A copy: the value's memory ends with it."""
    shape = tuple(value.shape())
    if not prod(shape):
        return np.zeros(shape, np.uint16)
    memory = (ctypes.c_uint16 * prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(memory, np.uint16).reshape(shape).copy()
