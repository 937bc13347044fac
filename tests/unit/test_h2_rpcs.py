"""gRPC on our HTTP/2: heads, messages, ends of calls, patience; with a service and a transport that are a few lines each."""

import asyncio
import gc
import gzip
import random
import re
import struct
import weakref
import zlib
from types import SimpleNamespace

import pytest

from gpulet.api.h2 import frames
from gpulet.api.h2.frames import Code, Setting, frame, window_update
from gpulet.api.h2.heads import rpc_head, trailers
from gpulet.api.h2.messages import prefixed
from gpulet.api.h2.protocol import H2Protocol
from gpulet.api.rpc.service import Kind
from gpulet.api.rpc.status import Status
from gpulet.errors import RequestError
from gpulet.units import MS, SECOND
from h2peer import END, HELLO, data, opened, read, setting

KINDS = {"/i": Kind.INFER, "/s": Kind.INFER_STREAM, "/u": Kind.UNARY, "/w": Kind.WATCH}


class Call:
    """An infer request that the test answers."""

    def __init__(self, message, limit, done):
        self.message, self.limit, self.done = message, limit, done
        self.error, self.parts, self.name = None, (), "n"
        self.is_cancelled = False

    def answer(self, *parts):
        self.parts = parts
        self.done(self)

    def fail(self, error):
        self.error = error
        self.done(self)

    def cancel(self):
        self.is_cancelled = True


class Service:
    """Its methods: /u says the message backwards, refuses `no`, and `later` answers when the test sets it."""

    kinds = KINDS

    def __init__(self, token=b""):
        self.token = token
        self.calls = []
        self.infer = self
        self.health = b"ok"
        self.unary = {"/u": self.echo}
        self.later = None

    def allows(self, path, authorization):
        return authorization == self.token

    def begin(self, message, limit, traceparent, done):
        self.calls.append(Call(message, limit, done))
        if message.startswith(b"bad"):
            self.calls[-1].fail(RequestError("bad at once"))
        return self.calls[-1]

    def echo(self, message):
        if message == b"no":
            msg = "no, 100 %"
            raise RequestError(msg, 404)
        if message == b"later":
            self.later = asyncio.get_running_loop().create_future()
            return self.later
        return message[::-1]

    def watch(self, message):
        return lambda: self.health


class Transport:
    """Keeps what was written."""

    def __init__(self):
        self.raw, self.ended, self.is_reading = b"", "", True

    def set_write_buffer_limits(self, high):
        pass

    def get_extra_info(self, name):
        return None

    def write(self, raw):
        self.raw += raw

    def is_closing(self):
        return bool(self.ended)

    def close(self):
        self.ended = "closed"

    def abort(self):
        self.ended = "aborted"

    def pause_reading(self):
        self.is_reading = False

    def resume_reading(self):
        self.is_reading = True


class Wire:
    """A connection that is flushed at once."""

    def __init__(self, body=1000, token=b"", connections=9):
        self.service = Service(token)
        clock = self.clock = [7]
        self.front = SimpleNamespace(
            live=SimpleNamespace(timer=SimpleNamespace(now=lambda: clock[0])),
            limits=SimpleNamespace(body=body, head=16384, connections=connections),
            connections=0,
            flush_soon=lambda connection: connection.flush(),
        )
        self.protocol = H2Protocol(self.front, self.service, set())
        self.transport = Transport()
        self.protocol.connection_made(self.transport)

    def hear(self, raw):
        self.protocol.data_received(raw)
        raw, self.transport.raw = self.transport.raw, b""
        return [f for f in read(raw) if f[0] != frames.SETTINGS]

    @property
    def calls(self):
        return self.service.calls


@pytest.fixture
def wire():
    made = Wire()
    made.hear(HELLO)
    return made


def call(stream, path, message=b"", *more, last=True):
    return head(stream, path, *more) + data(stream, prefixed(message), last=last)


def head(stream, path, *more, kind=b"application/grpc", method=b"POST"):
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path.encode()), (b"content-type", kind), *more]
    return opened(stream, fields=fields)


def text(found):
    return b"".join(payload for *_, payload in found)


def test_a_document_is_answered_as_head_message_and_trailers(wire):
    found = wire.hear(call(1, "/u", b"abc"))
    assert [f[:3] for f in found] == [(1, 4, 1), (0, 0, 1), (1, 5, 1)]
    assert b"application/grpc" in found[0][3]
    assert found[1][3] == b"\0\0\0\0\x03cba"
    assert found[2][3] == b"\x00\x0bgrpc-status\x010"


