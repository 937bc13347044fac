"""CPU gpulets: one worker process each, pinned to its cores, models in ONNX Runtime.

On a device of mechanism `cpu` a gpulet's cores are its own and verified: a worker whose threads may run elsewhere is
refused. On `whole` workers may use all of the device's cores and the system shares them out.
"""

from collections.abc import Sequence

from gpulet.device import Mechanism
from gpulet.errors import Unproven
from gpulet.executors.ground import Ground, Post
from gpulet.executors.wire import Ready
from gpulet.plan import Gpulet, Plan


class Cores:
    """Cores of this machine, as a ground."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = tuple(cores)

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        """A post for each gpulet; nothing is to be made."""
        cores = [_cores(plan, gpulet, self._cores) for gpulet in plan.gpulets]
        spare = tuple(core for core in self._cores if not any(core in mine for mine in cores))
        return tuple(
            Post(gpulet.device, (gpulet,), is_alone=True, cores=mine, spare=spare)
            for gpulet, mine in zip(plan.gpulets, cores, strict=True)
        )

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        """Every thread may run on the post's cores alone, as the OS tells it."""
        astray = [cores for cores in ready.allowed if not set(cores) <= set(post.cores)]
        if astray:
            msg = f"gpulet {post.gpulets[0].id}: a thread may run on cores {astray[0]}, not only on {post.cores}"
            raise Unproven(msg)

    def dismiss(self, post: Post, pid: int) -> None:
        """A worker of one process goes as it is."""

    def settle(self, plan: Plan) -> None:
        """Cores are not given back."""

    def close(self) -> None:
        """As `settle`."""


def _cores(plan: Plan, gpulet: Gpulet, cores: Sequence[int]) -> tuple[int, ...]:
    """The OS's numbers of a gpulet's cores; devices follow one another, `whole` gives all of its device's."""
    before = sum(d.kind.sms for d in plan.devices if d.index < gpulet.device)
    device = next(d for d in plan.devices if d.index == gpulet.device)
    if device.mechanism is Mechanism.WHOLE:
        return tuple(cores[before : before + device.kind.sms])
    first = before + gpulet.offset
    return tuple(cores[first : first + gpulet.size.sms])


_FITS: type[Ground] = Cores
"""The type checker's proof."""
