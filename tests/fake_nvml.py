"""NVML without a GPU: one state, the MIG tables of `gpulet.mig`, NVML's codes; as our port, and as the C library below pynvml.

`FakeNvml` is the port. `FakeLibrary` wraps one and has the C functions that pynvml calls, so that our adapter runs through
the real nvidia-ml-py: its names, its structures, what it hands to C.
"""

# ruff: noqa: EM101, N802, SLF001 (C's names of functions; what ctypes and the fake keep for themselves)

import ctypes
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pynvml

from gpulet.device import KINDS
from gpulet.errors import NvmlError
from gpulet.executors.nvml import (
    Code,
    ComputeInstance,
    Gpu,
    GpuInstance,
    Metric,
    MigDevice,
    MigMode,
    OfferedType,
    Usage,
    refuse_unnamed,
    text_of,
)
from gpulet.mig import Variant, clashes
from gpulet.units import GIB, MIB

DRIVER, CUDA = "580.95.05", 13000
_EIGHT = {  # (compute slices, variant): NVML's number of a type, its place in NVML's list
    (1, Variant.PLAIN): (19, 0),
    (1, Variant.MEDIA): (20, 7),
    (1, Variant.DOUBLE): (15, 9),
    (2, Variant.PLAIN): (14, 1),
    (3, Variant.PLAIN): (9, 2),
    (4, Variant.PLAIN): (5, 3),
    (7, Variant.PLAIN): (0, 4),
}
_FOUR = {
    (1, Variant.PLAIN): (14, 0),
    (1, Variant.MEDIA): (21, 7),
    (2, Variant.PLAIN): (5, 1),
    (2, Variant.MEDIA): (6, 8),
    (4, Variant.PLAIN): (0, 3),
}
_COMPUTE = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}  # slices: place in NVML's list, and number


