"""Plans are made in a process of their own, so that nothing that serves ever waits for one.

It is started with the server, at a lower priority than who serves. One that has died is replaced; one that takes too long or
raises is an answer as well: the plan in force stays, and the next question finds a new process.
"""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from gpulet.core.messages import Event, Replan, Replanned
from gpulet.core.ports import Problem
from gpulet.core.scheduler import Limits
from gpulet.errors import GpuletError
from gpulet.parallel import end_at_once, end_with_parent
from gpulet.profile import Profile
from gpulet.replanning import Replanner
from gpulet.spares import Spares
from gpulet.systems import composed

_NICE = 5
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """All that a planner's process is told once: names of systems, since what they are made of cannot always be sent."""

    system: str
    planner: str
    dispatcher: str
    limits: Limits
    spares: Spares
    problem: Problem


class PlanningProcess:
    """Answers `Replan` by `feed`, beside the loop. `problem` says what is planned for, as it is at that moment."""

    def __init__(self, question: Question, problem: Callable[[], Problem], feed: Callable[[Event], None]) -> None:
        self._question = question
        self._problem = problem
        self._feed = feed
        self._pool: ProcessPoolExecutor | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._hiring = asyncio.Lock()

    def warm(self) -> None:
        """Have the process ready for the first question."""
        self._do(self._hired())

    def ask(self, command: Replan) -> None:
        """The answer is fed when it is there."""
        self._do(self._answer(command))

    async def close(self) -> None:
        """Nobody waits any longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end(self._pool)

    async def _answer(self, command: Replan) -> None:
        try:
            try:
                answer = await self._asked(command)
            except BrokenProcessPool:  # it may have died long ago
                answer = await self._asked(command)
        except Exception as error:  # noqa: BLE001 (anybody's planner: whoever asked must be answered)
            answer = Replanned(command.number, None, f"the planner failed: {error!r}", 0.0, 0.0, has_failed=True)
        self._feed(answer)

    async def _asked(self, command: Replan) -> Replanned:
        """The profile is large, and changes only where a model is new: then another process is told all of it."""
        problem = self._problem()
        if problem.profile is not self._question.problem.profile:
            self._question = replace(self._question, problem=problem)
            self._end(self._pool)
        news = replace(problem, profile=_NO_PROFILE, interference=None)
        pool = await self._hired()
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await asyncio.get_running_loop().run_in_executor(pool, _answer, command, news)
        except BaseException:
            self._end(pool)
            raise

    async def _hired(self) -> ProcessPoolExecutor:
        """A large question takes a while to be handed to a process that is just starting."""
        async with self._hiring:
            if self._pool is None:
                self._pool = await asyncio.to_thread(_hire, self._question)
            return self._pool

    def _end(self, pool: ProcessPoolExecutor | None) -> None:
        if pool and pool is self._pool:
            self._pool = None
            end_at_once(pool)

    def _do(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _hire(question: Question) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (question,))
    pool.submit(os.getpid)
    return pool


_NO_PROFILE = Profile(())
_here: tuple[Replanner, Problem]
"""In the planner's process."""


def _begin(question: Question) -> None:
    """The terminal's Ctrl-C is the server's alone, which then ends this process."""
    global _here  # noqa: PLW0603 (a process has one)
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
    system = composed(question.system, question.planner, question.dispatcher)
    _here = Replanner(system, question.limits, question.spares), question.problem


def _answer(command: Replan, news: Problem) -> Replanned:
    replanner, first = _here
    problem = replace(news, profile=first.profile, interference=first.interference)
    try:
        return replanner.answer(problem, command)
    except GpuletError as error:
        return Replanned(command.number, None, str(error), 0.0, 0.0)
