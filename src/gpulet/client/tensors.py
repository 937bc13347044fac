"""numpy arrays to the protocol's datatypes and binary tensors, and back."""

import struct
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpulet.errors import BadInput

BF16: Final[np.dtype[Any]] = (
    np.dtype(import_module("ml_dtypes").bfloat16) if find_spec("ml_dtypes") else np.dtype([("bf16", "<u2")])
)
"""`ml_dtypes.bfloat16` where that is installed; else a dtype of its bits: `array.view(BF16)` of uint16, and back."""

_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    **{
        f"{sign}INT{8 * size}": np.dtype(f"<{sign.lower() or 'i'}{size}") for sign in ("", "U") for size in (1, 2, 4, 8)
    },
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "BF16": BF16,
}
_DATATYPES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH: Final = struct.Struct("<I")


def datatype(array: NDArray[Any]) -> str:
    """The protocol's name for what this array holds; raises `BadInput` where it has none."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _DATATYPES[array.dtype.newbyteorder("<")]
    except KeyError:
        msg = f"dtype {array.dtype} has no datatype in the protocol; it has {', '.join([*_DTYPES, 'BYTES'])}"
        raise BadInput(msg) from None


def to_bytes(array: NDArray[Any]) -> bytes:
    """A binary tensor: row by row, little-endian; of BYTES each element behind its length."""
    kind = datatype(array)
    if kind == "BYTES":
        return b"".join(part for item in array.ravel() for part in _element(item))
    return array.astype(_DTYPES[kind], copy=False).tobytes()


def _element(item: object) -> tuple[bytes, bytes]:
    data = item.encode() if isinstance(item, str) else item
    if not isinstance(data, bytes):
        msg = f"elements of BYTES are bytes or str, not {type(item).__name__}"
        raise BadInput(msg)
    return _LENGTH.pack(len(data)), data


def from_bytes(kind: str, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """The array of a binary tensor, read-only where it is a view of `data`; raises `ValueError` where they do not fit."""
    if kind == "BYTES":
        return _objects(list(_split(data)), shape)
    dtype = _DTYPES.get(kind)
    if dtype is None:
        msg = f"unknown datatype {kind}"
        raise ValueError(msg)
    if len(data) != prod(shape) * dtype.itemsize:
        msg = f"{kind} of shape {list(shape)} in {len(data)} bytes"
        raise ValueError(msg)
    return np.frombuffer(data, dtype).reshape(shape)


def from_json(kind: str, shape: tuple[int, ...], data: list[Any]) -> NDArray[Any]:
    """The array of a tensor that stands in JSON, flat or nested; raises `ValueError` where it does not fit."""
    if kind == "BYTES":
        return _objects([_element(item)[1] for item in np.array(data, object).ravel()], shape)
    return np.array(data, _DTYPES[kind]).reshape(shape)


def _objects(elements: list[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def _split(data: memoryview) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        if place + _LENGTH.size > len(data):
            msg = "BYTES end within a length"
            raise ValueError(msg)
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size
        if place + length > len(data):
            msg = f"BYTES name an element of {length} bytes, {len(data) - place} are left"
            raise ValueError(msg)
        yield bytes(data[place : place + length])
        place += length
