"""A post as the front-end holds it: its worker, what runs there, whether that is slow or was deadly."""

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpulet.core.messages import BatchId, Start
from gpulet.errors import GpuletError
from gpulet.executors.base import Payload
from gpulet.executors.ground import Post
from gpulet.executors.process import WorkerProcess
from gpulet.executors.slots import Slots
from gpulet.executors.wire import ModelReady, Recutted, WorkerModel
from gpulet.units import SECOND, Duration, Instant

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
_STABLE: Duration = SECOND
"""A worker that served this long did not die of its own start, and is replaced at once."""
_MEMORY: Duration = 60 * SECOND


@dataclass(slots=True)
class Running:
    """A batch that a worker runs; `copied`: how long its inputs were copied. `is_told`: its slowness was."""

    start: Start
    payloads: Sequence[Payload]
    since: Instant
    copied: Duration = 0
    is_told: bool = False


@dataclass(frozen=True, slots=True)
class Patience:
    """After how many times its expected time a running batch is slow (a log line), and when it hangs (its worker ends).

    Never before `least`. What hangs on a GPU cannot be cancelled. `unknown` is what a run is taken to take where its dispatcher
    does not say.
    """

    least: Duration = 2 * SECOND
    soft: int = 3
    hard: int = 20
    unknown: Duration = 0

    def is_slow(self, running: Running, now: Instant) -> bool:
        """Whether it is worth a line."""
        return now - running.since > max(self.least // 4, self.soft * (running.start.expected or self.unknown))

    def hangs(self, running: Running, now: Instant) -> bool:
        """Whether nobody waits for it any more."""
        return now - running.since > max(self.least, self.hard * (running.start.expected or self.unknown))


class Station:
    """One post and the worker that holds it now. `is_up`: loaded, proven and told so; `parked` collects while it drains."""

    def __init__(self, post: Post) -> None:
        self.post = post
        self.worker: WorkerProcess | None = None
        self.slots: Slots | None = None
        self.given: tuple[WorkerModel, ...] = ()
        """What its worker was told to load."""
        self.told: tuple[ModelReady, ...] = ()
        """What became of them."""
        self.loaded: set[str] = set()
        self.running: dict[BatchId, Running] = {}
        self.parked: list[Start] | None = None
        self.asked: asyncio.Future[Recutted | None] | None = None
        """Where a re-cut waits for this post: to be up, or to have carried it out."""
        self.is_up = False
        self.was_up = False
        self.pause_s = FIRST_PAUSE_S
        self._up_since: Instant = 0
        self._was_stable = False

    @property
    def models(self) -> frozenset[str]:
        """What its gpulets are planned with, of what its worker was given."""
        planned = {model for gpulet in self.post.gpulets for model in gpulet.models}
        return frozenset(model.name for model in self.given if model.name in planned)

    def man(self, worker: WorkerProcess, given: tuple[WorkerModel, ...]) -> None:
        """A worker takes the post; it is not up yet."""
        self.worker = worker
        self.given = given
        self.slots = Slots(worker.block, worker.program.slots)

    def inherit(self, other: "Station") -> None:
        """The worker of another post, which runs nothing, takes this one with all that it has loaded; it is not up yet."""
        self.worker, self.slots = other.worker, other.slots
        other.worker, other.is_up = None, False

    def rise(self, now: Instant) -> None:
        """Its worker is loaded and proven."""
        self.is_up = self.was_up = True
        self._up_since = now

    def fall(self, now: Instant) -> list[Running]:
        """Its worker is gone; what it ran. What was parked is the core's again, as what ran is."""
        self._was_stable = self.is_up and now - self._up_since >= _STABLE
        ran = list(self.running.values())
        self.running.clear()
        self.parked = None if self.parked is None else []
        self.worker = None
        self.is_up = False
        return ran

    def reply(self, answer: "Recutted | GpuletError | None") -> bool:
        """Answer whoever asked; False where nobody waits."""
        if self.asked is None or self.asked.done():
            return False
        if isinstance(answer, GpuletError):
            self.asked.set_exception(answer)
        else:
            self.asked.set_result(answer)
        return True

    def pause(self) -> float:
        """How long to wait before the next worker starts: twice as long each time, not at all after one that was stable."""
        if self._was_stable:
            self._was_stable = False
            self.pause_s = FIRST_PAUSE_S
            return 0.0
        pause_s, self.pause_s = self.pause_s, min(2 * self.pause_s, LONGEST_PAUSE_S)
        return pause_s


class Suspects:
    """Requests that were running when their worker died, by model and contents, until one like it ran well.

    The core tries a request once more after its worker's death; one that runs in two deaths convicts its model, unless
    others did the same: then nobody knows whose fault it was. After a minute nobody remembers.
    """

    def __init__(self) -> None:
        self._accused: dict[str, dict[bytes, Instant]] = {}

    def accuse(self, ran: Iterable[Running], now: Instant) -> str:
        """These were running at a death; the model that is convicted by it, empty for none."""
        self._forget(now)
        again: set[str] = set()
        for batch in ran:
            known = self._accused.setdefault(batch.start.model, {})
            digests = [_digest(payload) for payload in batch.payloads]
            if any(known.get(digest, batch.since) < batch.since for digest in digests):  # not those that died beside it
                again.add(batch.start.model)
            known.update(dict.fromkeys(digests, now))
        return again.pop() if len(again) == 1 else ""

    def acquit(self, batch: Running) -> None:
        """It ran well."""
        known = self._accused.get(batch.start.model)
        if known is None:
            return
        for payload in batch.payloads:
            known.pop(_digest(payload), None)
        if not known:
            del self._accused[batch.start.model]

    def _forget(self, now: Instant) -> None:
        for model, known in tuple(self._accused.items()):
            fresh = {digest: since for digest, since in known.items() if now - since < _MEMORY}
            self._accused[model] = fresh
            if not fresh:
                del self._accused[model]


def _digest(payload: Payload) -> bytes:
    hashed = hashlib.sha256()
    for data in payload.inputs:
        hashed.update(data)
    return hashed.digest()
