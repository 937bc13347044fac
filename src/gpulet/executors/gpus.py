"""GPUs as a ground where one process holds each: gpulets are its threads, by green contexts or as plain streams."""

from collections.abc import Sequence
from typing import Final

from gpulet.errors import Unproven, Unusable
from gpulet.executors.ground import Ground, Post
from gpulet.executors.process import Program
from gpulet.executors.wire import Ready
from gpulet.plan import Plan
from gpulet.units import MIB

_OPENING: Final = "gpulet.executors.cuda.opening"
REAL: Final = Program("gpulet.executors.cuda.worker", (f"{_OPENING}:real",), slots=64, slot_bytes=128 * MIB)
REHEARSED: Final = Program("gpulet.executors.cuda.worker", (f"{_OPENING}:rehearsed",), slots=64, slot_bytes=128 * MIB)
"""The same worker on an imaginary GPU: models run on the CPU, shares are only counted."""
_TORCH: Final = "gpulet.executors.cuda.torchruntime"
RUNTIMES: Final = {
    ".pt2": (_TORCH, "torch.export._trace"),
    ".pt": (_TORCH,),
    ".onnx": ("gpulet.executors.cuda.onnxcuda",),
}
"""What workers import while they stand by, by the ending of their models' files; none of it starts CUDA.

PyTorch imports what reads exported programs at the first of them: 4.5 s of a CPU after the 3 s of PyTorch itself.
"""
_BEFORE_CUDA: Final = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}
"""GPUs in NVML's order; and as many hardware queues as there are, since streams on one wait for each other."""


class Gpus:
    """The machine's GPUs. `visible`: those that this process may see, as CUDA_VISIBLE_DEVICES has them; None: all."""

    def __init__(self, visible: Sequence[str] | None = None) -> None:
        self._visible = visible
        self._sms: dict[int, int] = {}

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        """A post for each device that is planned with; the worker cuts it. Raises `Unusable` for a device that may not be seen."""
        self._sms = {device.index: device.kind.sms for device in plan.devices}
        posts: list[Post] = []
        used = {g.device for g in plan.gpulets} | {resident.device for resident in plan.residents}
        for device in (d for d in plan.devices if d.index in used):
            mine = tuple(g for g in plan.gpulets if g.device == device.index)
            posts.append(Post(device.index, mine, self.environment(device.index)))
        return tuple(posts)

    def environment(self, index: int) -> dict[str, str]:
        """For a process that is to see that device alone; raises `Unusable` where it may not."""
        return {**_BEFORE_CUDA, "CUDA_VISIBLE_DEVICES": self._name(index)}

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        """The worker has proven each share by itself; here, that the GPU is as wide as it was planned."""
        planned = self._sms[post.device]
        if ready.sms != planned:
            msg = f"device {post.device} was planned with {planned} SMs, its GPU has {ready.sms}"
            raise Unproven(msg)

    def dismiss(self, post: Post, pid: int) -> None:
        """A worker of one process goes as it is."""

    def settle(self, plan: Plan) -> None:
        """Workers give back what they no longer need by themselves."""

    def close(self) -> None:
        """As `settle`."""

    def _name(self, index: int) -> str:
        if self._visible is None:
            return str(index)
        if index >= len(self._visible):
            msg = f"device {index} is planned, CUDA_VISIBLE_DEVICES shows {len(self._visible)}"
            raise Unusable(msg)
        return self._visible[index]


_FITS: type[Ground] = Gpus
"""The type checker's proof."""
