"""What a plan asks of MIG on this machine's GPUs, and which instances that stand are its gpulets'. Changes nothing."""

from collections.abc import Collection, Iterable, Mapping

from gpulet.device import Device, Mechanism, overcut
from gpulet.errors import NvmlError, PlanError, Unusable
from gpulet.executors.nvml import Code, Gpu, MigMode, Nvml, OfferedType
from gpulet.mig import Instance
from gpulet.plan import Gpulet, GpuletId, Plan, placements


def bound(nvml: Nvml, plan: Plan, taken: Collection[str] = ()) -> dict[GpuletId, str]:
    """The UUID of each gpulet's instance; changes nothing. Raises `Unusable` for those that do not stand.

    Who may not see where instances lie gets any of the type in which nobody computes and that is not `taken`: so bind
    before workers start.
    """
    try:
        there = {(d.index, i.label, i.start): i.uuid for d in plan.devices for i in nvml.instances(d.index) if i.uuid}
    except NvmlError as error:
        if error.code != Code.NO_PERMISSION:
            raise
        there = _by_type(nvml, plan, taken)
    absent = [g for g in plan.gpulets if _place(g) not in there]
    if absent:
        named = ", ".join(f"{g.size.label} at {g.offset} of GPU {g.device}" for g in absent)
        msg = f"not carved: {named}; gpulet plan --emit nvidia-smi prints the commands"
        raise Unusable(msg)
    return {g.id: there[_place(g)] for g in plan.gpulets}


def _place(g: Gpulet) -> tuple[int, str, int]:
    return g.device, g.size.label, g.offset


def _by_type(nvml: Nvml, plan: Plan, taken: Collection[str]) -> dict[tuple[int, str, int], str]:
    """Idle instances of a planned type, one for each of its planned places, in order."""
    places = sorted({_place(g) for g in plan.gpulets})
    devices = [d for index in sorted({gpu for gpu, _, _ in places}) for d in nvml.mig_devices(index)]
    idle = [d for d in devices if d.uuid not in taken and not nvml.pids(d.uuid)]
    there: dict[tuple[int, str, int], str] = {}
    for gpu, label in dict.fromkeys((gpu, label) for gpu, label, _ in places):
        mine = [place for place in places if place[:2] == (gpu, label)]
        found = [d.uuid for d in idle if (d.gpu, d.label) == (gpu, label)]
        there.update(zip(mine, found, strict=False))
    return there


def visible(uuid: str) -> dict[str, str]:
    """What a worker of that instance must find in its environment before CUDA starts."""
    return {"CUDA_VISIBLE_DEVICES": uuid}


def check(nvml: Nvml, plan: Plan) -> None:
    """Raise `PlanError` for a plan that is not MIG's or overlaps, `Unusable` for GPUs that are not as it says."""
    gpus = nvml.gpus()
    for device in plan.devices:
        gpu = gpu_of(device, gpus)
        check_types(device, wanted_on(plan, device), {o.label: o for o in nvml.types(gpu.index)})


def gpu_of(device: Device, gpus: Collection[Gpu]) -> Gpu:
    """A device's index is taken for NVML's, which is that of nvidia-smi."""
    if device.mechanism is not Mechanism.MIG:
        msg = f"device {device.index} ({device.kind.name}) is cut by {device.mechanism}, not by MIG"
        raise PlanError(msg)
    found = next((gpu for gpu in gpus if gpu.index == device.index), None)
    if found is None:
        msg = f"device {device.index} is planned, NVML shows {len(gpus)} GPUs"
        raise Unusable(msg)
    if found.mig is not MigMode.ON:
        how = "" if found.mig is MigMode.ABSENT else f"; an operator may run nvidia-smi -i {found.index} -mig 1"
        msg = f"GPU {found.index} ({found.name}): {found.mig}{how}"
        raise Unusable(msg)
    return found


def wanted_on(plan: Plan, device: Device) -> tuple[Instance, ...]:
    """What a plan has on a device: processes of one gpulet share an instance."""
    placed = placements([g for g in plan.gpulets if g.device == device.index])
    for why in overcut(device, placed):
        raise PlanError(why)
    return tuple(Instance(device.index, device.kind.geometry.find(p.size.label), p.offset) for p in placed)


def check_types(device: Device, wanted: Iterable[Instance], offered: Mapping[str, OfferedType]) -> None:
    """A GPU must offer each planned type as it was planned with: its slots, its SMs."""
    for it in wanted:
        has = offered.get(it.type.label)
        if has is None:
            known = ", ".join(offered) or "none"
            msg = f"GPU {device.index} has no MIG type {it.type.label} of a {device.kind.name}; it has {known}"
            raise Unusable(msg)
        sms = next(s.sms for s in device.sizes() if s.label == it.type.label)
        if (has.span, has.sms) != (it.type.span, sms) or it.start not in has.starts:
            planned = f"{it.type.span} memory slices from {it.start}, {sms} SMs"
            msg = f"GPU {device.index}: {has.label} is planned with {planned}; it has {has.span} from {has.starts}, {has.sms} SMs"
            raise Unusable(msg)
