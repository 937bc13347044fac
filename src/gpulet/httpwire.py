"""Requests to any Open Inference Protocol v2 server over HTTP, as bytes."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
import orjson

from gpulet.errors import BadInput, Unusable
from gpulet.executors.tensors import drawn

_HEAD_END: Final = b"\r\n\r\n"
_MOST_KEPT: Final = 1 << 30


def parse_address(url: str) -> tuple[str, int]:
    """`HOST:PORT`, with or without `http://`; raises `BadInput`."""
    host, _, port = url.removeprefix("http://").rstrip("/").partition(":")
    if not port.isdecimal():
        msg = f"{url!r}: give HOST:PORT"
        raise BadInput(msg)
    return host, int(port)


def http_request(host: str, path: str, body: bytes, json_bytes: int) -> bytes:
    """A whole infer request; `json_bytes` is the length of the JSON where binary data follows, 0 where none does."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines.append(f"Inference-Header-Content-Length: {json_bytes}" if json_bytes else "Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def binary_request(host: str, model: str, inputs: Sequence[dict[str, Any]], tensors: Sequence[bytes]) -> bytes:
    """An infer request with binary tensors in and out; `inputs` have name, shape and datatype."""
    described = [{**i, "parameters": {"binary_data_size": len(t)}} for i, t in zip(inputs, tensors, strict=True)]
    header = orjson.dumps({"inputs": described, "parameters": {"binary_data_output": True}})
    return http_request(host, f"/v2/models/{model}/infer", header + b"".join(tensors), len(header))


async def random_requests(host: str, port: int, model: str, rows: Iterable[int]) -> dict[int, bytes]:
    """A request of each number of rows. Raises `BadInput` where they are too large to be kept all together."""
    metadata = await _get(host, port, f"/v2/models/{model}")
    requests: dict[int, bytes] = {}
    kept = 0
    for count in sorted(rows):
        requests[count] = _random_request(host, model, metadata["inputs"], count)
        kept += len(requests[count])
        if kept > _MOST_KEPT:
            msg = f"model {model}: a request of each number of rows up to {count} is {kept >> 20} MiB in all; "
            raise BadInput(msg + f"{_MOST_KEPT >> 20} MiB at most are kept: send fewer rows")
    return requests


def _random_request(host: str, model: str, tensors: Sequence[Mapping[str, Any]], rows: int) -> bytes:
    """Free dimensions are `rows` where they come first, else 1."""
    random = np.random.default_rng(1)
    inputs: list[dict[str, Any]] = []
    values: list[bytes] = []
    for tensor in tensors:
        free = [rows if place == 0 else 1 for place in range(len(tensor["shape"]))]
        shape = [n if n > 0 else free[place] for place, n in enumerate(tensor["shape"])]
        inputs.append({"name": tensor["name"], "datatype": tensor["datatype"], "shape": shape})
        values.append(drawn(random, tensor["datatype"], prod(shape)))
    return binary_request(host, model, inputs, values)


async def _get(host: str, port: int, path: str) -> dict[str, Any]:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        msg = f"no server at {host}:{port}: {error.strerror or error}"
        raise Unusable(msg) from None
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
    answer = await reader.read()
    writer.close()
    status, body = int(answer[9:12]), answer.partition(_HEAD_END)[2]
    if status != 200:  # noqa: PLR2004 (HTTP)
        msg = f"{host}:{port}{path}: {status} {error_message(body)}"
        raise BadInput(msg)
    document: dict[str, Any] = orjson.loads(body)
    return document


def error_message(body: bytes) -> str:
    """What an answer that is no result says."""
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:80].decode("utf-8", "replace")
