"""PyTorch models on one GPU: weights once, a CUDA graph for each key, and the proof that it computes what the GPU does.

A graph holds the copies too: page-locked inputs to the GPU, the model, its results back to page-locked outputs. So a
replay is one launch, and needs no memory but what its share's pool had at capture.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from numpy.typing import NDArray

from gpulet.errors import DeviceLost, GpuletError, ModelError
from gpulet.executors.base import Signature
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.faults import translated
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.plainstream import PlainStream
from gpulet.executors.cuda.ports import CudaDriver, Mark, Stream
from gpulet.executors.cuda.runtime import Answered, Graph, GraphKey, Need, Tensors
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.cuda.staging import Buffers, Slot, as_parts, check_outputs, difference
from gpulet.executors.cuda.torchdevice import MemoryPool, Replayable, TorchDevice
from gpulet.executors.cuda.torchmodels import DTYPES, ModelFile, Resident, read
from gpulet.executors.tensors import check_shape, filled
from gpulet.units import MIB

WARM_UPS = 3
"""TorchScript profiles its first two runs and compiles on the third; libraries load kernels and choose among them."""
_SCRATCH = 32 * MIB
"""What libraries may take of a pool beside activations, until a capture was measured."""
_SLACK = 1.25
"""Blocks are rounded up and leave holes."""
_GRAPH_BYTES = 2 * MIB
"""Of a graph's nodes on the GPU, until a capture was measured."""


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a model whether it is loaded or not."""

    signature: Signature
    weights: int
    activations: Callable[[int, str], int]


@dataclass(slots=True)
class _SharePool:
    """Memory of one share's graphs, how many there are, and how large it has become."""

    interval: Interval
    memory: MemoryPool
    graphs: int = 0
    reserved: int = 0


