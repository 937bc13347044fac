"""What the core decides because of an event: who fed it waits for the first change that was begun with it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

from gpulet.core.control import FROZEN
from gpulet.core.messages import Adopt, Command, Event, Explain, Force, Replan, Stopping
from gpulet.drivers.live import Live
from gpulet.errors import RequestError
from gpulet.units import Instant

_PATIENCE_S = 600.0
"""For what is to be built: many graphs of large models take minutes."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the core said, and whether a plan came into force by it."""

    told: Explain
    is_adopted: bool


@dataclass(slots=True)
class _Waiter:
    """For what is decided because of `event`; `number` is that of the first change that was begun with it, 0 before."""

    event: Event
    decided: "asyncio.Future[Decision]"
    number: int = 0
    is_heard: bool = False

    def hear(self, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """One step."""
        self.is_heard |= any(event is self.event for event in events)
        if not self.is_heard or self.decided.done():
            return
        if not self.number:
            self.number = next((c.number for c in commands if isinstance(c, Replan)), 0)
        told = next((c for c in commands if isinstance(c, Explain) and self._is_mine(c)), None)
        if told:
            adopted = any(isinstance(c, Adopt) and c.number == told.number for c in commands)
            self.decided.set_result(Decision(told, adopted))
        elif any(isinstance(event, Stopping) for event in events):
            self.decided.set_exception(RequestError("the server stops", HTTPStatus.SERVICE_UNAVAILABLE))

    def _is_mine(self, told: Explain) -> bool:
        if isinstance(self.event, Force):
            return told.number == -self.event.ticket
        if self.number:
            return told.number >= self.number
        return told.number == 0 and told.chosen == FROZEN  # since then: nothing will be begun


class Deciding:
    """Of one server with live control; it sees every step."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._waiting: list[_Waiter] = []
        self._until: list[tuple[Callable[[], bool], asyncio.Event]] = []

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Who waits for a decision has it."""
        for waiter in self._waiting:
            waiter.hear(events, commands)
        for holds, settled in self._until:
            if holds() or any(isinstance(event, Stopping) for event in events):
                settled.set()

    async def until(self, holds: Callable[[], bool], longest_s: float) -> bool:
        """Wait for that, which is looked at after each step; whether it came in time, and before the server stops."""
        if holds():
            return True
        waiting = holds, asyncio.Event()
        self._until.append(waiting)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(longest_s):
                    await waiting[1].wait()
        finally:
            self._until.remove(waiting)
        return holds()

    async def decided(self, event: Event) -> Decision:
        """Feed it, and wait; raises `RequestError` where nothing is decided for long, or the server stops."""
        waiter = _Waiter(event, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._live.feed(event)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await waiter.decided
        except TimeoutError:
            msg = f"nothing was decided within {_PATIENCE_S:g} s"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE) from None
        finally:
            self._waiting.remove(waiter)
