"""Gpulets by MPS: a daemon of our own for each GPU of a plan, and a worker process for each gpulet as its client.

A percentage is a cap and not a reservation: clients never compute on more SMs, but which ones is the GPU's choice, so the
shares of a device are kept by their sum alone. Static partitions reserve: on request, where the control binary has them.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from math import ceil, floor

from gpulet.device import Device, Mechanism, overcut
from gpulet.errors import ConfigError, PlanError, Unproven, Unusable
from gpulet.executors.daemons import Daemons, client_environment
from gpulet.executors.ground import Ground, Post
from gpulet.executors.mpscontrol import Client
from gpulet.executors.nvml import Gpu, MigMode, Nvml
from gpulet.executors.partitions import Partitions
from gpulet.executors.wire import Ready
from gpulet.plan import Gpulet, Plan, placements
from gpulet.units import GIB

CONTEXT_MEMORY = GIB
"""What a client's limit allows beyond its models: CUDA's context and libraries count in it too (MPS documentation)."""
_ALL_PCT = 100
_PAIR = 2
"""SMs come in pairs (TPCs), so a percentage may be kept to the next even number."""


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may ask for beyond percentages.

    `memory`: bytes of a replica by model, 0 unknown. A client is limited to its models' sum and `CONTEXT_MEMORY` where all
    are known, else to nothing: a share of the SMs says nothing of a model's size. `chunk_sms`: static partitions of such
    chunks of SMs, as the control binary's `lspart` shows them; 0: percentages.
    """

    memory: Mapping[str, int] = field(default_factory=dict)
    chunk_sms: int = 0

    def __post_init__(self) -> None:
        if self.chunk_sms < 0:
            msg = f"a chunk of {self.chunk_sms} SMs"
            raise ConfigError(msg)

    def limit(self, gpulet: Gpulet) -> int:
        """Bytes that a gpulet's process may have; 0: no limit."""
        needs = [self.memory.get(name, 0) for name in gpulet.held]
        return sum(needs) + CONTEXT_MEMORY if needs and all(needs) else 0


class MpsGround:
    """A daemon per GPU, from the first plan with gpulets there to the first in force without.

    Workers of a device in `lost` are dead or dying: `prepare` the plan again and start others from the new posts.
    """

    def __init__(self, open_nvml: Callable[[], Nvml], daemons: Daemons, options: Options | None = None) -> None:
        self._open_nvml = open_nvml
        self._daemons = daemons
        self._options = options or Options()
        self._partitions = Partitions(daemons, self._options.chunk_sms) if self._options.chunk_sms else None
        self._gpus: dict[int, str] = {}
        self._devices: dict[int, Device] = {}

    @property
    def lost(self) -> tuple[int, ...]:
        """The devices whose daemon has died since it was started."""
        dead = self._daemons.dead
        return tuple(device for device, uuid in self._gpus.items() if uuid in dead)

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        for device in plan.devices:
            self._check(device, [g for g in plan.gpulets if g.device == device.index])
        gpus = self._find(plan)
        with ExitStack() as stack:
            stack.enter_context(self._daemons.started(gpus.values(), is_static=self._partitions is not None))
            cut = stack.enter_context(self._partitions.cut(plan, gpus)) if self._partitions else {}
            posts = tuple(self._post(g, gpus[g.device], cut.get(g.id, "")) for g in plan.gpulets)
        self._gpus |= gpus
        self._devices |= {d.index: d for d in plan.devices}
        return posts

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        (gpulet,) = post.gpulets
        sms = ready.sms
        self._daemons.prove(self._gpus[post.device], pid)
        kind = self._devices[post.device].kind
        least, most = self._bounds(gpulet, kind.sms)
        if not least <= sms <= most:
            allowed = f"{least}" if least == most else f"{least} to {most}"
            what = f"{gpulet.size.label} of a {kind.name} with {kind.sms} SMs is {allowed}"
            msg = f"gpulet {gpulet.id}: process {pid} counts {sms} SMs; {what}: {_why(sms, most, kind.sms)}"
            raise Unproven(msg)

    def settle(self, plan: Plan) -> None:
        used = {g.device for g in plan.gpulets}
        self._gpus = {device: uuid for device, uuid in self._gpus.items() if device in used}
        self._daemons.keep(self._gpus.values())
        if self._partitions:
            self._partitions.keep(plan, self._gpus)

    def dismiss(self, post: Post, pid: int) -> None:
        """Before a busy worker is killed: killing a client alone is undefined."""
        self._daemons.dismiss(self._gpus[post.device], pid)

    def close(self) -> None:
        self._daemons.close()
        self._gpus = {}

    def _check(self, device: Device, gpulets: list[Gpulet]) -> None:
        if device.mechanism is not Mechanism.MPS:
            msg = f"device {device.index} ({device.kind.name}) is cut by {device.mechanism}, not by MPS"
            raise PlanError(msg)
        for why in overcut(device, placements(gpulets)):
            raise PlanError(why)
        for g in gpulets:
            if self._partitions and not self._partitions.chunks(g):
                msg = f"gpulet {g.id}: its {g.size.sms} SMs are less than a chunk of {self._options.chunk_sms}"
                raise PlanError(msg)
            if g.fellows > 1 and not self._partitions:
                msg = f"gpulet {g.id}: {g.fellows} processes cannot share {g.size.label}: each would have all of it"
                raise PlanError(msg)

    def _find(self, plan: Plan) -> dict[int, str]:
        """The UUID of each used device's GPU; a device's index is taken for NVML's, which is that of nvidia-smi."""
        used = {g.device for g in plan.gpulets}
        with closing(self._open_nvml()) as nvml:
            found = {gpu.index: gpu for gpu in nvml.gpus()}
        return {d.index: _uuid(d, found) for d in plan.devices if d.index in used}

    def _post(self, gpulet: Gpulet, uuid: str, partition: str) -> Post:
        client = Client(0.0 if partition else gpulet.size.share_pct, self._options.limit(gpulet), partition)
        return Post(gpulet.device, (gpulet,), client_environment(self._daemons[uuid], client, uuid), is_alone=True)

    def _bounds(self, gpulet: Gpulet, sms: int) -> tuple[int, int]:
        """The fewest and the most SMs that its process may count: never all of them for less than 100 %."""
        if self._partitions:
            exact = self._partitions.chunks(gpulet) * self._options.chunk_sms
            return exact, exact
        if gpulet.size.share_pct >= _ALL_PCT:
            return sms, sms
        share = sms * gpulet.size.share_pct / _ALL_PCT
        return max(1, floor(share) // _PAIR * _PAIR), min(sms - 1, -(-ceil(share) // _PAIR) * _PAIR)


def _why(counted: int, most: int, planned: int) -> str:
    if most == planned or counted > planned:
        return "it is another kind of GPU"
    return "its share is not kept" if counted == planned else "another share, or another kind of GPU"


def _uuid(device: Device, found: Mapping[int, Gpu]) -> str:
    gpu = found.get(device.index)
    if gpu is None:
        msg = f"device {device.index} is planned, NVML shows {len(found)} GPUs"
        raise Unusable(msg)
    if gpu.mig is MigMode.ON:
        msg = f"GPU {gpu.index} ({gpu.name}): MIG on; MPS shares it as a whole, an operator may run "
        raise Unusable(msg + f"nvidia-smi -i {gpu.index} -mig 0")
    return gpu.uuid


_FITS: type[Ground] = MpsGround
"""The type checker's proof."""
