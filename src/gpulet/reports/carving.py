"""A plan for the tools that carve GPUs: what `gpulet plan --emit` prints.

Sources: MIG User Guide ("Creating GPU Instances", "CUDA Device Enumeration"); NVIDIA/mig-parted README (version v1);
Kubernetes resource.k8s.io/v1 and the NVIDIA DRA driver's example claims; the MPS documentation for its variables.
A device's index is taken for the index that `nvidia-smi` gives it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from gpulet.device import Device, Mechanism
from gpulet.errors import BadInput, PlanError
from gpulet.mig import Instance, creation_order
from gpulet.plan import Gpulet, Plan

CONFIG_NAME = "gpulet"
"""What `nvidia-mig-parted apply -c` and the node label nvidia.com/mig.config call it."""
_MPS_DIRECTORY = "/run/nvidia-mps/gpulet-"


def emitted(plan: Plan, form: str) -> str:
    """The plan in one of `FORMS`. Raises `BadInput` for another form, `PlanError` where its devices have no such thing."""
    return "".join(f"{line}\n" for line in find_form(form)(plan))


def find_form(form: str) -> Callable[[Plan], Iterator[str]]:
    """What writes that form; raises `BadInput` that lists the known ones."""
    if form not in FORMS:
        msg = f"--emit {form!r}: known are {', '.join(FORMS)}"
        raise BadInput(msg)
    return FORMS[form]


def _commands(plan: Plan) -> Iterator[str]:
    """A script of `nvidia-smi` commands, one GPU after the other."""
    layout = _layout(plan, "nvidia-smi")
    yield "#!/bin/sh"
    yield from (f"# {line}" for line in _notes(plan, layout))
    yield "set -eu"
    for device, instances in layout.items():
        yield ""
        yield f"# {_described(device, instances)}"
        yield from _carve(device, instances)


def _mig_parted(plan: Plan) -> Iterator[str]:
    """mig-parted's file: counts only; what it cannot say, the slots, stands in comments as commands."""
    layout = _layout(plan, "mig")
    yield f"# mig-parted: nvidia-mig-parted apply -f FILE -c {CONFIG_NAME}"
    yield "# It carves counts and chooses slots itself. The planned slots, by hand instead:"
    yield "#"
    yield from (f"# {line}" for line in _notes(plan, layout))
    for device, instances in layout.items():
        yield f"# {_described(device, instances)}"
        yield from (line if line.startswith("#") else f"#   {line}" for line in _carve(device, instances))
    yield "version: v1"
    yield "mig-configs:"
    yield f"  {CONFIG_NAME}:"
    for device, instances in layout.items():
        yield f"  - devices: [{device.index}]"
        yield "    mig-enabled: true"
        yield "    mig-devices:"
        counts = Counter(i.type.label for i in instances)
        yield from (f'      "{label}": {n}' for label, n in counts.items())


def _claims(plan: Plan) -> Iterator[str]:
    """One ResourceClaim for each GPU, so that its instances lie on one; which GPU that is, Kubernetes chooses."""
    layout = _layout(plan, "dra")
    yield "# ResourceClaims for the NVIDIA DRA driver: one for each planned GPU, one request for each gpulet."
    yield "# The driver hands out instances that are carved already, unless its feature gate DynamicMIG is on."
    for device in layout:
        yield "---"
        yield "apiVersion: resource.k8s.io/v1"
        yield "kind: ResourceClaim"
        yield "metadata:"
        yield f"  name: gpulet-gpu-{device.index}"
        yield "spec:"
        yield "  devices:"
        yield "    requests:"
        for g in _gpulets(plan, device):
            yield f"    - name: gpulet-{g.id}"
            yield "      exactly:"
            yield "        deviceClassName: mig.nvidia.com"
            yield "        selectors:"
            yield "        - cel:"
            yield f"            expression: \"device.attributes['gpu.nvidia.com'].profile == '{g.size.label}'\""
        yield "    constraints:"
        yield "    - matchAttribute: gpu.nvidia.com/parentUUID"


