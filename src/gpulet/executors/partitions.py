"""Static partitions of SMs under MPS (CUDA 13.1): those of a plan's gpulets, in chunks, which no other client computes on.

A size becomes as many whole chunks as fit in it. A partition that stands is used again by the next plan's gpulet of as
many chunks, so only what is new must find free chunks beside the workers that still run.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from gpulet.errors import MpsError
from gpulet.executors.daemons import Daemons
from gpulet.plan import Gpulet, GpuletId, Plan


@dataclass(frozen=True, slots=True)
class _Partition:
    """`name` is what the daemon gave it; it is gone with that daemon, known by its PID."""

    daemon: int
    gpu: str
    chunks: int
    name: str


class Partitions:
    """What was cut of the GPUs of `daemons`; a chunk has `chunk_sms` SMs."""

    def __init__(self, daemons: Daemons, chunk_sms: int) -> None:
        self._daemons = daemons
        self._chunk_sms = chunk_sms
        self._standing: list[_Partition] = []

    def chunks(self, gpulet: Gpulet) -> int:
        """As many as fit in its size."""
        return gpulet.size.sms // self._chunk_sms

    @contextmanager
    def cut(self, plan: Plan, gpus: Mapping[int, str]) -> Iterator[dict[GpuletId, str]]:
        """The partition of each gpulet on `gpus`, UUIDs by device; fellow processes share theirs.

        Those that are cut here are removed again where one cannot be (`MpsError`) or the context raises.
        """
        before = [p for p in self._standing if p.daemon == self._daemons.pid(p.gpu)]
        free, given = [*before], dict[Hashable, _Partition]()
        self._standing = [*before]
        try:
            for g in plan.gpulets:
                if _place(g) not in given:
                    uuid = gpus[g.device]
                    given[_place(g)] = _taken(free, uuid, self.chunks(g)) or self._add(uuid, self.chunks(g))
            yield {g.id: given[_place(g)].name for g in plan.gpulets}
        except BaseException:
            for partition in self._standing[len(before) :]:
                self._remove(partition)
            self._standing = before
            raise

    def keep(self, plan: Plan, gpus: Mapping[int, str]) -> None:
        """Remove those that none of the plan's gpulets has."""
        free = [p for p in self._standing if p.daemon == self._daemons.pid(p.gpu)]
        places = {_place(g): (gpus[g.device], self.chunks(g)) for g in plan.gpulets}
        found = (_taken(free, *wanted) for wanted in places.values())
        self._standing = [p for p in found if p]
        for partition in free:
            self._remove(partition)

    def _add(self, uuid: str, chunks: int) -> _Partition:
        name = self._daemons[uuid].add_partition(uuid, chunks)
        self._standing.append(_Partition(self._daemons.pid(uuid), uuid, chunks, name))
        return self._standing[-1]

    def _remove(self, partition: _Partition) -> None:
        with suppress(MpsError):  # it goes with its daemon at the latest
            self._daemons[partition.gpu].remove_partition(partition.name)


def _place(g: Gpulet) -> Hashable:
    return (g.device, g.size, g.offset, g.processes) if g.process else g.id


def _taken(free: list[_Partition], uuid: str, chunks: int) -> _Partition | None:
    """The first of `free` with so many chunks there, free no more; none where there is none."""
    for partition in free:
        if (partition.gpu, partition.chunks) == (uuid, chunks):
            free.remove(partition)
            return partition
    return None
