"""Independent jobs, over worker processes where there are several."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Thread
from typing import Any, Generic, TypeVar

Place = TypeVar("Place")
Advance = Callable[[int, int], None]
"""Told after each job: how many are done, of how many."""


@dataclass(frozen=True, slots=True)
class Job(Generic[Place]):
    """`work(*arguments)` gives what belongs at `place`; all of it travels to another process."""

    place: Place
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_all(jobs: Sequence[Job[Place]], workers: int, advance: Advance) -> Iterator[tuple[Place, Any]]:
    """Places and results as jobs finish; jobs for one process are done in this one."""
    if min(workers, len(jobs)) == 1:
        for done, job in enumerate(jobs, start=1):
            yield job.place, job.work(*job.arguments)
            advance(done, len(jobs))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: dict[Future[Any], Job[Place]] = {pool.submit(job.work, *job.arguments): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(waiting), start=1):
                yield waiting[future].place, future.result()
                advance(done, len(jobs))
        except BaseException:  # the rest would be worked off before anybody heard of it
            pool.shutdown(cancel_futures=True)
            raise


def end_with_parent() -> None:
    """Called in a process of a pool: it ends when the one that began it has, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent, "this process was begun by another"

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, name="parent", daemon=True).start()


def end_at_once(pool: ProcessPoolExecutor) -> None:
    """Nobody waits for it: its processes are killed, whatever they do."""
    processes = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
