"""The arrivals of the last minutes, as they came: what another plan would have made of them can be asked."""

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gpulet.core.messages import Arrived, Command, Enlist, Event
from gpulet.model import Model
from gpulet.units import SECOND, Duration, Instant
from gpulet.workload import Arrivals

_PIECE: Duration = 10 * SECOND


@dataclass(slots=True)
class _Piece:
    """Ten seconds of arrivals: instants, places of models, rows."""

    since: Instant
    times: "array[int]" = field(default_factory=lambda: array("q"))
    which: "array[int]" = field(default_factory=lambda: array("i"))
    rows: "array[int]" = field(default_factory=lambda: array("i"))


class Recent:
    """Sees every step. `longest` back, and no more than `most` arrivals, are remembered; `models` is what may arrive."""

    def __init__(self, models: Sequence[str], longest: Duration = 600 * SECOND, most: int = 2_000_000) -> None:
        self._places = {name: place for place, name in enumerate(models)}
        self._longest = longest
        self._most = most
        self._count = 0
        self._pieces: deque[_Piece] = deque([_Piece(0)])

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """One step."""
        piece = self._pieces[-1]
        if now - piece.since >= _PIECE:
            piece = self._begin(now)
        for event in events:
            if isinstance(event, Enlist):
                self._places.setdefault(event.model.name, len(self._places))
            if isinstance(event, Arrived) and event.request.model in self._places:
                piece.times.append(event.request.arrival)
                piece.which.append(self._places[event.request.model])
                piece.rows.append(event.request.rows)
                self._count += 1

    def _begin(self, now: Instant) -> _Piece:
        self._pieces.append(_Piece(now))
        while len(self._pieces) > 1 and (self._pieces[1].since < now - self._longest or self._count > self._most):
            self._count -= len(self._pieces.popleft().times)
        return self._pieces[-1]

    def arrivals(self, models: Sequence[Model], now: Instant, back: Duration) -> Callable[[], Arrivals]:
        """What came in the last while, from its beginning; `models` are all that may arrive. Put together on a thread: it takes long."""
        *pieces, last = self._pieces
        pieces.append(_Piece(last.since, last.times[:], last.which[:], last.rows[:]))  # what is read cannot grow
        by_place = tuple(sorted(models, key=lambda model: self._places[model.name]))
        return partial(_joined, pieces, by_place, now, back)


def _joined(pieces: Sequence[_Piece], models: tuple[Model, ...], now: Instant, back: Duration) -> Arrivals:
    begins = max(now - back, pieces[0].since)
    times, which, rows = (
        np.concatenate([np.array(getattr(piece, name), np.int64) for piece in pieces])
        for name in ("times", "which", "rows")
    )
    order = np.argsort(times, kind="stable")  # who waited at the door comes late
    order = order[times[order] >= begins]
    return Arrivals(models, times[order] - begins, which[order], rows[order], max(1, now - begins))