@dataclass
class FakeGpu:
    """One GPU: what it is, and what stands on it."""

    kind: object
    uuid: str
    mig: MigMode
    pending: MigMode
    instances: dict[int, GpuInstance] = field(default_factory=dict)

    @property
    def places(self):
        return _EIGHT if self.kind.geometry.slots == 8 else _FOUR

    def offered(self):
        return tuple(sorted((self._offer(t) for t in self.kind.mig_types), key=lambda pair: pair[0]))

    def _offer(self, t):
        number, place = self.places[t.slices, t.variant]
        slices = self.kind.geometry.slices
        sms = t.sms or self.kind.sms * t.slices // slices
        memory = (t.memory or self.kind.memory * t.span // self.kind.geometry.slots) // MIB * MIB
        most = 1 if t.variant is Variant.MEDIA else min(len(t.starts), slices // t.slices)
        return place, OfferedType(number, t.label, t.slices, sms, memory, most, t.span, t.starts)


class FakeNvml:
    """The port. `fail` makes calls fail as NVML names them; `calls` are those that changed something or tried."""

    def __init__(self, *kinds, mig=MigMode.ON, allowed=None, is_root=True):
        self.state = [
            FakeGpu(
                KINDS[kind], f"GPU-{index:08x}-fake", *([mig] * 2 if KINDS[kind].mig_types else [MigMode.ABSENT] * 2)
            )
            for index, kind in enumerate(kinds)
        ]
        self.allowed = {g.uuid for g in self.state} if allowed is None else set(allowed)
        self.is_root = is_root
        self.calls = []
        self.holders = defaultdict(tuple)
        self.xids = []
        self.reasons = ()
        self.absent = {Metric.DRAM_CACHE_HIT}
        self.samples = 0
        self._failures = defaultdict(list)

    # What a test arranges and looks at.

    def fail(self, call, code, after=0, times=1):
        """Let that NVML function fail so many times, after so many good calls."""
        self._failures[call] += [None] * after + [code] * times

    def put(self, gpu, label, start, pid=0, whole=True):
        """Somebody else's instance; without a whole compute instance if not `whole`, held by `pid` if one is given."""
        offered = next(o for _, o in self.state[gpu].offered() if o.label == label)
        number = self._put(gpu, offered, start)
        if whole:
            self.compute(gpu, number, offered.slices)
        if pid:
            self.holders[self.state[gpu].instances[number].uuid] = (pid,)
        return number

    def standing(self):
        """Every GPU instance, whoever made it: (GPU, type, slot, is whole)."""
        return {(i.gpu, i.label, i.start, bool(i.uuid)) for g in self.state for i in g.instances.values()}

    # The port.

    def close(self):
        pass

    def versions(self):
        return DRIVER, CUDA

    def gpus(self):
        return tuple(
            Gpu(n, f"NVIDIA {g.kind.name}", g.uuid, g.kind.memory, GIB, g.mig, g.pending)
            for n, g in enumerate(self.state)
        )

    def types(self, gpu):
        return tuple(offered for _, offered in self._mig_on(gpu, "nvmlDeviceGetGpuInstanceProfileInfo").offered())

    def mig_devices(self, gpu):
        it = self.state[gpu]
        types = {o.label: o for _, o in it.offered()}
        return tuple(
            MigDevice(
                c.uuid, _named(i, c), gpu, i.number, c.number, c.slices, types[i.label].sms, types[i.label].memory
            )
            for i in it.instances.values()
            for c in i.computes
        )

    def instances(self, gpu):
        it = self._mig_on(gpu, "nvmlDeviceGetGpuInstances")
        self._root("nvmlDeviceGetGpuInstances")
        return tuple(sorted(it.instances.values(), key=lambda i: i.start))

    def pids(self, uuid):
        self._step("nvmlDeviceGetComputeRunningProcesses")
        return self.holders[uuid]

    def usage(self, gpu):
        if self.state[gpu].mig is MigMode.ON:
            raise error("nvmlDeviceGetUtilizationRates", Code.NOT_SUPPORTED)
        return Usage(37, 21)

    def measured(self, gpu, meanwhile):
        if not self.state[gpu].kind.name.startswith("h"):
            raise error("nvmlGpmQueryDeviceSupport", Code.NOT_SUPPORTED)
        meanwhile()
        return {m: m / 2 for m in Metric if m not in self.absent}

    def slowed_by(self, gpu):
        return self.reasons

    def next_xid(self, wait_ms):
        return self.xids.pop(0) if self.xids else None

    def create_instance(self, gpu, offered, start):
        self._change(gpu, "nvmlDeviceCreateGpuInstanceWithPlacement", offered.label, start)
        return self._put(gpu, offered, start)

    def create_compute(self, gpu, instance):
        name = "nvmlGpuInstanceCreateComputeInstance"
        self._change(gpu, name, instance)
        it = self._instance(gpu, instance, name)
        if it.computes:
            raise error(name, Code.INSUFFICIENT_RESOURCES)
        self.compute(gpu, instance, it.slices)

    def destroy_compute(self, gpu, instance, compute):
        name = "nvmlComputeInstanceDestroy"
        self._change(gpu, name, instance, compute)
        it = self._instance(gpu, instance, name)
        found = [c for c in it.computes if c.number == compute]
        if not found:
            raise error(name, Code.NOT_FOUND)
        if self.holders[found[0].uuid]:
            raise error(name, Code.IN_USE)
        self.state[gpu].instances[instance] = replace(it, computes=tuple(c for c in it.computes if c not in found))

    def destroy_instance(self, gpu, instance):
        name = "nvmlGpuInstanceDestroy"
        self._change(gpu, name, instance)
        if self._instance(gpu, instance, name).computes:
            raise error(name, Code.IN_USE)
        del self.state[gpu].instances[instance]

    # Below it.

    def _step(self, call):
        planned = self._failures[call]
        code = planned.pop(0) if planned else None
        if code is not None:
            raise error(call, code)

    def _root(self, call):
        if not self.is_root:
            raise error(call, Code.NO_PERMISSION)

    def _change(self, gpu, call, *what):
        refuse_unnamed(self.state[gpu].uuid, self.allowed)
        self.calls.append((call, gpu, *what))
        self._root(call)
        self._step(call)
        self._mig_on(gpu, call)

    def _mig_on(self, gpu, call):
        if self.state[gpu].mig is not MigMode.ON:
            raise error(call, Code.NOT_SUPPORTED)
        return self.state[gpu]

    def _instance(self, gpu, number, call):
        if number not in self.state[gpu].instances:
            raise error(call, Code.NOT_FOUND)
        return self.state[gpu].instances[number]

    def _put(self, gpu, offered, start):
        it = self.state[gpu]
        if start not in offered.starts:
            raise error("nvmlDeviceCreateGpuInstanceWithPlacement", Code.INVALID_ARGUMENT)
        if clashes(it.kind.geometry, [*((i.label, i.start) for i in it.instances.values()), (offered.label, start)]):
            raise error("nvmlDeviceCreateGpuInstanceWithPlacement", Code.INSUFFICIENT_RESOURCES)
        number = next(n for n in range(1, 99) if n not in it.instances)
        it.instances[number] = GpuInstance(gpu, number, offered.label, offered.slices, start, offered.span)
        return number

    def compute(self, gpu, number, slices):
        it = self.state[gpu].instances[number]
        place = len(it.computes)
        uuid = f"MIG-{gpu:08x}-{number}-{place}"
        self.state[gpu].instances[number] = replace(it, computes=(*it.computes, ComputeInstance(place, slices, uuid)))


def _named(instance, compute):
    """As NVML names a MIG device; a part of an instance has its compute slices before it."""
    return instance.label if compute.slices == instance.slices else f"{compute.slices}c.{instance.label}"


def error(call, code):
    return NvmlError(call, code, text_of(code))


class FakeLibrary:
    """libnvidia-ml as pynvml sees it: C functions that fill what they are pointed at and return a code."""

    def __init__(self, fake):
        self._fake = fake
        self._handles = []
        self.opened = 0

    # Handles are numbers from 1.

    def _new(self, *it):
        if it not in self._handles:
            self._handles.append(it)
        return self._handles.index(it) + 1

    def _of(self, handle):
        assert isinstance(handle, ctypes._Pointer), f"{handle!r} is no handle"
        return self._handles[ctypes.cast(handle, ctypes.c_void_p).value - 1]

    def _name(self, reference, *it):
        ctypes.c_void_p.from_buffer(reference._obj).value = self._new(*it)

    def _names(self, array, count, its):
        for place, it in enumerate(its):
            array[place] = ctypes.cast(self._new(*it), type(array)._type_)
        count._obj.value = len(its)

    def nvmlInitWithFlags(self, flags):
        assert flags == 0
        self._fake._step("nvmlInit")
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self, buffer, length):
        buffer.value = DRIVER.encode()

    def nvmlSystemGetCudaDriverVersion_v2(self, version):
        version._obj.value = CUDA

    def nvmlDeviceGetCount_v2(self, count):
        count._obj.value = len(self._fake.state)

    def nvmlDeviceGetHandleByIndex_v2(self, index, device):
        if index.value >= len(self._fake.state):
            raise error("", Code.INVALID_ARGUMENT)
        self._name(device, "gpu", index.value)

    def nvmlDeviceGetHandleByUUID(self, uuid, device):
        known = {d.uuid: (g, d) for g in range(len(self._fake.state)) for d in self._fake.mig_devices(g)}
        if uuid.value.decode() not in known:
            raise error("", Code.NOT_FOUND)
        g, d = known[uuid.value.decode()]
        self._name(device, "mig", g, d.instance, d.compute)

    def nvmlDeviceGetIndex(self, device, index):
        index._obj.value = self._of(device)[1]

    def nvmlDeviceGetName(self, device, buffer, length):
        mig = f" MIG {self._mig(device).label}" if self._of(device)[0] == "mig" else ""
        buffer.value = f"{self._gpu(device).name}{mig}".encode()

    def nvmlDeviceGetUUID(self, device, buffer, length):
        buffer.value = (self._mig(device) if self._of(device)[0] == "mig" else self._gpu(device)).uuid.encode()

    def nvmlDeviceGetMemoryInfo(self, device, memory):
        memory._obj.total, memory._obj.used = self._gpu(device).memory, self._gpu(device).used

    def nvmlDeviceGetMigMode(self, device, current, pending):
        gpu = self._gpu(device)
        if gpu.mig is MigMode.ABSENT:
            raise error("", Code.NOT_SUPPORTED)
        current._obj.value, pending._obj.value = gpu.mig is MigMode.ON, gpu.pending is MigMode.ON

    def nvmlDeviceGetGpuInstanceProfileInfoV(self, device, place, info):
        gpu = self._fake.state[self._of(device)[1]]
        offered = dict(gpu.offered()) if gpu.mig is MigMode.ON else {}
        if place not in offered:
            raise error("", Code.NOT_SUPPORTED)
        it, out = offered[place], info._obj
        out.id, out.sliceCount, out.instanceCount = it.number, it.slices, it.most
        out.multiprocessorCount, out.memorySizeMB = it.sms, it.memory // MIB
        out.name = f"MIG {it.label}".encode()

    def nvmlDeviceGetGpuInstancePossiblePlacements_v2(self, device, number, places, count):
        it = self._offered(device, number)
        if places is not None:
            for place, start in enumerate(it.starts):
                places[place].start, places[place].size = start, it.span
        count._obj.value = len(it.starts)

    def nvmlDeviceGetGpuInstances(self, device, number, found, count):
        gpu, it = self._of(device)[1], self._offered(device, number)
        mine = [i for i in self._fake.instances(gpu) if i.label == it.label]
        assert len(found) >= it.most, "the array must hold all that the type allows"
        self._names(found, count, [("instance", gpu, i.number) for i in mine])

    def nvmlGpuInstanceGetInfo(self, instance, info):
        it = self._standing(instance)
        info._obj.id, info._obj.placement.start, info._obj.placement.size = it.number, it.start, it.span

    def nvmlGpuInstanceGetComputeInstanceProfileInfoV(self, instance, place, engine, info):
        it, out = self._standing(instance), info._obj
        slices = {p: s for s, p in _COMPUTE.items() if s <= it.slices} | {7: 1}
        assert engine == 0
        if place not in slices:
            raise error("", Code.INVALID_ARGUMENT)
        out.id, out.sliceCount, out.instanceCount = place, slices[place], it.slices // slices[place]

    def nvmlGpuInstanceGetComputeInstances(self, instance, number, found, count):
        _, gpu, owner = self._of(instance)
        it = self._standing(instance)
        mine = [c for c in it.computes if _COMPUTE[c.slices] == number]
        self._names(found, count, [("compute", gpu, owner, c.number) for c in mine])

    def nvmlComputeInstanceGetInfo_v2(self, compute, info):
        info._obj.id = self._of(compute)[3]

    def nvmlDeviceGetMaxMigDeviceCount(self, device, count):
        count._obj.value = self._fake.state[self._of(device)[1]].kind.geometry.slices

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, place, mig):
        gpu = self._of(device)[1]
        there = self._fake.mig_devices(gpu)
        if place.value >= len(there):
            raise error("", Code.NOT_FOUND)
        self._name(mig, "mig", gpu, there[place.value].instance, there[place.value].compute)

    def nvmlDeviceGetGpuInstanceId(self, device, number):
        number._obj.value = self._mig(device).instance

    def nvmlDeviceGetComputeInstanceId(self, device, number):
        number._obj.value = self._mig(device).compute

    def nvmlDeviceGetAttributes_v2(self, device, out):
        it = self._mig(device)
        out._obj.computeInstanceSliceCount, out._obj.multiprocessorCount = it.slices, it.sms
        out._obj.memorySizeMB = it.memory // MIB

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device, count, found):
        pids = self._fake.pids(self._mig(device).uuid)
        if pids and found is None:
            count._obj.value = len(pids)
            raise error("", Code.INSUFFICIENT_SIZE)
        for place, pid in enumerate(pids):
            found[place].pid = pid
        count._obj.value = len(pids)

    def nvmlGpmQueryDeviceSupport(self, device, out):
        assert out._obj.version == 1
        out._obj.isSupportedDevice = self._fake.state[self._of(device)[1]].kind.name.startswith("h")

    def nvmlGpmSampleAlloc(self, sample):
        self._fake.samples += 1
        self._name(sample, "sample", self._fake.samples)

    def nvmlGpmSampleGet(self, device, sample):
        self._of(device)
        self._of(sample)

    def nvmlGpmSampleFree(self, sample):
        self._of(sample)
        self._fake.samples -= 1

    def nvmlGpmMetricsGet(self, out):
        asked = out._obj
        assert asked.version == 1
        assert self._of(asked.sample1) != self._of(asked.sample2)
        for metric in asked.metrics[: asked.numMetrics]:
            metric.nvmlReturn = Code.NOT_SUPPORTED if metric.metricId in self._fake.absent else Code.SUCCESS
            metric.value = metric.metricId / 2

    def nvmlDeviceGetUtilizationRates(self, device, out):
        usage = self._fake.usage(self._of(device)[1])
        out._obj.gpu, out._obj.memory = usage.compute_pct, usage.memory_pct

    def nvmlDeviceGetCurrentClocksEventReasons(self, device, out):
        bits = {"power cap": 0x4, "hardware thermal slowdown": 0x40}
        out._obj.value = 0x1 | sum(bits[words] for words in self._fake.slowed_by(0))

    def nvmlEventSetCreate(self, made):
        self._name(made, "events")

    def nvmlDeviceRegisterEvents(self, device, kinds, events):
        assert self._of(events) == ("events",)
        assert kinds.value == 0x8

    def nvmlEventSetWait_v2(self, events, out, wait_ms):
        xid = self._fake.next_xid(wait_ms.value)
        if xid is None:
            raise error("", Code.TIMEOUT)
        out._obj.device = ctypes.cast(self._new("gpu", xid.gpu), type(out._obj.device))
        out._obj.eventData = xid.number

    def nvmlEventSetFree(self, events):
        assert self._of(events) == ("events",)

    def nvmlDeviceCreateGpuInstanceWithPlacement(self, device, number, place, made):
        gpu, it = self._of(device)[1], self._offered(device, number)
        assert place._obj.size == it.span
        self._name(made, "instance", gpu, self._fake.create_instance(gpu, it, place._obj.start))

    def nvmlDeviceGetGpuInstanceById(self, device, number, found):
        gpu = self._of(device)[1]
        self._fake._instance(gpu, number, "")
        self._name(found, "instance", gpu, number)

    def nvmlGpuInstanceCreateComputeInstance(self, instance, number, made):
        _, gpu, owner = self._of(instance)
        assert number == _COMPUTE[self._standing(instance).slices], "not as wide as its GPU instance"
        self._fake.create_compute(gpu, owner)
        self._name(made, "compute", gpu, owner, 0)

    def nvmlGpuInstanceGetComputeInstanceById(self, instance, number, found):
        _, gpu, owner = self._of(instance)
        if number not in {c.number for c in self._standing(instance).computes}:
            raise error("", Code.NOT_FOUND)
        self._name(found, "compute", gpu, owner, number)

    def nvmlComputeInstanceDestroy(self, compute):
        self._fake.destroy_compute(*self._of(compute)[1:])

    def nvmlGpuInstanceDestroy(self, instance):
        self._fake.destroy_instance(*self._of(instance)[1:])

    def _gpu(self, device):
        return self._fake.gpus()[self._of(device)[1]]

    def _mig(self, device):
        _, gpu, instance, compute = self._of(device)
        return next(d for d in self._fake.mig_devices(gpu) if (d.instance, d.compute) == (instance, compute))

    def _standing(self, instance):
        return self._fake._instance(*self._of(instance)[1:], "")

    def _offered(self, device, number):
        return next(o for _, o in self._fake.state[self._of(device)[1]].offered() if o.number == number)


class _Loaded:
    """What `CDLL` would have returned."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        function = getattr(self._library, name)

        def called(*arguments):
            try:
                function(*arguments)
            except NvmlError as failure:
                return int(failure.code)
            return 0

        return called


@contextmanager
def below_pynvml(monkeypatch, fake):
    """Let the real pynvml call this fake instead of libnvidia-ml."""
    library = FakeLibrary(fake)
    with monkeypatch.context() as patch:
        patch.setattr(pynvml, "nvmlLib", _Loaded(library))
        patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        yield library
