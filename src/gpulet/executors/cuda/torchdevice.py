"""What the PyTorch runtime asks of the device it runs on: the seam, a GPU behind it, and the CPU for rehearsals.

On a GPU nothing here waits for the device as a whole while others serve: neither `torch.cuda.synchronize` nor
`empty_cache`, and captures begin and end without `torch.cuda.graph`, which calls both.
"""

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch

from gpulet.executors.cuda.ports import Stream

MemoryPool: TypeAlias = Any
"""Of PyTorch's allocator: what a share's graphs work in."""
Target: TypeAlias = Callable[[int, int], object]
"""Tells a cuBLAS handle for how many SMs it shall choose kernels; 0 for all."""
_HOPPER = 9


class Replayable(Protocol):
    """Recorded work, as a `torch.cuda.CUDAGraph` is."""

    def replay(self) -> None:
        """Launch it on the calling thread's stream."""
        ...

    def reset(self) -> None:
        """Forget it."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that PyTorch's allocator holds of the GPU, has given out, and had given out at most since it was last asked."""

    reserved: int = 0
    allocated: int = 0
    peak: int = 0


class TorchDevice(Protocol):
    """Where models run. All but `on` is called by the builder's thread alone."""

    where: torch.device

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """What this thread launches inside goes to that stream."""
        ...

    def make_pool(self) -> MemoryPool:
        """Memory for one model's weights, or the graphs of one share; gone with its last reference, after they are."""
        ...

    def allocating(self, pool: MemoryPool) -> AbstractContextManager[object]:
        """What this thread allocates inside comes from the pool."""
        ...

    def tuned(self, sms: int) -> AbstractContextManager[object]:
        """Kernels that are chosen inside are chosen for so many SMs."""
        ...

    def capture(self, pool: MemoryPool, act: Callable[[], None]) -> Replayable:
        """Record what `act` does on the current stream; what it allocates is the pool's."""
        ...

    def usage(self) -> Usage:
        """The allocator's memory now; begins a new peak."""
        ...

    def trim(self) -> None:
        """Give libraries' scratch back to the pools it came from."""
        ...


class Eager:
    """For a device that records nothing: run it again."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act: Callable[[], None] | None = act

    def replay(self) -> None:
        """On the calling thread, to the end."""
        assert self._act, "replayed after it was reset"
        self._act()

    def reset(self) -> None:
        """Forget it."""
        self._act = None


class CpuDevice:
    """Models run on the CPU whatever the stream: right numbers, nobody's times."""

    def __init__(self) -> None:
        self.where = torch.device("cpu")

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Streams are imaginary here."""
        return nullcontext()

    def make_pool(self) -> MemoryPool:
        """Nothing."""
        return None

    def allocating(self, pool: MemoryPool) -> AbstractContextManager[object]:
        """From the heap."""
        return nullcontext()

    def tuned(self, sms: int) -> AbstractContextManager[object]:
        """Nothing is."""
        return nullcontext()

    def capture(self, pool: MemoryPool, act: Callable[[], None]) -> Replayable:
        """Run it once, as a capture would run its Python, and again at each replay."""
        act()
        return Eager(act)

    def usage(self) -> Usage:
        """No memory of a GPU."""
        return Usage()

    def trim(self) -> None:
        """Nothing to."""


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How kernels are chosen at capture.

    `sm_target`: GEMMs for the share's SMs instead of the GPU's; a hint to cuBLAS (to be measured, E5).
    `benchmark`: cuDNN times its convolutions on the share before it settles on one: slower captures, faster replays.
    """

    sm_target: bool = True
    benchmark: bool = False


