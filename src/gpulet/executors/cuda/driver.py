"""The one module that speaks to CUDA: every call of the CUDA driver passes through `_do`, with the 12.4 to 13.0 API.

Calls that came with 13.1 are made where both the bindings and the CUDA driver have them. Only worker processes import
this. Foreign results become our errors here and nowhere else.
"""

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

from cuda.bindings import driver as cuda

from gpulet.errors import DeviceError, DeviceFull, DeviceLost, Unusable
from gpulet.executors.cuda.kernel import PTX
from gpulet.executors.cuda.ports import Context, DeviceMemory, Mark, SmSet, Split, Stream
from gpulet.units import MS, Duration

_SM: Final = cuda.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
_BALANCED_QUEUES_SINCE: Final = 13010
_UNTOUCHED: Final = 0xFFFFFFFF
_ID: Final = 4
"""Bytes of the id that a block of the proof kernel writes."""
_FULL: Final = frozenset({cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY})
_STICKY: Final = frozenset(
    {
        cuda.CUresult.CUDA_ERROR_DEVICE_UNAVAILABLE,
        cuda.CUresult.CUDA_ERROR_ECC_UNCORRECTABLE,
        cuda.CUresult.CUDA_ERROR_NVLINK_UNCORRECTABLE,
        cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,
        cuda.CUresult.CUDA_ERROR_LAUNCH_TIMEOUT,
        cuda.CUresult.CUDA_ERROR_CONTEXT_IS_DESTROYED,
        cuda.CUresult.CUDA_ERROR_ASSERT,
        cuda.CUresult.CUDA_ERROR_HARDWARE_STACK_ERROR,
        cuda.CUresult.CUDA_ERROR_ILLEGAL_INSTRUCTION,
        cuda.CUresult.CUDA_ERROR_MISALIGNED_ADDRESS,
        cuda.CUresult.CUDA_ERROR_INVALID_ADDRESS_SPACE,
        cuda.CUresult.CUDA_ERROR_INVALID_PC,
        cuda.CUresult.CUDA_ERROR_LAUNCH_FAILED,
        cuda.CUresult.CUDA_ERROR_TENSOR_MEMORY_LEAK,
        cuda.CUresult.CUDA_ERROR_MPS_CLIENT_TERMINATED,
        cuda.CUresult.CUDA_ERROR_EXTERNAL_DEVICE,
        cuda.CUresult.CUDA_ERROR_UNKNOWN,
    }
)
"""After one of these every later call of the process fails as well: it must end."""


def _do(function: Callable[..., tuple[Any, ...]], *given: object) -> Any:
    """Make one call; what it gives without its result: nothing, one value, or several."""
    result, *values = _result(function, given)
    if result is not cuda.CUresult.CUDA_SUCCESS:
        raise error_of(function, result)
    return values[0] if len(values) == 1 else tuple(values)


def _is_done(function: Callable[..., tuple[Any, ...]], *given: object) -> bool:
    """As `_do`, for the calls that may answer that it is not there yet."""
    result = _result(function, given)[0]
    if result not in {cuda.CUresult.CUDA_SUCCESS, cuda.CUresult.CUDA_ERROR_NOT_READY}:
        raise error_of(function, result)
    return result is cuda.CUresult.CUDA_SUCCESS


def _result(function: Callable[..., tuple[Any, ...]], given: tuple[object, ...]) -> tuple[Any, ...]:
    try:
        return function(*given)
    except RuntimeError as error:  # no CUDA driver, or one without this call
        msg = f"{function.__name__}: {error}"
        raise Unusable(msg) from None


def error_of(function: Callable[..., tuple[Any, ...]], result: Any) -> DeviceError:
    """A foreign result as ours."""
    kind = DeviceFull if result in _FULL else DeviceLost if result in _STICKY else DeviceError
    return kind(f"{function.__name__}: {result.name} ({int(result)})")


