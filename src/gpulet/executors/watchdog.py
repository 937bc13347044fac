"""Looks after running batches: a line for the slow, the end of its worker for one that hangs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gpulet.executors.base import Tell, Timer
from gpulet.executors.stations import Patience, Running, Station
from gpulet.units import SECOND, Duration, Instant

_LOOK_S = 0.25
_OVERSLEPT: Duration = SECOND // 2


class Watchdog:
    """What hangs on a GPU cannot be cancelled: its worker ends, and the core gets the batch back."""

    def __init__(self, patience: Patience, timer: Timer, tell: Tell, end: Callable[[Station], Awaitable[None]]) -> None:
        self._patience = patience
        self._timer = timer
        self._tell = tell
        self._end = end

    async def watch(self, stations: Callable[[], Iterable[Station]]) -> None:
        """For ever; `stations` are those of now."""
        while True:
            before = self._timer.now()
            await asyncio.sleep(_LOOK_S)
            now = self._timer.now()
            if now - before > _OVERSLEPT:  # we stood still, not the workers: their answers are yet to be read
                continue
            for station in stations():
                if station.asked is None and self._hangs(station, now):
                    await self._end(station)

    def _hangs(self, station: Station, now: Instant) -> bool:
        """A post that is re-cut is its patience's affair."""
        for batch in station.running.values():
            if self._patience.hangs(batch, now):
                self._say("batch_hangs", batch, station)
                return True
            if self._patience.is_slow(batch, now) and not batch.is_told:
                batch.is_told = True
                self._say("batch_slow", batch, station)
        return False

    def _say(self, event: str, batch: Running, station: Station) -> None:
        pid = station.worker.pid if station.worker else 0
        self._tell(event, model=batch.start.model, on=str(batch.start.on), expected=batch.start.expected, pid=pid)
