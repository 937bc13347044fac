"""Connections on asyncio: bytes in, one write per turn of the loop, patience with the clock of their server."""

import asyncio
from functools import partial
from typing import Final

from gpulet.api.front import Front
from gpulet.api.h2.calls import make_rpc
from gpulet.api.h2.connection import Connection
from gpulet.api.h2.frames import Code
from gpulet.api.h2.heads import RpcHead, rpc_head
from gpulet.api.h2.rpcs import Rpcs
from gpulet.api.h2.streams import Limits
from gpulet.api.rpc.service import Service

_PATIENCE_S: Final = 30  # with a peer that has begun something, or takes nothing
_IDLE_S: Final = 120  # after which a peer is asked whether it is there
_WRITE_BUFFER: Final = 1 << 20


class H2Protocol(asyncio.Protocol):
    """One connection; `peers` are all those of the server."""

    def __init__(self, front: Front, service: Service, peers: "set[H2Protocol]") -> None:
        self._front = front
        self._peers = peers
        self._connection: Connection[RpcHead] = Connection(Limits(front.limits.head), partial(rpc_head, service))
        self._rpcs = Rpcs(front, service, self._connection, make_rpc, self._wake)
        self._out = self._connection.sender.out
        self._quiet_s = self._paused_s = 0
        self._is_paused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER)
        self._peers.add(self)
        self._front.connections += 1
        tls = transport.get_extra_info("ssl_object")
        if tls and tls.selected_alpn_protocol() != "h2":
            self._connection.fail(Code.PROTOCOL_ERROR, "TLS without ALPN h2")
        elif self._front.connections > self._front.limits.connections:
            self._connection.fail(Code.ENHANCE_YOUR_CALM, f"more than {self._front.limits.connections} connections")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)
        self._front.connections -= 1
        self._rpcs.cancel()

    def data_received(self, data: bytes) -> None:
        self._quiet_s = 0
        self._rpcs.take(self._connection.receive(data))
        if self._out or self._connection.is_over:
            self._wake()

    def pause_writing(self) -> None:
        """The peer does not take what is there: read no more of what would be answered."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._is_paused = False
        self._paused_s = 0
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._wake()

    def flush(self) -> None:
        """Write what this turn has brought; see `Front.flush_soon`."""
        if self._is_paused or self._transport.is_closing():
            return
        out = self._out
        if out:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
            out.clear()
        if self._connection.is_over or (self._connection.is_leaving and not self._connection.streams):
            self._transport.close()

    @property
    def is_flushed(self) -> bool:
        """Whether the peer's socket has all that was answered."""
        is_empty = not self._out and not self._connection.sender.waiting and not self._connection.streams
        return self._transport.is_closing() or (is_empty and not self._transport.get_write_buffer_size())

    def leave(self) -> None:
        """Ask the peer to go elsewhere with its next calls."""
        self._connection.leave(is_final=False)
        self._wake()

    def stop(self) -> None:
        """End what has not ended, take no more calls."""
        self._rpcs.stop()
        self._connection.leave(is_final=True)
        self._wake()

    def close(self) -> None:
        """Now."""
        self._transport.close()

    def tick(self) -> None:
        """A second has passed."""
        self._quiet_s += 1
        self._connection.refill()
        self._rpcs.tick()
        if self._is_paused:
            self._paused_s += 1
            if self._paused_s > _PATIENCE_S:
                self._transport.abort()
        elif self._connection.is_incomplete and self._quiet_s > _PATIENCE_S:
            self._connection.fail(Code.PROTOCOL_ERROR, "a frame, or what must follow it, has not come")
            self._wake()
        elif self._quiet_s == _IDLE_S:
            self._connection.ask_alive()
            self._wake()
        elif self._quiet_s > _IDLE_S + _PATIENCE_S:
            self._transport.abort()

    def _wake(self) -> None:
        self._front.flush_soon(self)