def test_an_infer_call_is_answered_from_its_parts(wire):
    assert wire.hear(call(1, "/i", b"abc")) == []
    assert wire.calls[0].message == b"abc"
    wire.calls[0].answer(b"de", memoryview(b"f"))
    assert b"\0\0\0\0\x03def" in wire.transport.raw


@pytest.mark.parametrize(
    ("timeout", "limit"),
    [(b"5S", 5 * SECOND), (b"20m", 20 * MS), (b"3u", 3000), (b"1H", 3600 * SECOND), (b"0n", -1), (b"99999999H", 0)],
)
def test_a_deadline_goes_with_the_call(wire, timeout, limit):
    wire.hear(call(1, "/i", b"", (b"grpc-timeout", timeout)))
    assert wire.calls[0].limit == limit


def test_a_deadline_counts_from_the_head_on(wire):
    wire.hear(head(1, "/i", (b"grpc-timeout", b"5S")))
    wire.clock[0] += 6 * SECOND
    wire.hear(data(1, prefixed(b""), last=True))
    assert wire.calls[0].limit == -SECOND


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (call(1, "/u", b"no"), b"grpc-status\x015\x00\x0cgrpc-message\x0bno, 100 %25"),
        (call(1, "/nothing"), b"grpc-status\x0212\x00\x0cgrpc-message"),
        (call(1, "/u", b"", (b"authorization", b"x")), b"grpc-status\x0216"),
        (call(1, "/u", b"", (b"grpc-timeout", b"soon")), b"grpc-status\x013"),
        (call(1, "/u", b"", (b"grpc-timeout", b"123456789S")), b"grpc-status\x013"),
        (call(1, "/u", b"", (b"grpc-encoding", b"br")), b"grpc-status\x0212"),
        (head(1, "/u") + data(1, last=True), b"grpc-status\x013"),
        (head(1, "/u") + data(1, prefixed(b"abc")[:-1], last=True), b"grpc-status\x013"),
        (head(1, "/u") + data(1, prefixed(b"a") * 2, last=True), b"grpc-status\x013"),
        (head(1, "/u") + data(1, b"\x02\0\0\0\x01a", last=True), b"grpc-status\x013"),
        (head(1, "/u") + data(1, b"\x01\0\0\0\x01a", last=True), b"grpc-status\x0213"),
        (head(1, "/u", (b"grpc-encoding", b"gzip")) + data(1, b"\x01\0\0\0\x01a", last=True), b"grpc-status\x013"),
        (head(1, "/u", method=b"GET"), b"\x00\x07:status\x03405\x00\x05allow\x04POST"),
        (head(1, "/u", kind=b"application/json"), b"\x00\x07:status\x03415"),
        (head(1, "/u", kind=b"application/grpc+json"), b"\x00\x07:status\x03415"),
    ],
)
def test_what_is_refused_is_told_so_in_one_frame(wire, raw, said):
    found = wire.hear(raw)
    assert found[0][:3] == (frames.HEADERS, frames.END_HEADERS | END, 1)
    assert said in found[0][3]
    assert not wire.calls
    assert b"cba" in text(wire.hear(call(3, "/u", b"abc")))


def test_content_types_that_say_more_are_grpc(wire):
    for stream, kind in ((1, b"application/grpc+proto"), (3, b"application/grpc; charset=utf-8")):
        assert b"cba" in text(wire.hear(head(stream, "/u", kind=kind) + data(stream, prefixed(b"abc"), last=True)))


def test_messages_are_unpacked_within_their_bound(wire):
    for stream, size in ((1, 66000), (3, 67000)):
        packed = zlib.compress(bytes(size))
        raw = b"\x01" + len(packed).to_bytes(4, "big") + packed
        wire.hear(head(stream, "/i", (b"grpc-encoding", b"deflate")) + data(stream, raw, last=True))
    assert [len(c.message) for c in wire.calls] == [66000]


def test_a_message_that_will_be_too_large_is_refused_by_its_prefix(wire):
    found = wire.hear(head(1, "/i") + data(1, b"\0\x00\x01\x03\xe9"))  # 1000 bytes of body and 65536 of head, and one
    assert b"grpc-status\x018" in found[0][3]
    assert found[1] == (frames.RST_STREAM, 0, 1, struct.pack(">L", Code.NO_ERROR))
    assert wire.hear(data(1, bytes(9000), last=True)) == []


