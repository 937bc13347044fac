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

_IMPORTING = "gpulet-imports"
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
        return _name(pid) == _IMPORTING
    except (FileNotFoundError, ProcessLookupError):
        return False


def threads_of(pid: int) -> list[int]:
    """As the OS numbers them; none where the process is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 (pathlib takes 5 ms)
    except (FileNotFoundError, ProcessLookupError):
        return []


def _name(pid: int | str) -> str:
    with open(f"/proc/{pid}/comm", encoding="ascii") as file:  # noqa: PTH123 (as above)
        return file.read().strip()


def _rename(name: str) -> None:
    with open("/proc/self/comm", "w", encoding="ascii") as file:  # noqa: PTH123 (as above)
        file.write(name)


def _set(thread: int, policy: int) -> None:
    os.sched_setscheduler(thread, policy, _NO_PRIORITY)


def main() -> None:
    """As above."""
    before = _name("self")
    _rename(_IMPORTING)
    gently(lambda: import_module(sys.argv[1]))
    restore()
    _rename(before)
    sys.modules[sys.argv[1]].main(sys.argv[2:])


if __name__ == "__main__":
    main()
