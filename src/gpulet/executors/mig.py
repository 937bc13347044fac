"""A plan's MIG instances on this machine's GPUs, made where an operator allows it; what stands is read by `migbinding`.

The rule: only what we made is ever ended, and a plan is carved whole or not at all. Somebody else's instance stays where
it is. One of a planned type at a planned slot is taken as it is if nobody computes in it; one in the way makes the plan
refused, before anything changes. Where a step fails, those before it are undone in reverse; `CarveError` says what could
not be. UUIDs may differ after that, so bind again. MIG mode is never switched here.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from gpulet.device import Device
from gpulet.errors import CarveError, GpuletError, NvmlError, Unusable
from gpulet.executors.migbinding import bound, check_types, gpu_of, wanted_on
from gpulet.executors.nvml import CarvingNvml, Code, Gpu, GpuInstance, OfferedType
from gpulet.mig import Instance, creation_order
from gpulet.plan import GpuletId, Plan

_TRIES = 20
_PAUSE_S = 0.1
"""A GPU instance can be in use for a moment after its compute instance is gone; two seconds in all."""


@dataclass(frozen=True, slots=True)
class Made:
    """An instance that we made, by the UUID of its GPU; `uuid` is its own, empty while it cannot compute.

    NVML's numbers recur, so an instance is known as ours only if all of this agrees.
    """

    gpu: str
    number: int
    label: str
    start: int
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """What carving one GPU takes: instances to end, then places to fill, larger first."""

    gpu: Gpu
    types: Mapping[str, OfferedType]
    end: tuple[GpuInstance, ...]
    make: tuple[Instance, ...]


class Carver:
    """Makes a plan's instances on the GPUs, by UUID, that the operator `allowed`.

    `made` is what an earlier process of ours wrote down of its own; what is made here joins it, and `record` is told
    at every change, before the next one. `in_use` are instances, by UUID, whose processes are our own workers.
    """

    def __init__(
        self,
        nvml: CarvingNvml,
        allowed: Collection[str] = (),
        made: Iterable[Made] = (),
        pause: Callable[[float], None] = time.sleep,
        record: Callable[[tuple[Made, ...]], None] = lambda _: None,
        in_use: Collection[str] = (),
    ) -> None:
        self._nvml = nvml
        self._allowed = frozenset(allowed)
        self._made = {(m.gpu, m.number): m for m in made}
        self._pause = pause
        self._record = record
        self._in_use = frozenset(in_use)
        self._undo: list[tuple[str, Callable[[], None]]] = []

    @property
    def made(self) -> tuple[Made, ...]:
        """What we made and did not end, to be written down."""
        return tuple(self._made.values())

    def carve(self, plan: Plan) -> dict[GpuletId, str]:
        """Make what is missing, end what we made and is not planned; the UUID of each gpulet's instance.

        Raises `PlanError` for a plan that is not MIG's, `Unusable` where it cannot be, before anything changes;
        `CarveError` where a step failed.
        """
        jobs = self.jobs(plan)
        self._undo = []
        try:
            for job in jobs:
                self._carry_out(job)
            return bound(self._nvml, plan)
        except BaseException as error:
            left = self._undone()
            if isinstance(error, GpuletError):
                raise CarveError(str(error), left) from error
            raise

    def jobs(self, plan: Plan) -> tuple[Job, ...]:
        """What `carve` would do; raises as it does before anything changes."""
        gpus = self._nvml.gpus()
        jobs = tuple(self._job(plan, device, gpu_of(device, gpus)) for device in plan.devices)
        for job in jobs:
            if (job.end or job.make) and job.gpu.uuid not in self._allowed:
                named = [f"end {_what(i)}" for i in job.end] + [f"make {i.type.label} at {i.start}" for i in job.make]
                msg = f"GPU {job.gpu.index} ({job.gpu.uuid}) may not be cut: no operator named it; to do: "
                raise Unusable(msg + ", ".join(named))
        return jobs

    def _job(self, plan: Plan, device: Device, gpu: Gpu) -> Job:
        wanted = wanted_on(plan, device)
        types = {o.label: o for o in self._nvml.types(gpu.index)}
        check_types(device, wanted, types)
        standing = self._nvml.instances(gpu.index)
        self._forget_gone(gpu, standing)
        spots = {(i.type.label, i.start) for i in wanted}
        kept = {i.number for i in standing if i.uuid and (i.label, i.start) in spots}
        held = {(i.label, i.start) for i in standing if i.number in kept}
        make = creation_order(i for i in wanted if (i.type.label, i.start) not in held)
        end = tuple(i for i in standing if i.number not in kept and self._is_ours(gpu, i))
        strangers = [i for i in standing if not self._is_ours(gpu, i)]
        self._refuse_held([*end, *(i for i in standing if i.number in kept and i.uuid not in self._in_use)])
        _refuse_blocked(make, [i for i in strangers if i.number not in kept])
        return Job(gpu, types, end, make)

    def _is_ours(self, gpu: Gpu, it: GpuInstance) -> bool:
        known = Made(gpu.uuid, it.number, it.label, it.start, it.uuid)
        return self._made.get((gpu.uuid, it.number)) == known and len(it.computes) == bool(it.uuid)

    def _forget_gone(self, gpu: Gpu, standing: Iterable[GpuInstance]) -> None:
        numbers = {it.number for it in standing}
        self._made = {(g, n): m for (g, n), m in self._made.items() if g != gpu.uuid or n in numbers}

    def _refuse_held(self, instances: Iterable[GpuInstance]) -> None:
        for it in instances:
            pids = self._nvml.pids(it.uuid) if it.uuid else ()
            if pids:
                msg = f"{_what(it)} is held by process {', '.join(map(str, pids))}"
                raise Unusable(msg)

    def _carry_out(self, job: Job) -> None:
        for it in job.end:
            self._end(job, it)
        for place in job.make:
            self._make(job, job.types[place.type.label], place.start, computes=True)

    def _make(self, job: Job, offered: OfferedType, start: int, *, computes: bool) -> None:
        """Make one instance; each of its two steps can be undone by itself."""
        what = f"{offered.label} at {start} of GPU {job.gpu.index}"
        index = job.gpu.index
        number = self._nvml.create_instance(index, offered, start)
        self._made[job.gpu.uuid, number] = Made(job.gpu.uuid, number, offered.label, start)
        self._undo.append((f"{what} was made and stands", lambda: self._end_instance(job.gpu, number)))
        self._record(self.made)
        if computes:
            self._nvml.create_compute(index, number)
            self._undo.append((f"{what} computes", lambda: self._end_computes(index, number)))
            uuid = next((i.uuid for i in self._nvml.instances(index) if i.number == number), "")
            self._made[job.gpu.uuid, number] = Made(job.gpu.uuid, number, offered.label, start, uuid)
            self._record(self.made)

    def _end(self, job: Job, it: GpuInstance) -> None:
        for compute in it.computes:
            self._nvml.destroy_compute(it.gpu, it.number, compute.number)
            self._undo.append((f"{_what(it)} cannot compute", lambda: self._nvml.create_compute(it.gpu, it.number)))
        self._made[job.gpu.uuid, it.number] = Made(job.gpu.uuid, it.number, it.label, it.start)
        self._record(self.made)
        self._end_instance(job.gpu, it.number)
        del self._undo[len(self._undo) - len(it.computes) :]
        offered, computes = job.types[it.label], bool(it.computes)
        self._undo.append((f"{_what(it)} is gone", lambda: self._make(job, offered, it.start, computes=computes)))

    def _end_computes(self, gpu: int, number: int) -> None:
        for it in self._nvml.instances(gpu):
            for compute in it.computes if it.number == number else ():
                self._nvml.destroy_compute(gpu, number, compute.number)

    def _end_instance(self, gpu: Gpu, number: int) -> None:
        for attempt in range(_TRIES):
            try:
                self._nvml.destroy_instance(gpu.index, number)
                break
            except NvmlError as error:
                if error.code != Code.IN_USE or attempt == _TRIES - 1:
                    raise
                self._pause(_PAUSE_S)
        del self._made[gpu.uuid, number]
        self._record(self.made)

    def _undone(self) -> tuple[str, ...]:
        """Undo all steps, the last one first; what could not be undone, and why."""
        left: list[str] = []
        steps, self._undo = self._undo[::-1], []
        for what, undo in steps:
            try:
                undo()
            except GpuletError as error:
                left.append(f"{what}: {error}")
        try:
            self._refresh()
        except GpuletError as error:
            left.append(f"what stands now cannot be read: {error}")
        return tuple(left)

    def _refresh(self) -> None:
        """After an undoing, instances may compute under another UUID, or not any more."""
        for gpu in self._nvml.gpus():
            mine = {number for uuid, number in self._made if uuid == gpu.uuid}
            for it in self._nvml.instances(gpu.index) if mine else ():
                if it.number in mine:
                    self._made[gpu.uuid, it.number] = Made(gpu.uuid, it.number, it.label, it.start, it.uuid)
        self._record(self.made)


def _what(it: GpuInstance) -> str:
    return f"{it.label} at {it.start} of GPU {it.gpu}"


def _refuse_blocked(make: Iterable[Instance], strangers: Iterable[GpuInstance]) -> None:
    for place, it in _overlaps(make, tuple(strangers)):
        clear = f"nvidia-smi mig -i {it.gpu} -gi {it.number}"
        msg = f"{_what(it)} is not ours and in the way of {place.type.label} at {place.start}; its owner may run "
        raise Unusable(msg + f"{clear} -dci && {clear} -dgi")


def _overlaps(make: Iterable[Instance], others: tuple[GpuInstance, ...]) -> Iterator[tuple[Instance, GpuInstance]]:
    for place in make:
        for it in others:
            if it.start < place.start + place.type.span and place.start < it.start + it.span:
                yield place, it