def test_a_call_taken_back_is_cancelled_and_so_are_those_of_a_lost_connection(wire):
    wire.hear(call(1, "/i") + call(3, "/i") + frame(frames.RST_STREAM, 0, 1, struct.pack(">L", 8)))
    assert [c.is_cancelled for c in wire.calls] == [True, False]
    wire.calls[0].answer(b"late")
    assert wire.transport.raw == b""
    wire.protocol.connection_lost(None)
    assert wire.calls[1].is_cancelled
    assert wire.front.connections == 0


def test_messages_are_percent_encoded_and_short():
    assert trailers(Status.OK, "ä%\n ~") == b"\x00\x0bgrpc-status\x010\x00\x0cgrpc-message\x0e%C3%A4%25%0A ~"
    assert len(trailers(Status.OK, "ä" * 5000)) < 4000
    assert len(trailers(Status.OK, "\ud800")) < 100


def test_tokens_are_asked_for():
    assert not rpc_head(Service(b"Bearer x"), read_fields(b"Bearer x")).refusal
    assert b"grpc-status\x0216" in rpc_head(Service(b"Bearer x"), read_fields(b"Bearer y")).refusal


def test_nothing_of_a_lost_connection_waits_for_the_collector_of_cycles():
    def play():
        wire = Wire()
        raw = call(1, "/i") + call(3, "/nothing") + call(5, "/u", b"no") + call(7, "/s", last=False) + call(9, "/w")
        wire.hear(HELLO + raw + call(11, "/u", b"x", (b"grpc-timeout", b"soon")) + call(13, "/i"))
        wire.calls[2].answer(b"")
        wire.protocol.connection_lost(None)
        found = [weakref.ref(each) for each in (wire.protocol, *wire.calls)]
        wire.calls.clear()  # which the driver would have let go
        return found

    gc.disable()
    try:
        assert [found() for found in play()] == [None] * 4
    finally:
        gc.enable()


def read_fields(authorization):
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/u"),
        (b"content-type", b"application/grpc"),
        (b"authorization", authorization),
    ]


# streams --------------------------------------------------------------------------------------------------------------


def test_answers_of_a_stream_leave_in_the_order_of_their_requests(wire):
    wire.hear(head(1, "/s") + data(1, prefixed(b"a") + prefixed(b"b")))
    first, second = wire.calls
    second.answer(b"B")
    assert b"B" not in wire.transport.raw
    first.fail(RequestError("bad luck"))
    raw = wire.transport.raw
    assert raw.index(b"bad luck") < raw.index(b"B")
    found = wire.hear(data(1, last=True))
    assert found[-1][:3] == (frames.HEADERS, frames.END_HEADERS | END, 1)
    assert b"grpc-status\x010" in found[-1][3]


def test_a_stream_holds_no_more_requests_than_may_wait_nor_window_for_more(wire):
    wire.hear(head(1, "/s"))
    many = prefixed(bytes(4000)) * 4
    found = [f for _ in range(40) for f in wire.hear(data(1, many))]
    assert len(wire.calls) == 64
    given = sum(struct.unpack(">L", f[3])[0] for f in found if f[:3] == (frames.WINDOW_UPDATE, 0, 1))
    assert given <= 64 * 4005
    for each in list(wire.calls):
        each.answer(b"")
    assert len(wire.calls) == 128


def test_a_stream_takes_no_request_while_its_answers_wait_for_a_window(wire):
    wire.hear(setting(Setting.INITIAL_WINDOW_SIZE, 0) + head(1, "/s") + data(1, prefixed(b"a")))
    wire.calls[0].answer(b"answer")
    wire.hear(data(1, prefixed(b"b"), last=True))
    assert len(wire.calls) == 1
    wire.hear(window_update(1, 1000))
    assert len(wire.calls) == 2
    wire.calls[1].answer(b"")
    assert b"grpc-status" in wire.transport.raw


def test_a_stream_that_ends_within_a_message_is_refused_after_its_answers(wire):
    wire.hear(head(1, "/s") + data(1, prefixed(b"a") + b"\0\0", last=True))
    assert b"grpc-status" not in wire.transport.raw
    wire.calls[0].answer(b"A")
    assert b"grpc-status\x013" in wire.transport.raw


