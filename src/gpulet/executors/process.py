"""One worker process as the front-end holds it: its socket, its shared block, its life.

A worker is started without a task, so that a standby has imported its runtime before it is needed.
"""

import asyncio
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from gpulet.errors import Unusable
from gpulet.executors import gentle
from gpulet.executors.gentle import LOADS, RESTS, calm, name_of, restore
from gpulet.executors.wire import LARGEST_MESSAGE, FromWorker, ToWorker
from gpulet.units import MIB

_decoder: Final[msgspec.msgpack.Decoder[FromWorker]] = msgspec.msgpack.Decoder(FromWorker)
_encoder: Final = msgspec.msgpack.Encoder()
_SINGLE_THREADED: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Program:
    """What a worker runs: a module of ours with arguments, and its slots for batches, of half inputs and half outputs.

    Pages of the shared block exist only once they are touched. One that stands by may have models of `standby_bytes` loaded.
    """

    module: str
    arguments: tuple[str, ...] = ()
    slots: int = 1
    slot_bytes: int = 512 * MIB
    standby_bytes: int = 0


_GENTLE: Final = ("-P", gentle.__file__)
"""As a file, which imports next to nothing at full priority: 20 ms of a core rather than 30."""
CPU: Final = Program("gpulet.executors.worker")


def _shared(size: int) -> tuple[int, mmap.mmap]:
    """A file in memory, of which pages exist once they are touched; raises `Unusable` where there may be none."""
    try:
        block = os.memfd_create("gpulet-slot")
        try:
            os.ftruncate(block, size)
            return block, mmap.mmap(block, size)
        except OSError:
            os.close(block)
            raise
    except OSError as error:
        msg = f"no shared memory of {size} bytes for a worker: {error.strerror}"
        raise Unusable(msg) from None


def _begun(program: Program, block: int, *, is_gentle: bool) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A child and our end of its channel; raises `Unusable` where the system has no process or file to give."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            files = theirs.fileno(), block
            run = [sys.executable, *(_GENTLE if is_gentle else ("-m",)), program.module, *map(str, files)]
            try:
                child = subprocess.Popen(  # noqa: S603 (our own module)
                    [*run, *program.arguments],
                    pass_fds=files,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **_SINGLE_THREADED},
                    process_group=0,  # a Ctrl-C is for the front-end, which drains and then closes its workers
                )
            except OSError:
                ours.close()
                raise
    except OSError as error:
        msg = f"no process for a worker: {error.strerror}"
        raise Unusable(msg) from None
    ours.setblocking(False)
    return ours, child


class WorkerProcess:
    """A child process. Raises `Unusable` where it cannot be made. `hear` gets its messages, `gone` is called once when it dies; both on the loop.

    `is_gentle`: it imports its runtime in idle time.
    """

    def __init__(
        self,
        hear: Callable[[FromWorker], None],
        gone: Callable[[], None],
        program: Program = CPU,
        *,
        is_gentle: bool = False,
    ) -> None:
        self.hear = hear
        self.gone = gone
        self._loop = asyncio.get_running_loop()
        block, self.block = _shared(program.slots * program.slot_bytes)
        self.program = program
        self._is_gentle = is_gentle
        try:
            self._socket, self._child = _begun(program, block, is_gentle=is_gentle)
        except Unusable:
            self.block.close()
            raise
        finally:
            os.close(block)
        self._is_open = True
        self._loop.add_reader(self._socket.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        """Whether it has not been told to end, nor ended."""
        return self._is_open

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    @property
    def is_importing(self) -> bool:
        """Whether it began gently and is not done with it, which may take long where cores are never idle."""
        return self._is_gentle and name_of(self.pid) not in {RESTS, LOADS, ""}

    @property
    def is_loading(self) -> bool:
        """Whether it loads models in idle time, until it is asked for more."""
        return name_of(self.pid) == LOADS

    def hasten(self) -> bool:
        """Let what it does in idle time be done at once; whether that may be."""
        return restore(self.pid)

    def send(self, message: ToWorker) -> None:
        """Give the child something to do. A child that is gone is told by `gone`, not here.

        Raises `Unusable` for a message that is too long for the socket.
        """
        data = _encoder.encode(message)
        if len(data) > LARGEST_MESSAGE:
            msg = f"a worker's task of {len(data)} bytes: {LARGEST_MESSAGE} at most; serve fewer models, or less of a plan"
            raise Unusable(msg)
        try:
            self._socket.send(data)
        except OSError:
            self._loop.call_soon(self._lost)

    def suspend(self) -> None:
        """Let the child stand still. Should the front-end die, the OS wakes it: its process group is then an orphan."""
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the child now; `gone` follows."""
        self._child.kill()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            message = _decoder.decode(data) if data else None
        except msgspec.DecodeError:  # cut off: longer than any message of ours
            message = None
        if message is None:
            self._lost()
        else:
            self.hear(message)

    def _lost(self) -> None:
        if self._is_open:
            self._detach()
            self._child.kill()
            threading.Thread(target=self._child.wait, daemon=True).start()  # one that holds a GPU may take seconds
            self.gone()

    def _detach(self) -> None:
        self._is_open = False
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    async def close(self) -> None:
        """End the child, in idle time: it stops when its socket closes; one that does not is killed."""
        if self._is_open:
            calm(self.pid)
            self._detach()
        try:
            await asyncio.to_thread(self._child.wait, 2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            await asyncio.to_thread(self._child.wait)
        except asyncio.CancelledError:
            self._child.kill()
            raise
