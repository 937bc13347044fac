"""Heads of HTTP messages: requests' parsed by httptools, responses' built and remembered."""

import re
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from secrets import compare_digest
from typing import Final
from urllib.parse import unquote

import httptools
import orjson

from gpulet.api.compression import ENCODINGS
from gpulet.errors import RequestError
from gpulet.units import MS, Duration

CACHE_ENTRIES: Final = 1024
CACHEABLE_BYTES: Final = 2048
_INFER: Final = re.compile(rb"(?:https?://[^/?]*)?/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer(?:\?.*)?$")
_JSON_LENGTH: Final = b"inference-header-content-length"
_MOST_DIGITS: Final = 18
_WAITS: Final = (b"gpulet-timeout-ms", b"x-envoy-expected-rq-timeout-ms")


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed request head. `model` is empty when it is not an infer request.

    `json_bytes` is -1 where the header does not say; `limit` is how long the client waits, 0 where it does not say;
    `encoding` of the body, `accepts` for the answer's: gzip, deflate or none; `load_format`: how ORCA's report is wanted.
    """

    model: str
    version: str
    body: int
    json_bytes: int
    keep_alive: bool
    method: str = "POST"
    is_chunked: bool = False
    expects_continue: bool = False
    is_allowed: bool = True
    limit: Duration = 0
    encoding: str = ""
    accepts: str = ""
    load_format: str = ""
    traceparent: str = ""


class _HeadParser:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_whole = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_whole = True


def parse_head(raw: bytes, most_bytes: int, token: str = "") -> Head:
    """One request head; `token`: who bears another is not allowed. Raises `RequestError` for what is too large, no HTTP, or contradicts itself."""
    if len(raw) > most_bytes:
        msg = f"request head is larger than {most_bytes} bytes"
        raise RequestError(msg, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    found = _HeadParser()
    parser = httptools.HttpRequestParser(found)
    try:
        with suppress(httptools.HttpParserUpgrade):  # an offer (h2c, say) that need not be taken up
            parser.feed_data(raw)
        method = parser.get_method().decode("ascii")
        keep_alive = parser.should_keep_alive()
    except httptools.HttpParserError as error:
        msg = f"not an HTTP request: {error}"
        raise RequestError(msg) from None
    if not found.is_whole:  # HTTP/2 begins with what looks like a head
        msg = "not an HTTP request: no request line, or of HTTP/2"
        raise RequestError(msg)
    headers = dict(found.headers)
    body = _length(headers, b"content-length", -1 if method in {"POST", "PUT"} else 0)
    is_chunked = _is_chunked(headers)
    expects = headers.get(b"expect", b"").lower() == b"100-continue"
    match = _INFER.fullmatch(found.url)
    if match is None or method != "POST":
        return Head("", "", max(0, body), -1, keep_alive, method, is_chunked, expects_continue=expects)
    model, version = unquote(match[1].decode("ascii", "replace")), (match[2] or b"").decode("ascii", "replace")
    return Head(
        model,
        version,
        body,
        _length(headers, _JSON_LENGTH, -1),
        keep_alive,
        method,
        is_chunked,
        expects_continue=expects,
        is_allowed=bears(headers.get(b"authorization", b""), token),
        limit=_limit(headers),
        encoding=_encoding(headers),
        accepts=_accepted(headers),
        load_format=_load_format(headers),
        traceparent=headers.get(b"traceparent", b"").decode("ascii", "replace"),
    )


def _is_chunked(headers: dict[bytes, bytes]) -> bool:
    """Whether the body comes in chunks; no other coding of transfers is known here, as little as elsewhere."""
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.strip().lower() != b"chunked":
        msg = f"Transfer-Encoding must be chunked, is {coding[:40]!r}"
        raise RequestError(msg)
    return coding is not None


def bears(authorization: bytes, token: str) -> bool:
    """Whether an Authorization header has this bearer token, where one is wanted."""
    scheme, _, given = authorization.partition(b" ")
    return not token or (scheme.lower() == b"bearer" and compare_digest(given.strip(), token.encode()))


def _limit(headers: dict[bytes, bytes]) -> Duration:
    """How long the client waits, by our header or Envoy's, in milliseconds."""
    for name in _WAITS:
        if name in headers:
            return _length(headers, name, 0) * MS
    return 0


def _encoding(headers: dict[bytes, bytes]) -> str:
    encoding = headers.get(b"content-encoding", b"").strip().lower().decode("ascii", "replace")
    if encoding in {"", "identity"}:
        return ""
    if encoding not in ENCODINGS:
        msg = f"Content-Encoding must be {' or '.join(ENCODINGS)}, is {encoding[:40]!r}"
        raise RequestError(msg, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
    return encoding


def _accepted(headers: dict[bytes, bytes]) -> str:
    """One encoding is what somebody asks for; a list of them is what libraries send unasked, and tensors hardly shrink."""
    accepted = headers.get(b"accept-encoding", b"").strip().lower().decode("ascii", "replace")
    return accepted if accepted in ENCODINGS else ""


def _load_format(headers: dict[bytes, bytes]) -> str:
    wanted = headers.get(b"endpoint-load-metrics-format", b"").lower().decode("ascii", "replace")
    return wanted if wanted in {"text", "json"} else ""


def _length(headers: dict[bytes, bytes], name: bytes, absent: int) -> int:
    value = headers.get(name)
    if value is None:
        return absent
    if not value.isdigit() or len(value) > _MOST_DIGITS:
        msg = f"{name.decode()} must be a whole number, is {value[:40]!r}"
        raise RequestError(msg)
    return int(value)


def response_head(
    status: int,
    length: int,
    kind: str,
    *,
    keep_alive: bool,
    json_bytes: int = 0,
    retry: bool = False,
    encoding: str = "",
    load: str = "",
) -> bytes:
    """A response head; built from few templates, of which the common ones are remembered."""
    key = (status, length, kind, keep_alive, json_bytes, retry, encoding, load)
    head = _response_heads.get(key)
    if head is None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {kind}", f"content-length: {length}"]
        lines += [f"inference-header-content-length: {json_bytes}"] if json_bytes else []
        lines += ["retry-after: 1"] if retry else []
        lines += [f"content-encoding: {encoding}"] if encoding else []
        lines += [f"endpoint-load-metrics: {load}"] if load else []
        lines += ["www-authenticate: Bearer"] if status == HTTPStatus.UNAUTHORIZED else []
        lines += [] if keep_alive else ["connection: close"]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        if len(_response_heads) >= CACHE_ENTRIES:
            _response_heads.clear()
        _response_heads[key] = head
    return head


_response_heads: dict[tuple[int, int, str, bool, int, bool, str, str], bytes] = {}


def error_response(status: int, message: str, keep_alive: bool, *, retry: bool = False) -> bytes:
    """An error as the protocol wants it: `{"error": "..."}`."""
    body = orjson.dumps({"error": message})
    return response_head(status, len(body), "application/json", keep_alive=keep_alive, retry=retry) + body
