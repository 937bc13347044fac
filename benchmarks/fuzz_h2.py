"""Mutated bytes of real gRPC clients against a live server: it must neither crash nor hang nor grow, and go on answering.

What tritonclient sends is recorded through a relay, cut into frames, and played back with frames' heads and bodies changed,
left out, repeated, swapped, cut short or invented. Every connection must come to its end once the client has ended its half;
after every few thousand a good client must be answered. Anything that the server's process says but its log lines is a fault.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from time import monotonic

import numpy as np
import tritonclient.grpc as over_grpc
import uvloop
from common import record

from gpulet.api.h2 import frames
from servers import Server, fleet, save_model, serve

CONNECTIONS = 48
PATIENCE_S = 20.0
GOOD_EVERY = 5000
X = np.arange(8, dtype=np.float32).reshape(2, 4)


async def record_client(port: int) -> list[list[bytes]]:
    """What clients send, connection by connection, as frames (the first is the preface)."""
    taken: list[bytearray] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        bytes_sent = bytearray()
        taken.append(bytes_sent)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, keep: bytearray | None) -> None:
            while data := await source.read(65536):
                if keep is not None:
                    keep.extend(data)
                sink.write(data)
            sink.close()

        with contextlib.suppress(ConnectionError):
            await asyncio.gather(pump(reader, there_writer, bytes_sent), pump(there_reader, writer, None))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    await asyncio.to_thread(converse, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    server.close()
    return [cut(bytes(raw)) for raw in taken if raw.startswith(frames.PREFACE)]


def converse(address: str) -> None:
    """Everything that clients do, once."""
    for packing in (None, "gzip", "deflate"):
        client = over_grpc.InferenceServerClient(address, channel_args=[("grpc.use_local_subchannel_pool", 1)])
        client.infer("tiny", [given()], compression_algorithm=packing, client_timeout=5.0)
        client.infer("tiny", [given()], request_id="again")
        client.get_model_metadata("tiny")
        client.get_model_repository_index()
        client.is_server_ready()
        client.start_stream(lambda *_, **__: None)
        for number in range(4):
            client.async_stream_infer("tiny", [given()], request_id=str(number))
        client.stop_stream()
        with contextlib.suppress(Exception):  # the refusal is what is wanted
            client.infer("nobody", [given()])
        client.close()


def given() -> over_grpc.InferInput:
    """The input of the model."""
    tensor = over_grpc.InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(X)
    return tensor


def cut(raw: bytes) -> list[bytes]:
    """The preface and the frames."""
    found, at = [frames.PREFACE], len(frames.PREFACE)
    while at + frames.HEAD_BYTES <= len(raw):
        end = at + frames.HEAD_BYTES + int.from_bytes(raw[at : at + 3], "big")
        found.append(raw[at:end])
        at = end
    return found


def mutated(draw: random.Random, pieces: list[bytes]) -> bytes:
    """One conversation, changed in one to four places."""
    pieces = list(pieces)
    for _ in range(draw.randint(1, 4)):
        change(draw, pieces, draw.randrange(1, len(pieces)))
    if draw.randrange(50) == 0:
        pieces[0] = flipped(draw, pieces[0], len(pieces[0]))
    return b"".join(pieces)


def change(draw: random.Random, pieces: list[bytes], at: int) -> None:
    """One change to the frame at this place, or around it."""
    piece, last = pieces[at], len(pieces) > 2  # noqa: PLR2004 (something must be left)
    kind = draw.choice(("bytes", "head", "size", "number", "leave out", "repeat", "invent", "swap", "cut short"))
    if kind == "swap":
        other = draw.randrange(1, len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif kind == "cut short":
        pieces[at:] = [piece[: draw.randrange(len(piece) + 1)]]
    else:
        changes = {
            "bytes": lambda: [flipped(draw, piece, len(piece))],
            "head": lambda: [flipped(draw, piece, frames.HEAD_BYTES)],
            "size": lambda: [resized(draw, piece)],
            "number": lambda: [renumbered(draw, piece)],
            "leave out": lambda: [] if last else [piece],
            "repeat": lambda: [piece, draw.choice(pieces[1:])],
            "invent": lambda: [invented(draw), piece],
        }
        pieces[at : at + 1] = changes[kind]()


def flipped(draw: random.Random, piece: bytes, within: int) -> bytes:
    """Some bytes changed."""
    changed = bytearray(piece)
    for _ in range(draw.randint(1, 3)):
        if changed:
            changed[draw.randrange(min(within, len(changed)))] = draw.randrange(256)
    return bytes(changed)


def resized(draw: random.Random, piece: bytes) -> bytes:
    """Another payload, whose length is told rightly."""
    payload = piece[frames.HEAD_BYTES :]
    at = draw.randrange(len(payload) + 1)
    payload = payload[:at] + draw.randbytes(draw.randrange(30)) + payload[at + draw.randrange(30) :]
    return len(payload).to_bytes(3, "big") + piece[3 : frames.HEAD_BYTES] + payload


def renumbered(draw: random.Random, piece: bytes) -> bytes:
    """The frame on another stream."""
    return piece[:5] + draw.choice((0, 1, 2, 3, 5, 7, 99, 2**31 - 1)).to_bytes(4, "big") + piece[frames.HEAD_BYTES :]


def invented(draw: random.Random) -> bytes:
    """Any frame, now and then the same many times."""
    size = draw.choice((0, 1, 4, 5, 6, 8, 12, 40))
    made = frames.frame(draw.randrange(12), draw.randrange(256), draw.choice((0, 1, 3, 5, 7)), draw.randbytes(size))
    return made * draw.choice((1, 1, 1, 2, 200))


class Player:
    """Plays conversations back and counts what came of them."""

    def __init__(self, server: Server, conversations: list[list[bytes]], requests: int, seed: int) -> None:
        self._port = int(server.grpc.rpartition(":")[2])
        self._conversations = conversations
        self._left = requests
        self._draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.hangs: list[str] = []

    async def play(self) -> None:
        """Until none is left for this round."""
        while self._left > 0:
            self._left -= 1
            raw = mutated(self._draw, self._draw.choice(self._conversations))
            try:
                answer = await asyncio.wait_for(self._one(raw, waits=self._draw.random() < 0.3), PATIENCE_S)  # noqa: PLR2004
            except TimeoutError:
                self.hangs.append(raw.hex())
            else:
                self.count(answer)

    async def _one(self, raw: bytes, *, waits: bool) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        answer = b""
        try:
            writer.write(raw)
            if waits:  # let calls run; else they are taken back with the connection
                with contextlib.suppress(TimeoutError):
                    answer = await asyncio.wait_for(reader.read(65536), 0.05)
                    answer += await asyncio.wait_for(reader.read(65536), 0.02)
            writer.write_eof()
            answer += await reader.read()
        except OSError:
            pass  # reset: it ended, which is all that is asked
        finally:
            writer.close()
        return answer

    def count(self, answer: bytes) -> None:
        """How calls and the connection ended."""
        for status in re.findall(rb"\x0bgrpc-status.(1?[0-9])", answer, re.DOTALL):
            self.outcomes[f"status_{int(status)}"] += 1
        for piece in cut(frames.PREFACE + answer)[1:]:
            if piece[3] == frames.GOAWAY and len(piece) >= frames.HEAD_BYTES + 8:
                self.outcomes[frames.Code(int.from_bytes(piece[13:17], "big")).name] += 1
            elif piece[3] == frames.RST_STREAM:
                self.outcomes["RST_STREAM"] += 1


def resident_mib(pid: int) -> float:
    """Of the front-end process."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) / 1024


