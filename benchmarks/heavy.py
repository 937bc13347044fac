"""The largest single requests, well-formed or not: what each costs the front-end's loop, in CPU time of its thread.

CPU time, since what else runs on the machine does not change it: nobody is answered for so long.
"""

import gzip
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
from malformed import infer, post
from malformed_rpc import SERVICE, request, whole

from servers import Server

Cost = Callable[[Server], list[Any]]
_MEBI: Final = 1 << 20
_WAIT_S: Final = 60


def _http(make: Callable[[], bytes]) -> Cost:
    def ask(server: Server) -> str:
        with socket.create_connection(("127.0.0.1", server.port), timeout=_WAIT_S) as connection:
            with suppress(ConnectionError):  # refused before it had all
                connection.sendall(make())
            return connection.recv(99).partition(b"\r\n")[0].decode()[9:12] or "silence"

    return lambda server: _measured(server, ask)


def _rpc(make: Callable[[], bytes]) -> Cost:
    def ask(server: Server) -> str:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(server.grpc, options) as channel:
            try:
                channel.unary_unary(SERVICE + "ModelInfer")(make(), timeout=_WAIT_S)
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined] # grpc's own errors are calls as well
            return "OK"

    return lambda server: _measured(server, ask)


def _measured(server: Server, ask: Callable[[Server], str]) -> list[Any]:
    """The outcome, and milliseconds of the loop's thread."""
    before = _cpu_ns(server.process.pid)
    outcome = ask(server)
    time.sleep(0.05)  # what comes after the answer
    return [outcome, round((_cpu_ns(server.process.pid) - before) / 1e6, 1)]


def _cpu_ns(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0])


def _free(elements: int, **more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, elements], "datatype": "FP32", **more}


def _json(elements: int, number: str = "0.123456789") -> bytes:
    document = json.dumps({"inputs": [_free(elements, data="HERE")]}).encode()
    return infer(document.replace(b'"HERE"', b"[" + ",".join([number] * elements).encode() + b"]"), "free")


def _binary(elements: int, **output: Any) -> bytes:
    item = _free(elements, parameters={"binary_data_size": 4 * elements})
    return infer({"inputs": [item], "outputs": [{"name": "y", "parameters": output}]}, "free", bytes(4 * elements))


def _strings(elements: int) -> bytes:
    item = {"name": "x", "shape": [1, elements], "datatype": "BYTES", "parameters": {"binary_data_size": 4 * elements}}
    return infer({"inputs": [item]}, "texts", bytes(4 * elements))


def _dimensions(count: int) -> bytes:
    return infer(b'{"inputs":[{"name":"x","datatype":"FP32","data":[1],"shape":[' + b"1," * count + b"1]}]}")


def _inputs(count: int) -> bytes:
    item = b'{"name":"x","shape":[1],"datatype":"FP32"},'
    return infer(b'{"inputs":[' + (item * count)[:-1] + b"]}")


def _outputs(count: int) -> bytes:
    return infer({"inputs": [{**_free(4), "data": [1, 2, 3, 4]}], "outputs": [{"name": "y"}] * count})


HEAVY: Final[dict[str, Cost]] = {
    "floats in JSON, 4 MiB": _http(lambda: _json(262_144)),
    "floats in JSON, 60 MiB": _http(lambda: _json(5_000_000)),
    "digits in JSON, 0.5 MiB": _http(lambda: _json(262_144, "1")),
    "digits in JSON, 4 MiB": _http(lambda: _json(2_000_000, "1")),
    "dimensions in JSON, 4 MiB": _http(lambda: _dimensions(2_000_000)),
    "inputs in JSON, 4 MiB": _http(lambda: _inputs(95_000)),
    "outputs in JSON, 2 MiB": _http(lambda: _outputs(150_000)),
    "a name of 3 MiB": _http(lambda: infer({"inputs": [{**_free(4), "name": "x" * 3 * _MEBI}]})),
    "binary, 60 MiB": _http(lambda: _binary(15 * _MEBI, binary_data=True)),
    "binary, 1 MiB, answered in JSON": _http(lambda: _binary(_MEBI // 4, binary_data=False)),
    "binary, 60 MiB, answered in JSON": _http(lambda: _binary(15 * _MEBI, binary_data=False)),
    "64 Ki classes of 256 Ki elements": _http(lambda: _binary(_MEBI // 4, classification=1 << 16)),
    "one class of 15 Mi elements": _http(lambda: _binary(15 * _MEBI, classification=1)),
    "empty strings, 16 Mi": _http(lambda: _strings(15 * _MEBI)),
    "empty strings, 60 Ki": _http(lambda: _strings(60 * 1024)),
    "bomb, 60 MiB of blanks": _http(
        lambda: infer(gzip.compress(b" " * 60 * _MEBI, 1), "free", b"", "Content-Encoding: gzip")
    ),
    "control, 60 MiB": _http(lambda: post("/v2/repository/index", b'{"a":[' + b"1," * 30 * _MEBI + b"1]}")),
    "too large, 100 MiB": _http(lambda: infer(b" " * 100 * _MEBI)),
    "rpc: empty fields, 60 MiB": _rpc(lambda: b"\x1a\x00" * 30 * _MEBI),
    "rpc: empty tensors, 60 MiB": _rpc(lambda: b"\x3a\x00" * 30 * _MEBI),
    "rpc: dimensions, 4 MiB": _rpc(lambda: whole(request(shape=[1] * 4_000_000), bytes(16))),
    "rpc: dimensions, 60 MiB": _rpc(lambda: whole(request(shape=[1] * 60 * _MEBI), bytes(16))),
    "rpc: contents, 4 MiB": _rpc(lambda: _contents(1_000_000)),
    "rpc: contents, 60 MiB": _rpc(lambda: _contents(15 * _MEBI)),
    "rpc: inputs, 4 MiB": _rpc(lambda: request().SerializeToString() + b"\x2a\x05\x0a\x03abc" * 590_000),
    "rpc: raw, 60 MiB": _rpc(lambda: whole(request("free", shape=[1, 15 * _MEBI]), bytes(60 * _MEBI))),
    "rpc: strings, 16 Mi": _rpc(
        lambda: whole(request("texts", datatype="BYTES", shape=[1, 15 * _MEBI]), bytes(60 * _MEBI))
    ),
}


def _contents(elements: int) -> bytes:
    data: bytes = request("free", shape=[1, elements], contents={"fp32_contents": [0.1] * elements}).SerializeToString()
    return data
