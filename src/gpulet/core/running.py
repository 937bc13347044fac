"""What runs: each batch, the requests in it, where they came from, what they run on."""

from collections.abc import Sequence

from gpulet.core.fleet import Fleet, GpuletState, Queue
from gpulet.core.messages import BatchId, Carve, Start
from gpulet.core.ports import Run
from gpulet.request import Request
from gpulet.units import Instant


class RunningBatch:
    """One of them; `queue` is where its requests waited."""

    __slots__ = ("on", "queue", "requests")

    def __init__(self, on: GpuletState | Carve, queue: Queue, requests: Sequence[Request]) -> None:
        self.on = on
        self.queue = queue
        self.requests = requests


class Running:
    """The batches that a fleet runs. A dispatcher that wants what cannot be is a bug: an assertion."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._batches: dict[BatchId, RunningBatch] = {}
        self._last: BatchId = 0

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def has_carves(self) -> bool:
        """Whether some batch runs on SMs of its own."""
        return any(isinstance(batch.on, Carve) for batch in self._batches.values())

    def batches(self) -> frozenset[BatchId]:
        """Their numbers."""
        return frozenset(self._batches)

    def holds(self, model: str) -> bool:
        """Whether any batch is of that model."""
        return any(batch.requests[0].model == model for batch in self._batches.values())

    def start(self, now: Instant, run: Run) -> tuple[Queue, Start]:
        """A batch of requests that wait; in which queue."""
        requests, on = run.requests, run.on
        assert requests, "a batch without requests"
        first = requests[0]
        queue = self._fleet.waiting[first.id]
        rows = first.rows if len(requests) == 1 else _rows(requests)
        assert rows <= self._fleet.models[first.model].max_batch, f"a batch of {rows} rows of {first.model}"
        self._last = batch = self._last + 1
        if isinstance(on, Carve):
            device = self._fleet.devices[on.device]
            assert 0 < on.size <= device.free_sms, f"{on.size} SMs wanted of {device.free_sms} free"
            device.free_sms -= on.size
            self._batches[batch] = RunningBatch(on, queue, requests)
        else:
            gpulet = self._fleet.gpulets[on]
            assert gpulet.is_up, f"gpulet {on} is down"
            assert not gpulet.running, f"gpulet {on} runs batch {gpulet.running}"
            gpulet.running = batch
            gpulet.busy_until = now + run.expected
            self._batches[batch] = RunningBatch(gpulet, queue, requests)
        ids = tuple([r.id for r in requests])
        return queue, Start(batch, on, first.model, first.shape, rows, ids, run.expected)

    def end(self, batch: BatchId) -> RunningBatch:
        """It runs no more: what it ran on is free."""
        ended = self._batches.pop(batch)
        if isinstance(ended.on, Carve):
            self._fleet.devices[ended.on.device].free_sms += ended.on.size
        else:
            ended.on.running = 0
        return ended


def _rows(requests: Sequence[Request]) -> int:
    """Of all together; they must be of one model and one shape class."""
    model, shape = requests[0].model, requests[0].shape
    rows = 0
    for request in requests:
        assert request.model == model, f"a batch of {model} holds {request.model}"
        assert request.shape == shape, f"a batch of shape {shape!r} holds {request.shape!r}"
        rows += request.rows
    return rows
