"""Processes that load beside serving stand still while requests wait.

Idle priority keeps a core free for who serves, not what cores share: memory's bandwidth, caches, what the kernel does for a
process that maps and copies hundreds of MiB. A queue at 70 % load that is slowed by a seventh is twice as long.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Protocol

_LOOK_S = 0.001
_RUN_S, _STAND_S = 0.002, 0.02
"""Where requests always wait, a load has a tenth of the time; it runs at least, and stands still at most, that long at a time."""


class Process(Protocol):
    """A process that can be made to stand still; both are harmless where it is over."""

    def suspend(self) -> None:
        """From now on it does nothing."""
        ...

    def resume(self) -> None:
        """It goes on, if it stood still."""
        ...


@asynccontextmanager
async def yielding(processes: Collection[Process], is_wanted: Callable[[], bool]) -> AsyncIterator[None]:
    """Inside, these stand still whenever `is_wanted` says that others want the machine; afterwards none does."""
    task = asyncio.ensure_future(_yield(processes, is_wanted))
    try:
        yield
    finally:
        task.cancel()  # it is not waited for, and does nothing more
        for process in processes:
            process.resume()


async def _yield(processes: Collection[Process], is_wanted: Callable[[], bool]) -> None:
    while True:
        await asyncio.sleep(_RUN_S)
        await _until(is_wanted)
        for process in processes:
            process.suspend()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STAND_S):  # Python 3.11's `wait_for` may swallow a cancellation
                await _until(lambda: not is_wanted())
        for process in processes:
            process.resume()


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 (who waits changes a thousand times a second, and nobody tells)
        await asyncio.sleep(_LOOK_S)
