"""MPS through `nvidia-cuda-mps-control`: a daemon of our own, what it is told and asked, and its certain end.

The daemon runs in the foreground as our child, with pipe and log directories of its own, so that no other MPS is touched
and its death is seen. Every call has a time limit. Compute mode is never changed: the default one will do. A process that
does not find the pipe runs beside the others without MPS and without a word, so attachment is proven by PID (`serves`).
Source: NVIDIA's MPS documentation, "Common Tasks", "Legacy MPS v2 Interface", "Using Static SM Partitioning".
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpulet.errors import MpsError
from gpulet.units import MIB

BINARY = "nvidia-cuda-mps-control"
STATIC_SINCE = 13010
"""CUDA 13.1, as `-v` counts: partitions of SMs that no other client gets. Older binaries are not trusted with -S."""
_LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path; beyond it the daemon dies and says only that it cannot be found."""
_SOCKET = "control_privileged"
_POLL_S = 0.05
_TEXT_LIMIT = 200
_REFUSAL = re.compile(r"(?i)\b(cannot find|failed|error|unknown command|invalid|not supported)\b")
"""The binary says no with exit code 0 too."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a control binary can do: its version as CUDA counts (13010 is 13.1; 0: it does not say), -S, protocol 3.

    Protocol 2 does all that is asked here and stays the default of newer binaries; 3 is known of, not used.
    """

    version: int
    has_static: bool
    has_v3: bool