def test_large_packed_requests_of_a_stream_are_answered_in_order_though_threads_unpack_them():
    async def ask():
        wire = Wire(body=1 << 20)
        noise = random.Random(1).randbytes(30_000)
        wire.hear(HELLO + head(1, "/s", (b"grpc-encoding", b"gzip")))
        raw = b"".join(
            b"\x01" + len(packed).to_bytes(4, "big") + packed
            for packed in (gzip.compress(start + noise) for start in (b"first", b"bad", b"third", b"bad"))
        )
        for at in range(0, len(raw), 16000):
            wire.hear(data(1, raw[at : at + 16000], last=at + 16000 >= len(raw)))
        while b"grpc-status" not in wire.transport.raw:
            await asyncio.sleep(0.001)
            for each in wire.calls:
                if each.message[:3] != b"bad" and not each.parts:
                    each.answer(each.message[:5])
        raw = wire.transport.raw
        marks = [m.group() for m in re.finditer(b"first|third|bad at once|grpc-status.0", raw, re.DOTALL)]
        assert marks == [b"first", b"bad at once", b"third", b"bad at once", b"grpc-status\x010"]

    asyncio.run(ask())


def test_health_is_told_when_it_changes(wire):
    assert b"\x02ok" in text(wire.hear(call(1, "/w")))
    wire.protocol.tick()
    assert wire.transport.raw == b""
    wire.service.health = b"ill"
    wire.protocol.tick()
    assert b"\x03ill" in wire.transport.raw


# patience -------------------------------------------------------------------------------------------------------------


def seconds(wire, count):
    wire.transport.raw = b""
    for _ in range(count):
        wire.protocol.tick()
    return read(wire.transport.raw)


@pytest.mark.parametrize("begun", [b"", HELLO[:9], HELLO[:-3], HELLO + opened(1)[:-1], HELLO + frame(1, 0, 1, b"\x82")])
def test_a_peer_that_leaves_something_unfinished_is_cut_off(begun):
    wire = Wire()
    wire.hear(begun) if begun else None
    seconds(wire, 30)
    assert not wire.transport.ended
    assert seconds(wire, 1)[-1][0] == frames.GOAWAY
    assert wire.transport.ended == "closed"


def test_a_request_that_stays_incomplete_is_ended_though_pings_come(wire):
    wire.hear(head(1, "/i") + data(1, b"\0\0"))
    found = []
    for _ in range(31):
        wire.hear(frame(frames.PING, 0, 0, bytes(8)))
        found += seconds(wire, 1)
    assert b"grpc-status\x014" in text(found)
    assert not wire.transport.ended
    wire.hear(call(3, "/i"))
    assert seconds(wire, 60) == []


def test_a_peer_that_is_silent_is_asked_and_then_given_up(wire):
    assert seconds(wire, 119) == []
    assert [f[0] for f in seconds(wire, 1)] == [frames.PING]
    wire.hear(frame(frames.PING, frames.ACK, 0, b"gpulet??"))
    seconds(wire, 120)
    assert not wire.transport.ended
    seconds(wire, 31)
    assert wire.transport.ended == "aborted"


def test_a_peer_that_takes_no_answers_is_not_read_and_then_given_up(wire):
    wire.hear(call(1, "/i"))
    wire.protocol.pause_writing()
    assert not wire.transport.is_reading
    wire.calls[0].answer(b"x")
    assert wire.transport.raw == b""
    seconds(wire, 30)
    wire.protocol.resume_writing()
    assert wire.transport.is_reading
    assert b"x" in wire.transport.raw
    wire.protocol.pause_writing()
    seconds(wire, 31)
    assert wire.transport.ended == "aborted"


def test_connections_beyond_their_number_are_told_and_closed():
    wire = Wire(connections=0)
    assert struct.pack(">L", Code.ENHANCE_YOUR_CALM) in wire.transport.raw
    assert wire.transport.ended == "closed"


def test_open_calls_are_told_that_the_server_stops(wire):
    wire.hear(call(1, "/w") + head(3, "/s") + call(5, "/i"))
    wire.transport.raw = b""
    wire.protocol.stop()
    found = read(wire.transport.raw)
    assert sorted(f[2] for f in found if b"grpc-status\x0214" in f[3]) == [1, 3, 5]
    assert found[-1][0] == frames.GOAWAY
    assert wire.calls[0].is_cancelled
    wire.transport.raw = b""
    assert wire.hear(call(7, "/i")) == []


def test_work_is_awaited_and_given_up_with_its_call():
    async def ask():
        wire = Wire()
        wire.hear(HELLO + call(1, "/u", b"later"))
        wire.service.later.set_result(b"done")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert b"done" in wire.transport.raw
        wire.hear(call(3, "/u", b"later") + frame(frames.RST_STREAM, 0, 3, bytes(4)))
        assert wire.service.later.cancelled()

    asyncio.run(ask())
