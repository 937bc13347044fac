"""NVML through NVIDIA's nvidia-ml-py: every call of `pynvml` that gpulet makes, and its only import.

pynvml hands most arguments to C as they are, so pointers and arrays are made here. It is imported when NVML is opened.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from ctypes import byref, c_uint
from typing import Any

from gpulet.errors import NvmlError, Unusable
from gpulet.executors.nvml import (
    CarvingNvml,
    Code,
    ComputeInstance,
    Gpu,
    GpuInstance,
    Metric,
    MigDevice,
    MigMode,
    OfferedType,
    Usage,
    Xid,
    refuse_unnamed,
    text_of,
)
from gpulet.units import MIB

_ABSENT = frozenset({Code.NOT_SUPPORTED, Code.INVALID_ARGUMENT})
"""What NVML answers for a MIG type that a GPU does not have."""


def open_nvml() -> "Library":
    """NVML for reading. Raises `NvmlError` without a driver, `Unusable` without nvidia-ml-py."""
    return _started(Library(_pynvml()))


def open_for_carving(gpus: Collection[str]) -> "CarvingLibrary":
    """NVML that may cut those GPUs, by UUID, which an operator named; else as `open_nvml`."""
    library = CarvingLibrary(_pynvml(), gpus)
    _started(library)
    return library


def _pynvml() -> Any:  # the package has no types
    try:
        import pynvml  # noqa: PLC0415 (an optional extra)
    except ImportError:
        msg = "nvidia-ml-py is not installed; pip install 'gpulet[nvml]'"
        raise Unusable(msg) from None
    return pynvml


def _started(library: "Library") -> "Library":
    library.call("nvmlInit")
    return library


class Library:
    """The real one; `close` it."""

    def __init__(self, pynvml: Any) -> None:
        self._nvml = pynvml
        self._watch: Any = None

    def call(self, name: str, *arguments: Any) -> Any:
        """One function of pynvml; its errors become `NvmlError`, here and nowhere else."""
        try:
            return getattr(self._nvml, name)(*arguments)
        except self._nvml.NVMLError as error:
            raise NvmlError(name, error.value, text_of(error.value)) from None

    def close(self) -> None:
        """Leave NVML."""
        if self._watch is not None:
            self.call("nvmlEventSetFree", self._watch)
            self._watch = None
        self.call("nvmlShutdown")

    def versions(self) -> tuple[str, int]:
        return str(self.call("nvmlSystemGetDriverVersion")), int(self.call("nvmlSystemGetCudaDriverVersion_v2"))

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(self._gpu(index) for index in range(self.call("nvmlDeviceGetCount")))

    def types(self, gpu: int) -> tuple[OfferedType, ...]:
        return tuple(self._types(self._handle(gpu)))

    def mig_devices(self, gpu: int) -> tuple[MigDevice, ...]:
        return tuple(self._mig_devices(gpu))

    def instances(self, gpu: int) -> tuple[GpuInstance, ...]:
        uuids = {(d.instance, d.compute): d.uuid for d in self._mig_devices(gpu)}
        return tuple(sorted(self._instances(gpu, uuids), key=lambda i: i.start))

    def pids(self, uuid: str) -> tuple[int, ...]:
        handle = self.call("nvmlDeviceGetHandleByUUID", uuid)
        return tuple(int(process.pid) for process in self.call("nvmlDeviceGetComputeRunningProcesses", handle))

    def usage(self, gpu: int) -> Usage:
        rates = self.call("nvmlDeviceGetUtilizationRates", self._handle(gpu))
        return Usage(int(rates.gpu), int(rates.memory))

    def measured(self, gpu: int, meanwhile: Callable[[], object]) -> Mapping[Metric, float]:
        handle, samples, call = self._handle(gpu), [], "nvmlGpmQueryDeviceSupport"
        if not self.call(call, handle).isSupportedDevice:
            raise NvmlError(call, Code.NOT_SUPPORTED, text_of(Code.NOT_SUPPORTED))
        try:
            for act in (lambda: None, meanwhile):
                act()
                samples.append(self.call("nvmlGpmSampleAlloc"))
                self.call("nvmlGpmSampleGet", handle, samples[-1])
            return self._between(*samples)
        finally:
            for sample in samples:
                self.call("nvmlGpmSampleFree", sample)

    def _between(self, first: Any, last: Any) -> Mapping[Metric, float]:
        asked = self._nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = self._nvml.NVML_GPM_METRICS_GET_VERSION, len(Metric)
        asked.sample1, asked.sample2 = first, last
        for place, metric in enumerate(Metric):
            asked.metrics[place].metricId = metric
        self.call("nvmlGpmMetricsGet", asked)
        found = zip(Metric, asked.metrics, strict=False)
        return {metric: float(each.value) for metric, each in found if each.nvmlReturn == Code.SUCCESS}

    def slowed_by(self, gpu: int) -> tuple[str, ...]:
        bits = int(self.call("nvmlDeviceGetCurrentClocksEventReasons", self._handle(gpu)))
        reasons = {
            "power cap": self._nvml.nvmlClocksEventReasonSwPowerCap,
            "hardware slowdown": self._nvml.nvmlClocksEventReasonHwSlowdown,
            "software thermal slowdown": self._nvml.nvmlClocksEventReasonSwThermalSlowdown,
            "hardware thermal slowdown": self._nvml.nvmlClocksEventReasonHwThermalSlowdown,
            "hardware power brake": self._nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
            "application clocks": self._nvml.nvmlClocksEventReasonApplicationsClocksSetting,
        }
        return tuple(words for words, bit in reasons.items() if bits & bit)

    def next_xid(self, wait_ms: int) -> Xid | None:
        if self._watch is None:
            self._watch = self.call("nvmlEventSetCreate")
            for index in range(self.call("nvmlDeviceGetCount")):
                kind = self._nvml.nvmlEventTypeXidCriticalError
                self.call("nvmlDeviceRegisterEvents", self._handle(index), kind, self._watch)
        try:
            event = self.call("nvmlEventSetWait_v2", self._watch, wait_ms)
        except NvmlError as error:
            if error.code == Code.TIMEOUT:
                return None
            raise
        return Xid(int(self.call("nvmlDeviceGetIndex", event.device)), int(event.eventData))

    def _handle(self, gpu: int) -> Any:
        return self.call("nvmlDeviceGetHandleByIndex", gpu)

    def _gpu(self, index: int) -> Gpu:
        handle = self._handle(index)
        memory = self.call("nvmlDeviceGetMemoryInfo", handle)
        return Gpu(
            index,
            str(self.call("nvmlDeviceGetName", handle)),
            str(self.call("nvmlDeviceGetUUID", handle)),
            int(memory.total),
            int(memory.used),
            *self._modes(handle),
        )

    def _modes(self, handle: Any) -> tuple[MigMode, MigMode]:
        try:
            current, pending = self.call("nvmlDeviceGetMigMode", handle)
        except NvmlError as error:
            if error.code == Code.NOT_SUPPORTED:
                return MigMode.ABSENT, MigMode.ABSENT
            raise
        is_on = self._nvml.NVML_DEVICE_MIG_ENABLE
        return (
            MigMode.ON if current == is_on else MigMode.OFF,
            MigMode.ON if pending == is_on else MigMode.OFF,
        )

    def _types(self, handle: Any) -> Iterator[OfferedType]:
        for number in range(self._nvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            info = self._unless_absent("nvmlDeviceGetGpuInstanceProfileInfo", handle, number)
            if info is not None and (places := self._placements(handle, info.id)):
                yield OfferedType(
                    int(info.id),
                    str(info.name).removeprefix("MIG "),
                    int(info.sliceCount),
                    int(info.multiprocessorCount),
                    int(info.memorySizeMB) * MIB,
                    int(info.instanceCount),
                    places[0][1],
                    tuple(sorted(start for start, _ in places)),
                )

    def _placements(self, handle: Any, number: int) -> list[tuple[int, int]]:
        """Start and span of each; the first call only counts them."""
        count = c_uint(0)
        self.call("nvmlDeviceGetGpuInstancePossiblePlacements", handle, number, None, byref(count))
        places = (self._nvml.c_nvmlGpuInstancePlacement_t * count.value)()
        self.call("nvmlDeviceGetGpuInstancePossiblePlacements", handle, number, places, byref(count))
        return [(int(p.start), int(p.size)) for p in places[: count.value]]

    def _mig_devices(self, gpu: int) -> Iterator[MigDevice]:
        handle = self._handle(gpu)
        for place in range(self.call("nvmlDeviceGetMaxMigDeviceCount", handle)):
            try:
                device = self.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, place)
            except NvmlError as error:
                if error.code == Code.NOT_FOUND:
                    continue
                raise
            has = self.call("nvmlDeviceGetAttributes_v2", device)
            yield MigDevice(
                str(self.call("nvmlDeviceGetUUID", device)),
                str(self.call("nvmlDeviceGetName", device)).rpartition(" MIG ")[2],
                gpu,
                int(self.call("nvmlDeviceGetGpuInstanceId", device)),
                int(self.call("nvmlDeviceGetComputeInstanceId", device)),
                int(has.computeInstanceSliceCount),
                int(has.multiprocessorCount),
                int(has.memorySizeMB) * MIB,
            )

    def _instances(self, gpu: int, uuids: dict[tuple[int, int], str]) -> Iterator[GpuInstance]:
        handle = self._handle(gpu)
        for offered in self._types(handle):
            found = (self._nvml.c_nvmlGpuInstance_t * offered.most)()
            count = c_uint(0)
            self.call("nvmlDeviceGetGpuInstances", handle, offered.number, found, byref(count))
            for instance in found[: count.value]:
                info = self.call("nvmlGpuInstanceGetInfo", instance)
                start, span = int(info.placement.start), int(info.placement.size)
                computes = tuple(self._computes(instance, int(info.id), uuids))
                yield GpuInstance(gpu, int(info.id), offered.label, offered.slices, start, span, computes)

    def _computes(self, instance: Any, number: int, uuids: dict[tuple[int, int], str]) -> Iterator[ComputeInstance]:
        for profile in self._compute_profiles(instance):
            found = (self._nvml.c_nvmlComputeInstance_t * profile.instanceCount)()
            count = c_uint(0)
            self.call("nvmlGpuInstanceGetComputeInstances", instance, profile.id, found, byref(count))
            for compute in found[: count.value]:
                it = int(self.call("nvmlComputeInstanceGetInfo_v2", compute).id)
                yield ComputeInstance(it, int(profile.sliceCount), uuids.get((number, it), ""))

    def _compute_profiles(self, instance: Any) -> list[Any]:
        shared = self._nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
        numbers = range(self._nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)
        name = "nvmlGpuInstanceGetComputeInstanceProfileInfo"
        found = [self._unless_absent(name, instance, number, shared) for number in numbers]
        return list({info.id: info for info in reversed(found) if info is not None}.values())[::-1]

    def _unless_absent(self, name: str, *arguments: Any) -> Any:
        try:
            return self.call(name, *arguments)
        except NvmlError as error:
            if error.code in _ABSENT:
                return None
            raise


class CarvingLibrary(Library):
    """The real one for those who may cut `gpus`, by UUID."""

    def __init__(self, pynvml: Any, gpus: Collection[str]) -> None:
        super().__init__(pynvml)
        self._allowed = frozenset(gpus)

    def create_instance(self, gpu: int, offered: OfferedType, start: int) -> int:
        place = self._nvml.c_nvmlGpuInstancePlacement_t(start, offered.span)
        handle = self._allowed_handle(gpu)
        made = self.call("nvmlDeviceCreateGpuInstanceWithPlacement", handle, offered.number, byref(place))
        try:
            return int(self.call("nvmlGpuInstanceGetInfo", made).id)
        except NvmlError:  # without its number nobody could end it later
            self.call("nvmlGpuInstanceDestroy", made)
            raise

    def create_compute(self, gpu: int, instance: int) -> None:
        standing = self.call("nvmlDeviceGetGpuInstanceById", self._allowed_handle(gpu), instance)
        widest = max(self._compute_profiles(standing), key=lambda profile: int(profile.sliceCount))
        self.call("nvmlGpuInstanceCreateComputeInstance", standing, widest.id)

    def destroy_compute(self, gpu: int, instance: int, compute: int) -> None:
        standing = self.call("nvmlDeviceGetGpuInstanceById", self._allowed_handle(gpu), instance)
        self.call("nvmlComputeInstanceDestroy", self.call("nvmlGpuInstanceGetComputeInstanceById", standing, compute))

    def destroy_instance(self, gpu: int, instance: int) -> None:
        standing = self.call("nvmlDeviceGetGpuInstanceById", self._allowed_handle(gpu), instance)
        self.call("nvmlGpuInstanceDestroy", standing)

    def _allowed_handle(self, gpu: int) -> Any:
        handle = self._handle(gpu)
        uuid = str(self.call("nvmlDeviceGetUUID", handle))
        refuse_unnamed(uuid, self._allowed)
        return handle


_FITS: type[CarvingNvml] = CarvingLibrary
"""The type checker's proof."""
