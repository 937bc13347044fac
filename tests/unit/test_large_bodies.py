"""Large request bodies: whole however they are cut, and put together as they come, so that no turn of the loop is long."""

import asyncio
import random
import tracemalloc
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from gpulet.api.forms import Checker
from gpulet.api.front import ApiLimits
from gpulet.api.h2.messages import MessageReader, prefixed
from gpulet.api.http import InferProtocol
from gpulet.api.infer import Reader
from gpulet.api.regions import Regions
from gpulet.executors.base import Result, Signature, Tensor

LARGE = 8 << 20
COME_AT_ONCE = 1 << 18  # what uvloop reads in a turn
SIZES = (4, 65_532, 65_536, 65_540, 300_000, 8, 1_000_000, 4)
BYTES = Signature((Tensor("x", "UINT8", (-1, -1)),), (Tensor("y", "UINT8", (-1, -1)),))
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n"
ASKED = b'{"inputs":[{"name":"x","datatype":"UINT8","shape":[1,%d],"parameters":{"binary_data_size":%d}}],'
ASKED += b'"parameters":{"binary_data_output":true}}'


async def app(scope, receive, send):
    """Nothing is handed over."""


class Transport(asyncio.Transport):
    """A peer that reads all that it is answered."""

    def __init__(self):
        self.written = 0

    def write(self, data):
        self.written += len(data)

    def get_extra_info(self, name, default=None):
        return default

    def is_closing(self):
        return False

    def pause_reading(self):
        pass


class Http:
    """A connection that keeps the requests that came."""

    def __init__(self):
        self.exchanges = []
        readers = SimpleNamespace(http=Reader("1", Checker("m", BYTES, 8)))
        front = SimpleNamespace(
            is_leaving=False,
            limits=ApiLimits(64 << 20, 16384, 9, 429),
            connections=0,
            heads={},
            token="",
            regions=Regions(is_allowed=False),
            readers=lambda model, version: readers,
            submit=lambda exchange, *_: self.exchanges.append(exchange),
            flush_soon=lambda connection: connection.flush(),
        )
        config = Config(app, lifespan="off", log_config=None, ws="none")
        config.load()
        self.protocol = InferProtocol(front, config, ServerState(), {})
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    @property
    def tensors(self):
        return [exchange.inputs[0] for exchange in self.exchanges]

    def feed(self, data):
        self.protocol.data_received(data)

    def wrapped(self, tensor):
        asked = ASKED % (len(tensor), len(tensor))
        return HEAD % (len(asked) + len(tensor), len(asked)) + asked + tensor


class Grpc:
    """What cuts messages out of a stream."""

    def __init__(self):
        self.tensors = []
        self.reader = MessageReader(64 << 20)

    def feed(self, data):
        self.reader.feed(data)
        while (taken := self.reader.take()) is not None:
            self.tensors.append(taken[0])

    def wrapped(self, tensor):
        return prefixed(tensor)


async def on_loop(make, act):
    return act(make())


def cut(raw, cuts):
    at = 0
    while at < len(raw):
        size = next(cuts)
        yield raw[at : at + size]
        at += size


@pytest.mark.parametrize("make", [Http, Grpc])
@pytest.mark.parametrize("seed", range(6))
def test_bodies_of_all_sizes_come_out_as_they_went_in_however_they_are_cut(make, seed):
    draw = random.Random(seed)
    tensors = [draw.randbytes(size) for size in SIZES]

    def act(peer):
        raw = b"".join(map(peer.wrapped, tensors))
        for piece in cut(raw, iter(lambda: draw.choice((1, 5, 1000, 65_536, 65_537, COME_AT_ONCE, 1 << 20)), 0)):
            peer.feed(piece)
        assert [bytes(tensor) for tensor in peer.tensors] == tensors

    asyncio.run(on_loop(make, act))


@contextmanager
def allocated():
    """The most bytes that are held at a time beyond those at the beginning."""
    most = [0]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield most
    finally:
        most[0] = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()


@pytest.mark.parametrize("make", [Http, Grpc])
def test_the_last_bytes_of_a_large_body_do_not_cost_another_copy_of_it(make):
    def act(peer):
        raw = peer.wrapped(bytes(LARGE))
        pieces = list(cut(raw, iter(lambda: COME_AT_ONCE, 0)))
        for piece in pieces[:-1]:
            peer.feed(piece)
        assert not peer.tensors
        with allocated() as most:
            peer.feed(pieces[-1])
        assert len(peer.tensors[0]) == LARGE
        assert most[0] < LARGE // 4

    asyncio.run(on_loop(make, act))


def test_a_large_answer_is_copied_once():
    def act(peer):
        peer.feed(peer.wrapped(b"abcd"))
        result = Result(BYTES.outputs[0], (1, LARGE), memoryview(bytes(LARGE)))
        with allocated() as most:
            peer.exchanges[0].answer([result], 0)
        assert peer.transport.written > LARGE
        assert LARGE <= most[0] < LARGE * 5 // 4

    asyncio.run(on_loop(Http, act))


def test_what_a_stream_holds_counts_a_message_that_has_not_all_come():
    reader = MessageReader(LARGE)
    raw = prefixed(bytes(LARGE))
    for piece in (raw[:100_000], raw[100_000:900_000]):
        reader.feed(piece)
        assert reader.take() is None
    assert reader.held == 900_000 - 5
    assert reader.is_within
    reader.feed(raw[900_000:])
    message, _ = reader.take()
    assert (len(message), reader.held, reader.is_within) == (LARGE, 0, False)
