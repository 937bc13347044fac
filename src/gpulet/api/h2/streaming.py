"""ModelStreamInfer: many infer requests on one stream."""

from collections import deque

from gpulet.api.front import as_request_error
from gpulet.api.h2.heads import RpcHead
from gpulet.api.h2.reading import Reading
from gpulet.api.h2.rpcs import Rpcs
from gpulet.api.rpc.calls import MOST_STREAMED, Call, streamed
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer


class InferStream(Reading):
    """Answers leave in the order of their requests; a bad request does not end the stream.

    Not more is taken off the stream than may wait, nor while the client does not take its answers; it is told so by its
    window, which is only given back what was taken.
    """

    __slots__ = ("_calls", "_is_at_it", "_is_ended", "_owed", "_ready")

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._calls: deque[Call] = deque()
        self._ready: dict[Call, bytes] = {}
        self._owed = 0
        self._is_ended = self._is_at_it = False
        rpcs.begin(self)

    def received(self, data: bytes, size: int, *, is_ended: bool) -> None:
        self._is_ended = is_ended
        self._owed += size
        try:
            self._feed(data)
        except RequestError as error:
            self.fail(error)
            return
        self._go_on()

    def drained(self) -> None:
        self._go_on()

    def _go_on(self) -> None:
        """Begin what may begin, send what may be sent; begun calls that fail at once come back here."""
        if self._is_at_it or self.is_over:
            return
        self._is_at_it = True
        try:
            self._send()
            while self._has_room() and self._next():
                self._send()
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))
        finally:
            self._is_at_it = False
        self._end_if_done()

    def _has_room(self) -> bool:
        if self.is_over or self._is_unpacking:
            return False
        return len(self._calls) < MOST_STREAMED and not self.rpcs.connection.waiting(self.stream)

    def _next(self) -> bool:
        """Begin the next request; where it has not all come, let the client send more."""
        reader = self._reader
        if reader is None:
            return False
        held = reader.held
        found = reader.take()
        self.rpcs.hold(reader.held - held)
        if found is None:
            self.rpcs.connection.credit(self.stream, self._owed)
            self._owed = 0
            return False
        self._open(found[0], is_packed=found[1])
        return True

    def _begin(self, message: Buffer) -> None:
        was_at_it, self._is_at_it = self._is_at_it, True  # a call that fails at once is in its place first
        self._calls.append(self.rpcs.service.infer.begin(message, self.limit, self.head.traceparent, self._done))
        self._is_at_it = was_at_it
        self._go_on()

    def _done(self, call: Call) -> None:
        if not self.is_over:
            self._ready[call] = streamed(call)
            self._go_on()

    def _send(self) -> None:
        while self._calls and self._calls[0] in self._ready:
            self.rpcs.send(self, self._ready.pop(self._calls.popleft()))

    def _end_if_done(self) -> None:
        if self.is_over or not self._is_ended or self._calls or self._is_unpacking:
            return
        if self._reader is None or not self._reader.is_within:
            self.rpcs.finish(self)
        elif not self.rpcs.connection.waiting(self.stream):  # else there may be whole requests yet
            self.fail(RequestError("request is not valid: it ends within a message"))

    def over(self) -> None:
        super().over()
        for call in self._calls:
            call.cancel()
        self._calls.clear()
        self._ready.clear()
