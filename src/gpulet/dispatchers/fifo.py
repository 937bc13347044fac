"""Oldest first: an idle gpulet takes what has waited longest of its models. The baseline; nothing is dropped."""

from gpulet.core.fleet import CENTRAL, Fleet, GpuletState, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Plan
from gpulet.request import Request
from gpulet.units import Instant


class Fifo:
    """First in, first out over the models of a gpulet, in batches as large as the model allows."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self._problem = problem
        self._hosts = {name: tuple(g.id for g in plan.hosts(name)) for name in problem.models}

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits centrally; what no gpulet can run at once is refused."""
        largest = max((self._largest(fleet.gpulets[g], request) for g in self._hosts[request.model]), default=0)
        return CENTRAL if request.rows <= largest else Reason.TOO_LARGE

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start on the first idle gpulet that has something to do; ask again for the next."""
        touched = [fleet.gpulets[g] for queue in changed.queues for g in self._hosts[queue.model]]
        for gpulet in changed.gpulets + touched:
            waiting = self._fitting(gpulet, fleet) if gpulet.is_idle else []
            if waiting:
                return Decision([self._run(gpulet, *min(waiting, key=lambda found: found[0].arrival))], more=True)
        return Decision()

    def _fitting(self, gpulet: GpuletState, fleet: Fleet) -> list[tuple[Request, Queue]]:
        """The oldest request of each queue that this gpulet can run at once."""
        queues = [queue for model in gpulet.planned.models for queue in fleet.central(model)]
        oldest = ((next((r for r in q if r.rows <= self._largest(gpulet, r)), None), q) for q in queues)
        return [(request, queue) for request, queue in oldest if request is not None]

    def _largest(self, gpulet: GpuletState, request: Request) -> int:
        planned = gpulet.planned
        return self._problem.profile.max_batch(request.model, planned.size.sms, request.shape, planned.processes)

    def _run(self, gpulet: GpuletState, first: Request, queue: Queue) -> Run:
        planned = gpulet.planned
        curve = self._problem.profile.curve(queue.model, planned.size.sms, queue.shape, planned.processes)
        most = min(self._problem.models[queue.model].max_batch, len(curve))
        requests = queue.take(most) if first is queue.head else [first]
        return Run(gpulet.id, requests, curve[sum(r.rows for r in requests) - 1])
