"""The calls of one connection: events of HTTP/2 to calls, their answers to frames."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from gpulet.api.front import Front
from gpulet.api.h2 import heads
from gpulet.api.h2.connection import Connection
from gpulet.api.h2.events import Drained, Ended, Event, Opened, Received
from gpulet.api.h2.heads import OK_HEAD, OK_TRAILERS, RpcHead
from gpulet.api.h2.messages import PREFIX_BYTES, prefix
from gpulet.api.rpc.service import HEAD_ROOM, Service
from gpulet.api.rpc.status import RpcError, Status, status_of
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer
from gpulet.units import Duration, Instant

_LEAST_HELD: Final = 1 << 28
_STOPPED: Final = RpcError("the server stopped", Status.UNAVAILABLE)


class Rpc:
    """A call of some kind, from its head to its end; `has_begun`: the head of its response is out."""

    __slots__ = ("_deadline", "has_begun", "head", "is_over", "rpcs", "stream")

    def __init__(self, rpcs: "Rpcs", stream: int, head: RpcHead) -> None:
        self.rpcs = rpcs
        self.stream = stream
        self.head = head
        self.has_begun = False
        self.is_over = False
        self._deadline: Instant = rpcs.now() + head.timeout if head.timeout else 0

    @property
    def limit(self) -> Duration:
        """How long its client still waits, as `Infer.begin` wants it."""
        return self._deadline - self.rpcs.now() or -1 if self._deadline else 0

    def received(self, data: bytes, size: int, *, is_ended: bool) -> None:
        """More of the request; `size` is to be given back to the stream."""
        raise NotImplementedError

    def drained(self) -> None:
        """All that was sent and had to wait has left."""

    def tick(self) -> None:
        """A second has passed."""

    def over(self) -> None:
        """It is not to be answered any more."""
        self.is_over = True

    def fail(self, error: RequestError) -> None:
        """End it so."""
        if not self.is_over:
            self.rpcs.fail(self, error)


class Rpcs:
    """Of one connection; `wake` is called when there is something to write.

    What calls hold of unfinished messages is bounded for the connection: as much as four of the largest.
    """

    def __init__(
        self,
        front: Front,
        service: Service,
        connection: Connection[RpcHead],
        make: "Callable[[Rpcs, int, RpcHead], Rpc]",
        wake: Callable[[], None],
    ) -> None:
        self.service = service
        self.connection = connection
        self.now = front.live.timer.now
        self.most_bytes = front.limits.body + HEAD_ROOM
        self._most_held = max(_LEAST_HELD, 4 * self.most_bytes)
        self._held = 0
        self._make = make
        self._wake = wake
        self._calls: dict[int, Rpc] = {}

    def take(self, events: "Iterable[Event[RpcHead]]") -> None:
        """What has come on the connection."""
        calls = self._calls
        for event in events:
            if isinstance(event, Opened):
                self._open(event.stream, event.head, is_ended=event.is_ended)
            elif event.stream in calls:
                self._tell(calls[event.stream], event)

    def _tell(self, call: Rpc, event: Received | Ended | Drained) -> None:
        match event:
            case Received():
                call.received(event.data, event.size, is_ended=event.is_ended)
            case Ended():
                self._drop(call)
            case Drained():
                call.drained()

    def _open(self, stream: int, head: RpcHead, *, is_ended: bool) -> None:
        if head.refusal:
            self.connection.finish(stream, head.refusal)
            return
        call = self._calls[stream] = self._make(self, stream, head)
        if is_ended:
            call.received(b"", 0, is_ended=True)

    def answer(self, call: Rpc, parts: Sequence[Buffer]) -> None:
        """End a call with its only message."""
        self._drop(call)
        size = sum(map(len, parts))
        self.connection.respond(call.stream, OK_HEAD, (prefix(size), *parts), PREFIX_BYTES + size, OK_TRAILERS)
        self._wake()

    def begin(self, call: Rpc) -> None:
        """The head of a response of several messages."""
        call.has_begun = True
        self.connection.begin(call.stream, OK_HEAD)
        self._wake()

    def send(self, call: Rpc, message: bytes) -> None:
        """One of them."""
        self.connection.send(call.stream, prefix(len(message)) + message)
        self._wake()

    def finish(self, call: Rpc) -> None:
        """Their end."""
        self._drop(call)
        self.connection.finish(call.stream, OK_TRAILERS)
        self._wake()

    def fail(self, call: Rpc, error: RequestError) -> None:
        """End a call by an error."""
        self._drop(call)
        end = heads.trailers if call.has_begun else heads.trailers_only
        self.connection.finish(call.stream, end(status_of(error), str(error)))
        self._wake()

    def _drop(self, call: Rpc) -> None:
        self._calls.pop(call.stream, None)
        call.over()

    def hold(self, size: int) -> None:
        """So much more of unfinished messages, or less; raises `RpcError`."""
        self._held += size
        if size > 0 and self._held > self._most_held:
            msg = f"more than {self._most_held} bytes of unfinished messages on this connection"
            raise RpcError(msg, Status.RESOURCE_EXHAUSTED)

    def cancel(self) -> None:
        """The connection is gone; nothing of it is left to the collector of cycles."""
        self._wake = _nobody
        for call in list(self._calls.values()):
            self._drop(call)

    def stop(self) -> None:
        """The server stops: calls that are still open are told so."""
        for call in list(self._calls.values()):
            self.fail(call, _STOPPED)

    def tick(self) -> None:
        """A second has passed."""
        for call in list(self._calls.values()):
            call.tick()


def _nobody() -> None:
    """Where nobody is left to write."""