class Cuda:
    """One GPU through `cuda.bindings`; made by `open_cuda`."""

    def __init__(self, device: int, name: str, version: int, primary: int) -> None:
        self._device = device
        self._name = name
        self._version = version
        self._primary = primary
        self._kernel: tuple[int, int] | None = None
        self._buffer: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """What the GPU calls itself."""
        return self._name

    @property
    def version(self) -> int:
        """The newest CUDA that the driver has: 13000 is 13.0."""
        return self._version

    def enter(self) -> None:
        """Make the primary context current to this thread, never a green one: those may be current to one thread only."""
        _do(cuda.cuCtxSetCurrent, self._primary)

    def whole(self) -> SmSet:
        """All SMs of the GPU."""
        return _sm_set(_do(cuda.cuDeviceGetDevResource, self._device, _SM))

    def split(self, whole: SmSet, group: int) -> Split:
        """Flags 0: groups keep the clusters that cuBLAS and cuDNN launch on Hopper."""
        groups, count, rest = _do(cuda.cuDevSmResourceSplitByCount, whole.sms // group, whole.handle, 0, group)
        remainder = _sm_set(rest) if rest.type == _SM and rest.sm.smCount else None
        return Split(tuple(_sm_set(g) for g in groups[:count]), remainder)

    def make_context(self, sets: Sequence[SmSet]) -> Context:
        """A green context on these sets; with balanced work queues of its own where CUDA is 13.1 or newer."""
        resources = [s.handle for s in sets] + self._queues()
        description = _do(cuda.cuDevResourceGenerateDesc, resources, len(resources))
        flags = cuda.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM  # required in 13.0
        return Context(int(_do(cuda.cuGreenCtxCreate, description, self._device, flags)))

    def sms(self, context: Context) -> int:
        """How many SMs the context really has."""
        return _sm_set(_do(cuda.cuGreenCtxGetDevResource, context, _SM)).sms

    def destroy_context(self, context: Context) -> None:
        """Give a context back; on 13.0 a stream that outlives its context leaks and then fails."""
        _do(cuda.cuGreenCtxDestroy, context)

    def make_stream(self, context: Context | None) -> Stream:
        """Streams made otherwise inside a green context lose its SMs when a graph is replayed (TensorRT-LLM #12802)."""
        flags = cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        if context is None:
            return Stream(int(_do(cuda.cuStreamCreateWithPriority, flags, 0)))
        return Stream(int(_do(cuda.cuGreenCtxStreamCreate, context, flags, 0)))

    def context(self, stream: Stream) -> Context | None:
        """The green context that the stream belongs to, as the CUDA driver tells it."""
        handle = int(_do(cuda.cuStreamGetGreenCtx, stream))
        return Context(handle) if handle else None

    def is_idle(self, stream: Stream) -> bool:
        """Whether all that was put into the stream is done."""
        return _is_done(cuda.cuStreamQuery, stream)

    def drain(self, stream: Stream) -> None:
        """Wait for this stream alone: waiting for the device would wait for every gpulet."""
        _do(cuda.cuStreamSynchronize, stream)

    def destroy_stream(self, stream: Stream) -> None:
        """Give a stream back."""
        _do(cuda.cuStreamDestroy, stream)

    def make_mark(self) -> Mark:
        """A waiting thread sleeps rather than spins: there are more gpulets than cores to burn."""
        return Mark(int(_do(cuda.cuEventCreate, cuda.CUevent_flags.CU_EVENT_BLOCKING_SYNC)))

    def put(self, mark: Mark, stream: Stream) -> None:
        """Set the mark behind all that is in the stream now."""
        _do(cuda.cuEventRecord, mark, stream)

    def is_reached(self, mark: Mark) -> bool:
        """Whether the stream has come to the mark."""
        return _is_done(cuda.cuEventQuery, mark)

    def wait(self, mark: Mark) -> None:
        """Sleep until the stream has come to the mark."""
        _do(cuda.cuEventSynchronize, mark)

    def elapsed(self, start: Mark, end: Mark) -> Duration:
        """The GPU's time between two marks that are reached; it counts in half microseconds."""
        return round(float(_do(cuda.cuEventElapsedTime, start, end)) * MS)

    def destroy_mark(self, mark: Mark) -> None:
        """Give a mark back."""
        _do(cuda.cuEventDestroy, mark)

    def memory(self) -> DeviceMemory:
        """The GPU's memory now."""
        free, total = _do(cuda.cuMemGetInfo)
        return DeviceMemory(free, total)

    def lock_pages(self, address: int, size: int) -> None:
        """Let the GPU copy from and to these pages of the host by itself."""
        _do(cuda.cuMemHostRegister, address, size, 0)

    def unlock_pages(self, address: int) -> None:
        """No more."""
        _do(cuda.cuMemHostUnregister, address)

    def sm_ids(self, stream: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """The SMs on which `blocks` blocks really ran that each held its place for `spin`. Waits for them."""
        where = self._clean(stream, blocks)
        self._launch(stream, blocks, spin, where)
        return self._found(stream, blocks, where)

    def replayed_ids(self, stream: Stream, on: Stream, blocks: int, spin: Duration) -> frozenset[int]:
        """As `sm_ids`, by a graph that is captured on `stream` and replayed on another."""
        self.sm_ids(stream, 1, spin)  # loading a kernel for the first time cannot be captured
        where = self._clean(on, blocks)
        _do(cuda.cuStreamBeginCapture, stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            self._launch(stream, blocks, spin, where)
        finally:
            graph = _do(cuda.cuStreamEndCapture, stream)
        replayable = _do(cuda.cuGraphInstantiate, graph, 0)
        try:
            _do(cuda.cuGraphLaunch, replayable, on)
            return self._found(on, blocks, where)
        finally:
            _do(cuda.cuGraphExecDestroy, replayable)
            _do(cuda.cuGraphDestroy, graph)

    def spin(self, stream: Stream, spin: Duration) -> None:
        """Keep one block busy for so long; does not wait."""
        self._launch(stream, 1, spin, self._room(0))

    def close(self) -> None:
        """Let the GPU go: its primary context is kept by whoever else holds it."""
        if self._buffer[0]:
            _do(cuda.cuMemFree, self._buffer[0])
        if self._kernel:
            _do(cuda.cuLibraryUnload, self._kernel[0])
        _do(cuda.cuDevicePrimaryCtxRelease, self._device)

    def _queues(self) -> list[object]:
        """Without them, streams of disjoint contexts may share a hardware queue and wait for each other."""
        kind = getattr(cuda.CUdevResourceType, "CU_DEV_RESOURCE_TYPE_WORKQUEUE_CONFIG", None)
        if kind is None or self._version < _BALANCED_QUEUES_SINCE:
            return []
        queues = _do(cuda.cuDeviceGetDevResource, self._device, kind)
        queues.wqConfig.sharingScope = cuda.CUdevWorkqueueConfigScope.CU_WORKQUEUE_SCOPE_GREEN_CTX_BALANCED
        return [queues]

    def _room(self, blocks: int) -> int:
        """Where `spin` may write one id and, behind it, `sm_ids` one for each block.

        It grows in the checks alone, since allocating stalls every gpulet.
        """
        where, size = self._buffer
        if not where or size < blocks:
            if where:
                self._buffer = (0, 0)
                _do(cuda.cuMemFree, where)
            self._buffer = (int(_do(cuda.cuMemAlloc, _ID * (blocks + 1))), blocks)
        return self._buffer[0]

    def _clean(self, stream: Stream, blocks: int) -> int:
        """Where blocks may write, with ids of no SM."""
        where = self._room(blocks) + _ID
        _do(cuda.cuMemsetD32Async, where, _UNTOUCHED, blocks, stream)
        return where

    def _found(self, stream: Stream, blocks: int, where: int) -> frozenset[int]:
        self.drain(stream)
        found = array("I", bytes(_ID * blocks))
        _do(cuda.cuMemcpyDtoH, found.buffer_info()[0], where, _ID * blocks)
        return frozenset(found)

    def _launch(self, stream: Stream, blocks: int, spin: Duration, where: int) -> None:
        """The kernel belongs to no context, so it is launched in its stream's; a module's would belong to the primary."""
        if self._kernel is None:
            library = _do(cuda.cuLibraryLoadData, PTX, [], [], 0, [], [], 0)
            self._kernel = (int(library), int(_do(cuda.cuLibraryGetKernel, library, b"where")))
        given = ((where, spin), (ctypes.c_uint64, ctypes.c_uint64))
        _do(cuda.cuLaunchKernel, self._kernel[1], blocks, 1, 1, 32, 1, 1, 0, stream, given, 0)


def open_cuda(ordinal: int = 0) -> Cuda:
    """Hold a GPU's primary context, current to this thread; raises `Unusable` where there is no GPU or CUDA driver."""
    _do(cuda.cuInit, 0)
    count = _do(cuda.cuDeviceGetCount)
    if not 0 <= ordinal < count:
        msg = f"GPU {ordinal} was asked for, this machine shows {count}"
        raise Unusable(msg)
    device = int(_do(cuda.cuDeviceGet, ordinal))
    name = bytes(_do(cuda.cuDeviceGetName, 256, device)).split(b"\0")[0].decode()
    opened = Cuda(device, name, _do(cuda.cuDriverGetVersion), int(_do(cuda.cuDevicePrimaryCtxRetain, device)))
    opened.enter()
    return opened


def _sm_set(resource: Any) -> SmSet:
    return SmSet(resource.sm.smCount, resource.sm.minSmPartitionSize, resource.sm.smCoscheduledAlignment, resource)
