"""The listening sockets: the protocol's port and the metrics port."""

import asyncio
import socket
import ssl

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gpulet.api.admin import Admin, admin_routes, make_admin_app
from gpulet.api.app import make_app, make_metrics_app
from gpulet.api.front import Front
from gpulet.api.http import InferProtocol
from gpulet.api.info import Info
from gpulet.errors import Unusable

_BACKLOG = 2048
_PARTING_S, _QUIET_S = 1.0, 0.05
"""At most, and after how long without a request."""


class HttpServer:
    """Both ports until they are closed; `sockets` are bound to them. `http_port` and `metrics_port` are the real ones."""

    def __init__(
        self,
        front: Front,
        info: Info,
        registry: CollectorRegistry,
        sockets: tuple[socket.socket, socket.socket],
        tls: ssl.SSLContext | None = None,
        admin: Admin | None = None,
        admin_socket: socket.socket | None = None,
    ) -> None:
        self._admin = admin
        self._admin_socket = admin_socket
        self._front = front
        self._info = info
        self._registry = registry
        self._sockets = sockets
        self._tls = tls
        self.http_port, self.metrics_port = (s.getsockname()[1] for s in self._sockets)
        self._servers: list[asyncio.Server] = []
        self._states: list[ServerState] = []

    async def open(self) -> None:
        """Accept connections."""
        routes = admin_routes(self._admin) if self._admin else ()
        await self._serve(self._sockets[0], make_app(self._info, self._front.token, routes), is_front=True)
        await self._serve(self._sockets[1], make_metrics_app(self._registry, self._front.token), is_front=False)
        if self._admin and self._admin_socket:
            await self._serve_admin(self._admin, self._admin_socket)

    def leave(self) -> None:
        """The server will stop: each connection ends with the answer to its next request."""
        self._front.is_leaving = True

    async def close(self) -> None:
        """Accept no more; end the connections that are open, those in use with an answer."""
        for server in self._servers:
            server.close()
        await self._part()
        await asyncio.sleep(0)  # what was answered in this very turn is written at its end: see `Front.flush_soon`
        for state in self._states:
            for connection in list(state.connections):
                connection.transport.close()
        await asyncio.sleep(0)

    async def _part(self) -> None:
        """Clients may have sent on a connection before they see it end: those that are in use end with an answer instead."""
        now, live = asyncio.get_running_loop().time, self._front.live
        give_up, quiet_at, asked = now() + _PARTING_S, now() + _QUIET_S, live.asked
        while self._front.connections and now() < min(give_up, quiet_at):
            await asyncio.sleep(0.01)
            if live.asked > asked:
                quiet_at, asked = now() + _QUIET_S, live.asked

    async def _serve_admin(self, admin: Admin, bound: socket.socket) -> None:
        """Nobody else of this machine may open it."""
        config = Config(make_admin_app(admin), lifespan="off", log_config=None, access_log=False, ws="none")
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_unix_server(lambda: HttpToolsProtocol(config, state, {}), sock=bound))
        self._states.append(state)

    async def _serve(self, bound: socket.socket, app: Starlette, *, is_front: bool) -> None:
        config = Config(app, lifespan="off", log_config=None, access_log=False, server_header=False, ws="none")
        config.load()
        state = ServerState()

        def make() -> HttpToolsProtocol:
            if is_front:
                return InferProtocol(self._front, config, state, {})
            return _MetricsProtocol(config, state, self._front.limits.head)

        loop = asyncio.get_running_loop()
        self._servers.append(await loop.create_server(make, sock=bound, backlog=_BACKLOG, ssl=self._tls))
        self._states.append(state)


class _MetricsProtocol(HttpToolsProtocol):
    """A scrape is a head: who sends more leaves, since uvicorn bounds none."""

    def __init__(self, config: Config, state: ServerState, most_bytes: int) -> None:
        super().__init__(config, state, {})
        self._most_bytes = most_bytes
        self._taken = 0

    def data_received(self, data: bytes) -> None:
        self._taken += len(data)
        if self._taken > self._most_bytes:
            self.transport.close()
        else:
            super().data_received(data)

    def on_response_complete(self) -> None:
        """The next may be as large."""
        self._taken = 0
        super().on_response_complete()


def bind_ports(host: str, http_port: int, metrics_port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets bound to both ports, before anything else of a server is made; raises `Unusable` when one is taken."""
    first = bind_port(host, http_port, "http_port")
    try:
        return first, bind_port(host, metrics_port, "metrics_port")
    except Unusable:
        first.close()
        raise


def bind_port(host: str, port: int, key: str) -> socket.socket:
    """A bound socket; raises `Unusable` that names the address when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        msg = f"cannot listen on {host}:{port} ({key}): {getattr(error, 'strerror', None) or error}"
        raise Unusable(msg) from None
    return bound