@dataclass(slots=True)
class _Work:
    """What a graph does, once for real and then by replay: inputs in, the model, results out."""

    resident: Resident
    where: torch.device
    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor] = ()

    def run(self) -> Sequence[torch.Tensor]:
        """Up to the results, on the device."""
        return self.resident.run([tensor.to(self.where, non_blocking=True) for tensor in self.inputs])

    def act(self) -> None:
        """All of it."""
        for kept, found in zip(self.outputs, self.run(), strict=True):
            kept.copy_(found, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Work, the mark that is set behind it, and the pool that it works in."""

    work: Replayable
    mark: Mark
    pool: _SharePool


class TorchGraph:
    """A batch of one model on one share's stream, with its own buffers on the host."""

    def __init__(
        self, key: GraphKey, stream: Stream, buffers: Buffers, recorded: _Recorded, owner: "TorchRuntime"
    ) -> None:
        self.key = key
        self.buffers = buffers
        self._stream = stream
        self._recorded = recorded
        self._owner = owner

    def replay(self, rows: int, inputs: Tensors) -> Mark:
        """On the calling thread: bytes in, one launch, the mark behind it. Raises `ModelError`, `DeviceError`."""
        self.buffers.fill(rows, inputs)
        with translated(str(self.key)), torch.inference_mode(), self._owner.device.on(self._stream):
            self._recorded.work.replay()
        self._owner.driver.put(self._recorded.mark, self._stream)
        return self._recorded.mark

    def outputs(self, rows: int) -> Sequence[Answered]:
        """Views of what the last replay gave."""
        return self.buffers.answered(rows)

    def close(self) -> None:
        """Nothing runs any more when this is called."""
        self._recorded.work.reset()
        self._owner.driver.destroy_mark(self._recorded.mark)
        self.buffers.close()
        self._owner.leave(self._recorded.pool)


@dataclass(slots=True)
class TorchRuntime:
    """The models of one GPU. All of it is called by the builder's thread, but for graphs' `replay` and `outputs`."""

    driver: CudaDriver
    device: TorchDevice
    models: Mapping[str, ModelSource]
    _facts: dict[str, _Facts] = field(default_factory=dict)
    _files: dict[str, ModelFile] = field(default_factory=dict)
    _residents: dict[str, Resident] = field(default_factory=dict)
    _pools: dict[Interval, _SharePool] = field(default_factory=dict)
    _measured: dict[GraphKey, Need] = field(default_factory=dict)
    _plain: PlainStream = field(init=False)

    def __post_init__(self) -> None:
        self._plain = PlainStream(self.driver)

    def need(self, key: GraphKey) -> Need:
        """Measured, or by what the same model took in another bucket, or by its file; raises `ModelError`."""
        facts = self._know(key)
        if key in self._measured:
            return self._measured[key]
        alike = [k for k in self._measured if (k.model, k.shape) == (key.model, key.shape)]
        if not alike:
            pool = round(_SLACK * facts.activations(key.bucket, key.shape)) + _SCRATCH
            return Need(facts.weights, _GRAPH_BYTES, pool)
        near = min(alike, key=lambda k: (abs(k.bucket - key.bucket), k))
        found = self._measured[near]
        return Need(facts.weights, found.staging, found.pool * max(key.bucket, near.bucket) // near.bucket)

    def load(self, model: str) -> Signature:
        """Read the file and bring its weights to the device; raises `ModelError`, `DeviceFull`."""
        signature = self._fact(model).signature
        file = self._files.pop(model, None) or self._read(model)
        stream = self._plain.hold()
        try:
            with translated(f"model {model}"), torch.no_grad(), self.device.on(stream):
                memory = self.device.make_pool()
                with self.device.allocating(memory):
                    resident = file.load(self.device.where)
            self.driver.drain(stream)
        except Exception:
            self._plain.release()
            raise
        resident.memory = memory
        self._residents[model] = resident
        return signature

    def unload(self, model: str) -> None:
        """Its graphs are closed."""
        self._residents.pop(model).release()
        self._plain.release()

    def capture(self, key: GraphKey, share: Share) -> TorchGraph:
        """Warm up, record, replay once; a capture that fails leaves nothing behind."""
        self._know(key)
        if key.interval not in self._pools:
            self._pools[key.interval] = _SharePool(key.interval, self.device.make_pool())
        pool = self._pools[key.interval]
        pool.graphs += 1
        try:
            with translated(str(key)), torch.inference_mode(), self.device.on(share.stream):
                return self._capture(key, share, pool)
        except DeviceLost:
            raise
        except GpuletError:
            self.leave(pool)
            self.driver.drain(share.stream)  # raises `DeviceLost` where that was the true reason
            raise

    def error(self, key: GraphKey, graph: Graph) -> float:
        """The same random rows by replay and, as PyTorch runs them, on a stream of the whole GPU."""
        assert isinstance(graph, TorchGraph), f"{key} is no graph of PyTorch"
        rows = key.bucket if self._facts[key.model].signature.is_batched else 1
        drawn = graph.buffers.draw(crc32(f"{key.model} {key.bucket} {key.shape}".encode()))
        expected = self._eagerly(key.model, drawn)
        self.driver.wait(graph.replay(rows, as_parts(drawn)))
        return difference(graph.buffers.results(), expected)

    def leave(self, pool: _SharePool) -> None:
        """A graph is gone; a pool goes with its last."""
        pool.graphs -= 1
        if not pool.graphs:
            self.device.trim()
            self._retire(pool)
            pool.memory = None

    def _capture(self, key: GraphKey, share: Share, pool: _SharePool) -> TorchGraph:
        signature = self._facts[key.model].signature
        buffers = Buffers(self.driver, signature, filled(signature, key.bucket, key.shape))
        try:
            recorded = self._warm_and_record(key, share, pool, buffers)
        except Exception:
            buffers.close()
            raise
        return TorchGraph(key, share.stream, buffers, recorded, self)

    def _warm_and_record(self, key: GraphKey, share: Share, pool: _SharePool, buffers: Buffers) -> _Recorded:
        """What the allocator and the GPU have more, or had at most, when it is done is what the graph needs.

        Beside graphs that may be replayed meanwhile, warm-up has memory of its own: to the allocator their scratch is free.
        """
        device = self.device
        work = _Work(self._residents[key.model], device.where, _tensors(buffers.inputs))
        before = device.usage()
        own_pool = device.make_pool() if pool.graphs > 1 else None
        with device.allocating(own_pool or pool.memory), device.tuned(share.sms):
            shapes = self._warm_up(key, work)
        self.driver.drain(share.stream)
        buffers.add_outputs(shapes)
        work.outputs = _tensors(buffers.outputs)
        warm, free = device.usage(), self.driver.memory().free
        recorded = self._record(work, share, pool)
        after = device.usage()
        grown = after.reserved - (warm if own_pool else before).reserved
        pool.reserved += grown
        own = max(0, free - self.driver.memory().free - (after.reserved - warm.reserved))
        peak = max(warm.peak, after.peak) - before.allocated
        self._measured[key] = Need(self._facts[key.model].weights, own, max(peak, pool.reserved if grown else 0))
        return recorded

    def _record(self, work: _Work, share: Share, pool: _SharePool) -> _Recorded:
        """And replay once, since the first launch of a graph takes it to the GPU."""
        try:
            with self.device.tuned(share.sms):
                recorded = self.device.capture(pool.memory, work.act)
        except Exception:
            self._retire(pool)
            raise
        try:
            recorded.replay()
            self.driver.drain(share.stream)
            return _Recorded(recorded, self.driver.make_mark(), pool)
        except Exception:
            recorded.reset()  # before its pool goes
            raise

    def _retire(self, pool: _SharePool) -> None:
        """The share's next graph gets another pool; this one goes with its last."""
        if self._pools.get(pool.interval) is pool:
            del self._pools[pool.interval]

    def _warm_up(self, key: GraphKey, work: _Work) -> list[tuple[int, ...]]:
        """The shapes of the outputs, which must be as the signature has them."""
        signature = self._facts[key.model].signature
        for _ in range(WARM_UPS):
            found = work.run()
            shapes = [tuple(tensor.shape) for tensor in found]
            check_outputs(key.model, signature, shapes, key.bucket)
            wrong = [t.name for t, f in zip(signature.outputs, found, strict=True) if DTYPES.get(f.dtype) != t.datatype]
            if wrong:
                msg = f"model {key.model}: output {wrong[0]} is not of the datatype that its signature has"
                raise ModelError(msg)
            del found  # the next run may have this memory
        return shapes

    def _eagerly(self, model: str, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        resident, where = self._residents[model], self.device.where
        with translated(f"model {model}"), torch.inference_mode(), self.device.on(self._plain.stream):
            found = resident.run([torch.from_numpy(array).to(where) for array in inputs])
            return [tensor.cpu().numpy() for tensor in found]

    def _know(self, key: GraphKey) -> _Facts:
        facts = self._fact(key.model)
        check_shape(key.model, facts.signature.inputs, key.shape)
        return facts

    def _fact(self, model: str) -> _Facts:
        """Reads the file the first time, and keeps it on the host until it is loaded."""
        if model not in self._facts:
            file = self._files[model] = self._read(model)
            self._facts[model] = _Facts(file.signature, file.weights, file.activations)
        return self._facts[model]

    def _read(self, model: str) -> ModelFile:
        with translated(f"model {model}"):
            return read(model, self.models[model].path)


def _tensors(slots: Sequence[Slot]) -> list[torch.Tensor]:
    """The slots' memory as PyTorch sees it."""
    return [torch.from_numpy(slot.array) for slot in slots]
