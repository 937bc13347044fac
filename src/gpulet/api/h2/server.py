"""The gRPC port on our own HTTP/2."""

import asyncio
from typing import Final

from gpulet.api.front import Front
from gpulet.api.h2.protocol import H2Protocol
from gpulet.api.rpc.service import Service
from gpulet.api.server import bind_port
from gpulet.api.tls import Tls

_BACKLOG: Final = 2048
_TICK_S: Final = 1.0
_PATIENCE_S: Final = 5.0
_ALPN: Final = ("h2",)


class H2Server:
    """Bound when it is made; raises `Unusable` when the port is taken. `port` is the real one."""

    def __init__(self, front: Front, service: Service, host: str, port: int, tls: Tls | None = None) -> None:
        self._front = front
        self._service = service
        self._socket = bind_port(host, port, "grpc_port")
        self._tls = tls.context(_ALPN) if tls else None
        self._peers: set[H2Protocol] = set()
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.port: int = self._socket.getsockname()[1]

    async def open(self) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._make, sock=self._socket, backlog=_BACKLOG, ssl=self._tls)
        self._ticking = loop.call_later(_TICK_S, self._tick)

    def leave(self) -> None:
        """Tell clients to go elsewhere with their next calls; those that are under way are answered."""
        for peer in list(self._peers):
            peer.leave()

    async def close(self) -> None:
        """Accept no more; end the calls that are open, and see the answers off."""
        if self._ticking:
            self._ticking.cancel()
        if self._server:
            self._server.close()
        else:
            self._socket.close()
        for peer in list(self._peers):
            peer.stop()
        await self._see_off()
        for peer in list(self._peers):
            peer.close()
        await asyncio.sleep(0)

    async def _see_off(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _PATIENCE_S
        await asyncio.sleep(0)
        while loop.time() < give_up and not all(peer.is_flushed for peer in self._peers):  # noqa: ASYNC110 (once in a life)
            await asyncio.sleep(0.01)

    def _make(self) -> H2Protocol:
        return H2Protocol(self._front, self._service, self._peers)

    def _tick(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        for peer in list(self._peers):
            peer.tick()
