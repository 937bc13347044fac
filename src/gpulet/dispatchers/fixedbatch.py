"""Fixed batches under default MPS: the simplest baseline of D-STACK (Dhakal et al., TCC 2024, evaluation).

A replica waits for 16 rows and runs them; no shares, no objective. So that light load ends at all, what has waited for
`flush` SLOs runs as it is: that timer is ours, as is a smaller batch where a model or its profile has no 16 rows.
"""

from collections.abc import Iterator

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Gpulet, Plan
from gpulet.request import Request
from gpulet.units import NEVER, Instant

FIXED_BATCH = 16


class FixedBatch:
    """Batches of `batch` rows, or of what there is after `flush` objectives."""

    def __init__(self, problem: Problem, plan: Plan, *, batch: int = FIXED_BATCH, flush: float = 1.0) -> None:
        self._problem = problem
        self._batch = batch
        self._patience = {name: round(flush * model.slo) for name, model in problem.models.items()}
        self._hosts = {name: plan.hosts(name) for name in problem.models}
        self._flushes: dict[tuple[str, str], Instant] = {}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits in its model's queue; what no replica can run at once is refused."""
        can_run = any(request.rows <= self._measured(g, request) for g in self._hosts[request.model])
        return CENTRAL if can_run else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch and be asked again, or say when to flush."""
        for gpulet, queue in self._candidates(now, changed, fleet):
            first = next((r for r in queue if r.rows <= self._measured(gpulet, r)), None)
            if first is not None and fleet.gpulets[gpulet.id].is_idle:
                size = max(first.rows, self._size(gpulet, queue))
                due = first.arrival + self._patience[queue.model]
                if queue.rows >= size or now >= due:
                    return Decision([self._run(gpulet, queue, first, size)], more=True)
                self._flushes[queue.model, queue.shape] = due
        self._flushes = {key: due for key, due in self._flushes.items() if due > now}
        return Decision(wake_at=min(self._flushes.values(), default=NEVER))

    def _candidates(self, now: Instant, changed: Changed, fleet: Fleet) -> Iterator[tuple[Gpulet, Queue]]:
        """Replicas with the queues for which they may have to act; of several models, who has waited longest first."""
        for state in changed.gpulets:
            queues = [queue for model in state.planned.models for queue in fleet.central(model)]
            yield from ((state.planned, queue) for queue in sorted(queues, key=lambda queue: queue.head.arrival))
        due = [fleet.queue(*key) for key, at in self._flushes.items() if at <= now]
        for queue in [*changed.queues, *due]:
            yield from ((gpulet, queue) for gpulet in self._hosts[queue.model])

    def _run(self, gpulet: Gpulet, queue: Queue, first: Request, size: int) -> Run:
        requests = queue.take(size) if first is queue.head else [first]
        curve = self._problem.profile.curve(queue.model, gpulet.size.sms, queue.shape, gpulet.processes)
        return Run(gpulet.id, requests, curve[sum(request.rows for request in requests) - 1])

    def _measured(self, gpulet: Gpulet, request: Request | Queue) -> int:
        """The most rows that the replica was measured with."""
        return self._problem.profile.max_batch(request.model, gpulet.size.sms, request.shape, gpulet.processes)

    def _size(self, gpulet: Gpulet, queue: Queue) -> int:
        return min(self._batch, self._problem.models[queue.model].max_batch, self._measured(gpulet, queue))
