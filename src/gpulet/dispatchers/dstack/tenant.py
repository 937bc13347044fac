"""A model on one device, as D-STACK's dispatcher sees it, and the scoreboard of who was served how much."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from itertools import accumulate

from gpulet.core.fleet import Queue
from gpulet.model import Model
from gpulet.profile import Curve, Profile
from gpulet.request import Request
from gpulet.units import Duration, Instant

SESSIONS = 10
"""How far back the scoreboard looks."""


class Tenant:
    """One model on one device: its sizes from the knee down to half of it, its batch, its latencies.

    `until` is when its run is predicted to end, 0 when it does not run.
    """

    __slots__ = ("_curves", "_options", "_profile", "batch", "model", "on", "sizes", "slo", "until")

    def __init__(self, model: Model, sizes: tuple[int, ...], batch: int, profile: Profile) -> None:
        self.model = model.name
        self.slo = model.slo
        self.sizes = sizes
        self.batch = batch
        self.until: Instant = 0
        self.on = 0
        self._profile = profile
        self._curves: dict[tuple[int, str], Curve] = {}
        self._options: dict[str, list[tuple[int, Curve]]] = {}

    def curve(self, sms: int, shape: str) -> Curve:
        found = self._curves.get((sms, shape))
        if found is None:
            found = self._curves[sms, shape] = self._profile.curve(self.model, sms, shape)
        return found

    def options(self, shape: str) -> list[tuple[int, Curve]]:
        """Every size with its curve, the largest first."""
        found = self._options.get(shape)
        if found is None:
            found = self._options[shape] = [(sms, self.curve(sms, shape)) for sms in self.sizes]
        return found


class Scores:
    """SM-nanoseconds of each model in the last sessions."""

    __slots__ = ("_session", "_sessions", "total")

    def __init__(self, names: Iterable[str]) -> None:
        self.total = dict.fromkeys(names, 0)
        self._sessions: deque[dict[str, int]] = deque([{}])
        self._session = 0

    def add(self, model: str, area: int) -> None:
        self.total[model] += area
        this = self._sessions[-1]
        this[model] = this.get(model, 0) + area

    def advance(self, session: int) -> None:
        """Forget what is too long ago."""
        for _ in range(min(session - self._session, SESSIONS)):
            self._sessions.append({})
            if len(self._sessions) > SESSIONS:
                for model, area in self._sessions.popleft().items():
                    self.total[model] -= area
        self._session = session


def prefix(curve: Curve, batch: int, queue: Queue, allowed: Duration) -> list[Request]:
    """As many from the front as are over in the time allowed; the first goes even beyond the batch.

    None where not even it fits.
    """
    rows = queue.head.rows
    most = bisect_right(curve, allowed)
    return queue.take(max(rows, min(most, batch))) if most >= rows else []


def timely(now: Instant, curve: Curve, batch: int, queue: Queue, allowed: Duration) -> list[Request]:
    """As many as a planned run holds in the time allowed, but for those that such a batch would make late."""
    most = min(batch, queue.rows, bisect_right(curve, allowed))
    if not most:
        return []
    end = now + curve[most - 1]
    if queue.head.deadline >= end:
        return queue.take(most)
    return _first([request for request in queue if request.deadline >= end], most)


def _first(requests: list[Request], most: int) -> list[Request]:
    """The longest prefix within so many rows."""
    rows = list(accumulate(request.rows for request in requests))
    return requests[: bisect_right(rows, most)]
