"""Worker processes for the posts: one stands by, its runtime imported, so that a dead one is replaced at once."""

import asyncio
from collections.abc import Iterable

from gpulet.executors.base import Tell
from gpulet.executors.process import Program, WorkerProcess


class Crew:
    """Hires workers of one program."""

    def __init__(self, program: Program, tell: Tell) -> None:
        self.program = program
        self._tell = tell
        self._standby: WorkerProcess | None = None

    def hire(self) -> WorkerProcess:
        """The one that stands by, or a fresh one; it has no task yet."""
        worker, self._standby = self._standby or self._idle(), None
        return worker

    def stand_by(self) -> None:
        """Let one be ready."""
        self._standby = self._standby or self._idle()

    async def close(self, others: Iterable[WorkerProcess]) -> None:
        """End these and the one that stands by."""
        workers = [*others, *((self._standby,) if self._standby else ())]
        self._standby = None
        await asyncio.gather(*(worker.close() for worker in workers))

    def _idle(self) -> WorkerProcess:
        return WorkerProcess(lambda _: None, self._standby_gone, self.program)

    def _standby_gone(self) -> None:
        self._standby = None
        self._tell("standby_died")