class GpuDevice:
    """One GPU by `torch.cuda`, which comes in as `cuda`; `set_target` is None where cuBLAS has no such call."""

    def __init__(self, ordinal: int, options: GpuOptions, set_target: Target | None, cuda: Any = torch.cuda) -> None:
        self.where = torch.device("cuda", ordinal)
        self._options = options
        self._set_target = set_target
        self._cuda = cuda
        self._streams: dict[Stream, Any] = {}
        self._given_up: list[Any] = []

    def on(self, stream: Stream) -> AbstractContextManager[object]:
        """Wrapped, not made: streams that PyTorch makes leave the share."""
        if stream not in self._streams:  # a handle that comes again is the same to PyTorch
            self._streams[stream] = self._cuda.ExternalStream(int(stream), device=self.where)
        selected: AbstractContextManager[object] = self._cuda.stream(self._streams[stream])
        return selected

    def make_pool(self) -> MemoryPool:
        """A share's graphs never run at once, so they may overwrite each other's memory."""
        return self._cuda.MemPool()

    def allocating(self, pool: MemoryPool) -> AbstractContextManager[object]:
        """Of this thread only."""
        into: AbstractContextManager[object] = self._cuda.use_mem_pool(pool, device=self.where)
        return into

    @contextmanager
    def tuned(self, sms: int) -> Iterator[None]:
        """The handle is this thread's; the carveout, which cuBLASLt reads, is the process's, but only the builder runs GEMMs eagerly."""
        known = self._cuda.get_device_properties(self.where)
        whole = known.multi_processor_count
        is_partial = self._options.sm_target and sms < whole
        carve = getattr(torch._C, "_set_sm_carveout_experimental", None)  # noqa: SLF001 (there is no public one)
        carve = carve if is_partial and known.major == _HOPPER else None  # newer GPUs make streams of their own for it
        handle = self._cuda.current_blas_handle() if is_partial and self._set_target else None
        benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, self._options.benchmark
        try:
            if self._set_target and handle is not None:
                self._set_target(handle, sms)
            if carve:
                carve(whole - sms)
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            if self._set_target and handle is not None:
                self._set_target(handle, 0)
            if carve:
                carve(None)

    def capture(self, pool: MemoryPool, act: Callable[[], None]) -> Replayable:
        """Thread-local, so that what other threads do beside it breaks nothing; one that fails spoils its pool for captures.

        Collections wait: one that frees a tensor or an older graph here would break the capture.
        """
        graph = self._cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()
        try:
            graph.capture_begin(pool=pool.id, capture_error_mode="thread_local")
            try:
                act()
                graph.capture_end()
            except BaseException:
                self._give_up(graph, pool)
                raise
        finally:
            if collects:
                gc.enable()
        recorded: Replayable = graph
        return recorded

    def _give_up(self, graph: Any, pool: MemoryPool) -> None:
        """End a capture that failed. Where its end fails, too, PyTorch's allocators go on recording.

        So the GPU's is told here. The host's cannot be told, and will ask this graph for ever: it must stay.
        """
        with suppress(RuntimeError):  # what broke the capture says more
            graph.capture_end()
        try:
            torch._C._cuda_endAllocateToPool(self.where.index, pool.id)  # noqa: SLF001 (as `use_mem_pool` does)
        except RuntimeError:  # it had ended
            graph.reset()
        else:
            torch._C._cuda_releasePool(self.where.index, pool.id)  # noqa: SLF001
            self._given_up.append(graph)

    def usage(self) -> Usage:
        """Of this process, as PyTorch counts it."""
        cuda, where = self._cuda, self.where
        found = Usage(cuda.memory_reserved(where), cuda.memory_allocated(where), cuda.max_memory_allocated(where))
        cuda.reset_peak_memory_stats(where)
        return found

    def trim(self) -> None:
        """Workspaces of cuBLAS, by (handle, stream), would outlive their share.

        Graphs that use one run on: it lies in their share's pool, where only graphs that never run beside them may get it.
        """
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # noqa: SLF001 (there is no public one)
        if clear:
            clear()


def find_target() -> Target | None:
    """`cublasSetSmCountTarget` of the cuBLAS that PyTorch has loaded."""
    major = (torch.version.cuda or "").split(".")[0]
    try:
        library = ctypes.CDLL(f"libcublas.so.{major}")
        call = library.cublasSetSmCountTarget
    except (OSError, AttributeError):
        return None
    call.argtypes, call.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
    return call


def open_gpu(ordinal: int, options: GpuOptions, headroom: int) -> GpuDevice:
    """On the builder's thread, with the primary context there; PyTorch never takes the last `headroom` bytes that are free now.

    What it keeps of memory that was freed could otherwise leave none for contexts and graphs.
    """
    torch.cuda.set_device(ordinal)
    free, total = torch.cuda.mem_get_info(ordinal)
    torch.cuda.set_per_process_memory_fraction(max(0.0, (free - headroom) / total), ordinal)
    keep = getattr(torch._C, "_cudnn_set_conv_benchmark_empty_cache", None)  # noqa: SLF001 (there is no public one)
    if keep:
        keep(False)  # or each benchmark would wait for the GPU as a whole
    return GpuDevice(ordinal, options, find_target())
