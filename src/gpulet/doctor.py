"""What this machine can do, check by check, with numbers. Nothing is started or changed; threads of our own are pinned.

What green contexts do is shown by a process that holds the GPU for a moment: `proofs.py`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import metadata, util

from gpulet.device import Device, Kind, Mechanism
from gpulet.errors import MpsError, NvmlError, Unusable
from gpulet.executors.mpscontrol import BINARY, Binary
from gpulet.executors.nvml import NO_DRIVER, Gpu, MigMode, Nvml
from gpulet.units import GIB


class Verdict(StrEnum):
    """`NO`: not here, or not as it must be."""

    OK = "ok"
    NO = "no"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; `is_asked`: without it the machine is not usable for what was asked."""

    name: str
    verdict: Verdict
    says: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    is_asked: bool = False

    @property
    def is_fatal(self) -> bool:
        """Asked for, and not here."""
        return self.is_asked and self.verdict is Verdict.NO


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the checks look: cores this process may use, NVML, the MPS control binary (none: not installed)."""

    cores: tuple[int, ...]
    open_nvml: Callable[[], Nvml]
    mps: Binary | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the machine must be able to do: serve these devices. `any_gpu`: or just have one GPU that NVML shows."""

    devices: tuple[Device, ...] = ()
    any_gpu: bool = False

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """How the devices are cut."""
        return frozenset(d.mechanism for d in self.devices)

    @property
    def gpus(self) -> tuple[Device, ...]:
        """Those that are not this machine's cores."""
        return tuple(d for d in self.devices if d.kind.name != "cpu")


def examine(machine: Machine, asked: Asked) -> tuple[Check, ...]:
    """Every check: cores, and what there is of GPUs if any are asked for. Raises `Unusable` for no GPU where any will do."""
    cores = check_cores(machine.cores, is_asked=bool(asked.devices) and not asked.gpus)
    if not asked.gpus and not asked.any_gpu:
        return (cores,)
    try:
        gpus = tuple(check_gpus(machine, asked))
    except Unusable as error:
        is_bare = isinstance(error, NvmlError) and error.code in NO_DRIVER
        msg = f"no GPU here: {'no NVIDIA driver is loaded, ' if is_bare else ''}{error}"
        if not asked.gpus:
            raise Unusable(msg) from None
        gpus = (Check("driver", Verdict.NO, msg, is_asked=True),)
    mps = check_mps(machine.mps, is_asked=Mechanism.MPS in asked.mechanisms)
    return cores, *gpus, mps, check_bindings(is_asked=Mechanism.GREEN in asked.mechanisms)


def cuttable(machine: Machine, asked: Asked) -> tuple[tuple[int, Kind], ...]:
    """The asked GPUs on which green contexts can be tried: by index, and as plans count on them; as which, may be unknown.

    None without cuda.bindings or a driver, none in MIG mode.
    """
    if not (asked.gpus or asked.any_gpu) or check_bindings(is_asked=False).verdict is Verdict.NO:
        return ()
    try:
        with closing(machine.open_nvml()) as nvml:
            gpus = [gpu for gpu in nvml.gpus() if gpu.mig is not MigMode.ON]
    except Unusable:  # which `examine` tells
        return ()
    planned = {device.index: device.kind for device in asked.gpus}
    unknown = {} if planned else {gpu.index: Kind(gpu.name, 0, gpu.memory) for gpu in gpus}
    return tuple((gpu.index, kind) for gpu in gpus if (kind := (planned | unknown).get(gpu.index)))


def check_cores(cores: Sequence[int], *, is_asked: bool) -> Check:
    """Whether a thread stays on a core that it is given, and whom it starts stays there: what CPU gpulets rest on."""
    with ThreadPoolExecutor(1) as pool:
        astray = pool.submit(_astray, cores).result()
    verdict = Verdict.NO if astray else Verdict.OK
    says = f"{len(cores)} usable, pinning verified on each"
    if astray:
        says = f"{len(cores)} usable, pinning does not hold on {', '.join(map(str, astray))}"
    return Check("cores", verdict, says, {"cores": len(cores), "astray": astray}, is_asked)


def _astray(cores: Sequence[int]) -> list[int]:
    """On a thread of its own, whose mask ends with it. A worker's runtime makes its threads under such a mask."""
    astray: list[int] = []
    for core in cores:
        try:
            os.sched_setaffinity(0, {core})
        except OSError:
            astray.append(core)
            continue
        with ThreadPoolExecutor(1) as child:
            seen = {*os.sched_getaffinity(0), *child.submit(os.sched_getaffinity, 0).result()}
        if seen != {core}:
            astray.append(core)
    return astray


def check_gpus(machine: Machine, asked: Asked) -> Iterator[Check]:
    """The driver, each GPU, and for MIG whether its types are those that plans are made with."""
    with closing(machine.open_nvml()) as nvml:
        driver, cuda = nvml.versions()
        version = f"{cuda // 1000}.{cuda % 1000 // 10}"
        gpus = nvml.gpus()
        says = f"{driver}, CUDA {version}, {len(gpus)} GPUs"
        needed = len(asked.gpus) or 1
        verdict = Verdict.OK if len(gpus) >= needed else Verdict.NO
        says += f" of {needed}" if verdict is Verdict.NO else ""
        yield Check("driver", verdict, says, {"driver": driver, "cuda": version, "gpus": len(gpus)}, is_asked=True)
        devices = {d.index: d for d in asked.gpus}
        for gpu in gpus:
            yield _check_gpu(nvml, gpu)
            if gpu.mig is not MigMode.ABSENT or gpu.index in devices:
                yield _check_mig(nvml, gpu, devices.get(gpu.index))


def _check_gpu(nvml: Nvml, gpu: Gpu) -> Check:
    says = f"{gpu.name}, {gpu.memory / GIB:.1f} GiB, {gpu.used / GIB:.1f} used, {gpu.mig}"
    says += f" ({gpu.pending} after a reset)" if gpu.pending is not gpu.mig else ""
    numbers = {"uuid": gpu.uuid, "name": gpu.name, "memory": gpu.memory, "used": gpu.used, "mig": gpu.mig == MigMode.ON}
    try:
        slowed = nvml.slowed_by(gpu.index)
    except NvmlError:  # not every GPU or sandbox tells
        return Check(f"gpu {gpu.index}", Verdict.OK, says, numbers)
    says += f", slowed by {', '.join(slowed)}" if slowed else ""
    return Check(f"gpu {gpu.index}", Verdict.OK, says, {**numbers, "slowed_by": list(slowed)})


def _check_mig(nvml: Nvml, gpu: Gpu, device: Device | None) -> Check:
    """What stands; for a device that a plan would cut by MIG, whether its types are as our tables have them."""
    name = f"mig {gpu.index}"
    is_asked = device is not None and device.mechanism is Mechanism.MIG
    if gpu.mig is not MigMode.ON:
        is_fine = Verdict.NO if is_asked else Verdict.OK
        return Check(name, is_fine, f"{gpu.mig}, nothing to cut or bind", {"devices": 0}, is_asked)
    try:
        there = nvml.mig_devices(gpu.index)
        unlike = tuple(_unlike(nvml, gpu, device)) if device and is_asked else ()
    except NvmlError as error:
        return Check(name, Verdict.NO, str(error), {}, is_asked)
    counts = Counter(f"{d.label} of {d.sms} SMs" for d in there)
    says = ", ".join(f"{n} x {what}" for what, n in counts.items()) or "no instances"
    says += f"; {'; '.join(unlike)}" if unlike else ""
    numbers = {"devices": len(there), "uuids": [d.uuid for d in there], "unlike": list(unlike)}
    return Check(name, Verdict.NO if unlike else Verdict.OK, says, numbers, is_asked)


def _unlike(nvml: Nvml, gpu: Gpu, device: Device) -> Iterator[str]:
    offered = {o.label: o for o in nvml.types(gpu.index)}
    for size in device.sizes():
        has = offered.get(size.label)
        if has is None:
            yield f"it has no {size.label} of a {device.kind.name}"
        elif has.sms != size.sms:
            yield f"its {size.label} has {has.sms} SMs, plans count on {size.sms}"


def check_mps(binary: Binary | None, *, is_asked: bool) -> Check:
    """The control binary and what it knows; no daemon is started."""
    if binary is None:
        return Check("mps", Verdict.NO, f"{BINARY} is not installed", {}, is_asked)
    try:
        has = binary.probe()
    except MpsError as error:
        return Check("mps", Verdict.NO, str(error), {}, is_asked)
    says = (
        f"{BINARY} version {has.version or 'unknown'}, static partitions {_yes(has.has_static)}, v3 {_yes(has.has_v3)}"
    )
    return Check(
        "mps", Verdict.OK, says, {"version": has.version, "static": has.has_static, "v3": has.has_v3}, is_asked
    )


def check_bindings(*, is_asked: bool) -> Check:
    """cuda.bindings, which green contexts are made with: found, not imported."""
    try:
        version = metadata.version("cuda-bindings")
        is_there = util.find_spec("cuda.bindings") is not None
    except (metadata.PackageNotFoundError, ModuleNotFoundError):
        version, is_there = "", False
    if not is_there:
        return Check("cuda.bindings", Verdict.NO, "not installed", {}, is_asked)
    return Check("cuda.bindings", Verdict.OK, version, {"version": version}, is_asked)


def _yes(has: bool) -> str:
    return "yes" if has else "no"
