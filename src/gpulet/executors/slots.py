"""The slots of a worker's shared block, as the front-end fills and reads them: one running batch each."""

from collections.abc import Sequence
from math import prod
from mmap import mmap

from gpulet.core.messages import BatchId
from gpulet.errors import ModelError
from gpulet.executors.base import DATATYPE_SIZES, Outputs, Payload, Result, Signature
from gpulet.executors.bytestrings import STRINGS, ends
from gpulet.executors.wire import ALIGNMENT, align

Shapes = tuple[tuple[int, ...], ...]


class Slots:
    """A batch has a slot from its start until its outputs are read."""

    def __init__(self, block: mmap, count: int) -> None:
        self.count = count
        self._view = memoryview(block)
        self._size = len(block) // count
        self._free = list(reversed(range(count)))
        self._taken: dict[BatchId, int] = {}

    def __contains__(self, batch: BatchId) -> bool:
        return batch in self._taken

    def put(self, batch: BatchId, payloads: Sequence[Payload], rows: int, *, is_batched: bool) -> tuple[int, Shapes]:
        """Copy the requests' rows one after the other; the slot, and the shapes of the joined inputs.

        Raises `ModelError` for what no slot can hold.
        """
        if not is_batched and len(payloads) > 1:
            msg = f"it runs one request at a time, the plan joined {len(payloads)}"
            raise ModelError(msg)
        size = sum(len(data) + ALIGNMENT for payload in payloads for data in payload.inputs)
        if size > self._size // 2:
            msg = f"inputs of {size} bytes do not fit a slot's {self._size // 2}"
            raise ModelError(msg)
        if not self._free:
            msg = f"{self.count} batches run in one worker already"
            raise ModelError(msg)
        slot = self._taken[batch] = self._free.pop()
        return slot, self._fill(slot * self._size, payloads, rows, is_batched=is_batched)

    def results(self, batch: BatchId, signature: Signature, shapes: Shapes) -> Outputs:
        """Views into a batch's slot, which is then free: the next batch that gets it overwrites them."""
        offset = self._taken[batch] * self._size + self._size // 2
        results: list[Result] = []
        for tensor, shape in zip(signature.outputs, shapes, strict=True):
            size = _size(tensor.datatype, shape, self._view[offset:])
            results.append(Result(tensor, shape, self._view[offset : offset + size]))
            offset = align(offset + size)
        self.free(batch)
        return results

    def free(self, batch: BatchId) -> None:
        """The batch is over."""
        self._free.append(self._taken.pop(batch))

    def _fill(self, offset: int, payloads: Sequence[Payload], rows: int, *, is_batched: bool) -> Shapes:
        shapes: list[tuple[int, ...]] = []
        for place, dims in enumerate(payloads[0].dims):
            for payload in payloads:
                data = payload.inputs[place]
                self._view[offset : offset + len(data)] = data
                offset += len(data)
            offset = align(offset)
            shapes.append((rows, *dims[1:]) if is_batched else dims)
        return tuple(shapes)


def _size(datatype: str, shape: tuple[int, ...], data: memoryview) -> int:
    """Bytes of a tensor that begins with `data`; those of strings are known by reading them."""
    count = prod(shape)
    if datatype == STRINGS:
        return ends(data, count)[-1] if count else 0
    return count * DATATYPE_SIZES[datatype]
