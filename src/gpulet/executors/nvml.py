"""What we ask of NVML, NVIDIA's management library: the port and its values.

Reading changes nothing. The four calls that cut a GPU need an NVML that was opened for GPUs an operator named. Nothing
here sets a mode or a clock, or resets anything. The real one is `gpulet.executors.nvmllibrary`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol

from gpulet.errors import Unusable


class Code(IntEnum):
    """NVML's return codes (nvml.h, nvmlReturn_t)."""

    SUCCESS = 0
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    INSUFFICIENT_RESOURCES = 23
    NOT_READY = 27
    UNKNOWN = 999


NO_DRIVER = frozenset({Code.DRIVER_NOT_LOADED, Code.LIBRARY_NOT_FOUND})
"""What opening NVML ends with on a machine without an NVIDIA driver."""


class Metric(IntEnum):
    """Hopper's own counters (NVML's GPM): percent of the peak; hits and misses of DRAM's cache as NVML counts them."""

    SM_UTIL = 2
    SM_OCCUPANCY = 3
    TENSOR_UTIL = 5
    DRAM_BW_UTIL = 10
    DRAM_CACHE_HIT = 164
    DRAM_CACHE_MISS = 165


class MigMode(StrEnum):
    """Whether a GPU is cut by MIG."""

    ABSENT = "no MIG"
    OFF = "MIG off"
    ON = "MIG on"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU: `memory` and `used` in bytes; `pending` is the MIG mode after its next reset."""

    index: int
    name: str
    uuid: str
    memory: int
    used: int
    mig: MigMode
    pending: MigMode


@dataclass(frozen=True, slots=True)
class OfferedType:
    """A MIG type as a GPU offers it: NVML's number of it, `most` on one GPU, `memory` in bytes."""

    number: int
    label: str
    slices: int
    sms: int
    memory: int
    most: int
    span: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MigDevice:
    """One compute instance as CUDA sees it. Everybody may read these; where they lie takes privileges (`instances`)."""

    uuid: str
    label: str
    gpu: int
    instance: int
    compute: int
    slices: int
    sms: int
    memory: int


@dataclass(frozen=True, slots=True)
class ComputeInstance:
    """A part of a GPU instance's compute slices, or all of them; `uuid` is what CUDA_VISIBLE_DEVICES takes."""

    number: int
    slices: int
    uuid: str


@dataclass(frozen=True, slots=True)
class GpuInstance:
    """A GPU instance that stands: its number, type, memory slices and what computes in it."""

    gpu: int
    number: int
    label: str
    slices: int
    start: int
    span: int
    computes: tuple[ComputeInstance, ...] = ()

    @property
    def uuid(self) -> str:
        """Of the one compute instance that has all its slices; empty where it is missing or shared out."""
        whole = [c.uuid for c in self.computes if c.slices == self.slices]
        return whole[0] if len(self.computes) == len(whole) == 1 else ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Percent of the last sample period in which a kernel ran, and in which memory was read or written."""

    compute_pct: int
    memory_pct: int


@dataclass(frozen=True, slots=True)
class Xid:
    """A fault that the driver reports for a GPU."""

    gpu: int
    number: int


class Nvml(Protocol):
    """What may be asked by anybody: nothing changes. All raise `NvmlError`. Whoever opened it closes it."""

    def close(self) -> None:
        """Leave NVML."""
        ...

    def versions(self) -> tuple[str, int]:
        """The driver's version, and CUDA's as NVML counts (13000 is 13.0)."""
        ...

    def gpus(self) -> tuple[Gpu, ...]:
        """The physical GPUs, in NVML's order."""
        ...

    def types(self, gpu: int) -> tuple[OfferedType, ...]:
        """What a GPU in MIG mode can be cut into."""
        ...

    def mig_devices(self, gpu: int) -> tuple[MigDevice, ...]:
        """What CUDA sees of a GPU in MIG mode."""
        ...

    def instances(self, gpu: int) -> tuple[GpuInstance, ...]:
        """What stands on a GPU in MIG mode, by slot. NVML asks for privileges."""
        ...

    def pids(self, uuid: str) -> tuple[int, ...]:
        """The processes that compute on a GPU or MIG device; under MPS that is MPS' own server."""
        ...

    def usage(self, gpu: int) -> Usage:
        """How busy; not supported in MIG mode."""
        ...

    def measured(self, gpu: int, meanwhile: Callable[[], object]) -> Mapping[Metric, float]:
        """Counters over the time that `meanwhile` takes, 100 ms or more; those that this GPU does not have are left out."""
        ...

    def slowed_by(self, gpu: int) -> tuple[str, ...]:
        """Why clocks are below what they could be, in NVML's words; idleness is not among them."""
        ...

    def next_xid(self, wait_ms: int) -> Xid | None:
        """The next fault of any GPU since the first call; none within that time."""
        ...


class CarvingNvml(Nvml, Protocol):
    """And the four calls that cut a GPU: only those that the operator named, else `Unusable`."""

    def create_instance(self, gpu: int, offered: OfferedType, start: int) -> int:
        """A GPU instance at that slot; its number."""
        ...

    def create_compute(self, gpu: int, instance: int) -> None:
        """A compute instance as wide as the GPU instance."""
        ...

    def destroy_compute(self, gpu: int, instance: int, compute: int) -> None:
        """End a compute instance; `IN_USE` while a process holds it."""
        ...

    def destroy_instance(self, gpu: int, instance: int) -> None:
        """End a GPU instance that has no compute instance; `IN_USE` for a moment after its last one is gone."""
        ...


def text_of(code: int) -> str:
    """NVML's name of a return code, as words."""
    return Code(code).name.lower().replace("_", " ") if code in set(Code) else "error"


def refuse_unnamed(uuid: str, allowed: Collection[str]) -> None:
    """Raise `Unusable` for a GPU that the operator did not name."""
    if uuid not in allowed:
        msg = f"GPU {uuid} may not be cut: nobody named it; those that were are {', '.join(sorted(allowed)) or 'none'}"
        raise Unusable(msg)
