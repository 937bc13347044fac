"""A load generator for gRPC that costs little: requests are bytes made once, answers are counted by their frames.

So many connections with so many calls in flight each; a call's frames are the same bytes but for the stream's number. It knows of HTTP/2
what it needs against servers that behave: SETTINGS and PING are acknowledged, windows are given back, the connection's
window is kept and everything that would be an error is one.
"""

import asyncio
import sys
from resource import RUSAGE_SELF, getrusage

import uvloop

from gpulet.api.h2 import frames
from gpulet.api.h2.fields import literal
from gpulet.api.h2.frames import frame, window_update
from gpulet.api.h2.messages import prefixed
from gpulet.api.rpc.messages import MESSAGES

_ROOM = 1 << 30
_LONGEST_OK = 30  # bytes of trailers


def request_frames(path: str, message: bytes) -> tuple[bytes, bytes]:
    """Of one call: HEADERS and DATA, without the streams' numbers."""
    fields = (
        (b":path", path.encode()),
        (b":authority", b"bench"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    block = b"\x83\x86" + b"".join(literal(*field) for field in fields)
    return block, prefixed(message)


def identity(width: int) -> bytes:
    """A ModelInferRequest of one row."""
    request = MESSAGES["ModelInferRequest"](model_name="identity", raw_input_contents=[bytes(4 * width)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, width])  # type: ignore[attr-defined] # known at run time
    return request.SerializeToString()


class Caller(asyncio.Protocol):
    """One connection with so many calls in flight."""

    def __init__(self, block: bytes, body: bytes, in_flight: int) -> None:
        self._block, self._body, self._in_flight = block, body, in_flight
        self._rest = b""
        self._stream = 1
        self._owed = 0
        self.answers = self.failures = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self._transport = transport
        hello = frames.PREFACE + frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: _ROOM})
        transport.write(hello + window_update(0, _ROOM) + b"".join(self._call() for _ in range(self._in_flight)))

    def _call(self) -> bytes:
        stream, self._stream = self._stream, self._stream + 2
        head = frames.HEAD.pack(0, len(self._block), frames.HEADERS, frames.END_HEADERS, stream)
        size = len(self._body)
        data = frames.HEAD.pack(size >> 8, size & 0xFF, frames.DATA, frames.END_STREAM, stream)
        return head + self._block + data + self._body

    def data_received(self, data: bytes) -> None:
        data, at = self._rest + data, 0
        out: list[bytes] = []
        while len(data) - at >= frames.HEAD_BYTES:
            high, low, kind, flags, _ = frames.HEAD.unpack_from(data, at)
            end = at + frames.HEAD_BYTES + (high << 8 | low)
            if end > len(data):
                break
            if kind == frames.HEADERS:
                if flags & frames.END_STREAM:
                    self._answered(data[at + frames.HEAD_BYTES : end])
                    out.append(self._call())
            elif kind == frames.DATA:
                self._owed += end - at
            else:
                self._control(kind, flags, data[at + frames.HEAD_BYTES : end], out)
            at = end
        self._rest = data[at:]
        if self._owed > _ROOM // 4:
            out.append(window_update(0, self._owed))
            self._owed = 0
        if out:
            self._transport.write(b"".join(out))

    def _answered(self, trailers: bytes) -> None:
        """Both planes spell a status out or index it; a failure brings a message with it."""
        self.answers += 1
        self.failures += len(trailers) > _LONGEST_OK

    def _control(self, kind: int, flags: int, payload: bytes, out: list[bytes]) -> None:
        match kind:
            case frames.SETTINGS if not flags & frames.ACK:
                out.append(frame(frames.SETTINGS, frames.ACK, 0))
            case frames.PING if not flags & frames.ACK:
                out.append(frame(frames.PING, frames.ACK, 0, payload))
            case frames.GOAWAY | frames.RST_STREAM:
                sys.exit(f"the server ended it: {payload!r}")


async def load(port: int, connections: int, in_flight: int, seconds: float, width: int) -> tuple[int, int]:
    """Answers and failures; so many calls in flight on each connection."""
    block, body = request_frames("/inference.GRPCInferenceService/ModelInfer", identity(width))
    loop = asyncio.get_running_loop()
    callers = [Caller(block, body, in_flight) for _ in range(connections)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", port)  # type: ignore[misc] # mypy knows no defaults here
    await asyncio.sleep(seconds)
    return sum(c.answers for c in callers), sum(c.failures for c in callers)


def main(port: str, connections: str, in_flight: str, seconds: str, width: str) -> None:
    """Print answers, failures and our own CPU seconds."""
    began = getrusage(RUSAGE_SELF)
    answers, failures = uvloop.run(load(int(port), int(connections), int(in_flight), float(seconds), int(width)))
    ended = getrusage(RUSAGE_SELF)
    print(answers, failures, ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)


if __name__ == "__main__":
    main(*sys.argv[1:])
