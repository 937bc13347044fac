"""What an executor has done beside its loop: tasks of its own, and calls that block, on one thread, one at a time."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


class Errands:
    """Tasks that end with their owner."""

    def __init__(self, name: str) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, name)

    def do(self, work: Coroutine[None, None, None]) -> None:
        """Begin it now."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def blocking(self, call: Callable[[], Made]) -> Made:
        """Make a call that blocks; who is cancelled does not wait for it, but the next call does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def give_up(self) -> None:
        """Cancel what is not done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """No more calls."""
        self._thread.shutdown()
