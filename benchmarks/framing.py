"""Malformed requests over HTTP by family: heads, lengths, paths, packed and chunked bodies; for `fuzz.py`."""

import gzip
import json
import zlib
from collections.abc import Callable
from random import Random
from typing import Final

from malformed import Case, binary, infer, post, x


def _heads(r: Random) -> Case:
    line = r.choice(
        [
            b"GET", b"GET /", b"G\0T / HTTP/1.1", b"POST / HTTP/9.9", b"PRI * HTTP/2.0", b"OPTIONS * HTTP/1.1",
            b"CONNECT a:1 HTTP/1.1", b"GET \xff\xfe HTTP/1.1", b"GET http://[ HTTP/1.1", b"\x16\x03\x01\x02\x00",
            b"GET / HTTP/1.1\r\nNoColon", b"GET / HTTP/1.1\r\n: x", b"GET / HTTP/1.1\r\nA b: c", b"get / HTTP/1.1",
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nTransfer-Encoding: gzip, identity",
            b"POST /v2/models/tiny/infer HTTP/1.1",
            b"GET / HTTP/1.1\r\nX: " + r.randbytes(40).replace(b"\r", b"").replace(b"\n", b"") + b"\0",
        ]
    )  # fmt: skip
    return Case(line + b"\r\n\r\n", closes=True)


def _header_flood(r: Random) -> Case:
    count = r.choice([50, 500, 5000])
    data = b"GET /v2/none HTTP/1.1\r\n" + b"".join(
        b"X-%d: %s\r\n" % (i, r.randbytes(8).hex().encode()) for i in range(count)
    )
    return Case(data + b"\r\n", closes=True)


def _lengths(r: Random) -> Case:
    length = r.choice(
        ["-1", "+5", "0x10", "1e3", "", " ", "5 5", "5,5", "9" * 20, "9" * 5000, str(2**63), str(10**12), "٣"]
    )
    return Case(post("/v2/models/tiny/infer", b"", length=length), closes=True)


def _json_lengths(r: Random) -> Case:
    length = r.choice(["-1", "1.5", "9" * 19, "9" * 5000, "1000000", "1", "5", "", "abc", "\t"])
    body = json.dumps({"inputs": [x()]}).encode()
    return Case(post("/v2/models/tiny/infer", body, f"Inference-Header-Content-Length: {length}"), closes=True)


def _timeouts(r: Random) -> Case:
    header = r.choice(["gpulet-timeout-ms", "x-envoy-expected-rq-timeout-ms"])
    return Case(_with(f"{header}: {r.choice(['9' * 5000, '-1', '1.5', 'soon', chr(0xB2)])}"), closes=True)


def _with(*headers: str) -> bytes:
    return infer({"inputs": [x()]}, "tiny", b"", *headers)


def _paths(r: Random) -> Case:
    path = r.choice(
        [
            "/v2/models/none/infer", "/v2/models/tiny/versions/9/infer", "/v2/models/tiny/versions/x/infer",
            "/v2/models/tiny/versions/-1/infer", "/v2/models/%00/infer", "/v2/models/%ff%fe/infer", "/v2/models/tiny/infer/",
            "/v2/models/..%2ftiny/infer", "//v2/models/tiny/infer", "/v2/models/tiny/../tiny/infer", "/v3", "/%2e%2e/etc/passwd",
            "/v2/models/" + "x" * 4000 + "/infer", "/v2/models//infer", "/v2/models/tiny/versions/" + "9" * 6000 + "/infer",
        ]
    )  # fmt: skip
    return Case(post(path, json.dumps({"inputs": [x()]}).encode()))


def _methods(r: Random) -> Case:
    method = r.choice(["PUT", "DELETE", "PATCH", "TRACE", "MKCOL", "PURGE", "SEARCH", "GET"])
    path = r.choice(["/v2/models/tiny/infer", "/v2/repository/index", "/v2/systemsharedmemory/unregister"])
    return Case(
        f"{method} {path} HTTP/1.1\r\nHost: f\r\nContent-Length: 2\r\n\r\n{{}}".encode(), closes=method == "TRACE"
    )


