"""Who waits: in which queue, how many of each model, until when. A request that waits is in one queue, and in `fleet.waiting`."""

from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush

from gpulet.core.fleet import CENTRAL, Fleet, Queue
from gpulet.core.messages import RequestId
from gpulet.request import Request
from gpulet.units import Instant


class Waiting:
    """Bookkeeping of a fleet's queues. `depth` counts by model; `deadlines` are those that are watched, a heap."""

    def __init__(self, fleet: Fleet) -> None:
        self.depth = dict.fromkeys(fleet.models, 0)
        self._fleet = fleet
        self._where = fleet.waiting
        self.deadlines: list[tuple[Instant, RequestId]] = []

    def join(self, request: Request, queue: Queue) -> None:
        """It waits behind those of its priority."""
        queue.append(request)
        self.depth[request.model] += 1
        self._where[request.id] = queue

    def rejoin(self, queue: Queue, requests: Sequence[Request]) -> Queue:
        """They wait again, at the front and with their deadlines watched; where, since an empty queue may be forgotten."""
        if queue.owner is CENTRAL:
            queue = self._fleet.queue(queue.model, queue.shape)
        queue.restore(requests)
        for request in requests:
            self.depth[request.model] += 1
            self._where[request.id] = queue
        self.watch(requests)
        return queue

    def leave(self, queue: Queue, requests: Sequence[Request]) -> None:
        """They wait no longer; all of one model."""
        queue.remove(requests)
        self.depth[requests[0].model] -= len(requests)
        for request in requests:
            del self._where[request.id]

    def watch(self, requests: Iterable[Request]) -> None:
        """They are to be told when their deadlines come."""
        for request in requests:
            heappush(self.deadlines, (request.deadline, request.id))

    def due(self, now: Instant) -> Iterator[RequestId]:
        """Whose watched deadline has come, each once; some of them no longer wait."""
        while self.deadlines and self.deadlines[0][0] <= now:
            yield heappop(self.deadlines)[1]

    def soonest(self, least: Instant) -> Instant:
        """The next watched deadline, no later than `least`. Those who wait no longer are forgotten: they must not wake anybody."""
        deadlines, where = self.deadlines, self._where
        while deadlines and deadlines[0][1] not in where:
            heappop(deadlines)
        return deadlines[0][0] if deadlines and deadlines[0][0] < least else least
