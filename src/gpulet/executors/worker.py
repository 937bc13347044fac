"""The child process of a CPU gpulet: load models, run batches, nothing else. It ends when its socket does."""

import ctypes
import gc
import mmap
import os
import select
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any, assert_never

import msgspec
import msgspec.structs
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gpulet.executors import onnxvalues
from gpulet.executors.base import Signature
from gpulet.executors.gentle import LOADS, RESTS, be_called, gently, may_return, restore, threads_of
from gpulet.executors.onnxsignature import signature_of
from gpulet.executors.onnxvalues import blank, stored
from gpulet.executors.tensors import check_shape, filled
from gpulet.executors.wire import (
    LARGEST_MESSAGE,
    Assign,
    Done,
    Failed,
    FromWorker,
    ModelReady,
    Move,
    Occupy,
    Prepare,
    Prove,
    Ready,
    Recut,
    Refused,
    RunBatch,
    ToWorker,
    WorkerModel,
    align,
)
from gpulet.units import PLAIN

Arrays = Sequence[NDArray[Any]]
_NICE = (10, 15, 19)
"""By priority from 1: of a core that two want, each step takes a tenth to a third."""


class LoadedModel:
    """One ONNX model in this process."""

    def __init__(self, model: WorkerModel, threads: int) -> None:
        self._model = model.name
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # A spinning thread burns a core that a neighbour or the front-end needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
        signature = signature_of(self._session)
        self.signature = msgspec.structs.replace(signature, is_batched=signature.is_batched and model.batches)

    def run(self, inputs: Arrays) -> list[NDArray[Any]]:
        """One run of the session."""
        return onnxvalues.run(self._session, self.signature, inputs)

    def warm(self, max_batch: int, shapes: Sequence[str]) -> None:
        """First runs are slow; so is the first of a new batch size and shape.

        A model whose outputs do not have a row for each row of its inputs (detections, say) is not batched after all.
        """
        rows = max(2, max_batch)
        for shape in shapes or (PLAIN,):
            check_shape(self._model, self.signature.inputs, shape)
            if self.signature.is_batched and any(o.shape[:1] != (rows,) for o in self._zeros(rows, shape)):
                self.signature = msgspec.structs.replace(self.signature, is_batched=False)
            self._zeros(1, shape)

    def _zeros(self, rows: int, shape: str) -> list[NDArray[Any]]:
        shapes = filled(self.signature, rows, shape)
        return self.run([blank(dims, t.datatype) for dims, t in zip(shapes, self.signature.inputs, strict=True)])


Load = Callable[[WorkerModel, int], tuple[ModelReady, list[LoadedModel]]]
"""Of a model, for so many threads."""


def load(model: WorkerModel, threads: int) -> tuple[ModelReady, list[LoadedModel]]:
    """Load and warm one model; a model that cannot be is told by name and hurts no other."""
    before, bytes_before = perf_counter_ns(), resident_bytes()
    try:
        loaded = LoadedModel(model, threads)
        loaded.warm(model.max_batch, model.shapes)
    except Exception as error:  # noqa: BLE001 (the runtime raises bare exceptions; this is where they are translated)
        reason = f"{error}".splitlines()[0] if f"{error}" else type(error).__name__
        reason = reason.removeprefix(f"model {model.name} ").replace(model.path, Path(model.path).name)
        return ModelReady(model.name, Signature((), ()), reason), []
    took = perf_counter_ns() - before
    gc.collect()
    give_back_memory()
    return ModelReady(model.name, loaded.signature, took=took, bytes=max(0, resident_bytes() - bytes_before)), [loaded]


def load_all(message: Assign, load: Load) -> list[tuple[ModelReady, list[LoadedModel]]]:
    """At full speed, on the cores that are to serve."""
    pin(message.cores)
    return [load(model, message.threads) for model in message.models]


def load_gently(message: Assign, load: Load) -> list[tuple[ModelReady, list[LoadedModel]]]:
    """In idle time. A model of several threads starts them as it is loaded: they must be allowed to come back from there."""
    pin(message.spare or message.cores)
    if message.threads > 1 and not may_return():
        return [load(model, message.threads) for model in message.models]
    results: list[tuple[ModelReady, list[LoadedModel]]] = []
    gently(lambda: results.extend(load(model, message.threads) for model in message.models))
    restore()
    return results


