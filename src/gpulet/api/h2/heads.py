"""gRPC over HTTP/2 (grpc/grpc: doc/PROTOCOL-HTTP2.md): what a request's head says, heads and trailers of responses."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from gpulet.api.compression import ENCODINGS
from gpulet.api.h2.fields import Field, literal, request_fields
from gpulet.api.rpc.service import Kind, Service
from gpulet.api.rpc.status import RpcError, Status, status_of
from gpulet.errors import RequestError
from gpulet.units import MS, SECOND, US, Duration

_CONTENT_TYPE: Final = re.compile(rb"application/grpc(\+proto)?( *;.*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600 * SECOND, b"M": 60 * SECOND, b"S": SECOND, b"m": MS, b"u": US, b"n": 1}
_ENDLESS: Final = 365 * 86400 * SECOND
_PRINTABLE: Final = "".join(chr(c) for c in range(0x20, 0x7F) if c != ord("%"))
_MOST_MESSAGE: Final = 1000
_TYPE: Final = literal(b"content-type", b"application/grpc")
_ACCEPTS: Final = literal(b"grpc-accept-encoding", ",".join(("identity", *ENCODINGS)).encode())
OK_HEAD: Final = b"\x88" + _TYPE + _ACCEPTS  # :status 200 is entry 8 of the static table
OK_TRAILERS: Final = literal(b"grpc-status", b"0")


@dataclass(frozen=True, slots=True)
class RpcHead:
    """A call. `timeout` is how long its client waits, 0: it does not say, below: no longer.

    `refusal` is the whole response to one that is refused, and not the error: heads are kept, and an error holds on to the
    stack where it was raised.
    """

    path: str
    kind: Kind = Kind.UNARY
    timeout: Duration = 0
    encoding: str = ""
    traceparent: str = ""
    content_length: int = -1
    refusal: bytes = b""


def rpc_head(service: Service, fields: list[Field]) -> RpcHead:
    """Of a request's fields; raises `Malformed` for what is no HTTP request."""
    found = request_fields(fields)
    path, length = found[b":path"].decode("latin-1"), _content_length(found)
    refusal = _no_rpc(found)
    if refusal:
        return RpcHead(path, content_length=length, refusal=refusal)
    try:
        if path not in service.kinds:
            msg = f"unknown method {path[:256]}"
            raise RpcError(msg, Status.UNIMPLEMENTED)
        if not service.allows(path, found.get(b"authorization", b"")):
            msg = "a bearer token is wanted"
            raise RpcError(msg, Status.UNAUTHENTICATED)
        return RpcHead(
            path,
            service.kinds[path],
            _timeout(found.get(b"grpc-timeout")),
            _encoding(found.get(b"grpc-encoding", b"identity")),
            found.get(b"traceparent", b"").decode("ascii", "replace"),
            length,
        )
    except RequestError as error:
        return RpcHead(path, content_length=length, refusal=trailers_only(status_of(error), str(error)))


def _no_rpc(found: dict[bytes, bytes]) -> bytes:
    """The response to what is HTTP and no gRPC, empty for what is; proxies drop `te`, so that its absence is no sign."""
    if found[b":method"] != b"POST":
        return literal(b":status", b"405") + literal(b"allow", b"POST")
    if not _CONTENT_TYPE.fullmatch(found.get(b"content-type", b"")):
        return literal(b":status", b"415")
    return b""


def _content_length(found: dict[bytes, bytes]) -> int:
    """Of what is no number as well: -1."""
    value = found.get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 16 else -1  # noqa: PLR2004 (no body is that long)


def _timeout(value: bytes | None) -> Duration:
    if value is None:
        return 0
    match = _TIMEOUT.fullmatch(value)
    if match is None:
        msg = f"grpc-timeout {value[:40]!r} is not up to eight digits and one of HMSmun"
        raise RequestError(msg)
    timeout = int(match[1]) * _UNITS[match[2]]
    return 0 if timeout >= _ENDLESS else timeout or -1


def _encoding(value: bytes) -> str:
    encoding = value.decode("latin-1")
    if encoding == "identity":
        return ""
    if encoding not in ENCODINGS:
        msg = f"grpc-encoding {encoding[:40]!r} is not identity, {' or '.join(ENCODINGS)}"
        raise RpcError(msg, Status.UNIMPLEMENTED)
    return encoding


def trailers(status: Status, message: str) -> bytes:
    """The end of a call that has begun to answer."""
    block = literal(b"grpc-status", str(int(status)).encode())
    return block + literal(b"grpc-message", _encoded(message)) if message else block


def trailers_only(status: Status, message: str) -> bytes:
    """The whole response of a call that fails."""
    return OK_HEAD + trailers(status, message)


def _encoded(message: str) -> bytes:
    """Percent-encoded, and short enough for any peer's header list."""
    text = message.strip()[:_MOST_MESSAGE]
    found = quote(text, safe=_PRINTABLE, errors="replace")
    while len(found) > 3 * _MOST_MESSAGE:
        text = text[: len(text) // 2]
        found = quote(text, safe=_PRINTABLE, errors="replace")
    return found.encode("ascii")