def _control(r: Random) -> Case:
    path = r.choice(
        [
            "/v2/repository/index", "/v2/repository/models/tiny/load", "/v2/repository/models/%00/unload",
            "/v2/systemsharedmemory/region/a/register", "/v2/cudasharedmemory/region/a/register", "/v2/models/none/config",
            "/v2/systemsharedmemory/region/%2e%2e/register", "/v2/none",
        ]
    )  # fmt: skip
    good = r.choice(
        [{"key": r.choice(["../../etc/passwd", "/fuzz\0", "", "x" * 300, "."]), "byte_size": 1}, {"key": "none"}]
    )
    body = r.choice(
        [r.randbytes(50), b"[]", b'{"ready": 1}', b"[" * 9000, b'{"parameters": 7', json.dumps(good).encode(),
         b'{"key": "gpulet", "byte_size": 99999999999999999999, "offset": -1}', b'{"parameters": {"config": "{}"}}']
    )  # fmt: skip
    return Case(post(path, body), may_pass=path.endswith("index"))


def _packed(r: Random) -> Case:
    good = json.dumps({"inputs": [x()]}).encode()
    kind = r.choice(["gzip", "deflate"])
    packed = gzip.compress(good) if kind == "gzip" else zlib.compress(good)
    body, kind = r.choice(
        [(packed[: r.randrange(len(packed))], kind), (packed + b"x", kind), (r.randbytes(100), kind), (packed, "br"),
         (packed[:12] + r.randbytes(9) + packed[21:], kind), (packed, "gzip, gzip"), (good, kind)]
    )  # fmt: skip
    return Case(infer(body, "tiny", b"", f"Content-Encoding: {kind}"))


_BOMB: Final = gzip.compress(bytes(66 << 20), 9)
_SMALL_BOMB: Final = gzip.compress(bytes(5 << 20), 9)


def _bomb(r: Random) -> Case:
    """Mostly one that unpacks to more JSON than there may be: the largest take a third of a second of a core each."""
    bomb = r.choice([_BOMB, *[_SMALL_BOMB] * 15])
    return Case(infer(bomb, "tiny", b"", "Content-Encoding: gzip"))


def _chunked(r: Random) -> Case:
    head = f"POST {r.choice(['/v2/models/tiny/infer', '/v2/repository/models/x/load', '/v2/none'])} HTTP/1.1\r\nHost: f\r\n"
    body = r.choice(
        [
            b"2\r\n{}\r\n0\r\n\r\n",
            b"zz\r\n",
            b"-1\r\n\r\n",
            b"ffffffffffffffffff\r\n",
            b"3\r\n{}\r\n0\r\n\r\n",
            b"2;" + b"x" * 99 + b"\r\n[]\r\n0\r\n\r\n",
        ]
    )
    return Case(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + body, closes=True)


def _upgrades(r: Random) -> Case:
    offer = r.choice(["h2c", "websocket", "TLS/1.3"])
    path = r.choice(["/v2/none", "/v2/models/tiny/infer"])
    return Case(post(path, b"{}", "Connection: Upgrade", f"Upgrade: {offer}", "HTTP2-Settings: AAMAAABk"), closes=True)


def _pipelined(r: Random) -> Case:
    return Case(_with() * r.randrange(1, 5) + r.randbytes(60) + b"\r\n\r\n", may_pass=True, closes=True)


def _cut(r: Random) -> Case:
    whole = r.choice([_with(), infer({"inputs": [binary(16)]}, "tiny", bytes(16)), post("/v2/repository/index", b"{}")])
    return Case(whole[: r.randrange(len(whole))], is_cut=True)


def _flipped_head(r: Random) -> Case:
    head = bytearray(
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: f\r\nConnection: close\r\nAccept: */*\r\nContent-Length: 0"
    )
    for _ in range(r.randrange(1, 4)):
        head[r.randrange(len(head) - 3)] = r.choice(b"\0\t 09az:/%\x7f\x80\xff")
    return Case(bytes(head) + b"\r\n\r\n", closes=True)


FRAMING: Final[dict[str, Callable[[Random], Case]]] = {
    name.removeprefix("_"): family
    for name, family in sorted(globals().items())
    if name.startswith("_") and getattr(family, "__annotations__", {}).get("r") is Random
}
