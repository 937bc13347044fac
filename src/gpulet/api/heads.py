"""Heads of HTTP messages: requests' parsed by httptools, responses' built and remembered."""

import re
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import httptools
import orjson

from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

CACHE_ENTRIES: Final = 1024
_INFER: Final = re.compile(rb"/v2/models/([^/?]+)(?:/versions/([^/?]+))?/infer(?:\?.*)?$")
_JSON_LENGTH: Final = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed request head. `model` is empty when it is not an infer request."""

    model: str
    version: str
    body: int
    json_bytes: int
    keep_alive: bool
    method: str = "POST"
    is_chunked: bool = False
    expects_continue: bool = False


class _HeadParser:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse_head(raw: bytes, most_bytes: int) -> Head:
    """One request head; raises `RequestError` for what is too large, no HTTP, or contradicts itself."""
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
    if not found.url:
        msg = "not an HTTP request: no request line"
        raise RequestError(msg)
    headers = dict(found.headers)
    body = _length(headers, b"content-length", -1 if method in {"POST", "PUT"} else 0)
    is_chunked = b"transfer-encoding" in headers
    match = _INFER.fullmatch(found.url)
    if match is None or method != "POST":
        return Head("", "", max(0, body), -1, keep_alive, method, is_chunked)
    model, version = unquote(match[1].decode("ascii", "replace")), (match[2] or b"").decode("ascii", "replace")
    expects = headers.get(b"expect", b"").lower() == b"100-continue"
    return Head(model, version, body, _length(headers, _JSON_LENGTH, -1), keep_alive, method, is_chunked, expects)


def _length(headers: dict[bytes, bytes], name: bytes, absent: int) -> int:
    value = headers.get(name)
    if value is None:
        return absent
    if not value.isdigit():
        msg = f"{name.decode()} must be a whole number, is {value[:40]!r}"
        raise RequestError(msg)
    return int(value)


def response_head(
    status: int, length: int, kind: str, *, keep_alive: bool, json_bytes: int = 0, retry: bool = False
) -> bytes:
    """A response head; built from few templates, of which the common ones are remembered."""
    key = (status, length, kind, keep_alive, json_bytes, retry)
    head = _response_heads.get(key)
    if head is None:
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {kind}", f"content-length: {length}"]
        lines += [f"inference-header-content-length: {json_bytes}"] if json_bytes else []
        lines += ["retry-after: 1"] if retry else []
        lines += [] if keep_alive else ["connection: close"]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        if len(_response_heads) >= CACHE_ENTRIES:
            _response_heads.clear()
        _response_heads[key] = head
    return head


_response_heads: dict[tuple[int, int, str, bool, int, bool], bytes] = {}


def error_response(status: int, message: str, keep_alive: bool, *, retry: bool = False) -> tuple[Buffer, ...]:
    """An error as the protocol wants it: `{"error": "..."}`."""
    body = orjson.dumps({"error": message})
    return response_head(status, len(body), "application/json", keep_alive=keep_alive, retry=retry), body
