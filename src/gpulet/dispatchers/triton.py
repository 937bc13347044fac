"""Triton's dynamic batcher, instance groups and rate limiter (NVIDIA Triton Inference Server: documentation and code).

Each gpulet is an instance. While one is free, its model's queue is walked from the front as far as a batch may go. Were
the oldest request younger than `max_queue_delay_microseconds`, the longest prefix of a preferred size is sent; otherwise
all, if the batch cannot grow, the delay is over, or there is none; else the instance waits. No objective is looked at.

The rate limiter (off while no model has a `RateLimiter`): what is ready is staged, and that with the fewest executions x
priority is next, so priority 2 gets half the turns of priority 1; when its resources are not free, nothing else starts.

Departures: a batch is formed when it starts, where Triton keeps up to two formed ones per instance and may merge them. An
instance of several models (no plan of `triton` has any) takes the oldest request. `allow_timeout_override` is the
core's: a client's own timeout always counts. Without `max_batch_size` a model's own limit holds, where Triton says 4.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import TypeAlias

from gpulet.core.fleet import CENTRAL, Fleet, GpuletState, Queue
from gpulet.core.messages import Reason
from gpulet.core.ports import Changed, Decision, Place, Problem, Run
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.request import Request
from gpulet.units import NEVER, US, Duration, Instant


class TimeoutAction(StrEnum):
    """What becomes of a request that has waited too long: refused, or served after all others."""

    REJECT = "REJECT"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """`dynamic_batching` and its default queue policy, as config.pbtxt names them; 0 is no limit, no preferred size all."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    max_batch_size: int = 0
    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_microseconds: int = 0
    max_queue_size: int = 0

    @property
    def delay(self) -> Duration:
        """How long an instance may wait for a better batch."""
        return self.max_queue_delay_microseconds * US

    @property
    def timeout(self) -> Duration:
        """How long a request may wait; 0: for ever."""
        return self.default_timeout_microseconds * US

    def form(self, rows: Sequence[int], most: int, age: Duration) -> int:
        """How many of these waiting requests to send now, none: wait. The first is `age` old and fits into `most` rows."""
        preferred = self.preferred_batch_size or (most,)
        total = count = best = 0
        for size in rows:
            if total + size > most:
                break
            total, count = total + size, count + 1
            best = count if total in preferred else best
        if best and age < self.delay:
            return best
        is_full = count < len(rows) or total >= max(preferred)
        return count if is_full or age >= self.delay else 0


@dataclass(frozen=True, slots=True)
class Resource:
    """So many of a named resource, of each device or of all of them together."""

    name: str
    count: int
    is_global: bool = False


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """What each instance of a model needs to run; priority 0 counts as 1."""

    resources: tuple[Resource, ...] = ()
    priority: int = 1


FREE = RateLimiter()
_EVERYWHERE = -1


