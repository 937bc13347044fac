"""A good request asked again and again in a process of its own: how long others wait while a server is attacked."""

import select
import socket
import sys
import time
from typing import Any

PAUSE_S = 0.005


def probe(port: int, request: bytes, ending: bytes) -> dict[str, Any]:
    """Until standard input ends; milliseconds of the answers, and how many were not right."""
    took: list[float] = []
    wrong = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(30)
        while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            began = time.perf_counter()
            connection.sendall(request)
            wrong += not _answer(connection).endswith(ending)
            took.append(1e3 * (time.perf_counter() - began))
    took.sort()
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    figures = {name: round(took[int(len(took) * part)], 2) for name, part in at.items()}
    return {"asked": len(took), "wrong": wrong, **figures, "worst_ms": round(took[-1], 2)}


def _answer(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(1 << 16)
    head, _, body = data.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < size:
        body += connection.recv(1 << 16)
    return body