@dataclass(frozen=True, slots=True)
class Binary:
    """The control binary, the environment of whoever runs it, and how long its calls may take."""

    path: str
    environment: Mapping[str, str]
    start_s: float = 10.0
    answer_s: float = 10.0
    quit_s: float = 15.0

    def probe(self) -> Features:
        """What it says of itself; starts nothing. Raises `MpsError` where it cannot be run."""
        found = re.search(r"\d{4,6}", self.run("-v"))
        version = int(found[0]) if found else 0
        return Features(version, version >= STATIC_SINCE, "--protocol" in self._said(["-h"], "", {}, "-h")[1])

    def run(self, *arguments: str, text: str = "", extra: Mapping[str, str] | None = None, limit_s: float = 0.0) -> str:
        """What it prints; `MpsError` where it fails, says that it failed, or does not come back in time."""
        name = text or " ".join(arguments)
        code, said = self._said(arguments, text, extra or {}, name, limit_s)
        if code or _REFUSAL.search(said):
            raise MpsError(name, f"exit code {code}: {_short(said) or 'no word'}")
        return said

    def _said(
        self, arguments: Sequence[str], text: str, extra: Mapping[str, str], name: str, limit_s: float = 0.0
    ) -> tuple[int, str]:
        limit_s = limit_s or self.answer_s
        try:
            done = subprocess.run(  # noqa: S603 (a binary that its owner named)
                [self.path, *arguments],
                input=f"{text}\n",
                env={**_without_mps(self.environment), **extra},
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MpsError(name, f"no answer in {limit_s:g} s") from None
        except OSError as error:
            raise MpsError(name, f"cannot be run: {error.strerror}") from None
        return done.returncode, f"{done.stdout}\n{done.stderr}".strip()


@dataclass(frozen=True, slots=True)
class Client:
    """What one client process is given: percent of the SMs (0: the daemon's default), memory in bytes (0: no limit).

    `partition` is what `add_partition` gave; under static partitioning every client needs one, and the percentage is ignored.
    """

    share_pct: float = 0.0
    memory: int = 0
    partition: str = ""


class MpsControl(Protocol):
    """A running daemon. All raise `MpsError`."""

    def servers(self) -> tuple[int, ...]:
        """The PIDs of its servers; it starts one when the first client comes."""
        ...

    def clients(self) -> tuple[int, ...]:
        """The PIDs of all processes that are attached."""
        ...

    def serves(self, pid: int) -> bool:
        """Whether that process is attached, the only proof that its share is kept."""
        ...

    def set_default_share(self, percent: float) -> None:
        """Of clients that come from now on and bring no percentage of their own."""
        ...

    def set_default_memory(self, memory: int) -> None:
        """Limit, in bytes on the daemon's first device, of clients that come from now on."""
        ...

    def end_client(self, pid: int) -> None:
        """Before a busy client is killed: killing alone is undefined."""
        ...

    def add_partition(self, gpu: str, chunks: int) -> str:
        """SMs of a GPU, by UUID, for its clients alone, in the daemon's chunks; what `Client.partition` takes."""
        ...

    def remove_partition(self, partition: str) -> None:
        """Give its SMs back; its clients are gone."""
        ...

    def environment(self, client: Client, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what a client needs before CUDA starts, and without what would make it miss the daemon."""
        ...


def find_binary() -> str:
    """Where the control binary is; empty: not installed."""
    return shutil.which(BINARY) or ""


@contextmanager
def started(binary: Binary, folder: Path, gpu: str, *, is_static: bool = False) -> Iterator["Daemon"]:
    """A daemon for one GPU or MIG device, by UUID, in `folder`; gone when the context ends, whatever happened in it.

    Raises `MpsError` where it does not answer, and for static partitioning that the binary does not have.
    """
    daemon = Daemon(binary, folder, gpu, is_static=is_static)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()


class Daemon:
    """A control daemon as its owner holds it."""

    def __init__(self, binary: Binary, folder: Path, gpu: str, *, is_static: bool = False) -> None:
        self._binary = binary
        self._pipe, self._log = folder / "pipe", folder / "log"
        self._gpu = gpu
        self._is_static = is_static
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the daemon; 0 while there is none."""
        return self._child.pid if self._child else 0

    @property
    def is_running(self) -> bool:
        """Whether there is one and it has not died."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._refuse()
        for folder in (self._pipe, self._log):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Only the daemon is told its device: to its clients that one is device 0.
        environment = {**self.environment(Client(), self._binary.environment), "CUDA_VISIBLE_DEVICES": self._gpu}
        command = "-f -S" if self._is_static else "-f"
        try:
            self._child = subprocess.Popen(  # noqa: S603 (as above)
                [self._binary.path, *command.split()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the front-end, which ends its clients first
            )
        except OSError as error:
            raise MpsError(command, f"cannot be run: {error.strerror}") from None
        self._await_answer()

    def stop(self) -> None:
        """Ask it to quit; end it where it does not. Never raises, and leaves no daemon."""
        child, self._child = self._child, None
        if child is None:
            return
        limit_s = self._binary.quit_s
        try:
            if child.poll() is None:
                # It ends servers that still have clients after a third of the time.
                self._binary.run(
                    text=f"quit -t {max(1, round(limit_s / 3))}", extra=self._directories(), limit_s=limit_s
                )
                child.wait(limit_s)
        except (MpsError, subprocess.TimeoutExpired):
            pass  # it is ended below; what it logged stays in its directory
        finally:
            _end(child, limit_s / 3)

    def servers(self) -> tuple[int, ...]:
        return _pids(self._ask("get_server_list"))

    def clients(self) -> tuple[int, ...]:
        return tuple(pid for server in self.servers() for pid in _pids(self._ask(f"get_client_list {server}")))

    def serves(self, pid: int) -> bool:
        return pid in self.clients()

    def set_default_share(self, percent: float) -> None:
        _check_share(percent)
        self._ask(f"set_default_active_thread_percentage {percent:g}")

    def set_default_memory(self, memory: int) -> None:
        self._ask(f"set_default_device_pinned_mem_limit 0 {_mebibytes(memory)}")

    def end_client(self, pid: int) -> None:
        for server in self.servers():
            if pid in _pids(self._ask(f"get_client_list {server}")):
                self._ask(f"terminate_client {server} {pid}")

    def add_partition(self, gpu: str, chunks: int) -> str:
        command = f"sm_partition add {gpu} {chunks}"
        answer = self._ask(command)
        found = re.search(r"GPU-[0-9a-fA-F-]+/[\w+=/-]+", answer)  # alone, or in "Partition ... created"
        if not found:
            raise MpsError(command, _short(answer) or "no partition came back")
        return found[0]

    def remove_partition(self, partition: str) -> None:
        gpu, _, name = partition.partition("/")
        self._ask(f"sm_partition rm {gpu} {name}")

    def environment(self, client: Client, base: Mapping[str, str]) -> dict[str, str]:
        environment = {**_without_mps(base), **self._directories()}
        if client.share_pct:
            _check_share(client.share_pct)
            environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = f"{client.share_pct:g}"
        if client.memory:
            environment["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={_mebibytes(client.memory)}"
        if client.partition:
            environment["CUDA_MPS_SM_PARTITION"] = client.partition
        return environment

    def _directories(self) -> dict[str, str]:
        return {"CUDA_MPS_PIPE_DIRECTORY": str(self._pipe), "CUDA_MPS_LOG_DIRECTORY": str(self._log)}

    def _refuse(self) -> None:
        """Raise for what the binary would fail at without a word."""
        command = "start"
        if len(os.fsencode(self._pipe / _SOCKET)) > _LONGEST_SOCKET:
            raise MpsError(command, f"{self._pipe / _SOCKET} is longer than the {_LONGEST_SOCKET} bytes of a socket")
        if self._is_static and not (features := self._binary.probe()).has_static:
            raise MpsError(command, f"static partitioning needs version {STATIC_SINCE}, this is {features.version}")

    def _ask(self, command: str) -> str:
        """One command on its standard input, as the documentation has it."""
        code = self._child.poll() if self._child else 0
        if code is not None:
            raise MpsError(command, f"the daemon is gone (exit code {code}); its log is in {self._log}")
        return self._binary.run(text=command, extra=self._directories())

    def _await_answer(self) -> None:
        until = time.monotonic() + self._binary.start_s
        while True:
            try:
                self.servers()
            except MpsError:
                is_gone = self._child is None or self._child.poll() is not None
                if is_gone or time.monotonic() >= until:
                    raise
                time.sleep(_POLL_S)
            else:
                return


def _end(child: subprocess.Popen[bytes], limit_s: float) -> None:
    for end in (child.terminate, child.kill):
        if child.poll() is None:
            end()
            with suppress(subprocess.TimeoutExpired):
                child.wait(limit_s)


def _without_mps(base: Mapping[str, str]) -> dict[str, str]:
    """Not the variables of another MPS, nor a choice of devices: to its clients the daemon's device is number 0."""
    return {k: v for k, v in base.items() if not k.startswith("CUDA_MPS_") and k != "CUDA_VISIBLE_DEVICES"}


def _pids(answer: str) -> tuple[int, ...]:
    return tuple(int(line) for line in answer.split() if line.isdecimal())


def _check_share(percent: float) -> None:
    if not 0 < percent <= 100:  # noqa: PLR2004 (percent)
        what = "active thread percentage"
        raise MpsError(what, f"{percent:g} is not in (0, 100]")


def _mebibytes(memory: int) -> str:
    if memory < MIB:
        what = "pinned device memory limit"
        raise MpsError(what, f"{memory} bytes are less than one MiB")
    return f"{memory // MIB}M"


def _short(said: str) -> str:
    return " ".join(said.split())[:_TEXT_LIMIT]


_FITS: type[MpsControl] = Daemon
"""The type checker's proof."""
