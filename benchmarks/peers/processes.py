"""A server as processes: its whole tree's CPU time, and its end, of which nothing may stay behind.

What its processes leave without a parent becomes a child of ours (`PR_SET_CHILD_SUBREAPER`), so that a daemon is found too.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

_TICK = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_TAIL = 400


class Unavailable(Exception):  # noqa: N818 (it says what the peer is)
    """A peer that cannot be set up or started here, and why, in one line."""


def adopt_orphans() -> None:
    """Become the parent of what servers leave behind."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _parents() -> dict[int, int]:
    """Every process that is not dead, and its parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdecimal() else []
        if fields and fields[0] != "Z":
            found[int(entry.name)] = int(fields[1])
    return found


def _stat(pid: int) -> list[str]:
    """From the state on, proc(5)'s field 3; nothing where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


class Running:
    """One server under test. Only one runs at a time: orphans that appear meanwhile are its."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._known = {pid for pid, parent in _parents().items() if parent == os.getpid()}
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._clients: set[int] = set()

    def ignore(self, pid: int) -> None:
        """A child of ours that is no part of the server."""
        self._clients.add(pid)

    def pids(self) -> set[int]:
        """All that runs of it now."""
        parents = _parents()
        ours = self._known | self._clients
        tree = {pid for pid, parent in parents.items() if parent == os.getpid() and pid not in ours}
        while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= more
        return tree

    def cpu_s(self) -> float:
        """User and system time of all of it, with that of children it has waited for."""
        times = [_stat(pid)[11:15] for pid in self.pids()]
        return sum(sum(map(int, fields)) for fields in times) / _TICK

    def memory_mib(self) -> float:
        """Resident memory without what processes share (proportional set size)."""
        kib = 0
        for pid in self.pids():
            with suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024

    def check(self) -> None:
        """Raises `Unavailable` once its first process has ended."""
        code = self._process.poll()
        if code is not None:
            msg = f"ended with {code}: {self.last_words()}"
            raise Unavailable(msg)

    def last_words(self) -> str:
        """The end of what it wrote, as one line."""
        return " ".join(self._log.read_text(errors="replace").split())[-_TAIL:]

    def stop(self, patience_s: float = 15.0) -> None:
        """Ask it to end, then end what is left of it; raises `RuntimeError` where something outlives that."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        end, ended = monotonic() + patience_s, set[int]()
        while (left := self.pids()) and monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended |= left
            sleep(0.05)
        self._process.wait(1)
        self._reap(ended)
        if left:
            msg = f"processes {sorted(left)} cannot be ended"
            raise RuntimeError(msg)

    def _reap(self, pids: set[int]) -> None:
        """Of orphans, which nobody else waits for."""
        for pid in pids - {self._process.pid}:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
