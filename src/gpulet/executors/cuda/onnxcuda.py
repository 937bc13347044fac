"""ONNX models on one GPU by ONNX Runtime, whose sessions belong to one stream: one for each model and share.

Nothing is captured: a batch is a run that only launches, with buffers that were bound once. So the weights are there
once for each share, and once more on the whole GPU, where the signature is proven and references are computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec.structs
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gpulet.errors import DeviceLost, GpuletError, ModelError
from gpulet.executors.base import DATATYPE_SIZES, Signature
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.faults import translated
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.plainstream import PlainStream
from gpulet.executors.cuda.ports import CudaDriver, Mark, Stream
from gpulet.executors.cuda.runtime import Answered, Graph, GraphKey, Need, Tensors
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.cuda.staging import Buffers, as_parts, check_outputs, difference, tensor_size
from gpulet.executors.onnxsignature import signature_of
from gpulet.executors.tensors import NUMPY_TYPES, check_shape, filled
from gpulet.units import PLAIN

WARM_UPS = 3
_ACTIVATIONS = 16
"""So many times its inputs and outputs, until a session was measured."""
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
Providers = Sequence[tuple[str, Mapping[str, str]]]


ProvidersOf = Callable[[Stream], Providers]
"""The execution providers of a session on that stream."""


def on_cpu(_stream: Stream) -> Providers:
    """On the CPU, whatever the stream: for rehearsals."""
    return [(_CPU, {})]


def on_gpu(ordinal: int) -> ProvidersOf:
    """On a GPU; raises `ModelError` when a session is made and the package has no CUDA."""

    def providers(stream: Stream) -> Providers:
        if _CUDA not in ort.get_available_providers():
            msg = "the package onnxruntime-gpu is needed for ONNX on a GPU; the one that is installed has no CUDA"
            raise ModelError(msg)
        options = {
            "device_id": str(ordinal),
            "user_compute_stream": str(int(stream)),
            "do_copy_in_default_stream": "0",  # the default stream has every SM, and would wait for nobody
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",  # the exhaustive search measures beside what serves
        }
        return [(_CUDA, options), (_CPU, {})]

    return providers


@dataclass(slots=True)
class _Session:
    """A model on one stream; how many graphs use it, and the bytes that it has taken of the GPU."""

    session: ort.InferenceSession
    graphs: int = 0
    taken: int = 0


class OnnxGraph:
    """A bucket of one session with its bound buffers."""

    def __init__(self, key: GraphKey, stream: Stream, buffers: Buffers, mark: Mark, owner: "OnnxRuntime") -> None:
        self.key = key
        self.buffers = buffers
        self._stream = stream
        self._mark = mark
        self._owner = owner
        self._session = owner.session(key)
        self._binding = self._session.io_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the mark is waited for
        for tensor, slot in zip(self._session.get_inputs(), buffers.inputs, strict=True):
            self._binding.bind_input(tensor.name, "cpu", 0, slot.array.dtype, slot.shape, slot.array.ctypes.data)
        for tensor, slot in zip(self._session.get_outputs(), buffers.outputs, strict=True):
            self._binding.bind_output(tensor.name, "cpu", 0, slot.array.dtype, slot.shape, slot.array.ctypes.data)

    def replay(self, rows: int, inputs: Tensors) -> Mark:
        """On the calling thread: bytes in, one run, the mark behind it. Raises `ModelError`, `DeviceError`."""
        self.buffers.fill(rows, inputs)
        self.run()
        self._owner.driver.put(self._mark, self._stream)
        return self._mark

    def run(self) -> None:
        """With what is in the buffers."""
        with translated(str(self.key)):
            self._session.run_with_iobinding(self._binding, self._options)

    def outputs(self, rows: int) -> Sequence[Answered]:
        """Views of what the last replay gave."""
        return self.buffers.answered(rows)

    def close(self) -> None:
        """Nothing runs any more when this is called."""
        self._owner.driver.destroy_mark(self._mark)
        self.buffers.close()
        self._owner.forget(self.key)


@dataclass(slots=True)
class OnnxRuntime:
    """The ONNX models of one GPU. All of it is called by the builder's thread, but for graphs' `replay` and `outputs`."""

    driver: CudaDriver
    providers: ProvidersOf
    models: Mapping[str, ModelSource]
    _signatures: dict[str, Signature] = field(default_factory=dict)
    _whole: dict[str, ort.InferenceSession] = field(default_factory=dict)
    _sessions: dict[tuple[str, Interval], _Session] = field(default_factory=dict)
    _measured: dict[GraphKey, Need] = field(default_factory=dict)
    _plain: PlainStream = field(init=False)

    def __post_init__(self) -> None:
        self._plain = PlainStream(self.driver)

    def need(self, key: GraphKey) -> Need:
        """Measured, or by the file and the signature; raises `ModelError`."""
        signature = self._declared(key.model)
        check_shape(key.model, signature.inputs, key.shape)
        if key in self._measured:
            return self._measured[key]
        shapes = filled(signature, key.bucket, key.shape)
        ins = sum(tensor_size(t, dims) for t, dims in zip(signature.inputs, shapes, strict=True))
        outs = sum(key.bucket * prod(abs(n) for n in t.shape) * DATATYPE_SIZES[t.datatype] for t in signature.outputs)
        weights = self._weights(key.model)
        return Need(weights, 0, 0, weights + _ACTIVATIONS * (ins + outs))

    def load(self, model: str) -> Signature:
        """On the whole GPU, where two rows of zeros show whether outputs have rows; raises `ModelError`, `DeviceFull`."""
        signature = self._declared(model)
        stream = self._plain.hold()
        try:
            with translated(f"model {model}"):
                session = self._whole[model] = self._open(model, stream)
                for shape in self.models[model].shapes or (PLAIN,):
                    if signature.is_batched and any(o.shape[:1] != (2,) for o in _zeros(session, signature, 2, shape)):
                        signature = msgspec.structs.replace(signature, is_batched=False)
        except Exception:
            self._whole.pop(model, None)
            self._plain.release()
            raise
        self._signatures[model] = signature
        return signature

    def unload(self, model: str) -> None:
        """Its graphs are closed."""
        del self._whole[model]
        self._plain.release()

    def capture(self, key: GraphKey, share: Share) -> OnnxGraph:
        """Bind and warm up, on the share's session, which is made with the first; what fails leaves nothing behind."""
        signature = self._signatures[key.model]
        check_shape(key.model, signature.inputs, key.shape)
        free = self.driver.memory().free
        place = (key.model, key.interval)
        try:
            with translated(str(key)):
                if place not in self._sessions:
                    self._sessions[place] = _Session(self._open(key.model, share.stream))
                held = self._sessions[place]
                held.graphs += 1
                graph = self._bind(key, share, signature)
        except DeviceLost:
            raise
        except GpuletError:
            if place in self._sessions:
                self.forget(key)
            self.driver.drain(share.stream)  # raises `DeviceLost` where that was the true reason
            raise
        held.taken += max(0, free - self.driver.memory().free)
        self._measured[key] = Need(self._weights(key.model), 0, 0, held.taken)
        return graph

    def error(self, key: GraphKey, graph: Graph) -> float:
        """The same random rows on the share and on the whole GPU."""
        assert isinstance(graph, OnnxGraph), f"{key} is no graph of ONNX Runtime"
        rows = key.bucket if self._signatures[key.model].is_batched else 1
        drawn = graph.buffers.draw(crc32(f"{key.model} {key.bucket} {key.shape}".encode()))
        with translated(f"model {key.model}"):
            names = [node.name for node in self._whole[key.model].get_inputs()]
            expected = self._whole[key.model].run(None, dict(zip(names, drawn, strict=True)))
        self.driver.wait(graph.replay(rows, as_parts(drawn)))
        return difference(graph.buffers.results(), expected)

    def session(self, key: GraphKey) -> ort.InferenceSession:
        """The share's."""
        return self._sessions[key.model, key.interval].session

    def forget(self, key: GraphKey) -> None:
        """A graph is gone; a session goes with its last."""
        held = self._sessions[key.model, key.interval]
        held.graphs -= 1
        if not held.graphs:
            del self._sessions[key.model, key.interval]

    def _bind(self, key: GraphKey, share: Share, signature: Signature) -> OnnxGraph:
        found = [tuple(o.shape) for o in _zeros(self.session(key), signature, key.bucket, key.shape)]
        check_outputs(key.model, signature, found, key.bucket)
        buffers = Buffers(self.driver, signature, filled(signature, key.bucket, key.shape))
        mark: Mark | None = None
        try:
            buffers.add_outputs(found)
            mark = self.driver.make_mark()
            graph = OnnxGraph(key, share.stream, buffers, mark, self)
            for _ in range(WARM_UPS):
                graph.run()
            self.driver.drain(share.stream)
        except Exception:
            if mark is not None:
                self.driver.destroy_mark(mark)
            buffers.close()
            raise
        return graph

    def _open(self, model: str, stream: Stream) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a gpulet's thread needs that core
        try:
            providers = [(name, dict(given)) for name, given in self.providers(stream)]
        except ModelError as error:
            msg = f"model {model}: {error}"
            raise ModelError(msg) from None
        return ort.InferenceSession(self.models[model].path, options, providers=providers)

    def _declared(self, model: str) -> Signature:
        """As the file declares it; loading shows what is true."""
        if model not in self._signatures:
            options = ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            with translated(f"model {model}"):
                session = ort.InferenceSession(self.models[model].path, options, providers=[_CPU])
                signature = signature_of(session)
            self._signatures[model] = _on_device(model, signature)
        return self._signatures[model]

    def _weights(self, model: str) -> int:
        """The file's size, with those beside it that hold tensors too large for it."""
        path = Path(self.models[model].path)
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _zeros(session: ort.InferenceSession, signature: Signature, rows: int, shape: str) -> list[NDArray[Any]]:
    given = zip(signature.inputs, filled(signature, rows, shape), strict=True)
    inputs = {tensor.name: np.zeros(dims, NUMPY_TYPES[tensor.datatype]) for tensor, dims in given}
    outputs: list[NDArray[Any]] = session.run(None, inputs)
    return outputs


def _on_device(model: str, signature: Signature) -> Signature:
    """Raises `ModelError` for tensors that device memory has no form of here."""
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.datatype not in NUMPY_TYPES:
            msg = f"model {model}: tensor {tensor.name} is {tensor.datatype}, which is served on CPUs only"
            raise ModelError(msg)
    return signature
