"""Worker processes for the posts: one stands by, its runtime imported, so that a dead one is replaced at once."""

import asyncio

from gpulet.executors.base import Tell
from gpulet.executors.process import Program, WorkerProcess


class Crew:
    """Hires workers of one program."""

    def __init__(self, program: Program, tell: Tell) -> None:
        self.program = program
        self._tell = tell
        self._standby: WorkerProcess | None = None
        self._hired: list[WorkerProcess] = []

    def hire(self) -> WorkerProcess:
        """The one that stands by, or a fresh one; it has no task yet."""
        worker, self._standby = self._standby or self._idle(), None
        self._hired = [*(w for w in self._hired if w.is_open), worker]
        return worker

    def stand_by(self) -> None:
        """Let one be ready."""
        self._standby = self._standby or self._idle()

    async def close(self) -> None:
        """End everyone."""
        workers = [*(w for w in self._hired if w.is_open), *((self._standby,) if self._standby else ())]
        self._hired, self._standby = [], None
        await asyncio.gather(*(worker.close() for worker in workers))

    def _idle(self) -> WorkerProcess:
        return WorkerProcess(lambda _: None, self._standby_gone, self.program)

    def _standby_gone(self) -> None:
        self._standby = None
        self._tell("standby_died")
