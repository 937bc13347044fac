"""How a plan's gpulets become worker processes: the port that each mechanism fills in its own way.

A *post* is the place of one worker process. Where one process holds a whole GPU (green contexts, plain streams) all
gpulets of that GPU are of one post; where a process is the gpulet (MPS, MIG, cores) each has its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from gpulet.device import Mechanism
from gpulet.executors.wire import Ready
from gpulet.plan import Gpulet, GpuletId, Plan


@dataclass(frozen=True, slots=True)
class Post:
    """A worker process's place: its gpulets and `device`, and what its environment must hold before CUDA starts.

    `is_alone`: the process is the gpulet, and what it sees of the device is its share; else it cuts what it sees.
    `cores` are the process's own, where it is pinned to any; `spare` are nobody's, to load on.
    """

    device: int
    gpulets: tuple[Gpulet, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    is_alone: bool = False
    cores: tuple[int, ...] = ()
    spare: tuple[int, ...] = ()

    def planned(self, gpulets: "Mapping[GpuletId, Gpulet]") -> "Post":
        """The same place in another plan, as far as that has its gpulets."""
        return replace(self, gpulets=tuple(gpulets.get(g.id, g) for g in self.gpulets))


def is_place_of(post: Post, other: Post) -> bool:
    """Whether both are the same gpulets' place, whatever their environment has become."""
    same = [(g.id, g.size, g.offset, g.process, g.priority) for g in post.gpulets] == [
        (g.id, g.size, g.offset, g.process, g.priority) for g in other.gpulets
    ]
    return (post.device, post.is_alone) == (other.device, other.is_alone) and same


def plan_of(post: Post, plan: Plan) -> Plan:
    """The plan as the worker at that post must see it: one that is alone has its share as an uncut device to itself."""
    if not post.is_alone:
        return plan
    device = next(d for d in plan.devices if d.index == post.device)
    (gpulet,) = post.gpulets
    whole = replace(device, mechanism=Mechanism.WHOLE, resizes=False)
    return Plan((whole,), (replace(gpulet, id=0, offset=0, processes=1, process=0),))


class Ground(Protocol):
    """Makes a plan's shares and proves them. All of it may block: it is called on a thread, one call at a time."""

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        """Make what the plan's workers need beside what stands; raises `PlanError`, `Unusable`: then all is as before.

        Asked again for the plan in force, it mends what has died meanwhile.
        """
        ...

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        """Show by what a worker found that it has its share, before it serves; raises `Unproven`."""
        ...

    def dismiss(self, post: Post, pid: int) -> None:
        """A worker is to be killed while it is busy: take it off first where that matters."""
        ...

    def settle(self, plan: Plan) -> None:
        """That plan is in force and the workers of others are gone: give back what only they needed."""
        ...

    def close(self) -> None:
        """All workers are gone: give everything back."""
        ...
