"""The kinds of calls: infer without a coroutine each, documents, watching health."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from gpulet.api.front import as_request_error
from gpulet.api.h2.heads import RpcHead
from gpulet.api.h2.reading import One
from gpulet.api.h2.rpcs import Rpc, Rpcs
from gpulet.api.h2.streaming import InferStream
from gpulet.api.rpc.calls import Call
from gpulet.api.rpc.service import Kind
from gpulet.executors.base import Buffer


class _Infer(One):
    """ModelInfer."""

    __slots__ = ("_call",)

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._call: Call | None = None

    def _begin(self, message: Buffer) -> None:
        call = self.rpcs.service.infer.begin(message, self.limit, self.head.traceparent, self._done)
        self._call = None if self.is_over else call

    def _done(self, call: Call) -> None:
        if self.is_over:
            return
        if call.error:
            self.rpcs.fail(self, call.error)
        else:
            self.rpcs.answer(self, call.parts)

    def over(self) -> None:
        super().over()
        if self._call:
            self._call.cancel()
            self._call = None  # which holds this one: the collector of cycles would have work with every request


class _Document(One):
    """A method that answers a message with another, at once or after some work."""

    __slots__ = ("_work",)

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._work: asyncio.Future[bytes] | None = None

    def _begin(self, message: Buffer) -> None:
        answered = self.rpcs.service.unary[self.head.path](message)
        if isinstance(answered, Awaitable):
            self._work = asyncio.ensure_future(answered)
            self._work.add_done_callback(self._done)
        else:
            self.rpcs.answer(self, (answered,))

    def _done(self, work: "asyncio.Future[bytes]") -> None:
        if work.cancelled():
            return
        error = work.exception()
        if self.is_over:
            return
        if error is None:
            self.rpcs.answer(self, (work.result(),))
        elif isinstance(error, Exception):
            self.fail(as_request_error(error))

    def over(self) -> None:
        super().over()
        if self._work and not self._work.done():
            self._work.cancel()


class _Watch(One):
    """Health, now and whenever it is another."""

    __slots__ = ("_last", "_status")

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._status: Callable[[], bytes] | None = None
        self._last: bytes | None = None

    def _begin(self, message: Buffer) -> None:
        self._status = self.rpcs.service.watch(message)
        self.rpcs.begin(self)
        self.tick()

    def tick(self) -> None:
        super().tick()
        if self._status is None or self.rpcs.connection.waiting(self.stream):
            return
        status = self._status()
        if status != self._last:
            self._last = status
            self.rpcs.send(self, status)


_KINDS: Final[dict[Kind, type[Rpc]]] = {
    Kind.INFER: _Infer,
    Kind.UNARY: _Document,
    Kind.INFER_STREAM: InferStream,
    Kind.WATCH: _Watch,
}


def make_rpc(rpcs: Rpcs, stream: int, head: RpcHead) -> Rpc:
    """A call of the kind that its head asks for."""
    return _KINDS[head.kind](rpcs, stream, head)