class Triton:
    """Batches as `batching` says, or a model's own in `batchings`; `limiters` by model turn the rate limiter on."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        *,
        batching: DynamicBatching = DynamicBatching(),
        batchings: Mapping[str, DynamicBatching] | None = None,
        limiters: Mapping[str, RateLimiter] | None = None,
    ) -> None:
        self._problem = problem
        self._batchings = {name: (batchings or {}).get(name, batching) for name in problem.models}
        self._instances = {name: tuple(g.id for g in plan.hosts(name)) for name in problem.models}
        self._timed = [name for name, asked in self._batchings.items() if asked.timeout]
        self._waits: dict[tuple[str, str], Instant] = {}
        self._resources = _Resources(limiters or {}, plan)

    def bind(self, now: Instant, request: Request, fleet: Fleet) -> Place:
        """Everything waits in its model's queue; what no instance can run at once, or the queue does not hold, is refused."""
        name = request.model
        largest = max((self._largest(fleet.gpulets[g].planned, request) for g in self._instances[name]), default=0)
        if request.rows > largest:
            return Reason.TOO_LARGE
        limit = self._batchings[name].max_queue_size
        is_full = limit and sum(map(len, fleet.central(name))) >= limit
        return Reason.QUEUE_FULL if is_full else CENTRAL

    def decide(self, now: Instant, changed: Changed, fleet: Fleet) -> Decision:
        """Start one batch and be asked again; or say when a batch will not wait any longer, or a request no more."""
        self._resources.release(changed.gpulets)
        expired, next_timeout = self._timeouts(now, fleet)
        if expired:
            return Decision(drop=expired, more=True)
        staged = [found for g in self._touched(now, changed, fleet) for found in self._ready(now, g, fleet)]
        if staged and self._resources.is_limiting:
            self._resources.order(staged)
            del staged[1:]
            staged = [found for found in staged if self._resources.can_fit(*found)]
        elif staged:
            staged.sort(key=_age)
        if staged:
            gpulet, requests = staged[0]
            self._resources.hold(gpulet.planned, requests[0].model)
            return Decision([self._run(gpulet.planned, requests)], more=True)
        self._waits = {key: due for key, due in self._waits.items() if due > now}
        return Decision(wake_at=min((next_timeout, *self._waits.values())))

    def _touched(self, now: Instant, changed: Changed, fleet: Fleet) -> Iterator[GpuletState]:
        """The free instances for which something may be ready that was not."""
        names = [queue.model for queue in changed.queues if queue]
        names += [model for (model, _), due in self._waits.items() if due <= now]
        ids = dict.fromkeys(g.id for g in changed.gpulets)
        ids |= dict.fromkeys(g for name in names for g in self._instances[name])
        gpulets = fleet.gpulets.values() if self._resources.is_limiting else [fleet.gpulets[g] for g in ids]
        return (gpulet for gpulet in gpulets if gpulet.is_idle)

    def _ready(self, now: Instant, gpulet: GpuletState, fleet: Fleet) -> "Iterator[_Staged]":
        """The batches that this free instance could start."""
        for model in gpulet.planned.models:
            for queue in fleet.central(model):
                requests = self._form(now, gpulet.planned, queue)
                if requests:
                    yield gpulet, requests

    def _form(self, now: Instant, instance: Gpulet, queue: Queue) -> list[Request]:
        """The batch to send, none where the queue waits for a better one or has nothing that fits."""
        asked = self._batchings[queue.model]
        most = self._most(instance, queue)
        fitting = (r for r in queue if r.rows <= self._largest(instance, r))
        if asked.timeout and asked.timeout_action is TimeoutAction.DELAY:
            waiting = sorted(fitting, key=lambda request: now >= request.arrival + asked.timeout)
        else:
            waiting = list(islice(fitting, most + 1))  # more cannot be in a batch
        self._waits.pop((queue.model, queue.shape), None)
        if not waiting:
            return []
        oldest = min(request.arrival for request in waiting)
        most = max(waiting[0].rows, most)
        count = asked.form([request.rows for request in waiting], most, now - oldest)
        if not count:
            self._waits[queue.model, queue.shape] = oldest + asked.delay
        return waiting[:count]

    def _timeouts(self, now: Instant, fleet: Fleet) -> tuple[list[Request], Instant]:
        """The requests that have waited too long, and when the next will have."""
        expired: list[Request] = []
        following = NEVER
        for name in self._timed:
            asked = self._batchings[name]
            waiting = (
                [r for q in fleet.central(name) for r in q] if asked.timeout_action is TimeoutAction.REJECT else []
            )
            expired += [r for r in waiting if now >= r.arrival + asked.timeout]
            following = min((following, *(r.arrival + asked.timeout for r in waiting)))
        return expired, following

    def _largest(self, instance: Gpulet, request: Request) -> int:
        return self._problem.profile.max_batch(request.model, instance.size.sms, request.shape, instance.processes)

    def _most(self, instance: Gpulet, queue: Queue) -> int:
        """Rows of the largest batch."""
        model = self._problem.models[queue.model]
        measured = self._problem.profile.max_batch(queue.model, instance.size.sms, queue.shape, instance.processes)
        return min(self._batchings[queue.model].max_batch_size or model.max_batch, model.max_batch, measured)

    def _run(self, instance: Gpulet, requests: list[Request]) -> Run:
        first, rows = requests[0], sum(request.rows for request in requests)
        expected = self._problem.profile.latency(first.model, instance.size.sms, rows, first.shape, instance.processes)
        return Run(instance.id, requests, expected)


_Staged: TypeAlias = tuple[GpuletState, list[Request]]


class _Resources:
    """What the rate limiter counts: pools hold the most that any one instance asks for."""

    def __init__(self, limiters: Mapping[str, RateLimiter], plan: Plan) -> None:
        self.is_limiting = bool(limiters)
        self._limiters = limiters
        self._held: dict[GpuletId, dict[tuple[str, int], int]] = {}
        self._executions: dict[tuple[GpuletId, str], int] = {}
        self._free: dict[tuple[str, int], int] = {}
        for gpulet in plan.gpulets:
            for model in gpulet.models:
                for pool, count in self._needs(gpulet, model).items():
                    self._free[pool] = max(count, self._free.get(pool, 0))

    def order(self, staged: list[_Staged]) -> None:
        """The next one first."""
        staged.sort(key=lambda found: (self._standing(*found), _age(found)))

    def can_fit(self, gpulet: GpuletState, requests: Sequence[Request]) -> bool:
        """Whether all that it needs is free."""
        needs = self._needs(gpulet.planned, requests[0].model)
        return all(self._free[pool] >= count for pool, count in needs.items())

    def hold(self, gpulet: Gpulet, model: str) -> None:
        """Take what one execution needs, and count it."""
        self._executions[gpulet.id, model] = self._executions.get((gpulet.id, model), 0) + 1
        needs = self._needs(gpulet, model)
        for pool, count in needs.items():
            self._free[pool] -= count
        self._held[gpulet.id] = needs

    def release(self, gpulets: Sequence[GpuletState]) -> None:
        """Give back what those hold that no longer run."""
        for gpulet in gpulets:
            if not gpulet.running:
                for pool, count in self._held.pop(gpulet.id, {}).items():
                    self._free[pool] += count

    def _needs(self, gpulet: Gpulet, model: str) -> dict[tuple[str, int], int]:
        resources = self._limiters.get(model, FREE).resources
        return {(r.name, _EVERYWHERE if r.is_global else gpulet.device): r.count for r in resources}

    def _standing(self, gpulet: GpuletState, requests: Sequence[Request]) -> int:
        model = requests[0].model
        priority = max(1, self._limiters.get(model, FREE).priority)
        return self._executions.get((gpulet.id, model), 0) * priority


def _age(staged: _Staged) -> tuple[Instant, int]:
    return staged[1][0].arrival, staged[1][0].id
