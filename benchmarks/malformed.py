"""Malformed infer requests over HTTP, drawn by family: what their JSON and tensors say; for `fuzz.py`.

Bytes that may by chance be a good request, or leave it open where a request ends, say so in their `Case`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

REGION: Final = "fuzz"
REGION_BYTES: Final = 4096
_DIGITS: Final = "5000 digits"
_HUGE: Final = (2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -1, -(2**63), _DIGITS)
_DATATYPES: Final = ("FP32", "FP64", "INT64", "BYTES", "BOOL", "FP16", "BF16", "INT128", "", "fp32", "FP32\0")


@dataclass(frozen=True, slots=True)
class Case:
    """`is_cut`: it ends early, so nothing is answered. `may_pass`: it may be good. `closes`: what follows is not framed."""

    data: bytes
    is_cut: bool = False
    may_pass: bool = False
    closes: bool = False


def post(path: str, body: bytes, *headers: str, length: int | str | None = None) -> bytes:
    """A request with a body; another `length` than its own where one is given."""
    lines = [f"POST {path} HTTP/1.1", "Host: fuzz", f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("utf-8", "surrogateescape") + body


def infer(document: Any, model: str = "tiny", tail: bytes = b"", *headers: str) -> bytes:
    """An infer request of this JSON, or of these bytes in its place."""
    head = document if isinstance(document, bytes) else _dumped(document)
    more = (f"Inference-Header-Content-Length: {len(head)}",) if tail else ()
    return post(f"/v2/models/{model}/infer", head + tail, *more, *headers)


def _dumped(document: Any) -> bytes:
    """JSON, with a number that Python itself would not spell."""
    return json.dumps(document).replace(f'"{_DIGITS}"', "9" * 5000).encode()


def x(**changes: Any) -> dict[str, Any]:
    """An input of `tiny`; what is None is left out."""
    item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}
    return {key: value for key, value in item.items() if value is not None}


def binary(size: Any, **changes: Any) -> dict[str, Any]:
    """The same, its bytes behind the JSON."""
    return x(data=None, parameters={"binary_data_size": size}, **changes)


def _one(item: dict[str, Any], **more: Any) -> bytes:
    return infer({"inputs": [item], **more})


def _bad_json(r: Random) -> Case:
    good = json.dumps({"id": "fuzz", "inputs": [x()]}).encode()
    at = r.randrange(len(good))
    broken = r.choice(
        [
            r.randbytes(r.randrange(1, 200)), good[:at], good[:at] + b"\xff\xc0" + good[at:], b"[]", b"null", b"1", b'""',
            good.replace(b'"fuzz"', r.choice([b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'"\0"', b"1"])),
            good.replace(b"[1, 4]", r.choice([b"[1,", b"{}", b"null", b"[NaN]", b"[1e999]", b'["1"]', b"[1.5]", b"[true]"])),
            b"{" * 5000, b"", b" " * 3000, b"\xef\xbb\xbf" + good, good + good, b'{"inputs":' * 3000,
        ]
    )  # fmt: skip
    return Case(infer(broken), may_pass=True)


def _deep(r: Random) -> Case:
    deep = r.choice([10, 64, 900, 5000, 100_000])
    nest = b"[" * deep + b"1" + b"]" * deep
    good = json.dumps({"inputs": [x(data="HERE")], "more": "THERE"}).encode()
    return Case(infer(good.replace(r.choice([b'"HERE"', b'"THERE"']), nest)))


def _shapes(r: Random) -> Case:
    shape = r.choice(
        [
            [], [4], [1, 1, 4], [0, 4], [1, 0], [-1, 4], [1, -4], [-1, -4], [r.choice(_HUGE), 4], [1, r.choice(_HUGE)],
            [2**32, 2**32], [2**16] * 4, [2**62, 4, 2**62], [1] * r.choice([5, 33, 65, 5000]), [2, 4], [33, 4], [1, 5], "1,4", None,
        ]
    )  # fmt: skip
    return Case(_one(x(shape=shape) if r.random() < 0.5 else binary(16, shape=shape)))  # noqa: PLR2004


def _datatypes(r: Random) -> Case:
    model = r.choice(["words", "flags", "two", "none", ""])
    item = x(datatype=r.choice(_DATATYPES[1:]), name=r.choice(["x", "y", "", "x" * 5000, "\0", "é"]))
    return Case(infer({"inputs": [item] * r.choice([0, 1, 1, 2, 40])}, model) if r.randrange(3) == 0 else _one(item))


def _data(r: Random) -> Case:
    data = r.choice(
        [
            [1, 2, 3], [1, 2, 3, 4, 5], [], None, {}, 1, "1234", ["1", "2", "3", "4"], [None] * 4, [True] * 4, [[1, 2], [3]],
            [[1, 2], [3, 4]], [1e300, 1, 1, 1], [1, 2, 3, [4]], [10**400, 0, 0, 0], [[[[1, 2, 3, 4]]]],
        ]
    )  # fmt: skip
    return Case(_one(x(data=data)))


def _numbers(r: Random) -> Case:
    value = r.choice([2**63, -(2**63) - 1, 1.5, 1e3, "7", None, True, 2**64, 10**40])
    inputs = [x(name=n, datatype="INT64", shape=[1, 2], data=[value, 0]) for n in ("a", "b")]
    return Case(infer({"inputs": inputs}, "two"))


def _not_finite(r: Random) -> Case:
    body = json.dumps({"inputs": [x(data=[r.choice([float("nan"), float("inf"), -float("inf")])] * 4)]})
    return Case(infer(body.encode()))


def _binary_sizes(r: Random) -> Case:
    size = r.choice([0, 1, 15, 17, *_HUGE[:-1], 16.5, "16", None, [16]])
    tail = r.randbytes(r.choice([0, 1, 15, 17, 16, 64]))
    if size == 16 and len(tail) == 16:  # noqa: PLR2004 (one row of four floats)
        tail = b""
    return Case(infer({"inputs": [binary(size)]}, "tiny", tail))


def _strings(r: Random) -> Case:
    tail = r.choice(
        [
            b"\xff\xff\xff\xff", b"\1\0\0\0a", b"\1\0\0\0a\1\0\0\0bX", b"\1\0\0\0\xff\1\0\0\0b", b"\0\0\0\0\0\0\0",
            b"\1\0\0\0a\xff\xff\xff\x7fb", b"\3\0\0\0\xed\xa0\x80\0\0\0\0", b"",
        ]
    )  # fmt: skip
    return Case(infer({"inputs": [binary(len(tail), shape=[1, 2], datatype="BYTES")]}, "words", tail))


def _parameters(r: Random) -> Case:
    key = r.choice(["timeout", "priority", "binary_data_output"])
    value = r.choice(["soon", -1, 1.5, None, [], {}, _DIGITS, 2**70, -(2**70)])
    body = {"inputs": [x()], "parameters": {key: value}}
    return Case(infer(body))


def _outputs(r: Random) -> Case:
    outputs = r.choice(
        [
            [{"name": "z"}], [{}], {}, "y", [{"name": "y"}] * r.choice([2, 1000]), [{"name": 1}],
            [{"name": "y", "parameters": {"classification": r.choice([-1, "3", 1.5])}}],
            [{"name": "y", "parameters": {"shared_memory_region": "none", "shared_memory_byte_size": 16}}],
        ]
    )  # fmt: skip
    return Case(_one(x(), outputs=outputs))


def _regions(r: Random) -> Case:
    region = r.choice([REGION, "none", "../x", "x" * 300])
    offset, size = r.choice([(4096, 16), (4095, 16), (-1, 16), (2**63, 16), (2**64, 16), (0, 15), (0, 2**63), (0, -1)])
    place = {"shared_memory_region": region, "shared_memory_offset": offset, "shared_memory_byte_size": size}
    if r.getrandbits(1):
        return Case(_one(x(data=None, parameters=place)))
    return Case(
        _one(x(), outputs=[{"name": "y", "parameters": place}]),
        may_pass=region == REGION and (offset, size) == (0, 2**63),
    )


def _flipped(r: Random) -> Case:
    body = bytearray(json.dumps({"id": "f", "inputs": [x()], "outputs": [{"name": "y"}]}).encode())
    for _ in range(r.randrange(1, 6)):
        body[r.randrange(len(body))] = r.randrange(256)
    return Case(infer(bytes(body)), may_pass=True)


def _free(r: Random) -> Case:
    tokens = r.randrange(2, 9)
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [1, tokens], "data": [1] * tokens},
        {"name": "mask", "datatype": "INT64", "shape": [1, tokens + 1], "data": [1] * (tokens + 1)},
    ]
    return Case(infer({"inputs": inputs}, "masked"))


FAMILIES: Final[dict[str, Callable[[Random], Case]]] = {
    name.removeprefix("_"): family
    for name, family in sorted(globals().items())
    if name.startswith("_") and getattr(family, "__annotations__", {}).get("r") is Random
}
