"""Our HTTP/2 on any bytes: cut anywhere they mean the same, and nothing but a protocol error comes of the worst of them."""

import h2.config
import h2.connection
import h2.events
import hpack
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.api.h2 import frames
from gpulet.api.h2.connection import Connection
from gpulet.api.h2.events import Ended, Opened, Received
from gpulet.api.h2.fields import literal
from gpulet.api.h2.frames import Setting, frame, window_update
from gpulet.api.h2.messages import MessageReader, prefixed
from gpulet.api.h2.streams import Limits
from h2peer import BLOCK, END, HEAD_FIELDS, HELLO, OK, WHOLE, Head, data, opened, setting

CONVERSATION = (
    HELLO
    + opened(1)
    + data(1, b"hello")
    + frame(frames.PING, 0, 0, b"12345678")
    + frame(frames.HEADERS, 0, 3, BLOCK[:5])
    + frame(frames.CONTINUATION, WHOLE, 3, BLOCK[5:])
    + data(3, b"x" * 300, last=True)
    + frame(frames.RST_STREAM, 0, 1, bytes(4))
    + window_update(0, 77)
    + setting(Setting.INITIAL_WINDOW_SIZE, 99)
    + opened(5, last=True)
    + data(9, b"idle")
)


def fresh(**limits):
    return Connection(Limits(**{"head": 16384, **limits}), Head)


def test_bytes_cut_anywhere_give_the_same_events_and_answers():
    whole = fresh()
    events = whole.receive(CONVERSATION)
    assert [type(e) for e in events] == [Opened, Received, Opened, Received, Ended, Opened]
    for cut in range(len(CONVERSATION)):
        made = fresh()
        assert made.receive(CONVERSATION[:cut]) + made.receive(CONVERSATION[cut:]) == events, cut
        assert made.sender.out == whole.sender.out
    made = fresh()
    assert [e for byte in CONVERSATION for e in made.receive(bytes((byte,)))] == events
    assert made.sender.out == whole.sender.out


streams = st.sampled_from((0, 1, 2, 3, 5, 7, 99, frames.MOST_ID))
numbers = st.sampled_from((0, 1, 5, 65535, frames.MOST_ID, 2**32 - 1))
payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from((BLOCK, BLOCK[:7], b"\x20", b"\x3f\xe1\x1f", b"\xbe", b"\x40\x01a\x01b", bytes(8))),
    numbers.map(lambda n: n.to_bytes(4, "big")),
    st.tuples(st.integers(0, 8), numbers).map(lambda s: frames.PAIR.pack(*s)),
)
wild = st.builds(frame, st.integers(0, 11), st.integers(0, 255), streams, payloads)
tame = st.one_of(
    st.builds(lambda n, last: opened(2 * n + 1, last=last), st.integers(0, 5), st.booleans()),
    st.builds(
        lambda n, p, last: data(2 * n + 1, p, last=last), st.integers(0, 5), st.binary(max_size=90), st.booleans()
    ),
    st.builds(lambda n, size: window_update(2 * n + 1, size), st.integers(0, 5), st.integers(1, 999)),
    st.builds(lambda size: setting(Setting.INITIAL_WINDOW_SIZE, size), st.integers(0, 999)),
    st.builds(lambda n: frame(frames.RST_STREAM, 0, 2 * n + 1, bytes(4)), st.integers(0, 5)),
)
deeds = st.tuples(
    st.sampled_from(("respond", "begin", "send", "finish", "reset", "leave", "credit")), st.integers(0, 5)
)


def act(made, deed, number):
    stream = 2 * number + 1
    if deed == "leave":
        made.leave(is_final=False)
    elif stream in made.streams and not made.streams[stream].trailers:
        does = {
            "respond": lambda: made.respond(stream, OK, (bytes(200),), 200, OK),
            "begin": lambda: made.begin(stream, OK),
            "send": lambda: made.send(stream, bytes(70)),
            "finish": lambda: made.finish(stream, OK),
            "reset": lambda: made.reset(stream, frames.Code.CANCEL),
            "credit": lambda: made.credit(stream, 10),
        }
        does[deed]()


def check(made):
    assert len(made._rest) < frames.HEAD_BYTES + frames.MOST_FRAME
    assert len(made.streams) <= made._limits.streams
    assert len(made._fields._known) <= 64
    assert made.sender.waiting == sum(s.waiting for s in made.streams.values()) or made.is_over
    assert made.sender.waiting >= 0
    for stream in made.streams.values():
        assert stream.waiting == sum(map(len, stream.queue))
        assert not stream.is_done
        assert not (stream.queue and stream.window > 0 and made.sender._window > 0), "data that might leave stays"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(tame, tame, wild, deeds), max_size=40))
