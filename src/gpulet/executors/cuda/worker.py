"""The process that holds a GPU, or a share of one: gpulets as its threads, batches from slots of the shared block.

It ends when its socket does. Until it is told what to hold it has only imported its runtime, so that it can stand by:
`CUDA` starts with `Occupy`, in the environment that comes along. After a fault that the CUDA driver does not forgive it ends
at once; its front-end hears that from the socket.
"""

import asyncio
import gc
import mmap
import os
import socket
import sys
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic_ns
from typing import NoReturn, assert_never

import msgspec

from gpulet.core.messages import Carve, Event, Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.errors import GpuletError
from gpulet.executors.base import Payload, Signature
from gpulet.executors.cuda.batches import SlotViews
from gpulet.executors.cuda.proof import prove
from gpulet.executors.cuda.starting import OpenModels, enter, find_opener, import_all
from gpulet.executors.green import Green
from gpulet.executors.wire import (
    LARGEST_MESSAGE,
    Assign,
    Done,
    Failed,
    FromWorker,
    ModelReady,
    Move,
    Occupy,
    Prepare,
    Prove,
    Proven,
    Ready,
    Recut,
    Recutted,
    Refused,
    Returned,
    RunBatch,
    Shown,
    Told,
    ToWorker,
)
from gpulet.plan import GpuletId

_LAST_S = 5.0
"""How long what runs may take to end once the front-end is gone."""
_SWITCH_S = 2e-4
"""How long a thread may keep the interpreter while another waits for it: batches are of milliseconds."""