class Worker:
    """Reads messages from one socket and runs batches in one block of shared memory."""

    def __init__(self, channel: socket.socket, block: mmap.mmap) -> None:
        self._channel = channel
        self._block = block
        self._view = memoryview(block)
        self._models: dict[str, LoadedModel] = {}
        self._prepared: dict[tuple[WorkerModel, int], tuple[ModelReady, list[LoadedModel]]] = {}
        self._told: tuple[ModelReady, ...] = ()
        self._outputs_at = 0
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
        self._encoder = msgspec.msgpack.Encoder()

    def serve(self) -> None:
        """Until the front-end closes the socket."""
        with suppress(ConnectionError):  # it closed while an answer was on its way
            while data := self._channel.recv(LARGEST_MESSAGE):
                answer = self._answer(self._decoder.decode(data))
                if answer:
                    self._channel.send(self._encoder.encode(answer))

    def _prepare(self, message: Prepare) -> None:
        """Who is needed meanwhile ends loading one model, no more. Threads that could not leave idle time are not started."""
        keys = [(model, message.threads) for model in message.models]
        be_called(LOADS)
        self._keep(keys)
        if message.threads == 1 or may_return():
            for key in keys:
                if key not in self._prepared and not is_readable(self._channel):
                    gently(partial(self._have, *key))
        restore()
        gc.freeze()
        be_called(RESTS)

    def _keep(self, keys: Collection[tuple[WorkerModel, int]]) -> None:
        kept = {key: prepared for key, prepared in self._prepared.items() if key in keys}
        if len(kept) < len(self._prepared):
            self._prepared = kept
            give_back_memory()

    def _have(self, model: WorkerModel, threads: int) -> None:
        if is_readable(self._channel):  # somebody was in a hurry before this thread could be hastened
            return
        ready, loaded = load(model, threads)
        if loaded:
            self._prepared[model, threads] = ready, loaded

    def _load(self, model: WorkerModel, threads: int) -> tuple[ModelReady, list[LoadedModel]]:
        return self._prepared.pop((model, threads), None) or load(model, threads)

    def _answer(self, message: ToWorker) -> FromWorker | None:
        match message:
            case RunBatch():
                return self._run(message)
            case Assign():
                return self._assign(message)
            case Prepare():
                self._prepare(message)
                return None
            case Move():
                return self._move(message)
            case Occupy() | Recut() | Prove():
                return Refused("a worker of cores holds no GPU", is_final=True)
            case _:
                assert_never(message)

    def _assign(self, message: Assign) -> FromWorker:
        self._outputs_at = len(self._block) // message.slots // 2
        results = (load_gently if message.is_gentle else load_all)(message, self._load)
        self._keep(())
        pin(message.cores)
        give_way(message.priority)
        self._models = {ready.name: loaded for ready, models in results for loaded in models}
        gc.freeze()  # `load` has collected: here it would be at full priority
        self._told = tuple(ready for ready, _ in results)
        return Ready(self._told, allowed_cores())

    def _move(self, message: Move) -> FromWorker:
        pin(message.cores)
        self._told = tuple(ready for ready in self._told if ready.name in message.models)
        kept = {name: model for name, model in self._models.items() if name in message.models}
        if len(kept) < len(self._models):
            self._models = kept
            give_back_memory()
        return Ready(self._told, allowed_cores())

    def _run(self, message: RunBatch) -> FromWorker:
        before = perf_counter_ns()
        try:
            outputs = self._models[message.model].run(self._inputs(message))
            took = perf_counter_ns() - before
            self._check_rows(message, outputs)
            self._write([stored(output) for output in outputs])
        except Exception as error:  # noqa: BLE001 (as above)
            return Failed(message.batch, f"{error}".splitlines()[0])
        return Done(message.batch, tuple(tuple(o.shape) for o in outputs), took)

    def _inputs(self, message: RunBatch) -> list[NDArray[Any]]:
        arrays: list[NDArray[Any]] = []
        offset = 0
        for shape, tensor in zip(message.shapes, self._models[message.model].signature.inputs, strict=True):
            array, offset = onnxvalues.read(self._view, offset, shape, tensor.datatype)
            arrays.append(array)
        return arrays

    def _check_rows(self, message: RunBatch, outputs: Arrays) -> None:
        """Rows are how answers are told apart."""
        model = self._models[message.model]
        if not model.signature.is_batched:
            return
        rows = message.shapes[0][0]
        for output, tensor in zip(outputs, model.signature.outputs, strict=True):
            if output.shape[:1] != (rows,):
                msg = f"output {tensor.name} has shape {list(output.shape)} for a batch of {rows} rows"
                raise ValueError(msg)

    def _write(self, outputs: Arrays) -> None:
        offset = self._outputs_at
        for output in outputs:
            end = offset + output.nbytes
            if end > len(self._block):
                msg = f"outputs of {end - self._outputs_at} bytes do not fit {len(self._block) - self._outputs_at}"
                raise ValueError(msg)
            np.frombuffer(self._block, output.dtype, output.size, offset)[:] = output.ravel()
            offset = align(end)


def is_readable(channel: socket.socket) -> bool:
    """Whether something has been said there, or it was closed."""
    waiting = select.poll()  # unlike select, of any number
    waiting.register(channel, select.POLLIN)
    return bool(waiting.poll(0))


def pin(cores: Sequence[int]) -> None:
    """Allow every thread of this process, and so those it starts later, on these cores only."""
    for thread in threads_of(os.getpid()):
        with suppress(ProcessLookupError):  # the one that loaded may be about to end
            os.sched_setaffinity(thread, cores)


def give_way(priority: int) -> None:
    """Let every thread of this process, and those it starts later, run after workers of a lower number.

    Niceness rather than SCHED_IDLE, which knows one level, and loads have that. A process may only grow nicer: one that is
    to go first again is started anew.
    """
    if not priority:
        return
    nice = _NICE[min(priority, len(_NICE)) - 1]
    for thread in threads_of(os.getpid()):
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, thread, nice)


def allowed_cores() -> tuple[tuple[int, ...], ...]:
    """The cores that each thread of this process may use, as the OS tells it."""
    allowed: list[tuple[int, ...]] = []
    for thread in threads_of(os.getpid()):
        with suppress(ProcessLookupError):
            allowed.append(tuple(sorted(os.sched_getaffinity(thread))))
    return tuple(allowed)


def resident_bytes() -> int:
    """Of this process' memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def give_back_memory() -> None:
    """What a loader used on the way stays with the allocator otherwise: 100 MB of weights were 200 MB of memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def main(arguments: Sequence[str]) -> None:
    """`worker CHANNEL_FD BLOCK_FD`: both inherited from the front-end."""
    channel, block = map(int, arguments)
    gc.collect()
    gc.freeze()  # what was imported need not be looked through after each load
    Worker(socket.socket(fileno=channel), mmap.mmap(block, 0)).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
