"""A graph's fixed buffers on the host: requests' rows in, zeros behind them, results out. Nothing here knows a runtime.

Also what proves a graph: rows drawn at random, and how far two results are apart.
"""

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpulet.errors import ModelError
from gpulet.executors.base import DATATYPE_SIZES, Buffer, Signature, Tensor
from gpulet.executors.cuda.hostmemory import Bytes, HostMemory
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.executors.cuda.runtime import Answered, Tensors
from gpulet.executors.tensors import NUMPY_TYPES

_TINY = 1e-12


class Slot:
    """One tensor of a graph: `shape` for all of its rows, its bytes in `raw`."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...], raw: Bytes, *, is_batched: bool) -> None:
        self.name = tensor.name
        self.shape = shape
        self.array: NDArray[Any] = raw.view(NUMPY_TYPES[tensor.datatype]).reshape(shape)
        self._raw = raw
        self._is_batched = is_batched
        self._row = raw.size // shape[0] if is_batched else raw.size

    def fill(self, rows: int, parts: Sequence[Buffer]) -> None:
        """Put the parts one behind the other, and zeros where rows are missing; raises `ModelError` for a wrong size."""
        wanted = self._size(rows)
        given = sum(memoryview(part).nbytes for part in parts)
        if given != wanted:
            msg = (
                f"input {self.name}: {given} bytes are not {rows} rows of shape {list(self.shape[1:])}, {wanted} bytes"
            )
            raise ModelError(msg)
        offset = 0
        for part in parts:
            end = offset + memoryview(part).nbytes
            if end > offset:
                self._raw[offset:end] = np.frombuffer(part, np.uint8)
            offset = end
        self._raw[offset:] = 0

    def answered(self, rows: int) -> Answered:
        """The first rows of it; all of it where the model has no rows."""
        shape = (rows, *self.shape[1:]) if self._is_batched else self.shape
        return Answered(shape, self._raw.data[: self._size(rows)])

    def _size(self, rows: int) -> int:
        return rows * self._row if self._is_batched else self._row


class Buffers:
    """All tensors of a graph on the host; `add_outputs` once their shapes are known."""

    def __init__(self, driver: CudaDriver, signature: Signature, shapes: Sequence[tuple[int, ...]]) -> None:
        self._memory = HostMemory(driver)
        self._signature = signature
        self.outputs: list[Slot] = []
        self.inputs = self._slots(signature.inputs, shapes)

    def add_outputs(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Room for results of these shapes."""
        self.outputs = self._slots(self._signature.outputs, shapes)

    def fill(self, rows: int, inputs: Tensors) -> None:
        """All inputs of a batch; raises `ModelError`."""
        for slot, parts in zip(self.inputs, inputs, strict=True):
            slot.fill(rows, parts)

    def answered(self, rows: int) -> list[Answered]:
        """Views of the first rows of the results."""
        return [slot.answered(rows) for slot in self.outputs]

    def results(self) -> list[NDArray[Any]]:
        """All rows of them, as numbers."""
        return [slot.array for slot in self.outputs]

    def draw(self, seed: int) -> list[NDArray[Any]]:
        """Random inputs of all rows, the same for the same seed.

        Whole numbers are 0 or 1 beyond bytes: they may be indices, and one out of bounds costs the process.
        """
        random = np.random.default_rng(seed)
        return [_drawn(random, slot.array) for slot in self.inputs]

    def close(self) -> None:
        """The GPU may not copy any more."""
        self._memory.close()

    def _slots(self, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Slot]:
        room, is_batched = self._memory.room, self._signature.is_batched
        try:
            return [
                Slot(tensor, shape, room(tensor_size(tensor, shape)), is_batched=is_batched)
                for tensor, shape in zip(tensors, shapes, strict=True)
            ]
        except Exception:
            self.close()
            raise


def as_parts(arrays: Sequence[NDArray[Any]]) -> Tensors:
    """Whole tensors as the parts of a batch."""
    return [[array.reshape(-1).view(np.uint8).data] for array in arrays]


def check_outputs(model: str, signature: Signature, found: Sequence[tuple[int, ...]], rows: int) -> None:
    """Rows are how answers are told apart; raises `ModelError` where a batched model's output does not have them."""
    if len(found) != len(signature.outputs):
        msg = f"model {model} gives {len(found)} outputs, its signature has {len(signature.outputs)}"
        raise ModelError(msg)
    for tensor, shape in zip(signature.outputs, found, strict=True):
        is_alike = len(shape) == len(tensor.shape) and all(
            want in {n, -1} for n, want in zip(shape, tensor.shape, strict=True)
        )
        if not is_alike or (signature.is_batched and shape[0] != rows):
            msg = (
                f"model {model}: output {tensor.name} of {rows} rows has shape {list(shape)}, not {list(tensor.shape)}"
            )
            raise ModelError(msg)


def tensor_size(tensor: Tensor, shape: Sequence[int]) -> int:
    """Bytes of a tensor of that shape."""
    return prod(shape) * DATATYPE_SIZES[tensor.datatype]


def _drawn(random: np.random.Generator, like: NDArray[Any]) -> NDArray[Any]:
    if like.dtype.kind == "f":
        return random.standard_normal(like.shape, np.float32).astype(like.dtype)
    return random.integers(0, 256 if like.dtype == np.uint8 else 2, like.shape).astype(like.dtype)


def difference(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """The largest difference of an output, relative to its largest number; NaN where one is NaN, which proves nothing."""
    apart = [_apart(a, b) for a, b in zip(found, expected, strict=True)]
    return float("nan") if any(a != a for a in apart) else max(apart, default=0.0)  # noqa: PLR0124 (that is NaN)


def _apart(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Infinities, which masks are made of, must stand in the same places."""
    if found.shape != expected.shape:
        return inf
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if np.isnan(a).any() or np.isnan(b).any():
        return float("nan")
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite]):
        return inf
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / (largest + _TINY)