class GpuWorker:
    """Between the socket and the gpulets; all of it on the loop's thread."""

    def __init__(self, channel: socket.socket, block: mmap.mmap, open_models: OpenModels) -> None:
        self._channel = channel
        self._block = memoryview(block)
        self._slots = SlotViews(self._block, 1)
        self._open_models = open_models
        self._loop = asyncio.get_running_loop()
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._green: Green | None = None
        self._device = 0
        self._running: dict[int, tuple[RunBatch, int]] = {}
        self._errors: dict[int, str] = {}
        self._is_ready = False
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Until the front-end closes the socket."""
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel.fileno(), self._readable)
        await self._ended.wait()
        last = threading.Timer(_LAST_S, os._exit, (1,))  # a kernel that hangs would keep the GPU for ever
        last.daemon = True
        last.start()
        if self._green:
            await self._green.close()

    def _readable(self) -> None:
        try:
            data = self._channel.recv(LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            try:
                self._do(self._decoder.decode(data))
            except Exception as error:  # noqa: BLE001 (a bug of ours: what is asked here must not be left unanswered)
                self._give_up(error)
            return
        self._loop.remove_reader(self._channel.fileno())
        self._ended.set()

    def _do(self, message: ToWorker) -> None:
        match message:
            case RunBatch():
                self._run(message)
            case Occupy():
                self._begin(self._occupy(message))
            case Recut():
                self._begin(self._recut(message))
            case Prove():
                self._begin(self._prove(message))
            case Assign() | Prepare() | Move():
                self._say(Refused("a worker of GPUs has no cores to pin", is_final=True))
            case _:
                assert_never(message)

    async def _prove(self, message: Prove) -> None:
        """All of it on one thread, which holds the GPU; what is shown is said as it is, for a GPU may hang."""
        enter(message.environment)
        await asyncio.to_thread(self._show, message)
        self._say(Proven())

    def _show(self, message: Prove) -> None:
        """Sent from here, since the next step may end the process; a front-end that is gone is noticed by the loop."""

        def say(word: Shown | Told) -> None:
            with suppress(OSError):
                self._channel.send(self._encoder.encode(word))

        alive = partial(say, Told("proving", {}))
        for shown in prove(self._open_models(message.models, message.kind), message, monotonic_ns, alive):
            say(shown)

    async def _occupy(self, message: Occupy) -> None:
        enter(message.environment)
        self._slots = SlotViews(self._block, message.slots)
        device = next(d for d in message.plan.devices if d.index == message.device)
        self._device = device.index
        models = {model.name: model for model in message.models}
        self._green = Green(
            message.plan,
            message.device,
            self._open_models(message.models, device.kind),
            monotonic_ns,
            self._hear,
            self._payload,
            self._tell,
            self._give_up,
            models,
        )
        self._green.carve()
        await self._green.carved()
        gc.collect()
        gc.freeze()
        self._is_ready = True
        self._say(Ready(self._told(self._green), sms=self._green.sms))

    async def _recut(self, message: Recut) -> None:
        assert self._green, "nothing is carved yet"
        try:
            times = await self._green.recut(message.plan, message.patience)
        except GpuletError as error:
            self._say(Refused(str(error), is_final=False))
            return
        models = self._told(self._green)
        self._say(Recutted(models, times.build, times.drain, times.swap))

    def _told(self, green: Green) -> tuple[ModelReady, ...]:
        """What became of the models of the plan in force."""
        loaded = [ModelReady(name, green.signatures[name], bytes=green.bytes_of(name)) for name in sorted(green.models)]
        none = Signature((), ())
        return (*loaded, *(ModelReady(name, none, error) for name, error in green.refused.items()))

    def _run(self, message: RunBatch) -> None:
        assert self._green, "a batch before anything is carved"
        self._running[message.batch] = (message, monotonic_ns())
        is_batched = self._green.signatures[message.model].is_batched
        rows = message.shapes[0][0] if is_batched and message.shapes else 1
        on = Carve(self._device, message.sms) if message.sms else message.gpulet
        self._green.start(Start(message.batch, on, message.model, message.shape, rows, (message.batch,)))

    def _payload(self, batch: int) -> Payload:
        """A batch's inputs, as they stand in its slot."""
        assert self._green, "a batch before anything is carved"
        message, _ = self._running[batch]
        return self._slots.inputs(message, self._green.signatures[message.model])

    def _hear(self, event: Event) -> None:
        match event:
            case Finished():
                self._finish(event.batch)
            case RunFailed():
                del self._running[event.batch]
                self._say(Failed(event.batch, self._errors.pop(event.batch, "its run failed")))
            case GpuletUp() if self._is_ready:
                self._say(Returned(event.gpulet, is_up=True))
            case GpuletDown() if self._is_ready:
                self._return(event.gpulet)
            case _:
                pass  # the first carving: `Ready` tells all of it

    def _return(self, gpulet: GpuletId) -> None:
        """What was asked of a gpulet that takes it no more."""
        batches = tuple(n for n, (b, _) in self._running.items() if b.gpulet == gpulet and not b.sms)
        for batch in batches:
            del self._running[batch]
        self._say(Returned(gpulet, is_up=False, batches=batches))

    def _finish(self, batch: int) -> None:
        assert self._green, "a batch before anything is carved"
        message, began = self._running.pop(batch)
        outputs = self._green.outputs(batch)
        try:
            self._slots.write(message.slot, outputs)
        except ValueError as error:
            self._say(Failed(batch, str(error)))
            return
        self._say(Done(batch, tuple(result.shape for result in outputs), monotonic_ns() - began))

    def _tell(self, event: str, **fields: object) -> None:
        """What goes wrong with one batch is told by its message, everything else by a line for the front-end's log."""
        if event == "run_failed":
            self._errors[int(str(fields["batch"]))] = str(fields["error"])
        else:
            self._say(Told(event, {name: str(value) for name, value in fields.items()}))

    def _give_up(self, error: Exception) -> None:
        """Say why and end: what is lost cannot be tidied up from within."""
        self._say(Refused(str(error) if isinstance(error, GpuletError) else repr(error), is_final=True))
        _end()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = task.exception()
        if error:
            self._give_up(error if isinstance(error, Exception) else RuntimeError(str(error)))

    def _say(self, message: FromWorker) -> None:
        """The front-end reads quickly; where it is gone, so are we."""
        data = self._encoder.encode(message)
        if len(data) > LARGEST_MESSAGE:
            data = self._encoder.encode(
                Refused(f"an answer of {len(data)} bytes: {LARGEST_MESSAGE} at most", is_final=True)
            )
        try:
            self._channel.send(data)
        except OSError:
            self._ended.set()


def _end() -> NoReturn:
    """Without tidying up: a lost device would hang in it."""
    sys.stderr.flush()
    os._exit(1)


async def _main(channel: int, block: int, opener: str) -> None:
    await GpuWorker(socket.socket(fileno=channel), mmap.mmap(block, 0), find_opener(opener)).serve()


def main(arguments: Sequence[str]) -> None:
    """`worker CHANNEL_FD BLOCK_FD OPENER RUNTIMES...`: two files inherited, what makes a GPU, modules to import at once."""
    channel, block, opener, *runtimes = arguments
    sys.setswitchinterval(_SWITCH_S)
    import_all(runtimes)
    asyncio.run(_main(int(channel), int(block), opener))


if __name__ == "__main__":
    main(sys.argv[1:])
