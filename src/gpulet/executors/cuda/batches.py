"""A worker's side of the shared block: inputs of a batch as they stand in its slot, outputs written behind them."""

from dataclasses import dataclass
from math import prod

from gpulet.executors.base import DATATYPE_SIZES, Buffer, Outputs, Payload, Signature
from gpulet.executors.wire import RunBatch, align


@dataclass(slots=True)
class _Inputs:
    """A batch: all its rows are of one part."""

    inputs: tuple[Buffer, ...]
    dims: tuple[tuple[int, ...], ...]


class SlotViews:
    """Equal slots, each half inputs and half outputs."""

    def __init__(self, block: memoryview, count: int) -> None:
        self._block = block
        self._size = len(block) // count

    def inputs(self, batch: RunBatch, signature: Signature) -> Payload:
        """Views; nothing is copied."""
        offset = batch.slot * self._size
        inputs: list[Buffer] = []
        for tensor, shape in zip(signature.inputs, batch.shapes, strict=True):
            size = prod(shape) * DATATYPE_SIZES[tensor.datatype]
            inputs.append(self._block[offset : offset + size])
            offset = align(offset + size)
        return _Inputs(tuple(inputs), batch.shapes)

    def write(self, slot: int, outputs: Outputs) -> None:
        """Copy a batch's outputs; raises `ValueError` where they do not fit."""
        offset = slot * self._size + self._size // 2
        end = (slot + 1) * self._size
        for result in outputs:
            until = offset + result.data.nbytes
            if until > end:
                msg = f"output {result.tensor.name} does not fit a slot's {self._size // 2} bytes"
                raise ValueError(msg)
            self._block[offset:until] = result.data.cast("B")
            offset = align(until)
