"""Work that takes only the idle time of cores (SCHED_IDLE), and back from it to serving.

A process that may not do everything can go there and not return, and a thread passes its policy on to those that it starts:
so such work has a thread of its own, and what must serve later may not be started by it.

`python -m gpulet.executors.gentle MODULE ...` imports that worker so, then is it.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")
_IMPORTING = "gpulet-imports"
_NO_PRIORITY = os.sched_param(0)


def gently(call: Callable[[], Made]) -> Made:
    """The call's result, made by a thread that only runs while its core has nothing else to do."""
    made: list[Made] = []
    failed: list[BaseException] = []

    def work() -> None:
        _set(threading.get_native_id(), os.SCHED_IDLE)
        try:
            made.append(call())
        except BaseException as error:  # noqa: BLE001 (it is raised where it was called for)
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def may_return() -> bool:
    """Whether threads of this process may leave SCHED_IDLE again (CAP_SYS_NICE, or RLIMIT_NICE of 20 and more)."""

    def tried() -> bool:
        try:
            _set(threading.get_native_id(), os.SCHED_OTHER)
        except PermissionError:
            return False
        return True

    return gently(tried)


def restore() -> None:
    """Bring every thread of this process back that may come.

    Where none may it is one that ONNX Runtime starts with its import and never wakes: it stays.
    """
    for thread in threads_of(os.getpid()):
        with suppress(ProcessLookupError, PermissionError):
            _set(thread, os.SCHED_OTHER)


def calm(pid: int) -> None:
    """From here on a process of ours takes only idle time: it is to end, and giving back its memory is work."""
    for thread in threads_of(pid):
        with suppress(ProcessLookupError):
            _set(thread, os.SCHED_IDLE)


def is_importing(pid: int) -> bool:
    """Whether a process that begins gently is still at it."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == _IMPORTING
    except (FileNotFoundError, ProcessLookupError):
        return False


def threads_of(pid: int) -> list[int]:
    """As the OS numbers them; none where the process is gone."""
    try:
        return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _set(thread: int, policy: int) -> None:
    os.sched_setscheduler(thread, policy, _NO_PRIORITY)


def main() -> None:
    """As above."""
    name = Path("/proc/self/comm")
    before = name.read_text(encoding="ascii")
    name.write_text(_IMPORTING, encoding="ascii")
    module = gently(lambda: import_module(sys.argv[1]))
    restore()
    name.write_text(before, encoding="ascii")
    module.main(sys.argv[2:])


if __name__ == "__main__":
    main()
