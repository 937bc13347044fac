"""A timer that is exact to tens of microseconds: libuv, below uvloop, rounds to whole milliseconds.

Linux' timerfd carries the earliest wake-up; other systems fall back on the loop's own timer.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from heapq import heappop, heappush
from time import monotonic_ns, time_ns
from typing import Protocol

from gpulet.units import SECOND, Instant

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class _Itimerspec(ctypes.Structure):
    """`struct itimerspec`: interval, then value, each seconds and nanoseconds."""

    _fields_ = (("_interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


class Alarm(Protocol):
    """One wake-up that can be moved."""

    def set(self, when: Instant) -> None:
        """Ring at this instant of the monotonic clock, instead of whenever it was."""
        ...

    def close(self) -> None:
        """Never ring again."""
        ...


class _TimerfdAlarm:
    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        self._spec = _Itimerspec()
        loop.add_reader(self._fd, self._readable)

    def set(self, when: Instant) -> None:
        # 0 would disarm; what is overdue rings at once.
        self._spec.value[0], self._spec.value[1] = divmod(max(1, when), SECOND)
        self._libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # moved between ringing and reading
            return
        self._ring()


class _LoopAlarm:
    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None

    def set(self, when: Instant) -> None:
        self.close()
        self._handle = self._loop.call_later(max(0, when - monotonic_ns()) / SECOND, self._ring)

    def close(self) -> None:
        if self._handle:
            self._handle.cancel()


def make_alarm(loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> Alarm:
    """The most exact alarm this system has."""
    return _TimerfdAlarm(loop, ring) if sys.platform == "linux" else _LoopAlarm(loop, ring)


class LiveTimer:
    """Wake-ups on the loop, counted from when it was made: `began_at`, in Unix nanoseconds, for those who ask outside."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoch = monotonic_ns()
        self.began_at = time_ns()
        self._heap: list[tuple[Instant, int, Callable[[int], None], int]] = []
        self._serial = 0
        self._alarm = make_alarm(loop, self._ring)

    def now(self) -> Instant:
        """Nanoseconds since the timer was made."""
        return monotonic_ns() - self._epoch

    def at(self, when: Instant, wake: Callable[[int], None], token: int) -> None:
        """Call `wake(token)` at `when`, on the loop."""
        self._serial += 1
        heappush(self._heap, (when, self._serial, wake, token))
        if self._heap[0][1] == self._serial:
            self._alarm.set(when + self._epoch)

    def close(self) -> None:
        """Forget everything that was to be woken."""
        self._heap.clear()
        self._alarm.close()

    def _ring(self) -> None:
        while self._heap and self._heap[0][0] <= self.now():
            _, _, wake, token = heappop(self._heap)
            wake(token)
        if self._heap:
            self._alarm.set(self._heap[0][0] + self._epoch)