def test_any_frames_give_events_or_a_protocol_error(steps):
    """Whatever comes and whatever is answered, no other exception, nothing unbounded, nothing held up without a reason."""
    made = fresh(streams=4, window=200, whole_window=65535, controls=1000)
    made.receive(HELLO)
    for step in steps:
        if isinstance(step, bytes):
            before = set(made.streams)
            for event in made.receive(step):
                if isinstance(event, Opened):
                    assert event.stream not in before
        elif not made.is_over:
            act(made, *step)
        check(made)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(CONVERSATION)))
def test_any_bytes_give_events_or_a_protocol_error(noise, at):
    made = fresh()
    made.receive(CONVERSATION[:at] + noise + CONVERSATION[at:])
    check(made)


fields = st.lists(
    st.tuples(
        st.sampled_from((b"a", b"grpc-timeout", b"x-long-name")),
        st.sampled_from((b"", b"1", b"22", b"v" * 60, b"w" * 90)),
    ),
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(fields, st.booleans()), max_size=25), st.sampled_from((0, 64, 300, 4096)))
def test_heads_are_what_a_real_encoder_meant_however_often_it_repeats_them(requests, table):
    """The oracle is hpack's encoder, whose small tables evict; half of the blocks are met again from memory."""
    made, encoder = fresh(), hpack.Encoder()
    encoder.header_table_size = table
    made.receive(HELLO)
    for number, (more, huffman) in enumerate(requests):
        block = encoder.encode([*HEAD_FIELDS, *more], huffman=huffman)
        (event,) = made.receive(frame(frames.HEADERS, WHOLE | END, 2 * number + 1, block))
        wanted: dict = {}
        for name, value in [*HEAD_FIELDS, *more]:
            wanted.setdefault(name, value)
        assert event.head.fields == wanted
        made.reset(event.stream, frames.Code.CANCEL)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.binary(max_size=300), max_size=8),
    st.lists(st.sampled_from((0, 1, 100, 65535, 200_000)), min_size=1, max_size=6),
    st.sampled_from((0, 100, 4096)),
    st.sampled_from((1000, 16384, 70_000)),
)
def test_the_h2_library_hears_what_we_answer(bodies, windows, table, step):
    """An independent client with its own windows: every byte of every answer arrives, in order, and no rule is broken."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: windows[0], SettingCodes.HEADER_TABLE_SIZE: table})
    server, heard = fresh(), {}
    for body in bodies:
        stream = client.get_next_available_stream_id()
        heard[stream] = [body * 300, b"", False]
        client.send_headers(stream, HEAD_FIELDS)
        client.send_data(stream, body, end_stream=True)
    got: dict = {}
    for turn in range(500):
        if 0 < turn < len(windows):
            client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: windows[turn]})
        for event in server.receive(client.data_to_send()):
            if isinstance(event, Received):
                got[event.stream] = got.get(event.stream, b"") + event.data
                if event.is_ended:
                    answer = got[event.stream] * 300
                    trailers = literal(b"grpc-status", b"0")
                    server.respond(event.stream, OK, (answer,), len(answer), trailers)
        raw = b"".join(server.sender.out)
        server.sender.out.clear()
        hear(client, heard, raw, step)
        if all(done for *_, done in heard.values()) and not raw:
            break
    assert all(answer == wanted and done for wanted, answer, done in heard.values())
    assert server.sender.waiting == 0
    assert not server.streams


def hear(client, heard, raw, step):
    for event in client.receive_data(raw):
        match event:
            case h2.events.DataReceived():
                heard[event.stream_id][1] += event.data
            case h2.events.StreamEnded():
                heard[event.stream_id][2] = True
            case h2.events.TrailersReceived():
                assert event.headers == [(b"grpc-status", b"0")]
    for stream, (*_, done) in heard.items():
        if not done:
            client.increment_flow_control_window(step, stream) if roomy(client, stream, step) else None
    if roomy(client, None, step):
        client.increment_flow_control_window(step)


def roomy(client, stream, step):
    manager = client._inbound_flow_control_window_manager
    if stream is not None:
        if stream not in client.streams or client.streams[stream].closed:
            return False
        manager = client.streams[stream]._inbound_window_manager
    return manager.current_window_size + step < 2**31 - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=10), st.lists(st.integers(1, 4000), max_size=30))
def test_messages_come_out_as_they_went_in_however_they_are_cut(messages, cuts):
    raw, reader, found = b"".join(map(prefixed, messages)), MessageReader(5000), []
    for cut in [*cuts, len(raw)]:
        reader.feed(raw[:cut])
        raw = raw[cut:]
        while (taken := reader.take()) is not None:
            found.append(taken)
    assert found == [(m, False) for m in messages]
    assert reader.held == 0
    assert not reader.is_within
