"""Bytes that each server is asked with, and the numbers in its answer."""

import json
import re
import socket
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from gpulet.httpwire import binary_request, http_request
from peers.onnxfiles import Floats, Network

HOST = "127.0.0.1"
_OK = b"HTTP/1.1 200"
_END = b"\r\n\r\n"


class Wire(Enum):
    """What a server speaks over HTTP."""

    BINARY = "Open Inference Protocol, binary tensors"
    JSON = "Open Inference Protocol, JSON"
    RAW = "a row's bytes, POST /MODEL"


def request(wire: Wire, network: Network, row: Floats) -> bytes:
    """One whole request for one row."""
    described = {"name": "x", "datatype": "FP32", "shape": list(row.shape)}
    match wire:
        case Wire.BINARY:
            return binary_request(HOST, network.name, [described], [row.tobytes()])
        case Wire.JSON:
            body = json.dumps({"inputs": [{**described, "data": row.ravel().round(6).tolist()}]}).encode()
            return http_request(HOST, f"/v2/models/{network.name}/infer", body, 0)
        case Wire.RAW:
            body = row.tobytes()
            lines = [f"POST /{network.name} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
            return "\r\n".join([*lines, "Content-Type: application/octet-stream", "", ""]).encode() + body


def numbers(wire: Wire, answer: bytes) -> NDArray[np.float32]:
    """The output tensor of a whole answer, flat; empty where it is no answer."""
    head, _, body = answer.partition(_END)
    if not head.startswith(_OK):
        return np.empty(0, np.float32)
    if wire is Wire.JSON or (wire is Wire.BINARY and not _length(head, b"inference-header-content-length")):
        return np.asarray(json.loads(body)["outputs"][0]["data"], np.float32)
    return np.frombuffer(body[_length(head, b"inference-header-content-length") :], np.float32)


def _length(head: bytes, name: bytes) -> int:
    found = re.search(rb"\r\n" + name + rb": *(\d+)", head.lower())
    return int(found[1]) if found else 0


def ask(port: int, request: bytes, timeout_s: float = 5.0) -> bytes:
    """One request on a connection of its own, to its whole answer; raises `OSError`."""
    with socket.create_connection((HOST, port), timeout_s) as peer:
        peer.settimeout(timeout_s)
        peer.sendall(request)
        answer = b""
        while _END not in answer or len(answer) < answer.find(_END) + 4 + _length(
            answer.partition(_END)[0], b"content-length"
        ):
            more = peer.recv(1 << 20)
            if not more:
                msg = f"connection closed after {len(answer)} bytes"
                raise ConnectionError(msg)
            answer += more
        return answer


def grpc_message(network: Network, row: Floats, *, is_answer: bool = False) -> bytes:
    """A ModelInfer request for one row, or the answer that an identity would give."""
    from tritonclient.grpc import service_pb2  # noqa: PLC0415 (only where gRPC is measured)

    if is_answer:
        message = service_pb2.ModelInferResponse(model_name=network.name, raw_output_contents=[row.tobytes()])
        message.outputs.add(name="y", datatype="FP32", shape=row.shape)
    else:
        message = service_pb2.ModelInferRequest(model_name=network.name, raw_input_contents=[row.tobytes()])
        message.inputs.add(name="x", datatype="FP32", shape=row.shape)
    serialized: bytes = message.SerializeToString()
    return serialized


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    held = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports
