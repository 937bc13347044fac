"""Calls that take messages off a stream: unpacked, bounded, one by one."""

import asyncio
from functools import partial
from typing import Final

from gpulet.api.compression import inflated
from gpulet.api.front import as_request_error
from gpulet.api.h2.heads import RpcHead
from gpulet.api.h2.messages import PREFIX_BYTES, MessageReader
from gpulet.api.h2.rpcs import Rpc, Rpcs
from gpulet.api.rpc.status import RpcError, Status
from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

_INLINE_BYTES: Final = 1 << 14  # of a packed message: at most 16 MiB once unpacked, some 15 ms
_PATIENCE_S: Final = 30


class Reading(Rpc):
    """Takes messages off a stream, unpacks those that are packed; `_begin` is given them one by one."""

    __slots__ = ("_is_unpacking", "_reader")

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._reader: MessageReader | None = None
        self._is_unpacking = False

    def _feed(self, data: bytes) -> MessageReader:
        """Raises `RpcError`."""
        if self._reader is None:
            self._reader = MessageReader(self.rpcs.most_bytes)
        self._reader.feed(data)
        self.rpcs.hold(len(data))
        return self._reader

    def _open(self, message: Buffer, *, is_packed: bool) -> None:
        """Give a message to `_begin`, at once or when a thread has unpacked it; raises `RequestError`."""
        if not is_packed:
            self._begin(message)
            return
        if not self.head.encoding:
            msg = "a packed message, and no grpc-encoding"
            raise RpcError(msg, Status.INTERNAL)
        unpack = partial(inflated, message, self.head.encoding, self.rpcs.most_bytes)
        if len(message) <= _INLINE_BYTES:
            self._begin(unpack())
            return
        self._is_unpacking = True
        asyncio.get_running_loop().run_in_executor(self.rpcs.packing, unpack).add_done_callback(self._unpacked)

    def _unpacked(self, unpacked: "asyncio.Future[bytes]") -> None:
        self._is_unpacking = False
        error = unpacked.exception()  # not raised here: it would keep the future, that the error, until a collection
        try:
            if isinstance(error, Exception):
                self.fail(as_request_error(error))
            elif not self.is_over:
                self._begin(unpacked.result())
        except Exception as found:  # noqa: BLE001 (see there)
            self.fail(as_request_error(found))

    def _begin(self, message: Buffer) -> None:
        raise NotImplementedError

    def over(self) -> None:
        if not self.is_over and self._reader:
            self.rpcs.hold(-self._reader.held)
            self._reader = None
        super().over()


class One(Reading):
    """A call with one message, which is not begun before the client has ended it."""

    __slots__ = ("_message", "_quiet_s")

    def __init__(self, rpcs: Rpcs, stream: int, head: RpcHead) -> None:
        super().__init__(rpcs, stream, head)
        self._message: tuple[Buffer, bool] | None = None
        self._quiet_s = 0

    def received(self, data: bytes, size: int, *, is_ended: bool) -> None:
        is_whole = (
            is_ended
            and self._reader is None
            and len(data) >= PREFIX_BYTES
            and int.from_bytes(data[:PREFIX_BYTES], "big") == len(data) - PREFIX_BYTES
        )
        try:
            if is_whole:  # in one frame, not packed: so come all small ones
                self._quiet_s = -1
                self._begin(data[PREFIX_BYTES:])
            else:
                self._collect(data, size, is_ended=is_ended)
        except Exception as error:  # noqa: BLE001 (see there)
            self.fail(as_request_error(error))

    def _collect(self, data: bytes, size: int, *, is_ended: bool) -> None:
        self._quiet_s = 0
        self.rpcs.connection.credit(self.stream, size)
        reader = self._feed(data)
        if self._message is None:
            self._take(reader)
        if self._message and reader.held:
            msg = "request is not valid: more than one message"
            raise RequestError(msg)
        if not is_ended:
            return
        if self._message is None:
            msg = "request is not valid: it ends within its message"
            raise RequestError(msg)
        self._quiet_s = -1
        message, is_packed = self._message
        self._message = None
        self._open(message, is_packed=is_packed)

    def _take(self, reader: MessageReader) -> None:
        held = reader.held
        self._message = reader.take()
        self.rpcs.hold(reader.held - held)

    def tick(self) -> None:
        """A request that stays incomplete for long is ended: -1 stands for one that is complete."""
        if self._quiet_s >= 0:
            self._quiet_s += 1
            if self._quiet_s > _PATIENCE_S:
                self.fail(RpcError("request incomplete", Status.DEADLINE_EXCEEDED))
