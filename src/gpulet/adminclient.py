"""Admin's calls to a running server: over its Unix socket, or over HTTP with the token."""

import http.client
import json
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpulet.api.adminsocket import default_path
from gpulet.errors import BadInput, Unusable

_PATIENCE_S = 660.0
_OK = 200


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """To the socket of that path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class AdminClient:
    """`server` is a port of this machine, a socket's path, or http(s)://HOST:PORT, for which `token` is needed."""

    def __init__(self, server: str, token: str = "") -> None:
        self._server = server
        self._token = token

    def call(self, method: str, path: str, body: object = None) -> Any:
        """What the server answers; raises `Unusable` where nobody does, `BadInput` with what it says against it."""
        connection = self._connection()
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            msg = f"no server with live control answers at {self._server}: {error}"
            raise Unusable(msg) from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text[:200].decode("utf-8", "replace")}
        if response.status != _OK:
            raise BadInput(str(answer.get("error", answer)))
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if self._server.isdecimal():
            return _UnixConnection(default_path(int(self._server)))
        address = urlsplit(self._server)
        if address.scheme == "http":
            return http.client.HTTPConnection(address.netloc, timeout=_PATIENCE_S)
        if address.scheme == "https":
            return http.client.HTTPSConnection(
                address.netloc, timeout=_PATIENCE_S, context=ssl.create_default_context()
            )
        return _UnixConnection(Path(self._server))
