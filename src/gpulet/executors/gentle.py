"""Work that takes only the idle time of cores (SCHED_IDLE), and back from it to serving.

A process that may not do everything can go there and not return, and a thread passes its policy on to those that it starts:
so such work has a thread of its own, and what must serve later may not be started by it.

`python gentle.py MODULE ...` imports that worker so, then is it: little may be imported here.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

RESTS = "gpulet-worker"
LOADS = "gpulet-loads"
"""What a process that stands by is called once its imports are done, and while it loads models: `ps` shows it."""
_NO_PRIORITY = os.sched_param(0)


def gently(call: Callable[[], object]) -> None:
    """Make the call by a thread that only runs while its core has nothing else to do, and wait for it."""
    failed: list[BaseException] = []

    def work() -> None:
        _set(threading.get_native_id(), os.SCHED_IDLE)
        try:
            call()
        except BaseException as error:  # noqa: BLE001 (it is raised where it was called for)
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def may_return() -> bool:
    """Whether threads of this process may leave SCHED_IDLE again (CAP_SYS_NICE, or RLIMIT_NICE of 20 and more)."""
    try:
        gently(lambda: _set(threading.get_native_id(), os.SCHED_OTHER))
    except PermissionError:
        return False
    return True


def restore(pid: int | None = None) -> bool:
    """Bring every thread of this process, or of a child, back from there; whether all of them may.

    Where they may not, one stays in any worker: ONNX Runtime starts it with its import and never wakes it.
    """
    may = True
    for thread in threads_of(pid or os.getpid()):
        try:
            _set(thread, os.SCHED_OTHER)
        except ProcessLookupError:
            pass
        except PermissionError:
            may = False
    return may


def calm(pid: int) -> None:
    """From here on a process of ours takes only idle time: it is to end, and giving back its memory is work."""
    for thread in threads_of(pid):
        with suppress(ProcessLookupError):
            _set(thread, os.SCHED_IDLE)


def name_of(pid: int) -> str:
    """What a process is called; nothing where it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:  # noqa: PTH123 (as below)
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def be_called(name: str) -> None:
    """Name this process."""
    with open("/proc/self/comm", "w", encoding="utf-8") as file:  # noqa: PTH123 (as below)
        file.write(name)


def threads_of(pid: int) -> list[int]:
    """As the OS numbers them; none where the process is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 (pathlib takes 5 ms)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _set(thread: int, policy: int) -> None:
    os.sched_setscheduler(thread, policy, _NO_PRIORITY)


def main() -> None:
    """As above."""
    gently(lambda: import_module(sys.argv[1]))
    restore()
    be_called(RESTS)
    sys.modules[sys.argv[1]].main(sys.argv[2:])


if __name__ == "__main__":
    main()