def _environments(plan: Plan) -> Iterator[str]:
    """One line for each worker process: gpulet by gpulet, what it must find in its environment before CUDA starts."""
    used = _used(plan)
    cores = [d for d in used if d.mechanism is Mechanism.CPU]
    if cores:
        msg = f"--emit env: device {cores[0].index} is a CPU, whose gpulets are pinned to cores, not by environment"
        raise PlanError(msg)
    if any(d.mechanism is Mechanism.MIG for d in used):
        yield "# MIG-<...>: the UUID of that instance; only the carved device tells it (nvidia-smi -L)."
    if any(d.mechanism is Mechanism.MIG and g.processes > 1 for d in used for g in _gpulets(plan, d)):
        yield "# Instances of several processes: one `nvidia-cuda-mps-control -d` each, started with the same variables."
    for device in used:
        for g in _gpulets(plan, device):
            yield f"# gpulet {g.id}: {g.size.label or g.size.sms} of GPU {device.index}: {', '.join(g.models)}"
            yield from (" ".join(f"{k}={v}" for k, v in variables) for variables in _variables(device, g))


def _variables(device: Device, g: Gpulet) -> Iterator[list[tuple[str, str]]]:
    """Each process's variables: processes of one MIG instance share its MPS daemon."""
    for process in range(g.processes):
        yield [
            ("GPULET_ID", str(g.id)),
            *([("GPULET_PROCESS", str(process))] if g.processes > 1 else []),
            ("CUDA_VISIBLE_DEVICES", _visible(device, g)),
            *_mps(device, g),
        ]


def _visible(device: Device, g: Gpulet) -> str:
    if device.mechanism is Mechanism.MIG:
        return f"MIG-<UUID:GPU-{device.index}:{g.size.label}:slot-{g.offset}>"
    return str(device.index)


def _mps(device: Device, g: Gpulet) -> Iterator[tuple[str, str]]:
    if device.mechanism is Mechanism.MPS:
        yield "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", f"{g.size.share_pct:g}"
    elif device.mechanism is Mechanism.MIG and g.processes > 1:
        yield "CUDA_MPS_PIPE_DIRECTORY", f"{_MPS_DIRECTORY}{g.id}"
        yield "CUDA_MPS_LOG_DIRECTORY", f"{_MPS_DIRECTORY}{g.id}/log"


def _layout(plan: Plan, form: str) -> dict[Device, tuple[Instance, ...]]:
    """What to create on each GPU that is used, in that order; raises `PlanError` where one is not cut by MIG."""
    used = _used(plan)
    for device in used:
        if device.mechanism is not Mechanism.MIG:
            how = f"device {device.index} ({device.kind.name}) is cut by {device.mechanism}"
            msg = f"--emit {form} is for devices that MIG cuts; {how}"
            raise PlanError(msg)
    return {
        device: creation_order(
            Instance(device.index, device.kind.geometry.find(g.size.label), g.offset) for g in _gpulets(plan, device)
        )
        for device in used
    }


def _used(plan: Plan) -> tuple[Device, ...]:
    used = tuple(d for d in plan.devices if _gpulets(plan, d))
    if not used:
        msg = "--emit: the plan has no gpulets to carve"
        raise PlanError(msg)
    return used


def _gpulets(plan: Plan, device: Device) -> tuple[Gpulet, ...]:
    return tuple(g for g in plan.gpulets if g.device == device.index)


def _notes(plan: Plan, used: Iterable[Device]) -> Iterator[str]:
    """What one must know before the commands are run."""
    yield "Run with nothing on these GPUs (stop DCGM and nvsm too); A100 and A30 are reset when MIG is switched on."
    yield "-dci and -dgi are for what is there: they fail where there is nothing, and where a process still runs."
    yield "Instances do not outlive a reboot. Types by name: their numbers differ between devices."
    idle = sorted({d.index for d in plan.devices} - {d.index for d in used})
    if idle:
        yield f"Not used, left as they are: GPU {', '.join(map(str, idle))}."


def _described(device: Device, instances: Iterable[Instance]) -> str:
    parts = ", ".join(f"{i.type.label} at {i.start}" for i in instances)
    return f"GPU {device.index} ({device.kind.name}): {parts}"


def _carve(device: Device, instances: Iterable[Instance]) -> Iterator[str]:
    made = ",".join(f"{i.type.label}:{i.start}" for i in instances)
    yield f"sudo nvidia-smi -i {device.index} -mig 1"
    yield f"sudo nvidia-smi mig -i {device.index} -dci || true"
    yield f"sudo nvidia-smi mig -i {device.index} -dgi || true"
    yield f"sudo nvidia-smi mig -i {device.index} -cgi {made} -C"


FORMS: Mapping[str, Callable[[Plan], Iterator[str]]] = {
    "mig": _mig_parted,
    "nvidia-smi": _commands,
    "dra": _claims,
    "env": _environments,
}
"""What `--emit` takes."""
