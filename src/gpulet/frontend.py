"""The ends that clients reach: HTTP, gRPC and metrics, bound before anything else of a server is made."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry

from gpulet.api.admin import Admin
from gpulet.api.adminsocket import bind_admin, default_path, release
from gpulet.api.catalog import Catalog
from gpulet.api.control import Control
from gpulet.api.front import ApiLimits, Front
from gpulet.api.h2.server import H2Server
from gpulet.api.info import Document, Info
from gpulet.api.regions import Regions
from gpulet.api.rpc.service import Service
from gpulet.api.server import HttpServer, bind_ports
from gpulet.api.tls import Tls
from gpulet.drivers.live import Live
from gpulet.errors import ConfigError, Unusable
from gpulet.executors.base import Signature
from gpulet.fleetfile import Site
from gpulet.units import MIB


@dataclass(frozen=True, slots=True)
class Ports:
    """Bound sockets, and all that the ends need of the fleet file."""

    sockets: tuple[socket.socket, socket.socket]
    host: str
    grpc_port: int | None
    grpc_plane: str
    limits: ApiLimits
    allow_client_shm: bool
    token: str
    tls: Tls | None
    admin: socket.socket | None = None
    admin_path: Path | None = None

    def close(self) -> None:
        """Nobody will listen."""
        for bound in (*self.sockets, *([self.admin] if self.admin else ())):
            bound.close()
        if self.admin_path:
            release(self.admin_path)


def bind(site: Site) -> Ports:
    """Raises `Unusable` when a port is taken, `ConfigError` for a token or a certificate that cannot be used."""
    server, limits = site.config.server, site.config.limits
    token = _token(site)
    tls = Tls(site.folder / server.tls_certificate, site.folder / server.tls_key) if server.tls_certificate else None
    if bool(server.tls_certificate) != bool(server.tls_key):
        msg = "[server] tls_certificate and tls_key need each other"
        raise ConfigError(msg)
    if tls:
        tls.context()
    bounds = ApiLimits(
        round(limits.max_body_mib * MIB), limits.max_header_kib * 1024, limits.max_connections, server.overload_status
    )
    sockets = bind_ports(server.host, server.http_port, server.metrics_port)
    grpc_port = server.grpc_port if server.grpc else None
    ports = Ports(sockets, server.host, grpc_port, server.grpc_plane, bounds, server.allow_client_shm, token, tls)
    return ports if site.config.control.mode == "off" else _with_admin(ports, server.admin_socket, site.folder)


def _with_admin(ports: Ports, named: str, folder: Path) -> Ports:
    path = folder / named if named else default_path(ports.sockets[0].getsockname()[1])
    try:
        return replace(ports, admin=bind_admin(path), admin_path=path)
    except Unusable:
        ports.close()
        raise


def _token(site: Site) -> str:
    path = site.config.server.token_file
    if not path:
        return ""
    try:
        token = (site.folder / path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"[server] token_file: {path} cannot be read: {error}"
        raise ConfigError(msg) from None
    if not token or not token.isprintable() or " " in token:
        msg = f"[server] token_file: {path} must hold one token, without spaces"
        raise ConfigError(msg)
    return token


class FrontEnd:
    """All ends of one server. `grpc_port` is 0 where gRPC is not served."""

    def __init__(
        self,
        ports: Ports,
        live: Live,
        catalog: Catalog,
        control: Control,
        registry: CollectorRegistry,
        statistics: Callable[[str, str], Document],
        configs: Callable[[str, Signature], Document],
        admin: Admin | None = None,
    ) -> None:
        regions = Regions(is_allowed=ports.allow_client_shm, most_bytes=ports.limits.body)
        front = Front(live, catalog, ports.limits, regions, ports.token)
        info = Info(
            catalog,
            regions,
            control,
            statistics,
            configs,
        )
        self._regions = regions
        tls = ports.tls.context() if ports.tls else None
        self._admin_path = ports.admin_path
        self._http = HttpServer(front, info, registry, ports.sockets, tls, admin, ports.admin)
        self._rpc: _RpcEnd | None = None
        try:
            if ports.grpc_port is not None:
                self._rpc = _rpc_end(ports, front, Service(front, info), ports.grpc_port)
        except Unusable:
            ports.close()
            raise
        self.has_tls = ports.tls is not None
        self.http_port, self.metrics_port = self._http.http_port, self._http.metrics_port
        self.grpc_port = self._rpc.port if self._rpc else 0

    async def open(self) -> None:
        """Accept connections."""
        await self._http.open()
        if self._rpc:
            await self._rpc.open()

    def leave(self) -> None:
        """The server will stop: tell clients that can be told to go elsewhere."""
        self._http.leave()
        if self._rpc:
            self._rpc.leave()

    async def close(self) -> None:
        """Accept no more; end what is open."""
        if self._admin_path:
            release(self._admin_path)  # first: later it may be a successor's
        await self._http.close()
        if self._rpc:
            await self._rpc.close()
        self._regions.forget()


class _RpcEnd(Protocol):
    """A plane of gRPC."""

    port: int

    async def open(self) -> None: ...

    def leave(self) -> None: ...

    async def close(self) -> None: ...


def _rpc_end(ports: Ports, front: Front, service: Service, port: int) -> _RpcEnd:
    """The plane that the fleet file names."""
    if ports.grpc_plane == "own":
        return H2Server(front, service, ports.host, port, ports.tls)
    from gpulet.api.rpc.server import RpcServer  # noqa: PLC0415 (grpcio: 75 ms and threads that `own` does without)

    return RpcServer(front, service, ports.host, port, ports.tls)
