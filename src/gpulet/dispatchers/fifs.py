"""First idle, first served: the scheduler that PARIS and ELSA is compared with (Kim et al., DAC 2022, evaluation).

Requests wait in one line, over all models; whichever gpulet is idle, or first falls idle, takes the oldest that it can
run, alone, whatever its own size and the request's. Written from a summary, not from the paper's text: the one line is
recalled of the paper, which of several idle gpulets is next is not (`Idle`). It matters: with `FIRST`, the literal
meaning, large requests get to small gpulets even when all is idle, with `LARGEST` they do not.

Departures: what no idle gpulet can run (another model, too many rows) is passed over. The line is the core's central
queues: urgent requests of a model overtake others of it.

With `segments` it is a baseline of ours: a request runs only on the size that PARIS had in mind for its rows, of the
sizes that the plan has the smallest whose segment does not end below them, or the largest that can run them.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from itertools import chain
from random import Random
from typing import TypeAlias

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import GpuletId, Plan
from gpulet.request import Request
from gpulet.units import Instant

Cut: TypeAlias = tuple[int, int]
"""A gpulet's size in SMs, and how many processes share it."""


class Idle(StrEnum):
    """Which of several idle gpulets takes a request: the one that is idle longest, the largest, the smallest, any."""

    FIRST = "first"
    LARGEST = "largest"
    SMALLEST = "smallest"
    RANDOM = "random"


Segments: TypeAlias = Callable[[Problem, Plan], Mapping[tuple[str, int], int]]
"""The most rows of each segment, by model and SMs of the size."""


class Fifs:
    """One line for all gpulets. `seed` is that of `Idle.RANDOM`."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        idle: Idle = Idle.FIRST,
        segments: Segments | None = None,
        seed: int = 0,
    ) -> None:
        self._profile = problem.profile
        self._rule = idle
        self._random = Random(seed)
        self._size: dict[GpuletId, Cut] = {g.id: (g.size.sms, g.processes) for g in plan.gpulets}
        self._models = {g.id: g.models for g in plan.gpulets}
        self._hosts = {name: frozenset(g.id for g in plan.hosts(name)) for name in problem.models}
        self._segments = segments and segments(problem, plan)
        self._idle: dict[GpuletId, None] = {}
        self._sizes: dict[tuple[str, int, str], frozenset[Cut]] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no gpulet can run alone is refused."""
        return CENTRAL if self._sizes_for(request) else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start the oldest request that an idle gpulet can run; ask again for the next."""
        for gpulet in changed.gpulets:
            self._idle.pop(gpulet.id, None)
            if gpulet.is_idle:
                self._idle[gpulet.id] = None
        oldest = min(self._runnable(changed, fleet), key=_age, default=None)
        if oldest is None:
            return Decision()
        chosen = self._choose(oldest, fleet)
        del self._idle[chosen]
        sms, processes = self._size[chosen]
        expected = self._profile.latency(oldest.model, sms, oldest.rows, oldest.shape, processes)
        return Decision((Run(chosen, (oldest,), expected),), more=True)

    def _runnable(self, changed: Changed, fleet: Fleet) -> Iterator[Request]:
        """The first of each queue for an idle gpulet: of the queues that grew, and of those of gpulets that fell idle."""
        if not self._idle:
            return
        models = dict.fromkeys(model for g in changed.gpulets if g.is_idle for model in self._models[g.id])
        queues = [queue for queue in changed.queues if queue and queue.model not in models]
        for queue in chain(queues, *(fleet.central(model) for model in models)):
            first = self._first(queue, fleet)
            if first is not None:
                yield first

    def _first(self, queue: Queue, fleet: Fleet) -> Request | None:
        """The first of a queue that an idle gpulet can run: mostly the head."""
        if next(self._able(queue.head, fleet), None) is not None:
            return queue.head
        sizes = {self._size[g] for g in self._idle if g in self._hosts[queue.model] and fleet.gpulets[g].is_idle}
        return next((r for r in queue if not sizes.isdisjoint(self._sizes_for(r))), None) if sizes else None

    def _choose(self, request: Request, fleet: Fleet) -> GpuletId:
        able = self._able(request, fleet)
        match self._rule:
            case Idle.FIRST:
                return next(able)
            case Idle.LARGEST:
                return max(able, key=self._size.__getitem__)
            case Idle.SMALLEST:
                return min(able, key=self._size.__getitem__)
            case Idle.RANDOM:
                return self._random.choice(list(able))

    def _able(self, request: Request, fleet: Fleet) -> Iterator[GpuletId]:
        """The idle gpulets that can run it, idle longest first."""
        hosts, sizes, gpulets = self._hosts[request.model], self._sizes_for(request), fleet.gpulets
        return (g for g in self._idle if g in hosts and self._size[g] in sizes and gpulets[g].is_idle)

    def _sizes_for(self, request: Request) -> frozenset[Cut]:
        """The sizes that may run it."""
        key = request.model, request.rows, request.shape
        found = self._sizes.get(key)
        if found is None:
            hosted = sorted({self._size[g] for g in self._hosts[request.model]})
            able = [cut for cut in hosted if request.rows <= self._most(request, cut)]
            found = self._sizes[key] = frozenset(self._routed(request, able))
        return found

    def _most(self, request: Request, cut: Cut) -> int:
        return self._profile.max_batch(request.model, cut[0], request.shape, cut[1])

    def _routed(self, request: Request, able: list[Cut]) -> list[Cut]:
        """Of sizes that can run it, ascending, those that may."""
        if self._segments is None or not able:
            return able
        tops = self._segments
        return [next((cut for cut in able if request.rows <= tops.get((request.model, cut[0]), 0)), able[-1])]


def _age(request: Request) -> tuple[Instant, int]:
    return request.arrival, request.id