def is_good_client_answered(server: Server) -> bool:
    """Whether a client that keeps the rules gets its answer."""
    client = over_grpc.InferenceServerClient(server.grpc, channel_args=[("grpc.use_local_subchannel_pool", 1)])
    answer = client.infer("tiny", [given()], client_timeout=PATIENCE_S).as_numpy("y")
    client.close()
    return np.array_equal(answer, X)


async def fuzz(server: Server, requests: int, seed: int) -> dict[str, object]:
    """All rounds."""
    conversations = await record_client(int(server.grpc.rpartition(":")[2]))
    began, done, residents, hangs = monotonic(), 0, [], 0
    outcomes: Counter[str] = Counter()
    while done < requests:
        player = Player(server, conversations, min(GOOD_EVERY, requests - done), seed + done)
        await asyncio.gather(*(player.play() for _ in range(CONNECTIONS)))
        done += min(GOOD_EVERY, requests - done)
        outcomes += player.outcomes
        hangs += len(player.hangs)
        assert await asyncio.to_thread(is_good_client_answered, server)
        residents.append(round(resident_mib(server.process.pid), 1))
        print(f"{done} requests, {residents[-1]} MiB, {hangs} hangs", file=sys.stderr)
    return {
        "requests": done,
        "seconds": round(monotonic() - began),
        "hangs": hangs,
        "resident_mib": residents,
        "outcomes": dict(outcomes.most_common()),
        "faults": [e["event"] for e in server.events if " " in e["event"]][:20],
    }


def main() -> None:
    """Run it, and fail where anything was wrong."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--requests", type=int, default=100_000)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--plane", default="own")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_model(path / "models", "tiny")
        with serve(fleet(path, {"tiny": (2000, 50)}, repository=path / "models", grpc_plane=options.plane)) as server:
            result = uvloop.run(fuzz(server, options.requests, options.seed))
            result["is_alive"] = server.process.poll() is None
    record("fuzz_h2", {"plane": options.plane, **result})
    if result["hangs"] or result["faults"] or not result["is_alive"]:
        sys.exit(json.dumps({key: result[key] for key in ("hangs", "faults", "is_alive")}))


if __name__ == "__main__":
    main()
