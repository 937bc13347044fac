"""Worker processes for the posts: one stands by, its runtime imported and models loaded, so that a dead one is replaced at once."""

import asyncio

from gpulet.errors import Unusable
from gpulet.executors.base import Tell
from gpulet.executors.process import Program, WorkerProcess
from gpulet.executors.wire import Prepare


class Crew:
    """Hires workers of one program."""

    def __init__(self, program: Program, tell: Tell) -> None:
        self.program = program
        self._tell = tell
        self._standby: WorkerProcess | None = None
        self._prepared: Prepare | None = None
        self._hired: list[WorkerProcess] = []

    def hire(self, *, is_gentle: bool = False) -> WorkerProcess:
        """The one that stands by, or a fresh one; it has no task yet. Who is in a hurry does not wait for idle time."""
        if self._standby and not is_gentle and _waits_for_idle_time(self._standby):
            worker = self._idle(is_gentle=False)
        else:
            worker, self._standby = self._standby or self._idle(is_gentle=is_gentle), None
        self._hired = [*(w for w in self._hired if w.is_open), worker]
        return worker

    def stand_by(self, prepare: Prepare | None = None, *, is_gentle: bool = False) -> None:
        """Let one be ready, as that says; gently where others serve. Where none can be made the next one that is needed says why."""
        try:
            if self._standby is None:
                self._standby, self._prepared = self._idle(is_gentle=is_gentle), None
            if prepare and prepare != self._prepared:
                self._standby.send(prepare)
                self._prepared = prepare
        except Unusable as error:
            self._tell("standby_failed", error=str(error))

    async def close(self) -> None:
        """End everyone."""
        workers = [*(w for w in self._hired if w.is_open), *((self._standby,) if self._standby else ())]
        self._hired, self._standby = [], None
        await asyncio.gather(*(worker.close() for worker in workers))

    def _idle(self, *, is_gentle: bool) -> WorkerProcess:
        return WorkerProcess(lambda _: None, self._standby_gone, self.program, is_gentle=is_gentle)

    def _standby_gone(self) -> None:
        self._standby = None
        self._tell("standby_died")


def _waits_for_idle_time(worker: WorkerProcess) -> bool:
    """Whether that one does, which cores that are never idle do not have. One that imports may yet go there: it is not hastened."""
    return worker.is_importing or (worker.is_loading and not worker.hasten())
