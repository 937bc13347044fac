"""Our HTTP/2 connection against RFC 9113, rule by rule, as frames."""

import struct

import pytest

from gpulet.api.h2 import frames
from gpulet.api.h2.connection import Connection
from gpulet.api.h2.events import Drained, Ended, Opened, Received
from gpulet.api.h2.frames import Code, Setting, frame, window_update
from gpulet.api.h2.streams import Limits
from h2peer import BLOCK, END, HEAD_FIELDS, HELLO, OK, WHOLE, Head, connection, data, ends, opened, setting, written

LONG = struct.Struct(">L").pack
PING = frame(frames.PING, 0, 0, b"12345678")
RESET = frame(frames.RST_STREAM, 0, 1, LONG(8))


def without(*names):
    return [(k, v) for k, v in HEAD_FIELDS if k not in names]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"GET / HTTP/1.1\r\n", Code.PROTOCOL_ERROR),
        (frames.PREFACE + PING, Code.PROTOCOL_ERROR),
        (frames.PREFACE + frame(frames.SETTINGS, frames.ACK, 0), Code.PROTOCOL_ERROR),
        (frames.PREFACE + frame(0xBB, 0, 0), Code.PROTOCOL_ERROR),
    ],
)
def test_a_connection_begins_with_its_preface_and_settings(raw, code):
    fresh = Connection(Limits(16384), Head)
    written(fresh)
    fresh.receive(raw)
    assert ends(fresh) == {0: code}
    assert fresh.is_over
    assert fresh.receive(HELLO + opened(1)) == []


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        # sizes: 4.2, and each frame's own
        (frames.HEAD.pack(0x40, 1, frames.DATA, 0, 1), Code.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 0, b"12345"), Code.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, frames.ACK, 0, b"123456"), Code.FRAME_SIZE_ERROR),
        (frame(frames.PING, 0, 0, b"1234567"), Code.FRAME_SIZE_ERROR),
        (frame(frames.GOAWAY, 0, 0, b"1234567"), Code.FRAME_SIZE_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, b"123"), Code.FRAME_SIZE_ERROR),
        (opened(1) + frame(frames.RST_STREAM, 0, 1, b"123"), Code.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, WHOLE | frames.PRIORITIZED, 1, b"1234"), Code.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, WHOLE | frames.PADDED, 1), Code.FRAME_SIZE_ERROR),
        # streams where they must not be, or none where there must be one
        (data(0, b"x"), Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, WHOLE, 0, BLOCK), Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, WHOLE, 2, BLOCK), Code.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 0, b"12345"), Code.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 0, LONG(8)), Code.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 1, b"12345678"), Code.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, WHOLE, 1, BLOCK), Code.PROTOCOL_ERROR),
        # idle streams: 5.1
        (data(1, b"x"), Code.PROTOCOL_ERROR),
        (RESET, Code.PROTOCOL_ERROR),
        (window_update(1, 1), Code.PROTOCOL_ERROR),
        (opened(5) + data(7, b"x"), Code.PROTOCOL_ERROR),
        # closed streams: 5.1, 5.1.1
        (opened(5) + opened(3), Code.STREAM_CLOSED),
        (opened(1, last=True) + RESET + data(1, b"x"), Code.STREAM_CLOSED),
        (opened(1, last=True) + RESET + opened(1), Code.STREAM_CLOSED),
        # padding: 6.1, 6.2
        (opened(1) + frame(frames.DATA, frames.PADDED, 1, b"\x06hello"), Code.PROTOCOL_ERROR),
        (opened(1) + frame(frames.DATA, frames.PADDED, 1), Code.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, WHOLE | frames.PADDED, 1, b"\xff" + BLOCK), Code.PROTOCOL_ERROR),
        # settings: 6.5.2
        (setting(Setting.ENABLE_PUSH, 2), Code.PROTOCOL_ERROR),
        (setting(Setting.INITIAL_WINDOW_SIZE, 1 << 31), Code.FLOW_CONTROL_ERROR),
        (setting(Setting.MAX_FRAME_SIZE, 16383), Code.PROTOCOL_ERROR),
        (setting(Setting.MAX_FRAME_SIZE, 1 << 24), Code.PROTOCOL_ERROR),
        # windows, 6.9
        (window_update(0, 0), Code.PROTOCOL_ERROR),
        (window_update(0, frames.MOST_WINDOW), Code.FLOW_CONTROL_ERROR),
        (
            opened(1) + window_update(1, frames.MOST_WINDOW - 65535) + setting(Setting.INITIAL_WINDOW_SIZE, 65536),
            Code.FLOW_CONTROL_ERROR,
        ),
        # header blocks: 4.3, 6.10
        (frame(frames.CONTINUATION, WHOLE, 1, BLOCK), Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, BLOCK[:3]) + PING, Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, BLOCK[:3]) + frame(0xBB, 0, 0), Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, BLOCK[:3]) + frame(frames.CONTINUATION, WHOLE, 3), Code.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, BLOCK[:3]) + frame(frames.CONTINUATION, 0, 1) * 64, Code.ENHANCE_YOUR_CALM),
        (
            frame(frames.HEADERS, 0, 1, bytes(16000)) + frame(frames.CONTINUATION, 0, 1, bytes(16384)) * 2,
            Code.ENHANCE_YOUR_CALM,
        ),
        (opened(1, fields=[*HEAD_FIELDS, (b"x", bytes(15000)), (b"y", bytes(1300))]), Code.ENHANCE_YOUR_CALM),
        # HPACK: RFC 7541
        (frame(frames.HEADERS, WHOLE, 1, BLOCK[:-1]), Code.COMPRESSION_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, b"\xbe"), Code.COMPRESSION_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, b"\x80"), Code.COMPRESSION_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, b"\xff" + b"\xff" * 1000 + b"\x01"), Code.COMPRESSION_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, b"\x40\x05ab"), Code.COMPRESSION_ERROR),
        (frame(frames.HEADERS, WHOLE, 1, b"\x3f\xe2\x1f"), Code.COMPRESSION_ERROR),  # a table of 4097
        (frame(frames.HEADERS, WHOLE, 1, b"\x82\x20"), Code.COMPRESSION_ERROR),  # another size behind a field
    ],
)
def test_what_breaks_a_connection_ends_it_with_the_right_code(raw, code):
    made = connection()
    made.receive(raw)
    assert ends(made).get(0) == code
    assert made.is_over
    assert not made.streams


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (opened(1) + frame(frames.PRIORITY, 0, 1, b"1234"), Code.FRAME_SIZE_ERROR),
        (opened(1) + window_update(1, 0), Code.PROTOCOL_ERROR),
        (opened(1) + window_update(1, frames.MOST_WINDOW), Code.FLOW_CONTROL_ERROR),
        (opened(1, last=True) + data(1, b"x"), Code.STREAM_CLOSED),
        (opened(1, last=True) + opened(1), Code.STREAM_CLOSED),
        (opened(1) + frame(frames.HEADERS, WHOLE, 1, b"\x00\x01a\x01b"), Code.PROTOCOL_ERROR),  # no END_STREAM
        # malformed requests: 8.1.1, 8.2, 8.3
        (opened(1, fields=without(b":method")), Code.PROTOCOL_ERROR),
        (opened(1, fields=without(b":path")), Code.PROTOCOL_ERROR),
        (opened(1, fields=without(b":scheme")), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*without(b":path"), (b":path", b"")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b":path", b"/late")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[(b":path", b"/twice"), *HEAD_FIELDS]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[(b":status", b"200"), *HEAD_FIELDS]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"Upper", b"x")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"", b"x")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"a b", b"x")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"x", b"a\r\nb")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"x", b"\0")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"x", b" a")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"connection", b"close")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"transfer-encoding", b"chunked")]), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*without(b"te"), (b"te", b"gzip")]), Code.PROTOCOL_ERROR),
        (opened(1) + frame(frames.HEADERS, WHOLE | END, 1, b"\x83"), Code.PROTOCOL_ERROR),  # :method as a trailer
        # content-length: 8.1.1
        (opened(1, fields=[*HEAD_FIELDS, (b"content-length", b"1")]) + data(1, b"ab"), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"content-length", b"2")]) + data(1, b"a", last=True), Code.PROTOCOL_ERROR),
        (opened(1, fields=[*HEAD_FIELDS, (b"content-length", b"2")], last=True), Code.PROTOCOL_ERROR),
    ],
)
def test_what_breaks_a_stream_ends_it_alone(raw, code):
    made = connection()
    made.receive(raw)
    assert ends(made) == {1: code}
    assert 1 not in made.streams
    assert [type(e) for e in made.receive(opened(3))] == [Opened]


@pytest.mark.parametrize(
    "raw",
    [
        frame(0xBB, 0xFF, 7, b"unknown"),
        setting(0xBB, 7),
        frame(frames.SETTINGS, frames.ACK, 0),
        frame(frames.PRIORITY, 0, 9, b"12345"),
        frame(frames.PING, frames.ACK, 0, b"12345678"),
        frame(frames.GOAWAY, 0, 0, bytes(8) + b"why"),
        window_update(0, 1),
    ],
)
def test_what_needs_no_answer_or_is_unknown_changes_nothing(raw):
    made = connection()
    assert made.receive(raw) == []
    assert not made.is_over
    assert [f for f in written(made) if f[:2] != (frames.SETTINGS, frames.ACK)] == []
    assert [type(e) for e in made.receive(opened(1))] == [Opened]


def test_pings_and_settings_are_acknowledged():
    made = connection()
    made.receive(PING + setting(Setting.MAX_CONCURRENT_STREAMS, 1))
    assert written(made) == [(frames.PING, frames.ACK, 0, b"12345678"), (frames.SETTINGS, frames.ACK, 0, b"")]


def test_padding_and_priority_are_no_part_of_what_they_pad():
    made = connection()
    padded = frame(frames.HEADERS, WHOLE | frames.PADDED | frames.PRIORITIZED, 1, b"\x03" + bytes(5) + BLOCK + bytes(3))
    events = made.receive(padded + frame(frames.DATA, frames.PADDED | END, 1, b"\x02hello\0\0"))
    assert events == [Opened(1, Head(HEAD_FIELDS), False), Received(1, b"hello", 8, True)]


def test_trailers_of_a_request_end_it():
    made = connection()
    events = made.receive(opened(1) + frame(frames.HEADERS, WHOLE | END, 1, b"\x00\x01a\x01b"))
    assert events[1:] == [Received(1, b"", 0, is_ended=True)]


def test_what_a_peer_sent_before_it_heard_that_its_stream_is_over_is_passed_over_but_counts():
    made = connection(window=65535, whole_window=100_000)
    made.receive(opened(1))
    made.finish(1, OK)
    assert [f[:3] for f in written(made)] == [(frames.HEADERS, WHOLE | END, 1), (frames.RST_STREAM, 0, 1)]
    late = frame(frames.HEADERS, WHOLE | END, 1, b"\x40\x01a\x01b")
    assert made.receive(data(1, bytes(16384)) * 3 + data(1, bytes(16384), last=True) + late + RESET) == []
    assert [f[0] for f in written(made)] == [frames.WINDOW_UPDATE]
    assert made.receive(frame(frames.HEADERS, WHOLE, 3, b"\x82\x86\x84\xbe"))[0].head.fields[b"a"] == b"b"


def test_more_streams_than_allowed_are_refused_and_their_fields_still_count():
    made = connection(streams=1)
    made.receive(opened(1))
    made.receive(frame(frames.HEADERS, WHOLE | END, 3, b"\x82\x86\x84\x40\x01a\x01b"))
    assert ends(made) == {3: Code.REFUSED_STREAM}
    made.receive(RESET)
    assert made.receive(frame(frames.HEADERS, WHOLE, 5, b"\x82\x86\x84\xbe"))[0].head.fields[b"a"] == b"b"


def test_heads_are_remembered_only_while_the_table_stands():
    """The same bytes mean another field once something was added in front."""
    made, same = connection(), b"\x82\x86\x84\xbe"
    made.receive(frame(frames.HEADERS, WHOLE, 1, b"\x82\x86\x84\x40\x01a\x011"))
    two = made.receive(frame(frames.HEADERS, WHOLE, 3, same) + frame(frames.HEADERS, WHOLE, 5, same))
    assert two[0].head is two[1].head
    assert two[0].head.fields[b"a"] == b"1"
    made.receive(frame(frames.HEADERS, WHOLE, 7, b"\x82\x86\x84\x40\x01b\x012"))
    now = made.receive(frame(frames.HEADERS, WHOLE, 9, same))
    assert now[0].head.fields.get(b"b") == b"2"
    assert b"a" not in now[0].head.fields


def test_a_shrunk_table_forgets_heads():
    made = connection()
    made.receive(frame(frames.HEADERS, WHOLE, 1, b"\x82\x86\x84\x40\x01a\x01b"))
    made.receive(frame(frames.HEADERS, WHOLE, 3, b"\x82\x86\x84\xbe"))
    made.receive(frame(frames.HEADERS, WHOLE, 5, b"\x20\x82\x86\x84"))
    made.receive(frame(frames.HEADERS, WHOLE, 7, b"\x82\x86\x84\xbe"))
    assert ends(made) == {0: Code.COMPRESSION_ERROR}


def test_a_peer_that_keeps_no_table_is_told_that_we_use_none():
    made = connection()
    made.receive(setting(Setting.HEADER_TABLE_SIZE, 0) + opened(1, last=True) + opened(3, last=True))
    written(made)
    made.respond(1, OK, (b"x",), 1, OK)
    made.respond(3, OK, (b"x",), 1, OK)
    blocks = [payload for kind, _, _, payload in written(made) if kind == frames.HEADERS]
    assert blocks == [b"\x20" + OK, OK, OK, OK]


# flow control ---------------------------------------------------------------------------------------------------------


def test_data_waits_for_both_windows_and_streams_take_turns():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 50_000) + opened(1, last=True) + opened(3, last=True))
    written(made)
    for stream in (1, 3):
        made.respond(stream, OK, (bytes(60_000),), 60_000, OK)
    sent = [(stream, len(p)) for kind, _, stream, p in written(made) if kind == frames.DATA]
    assert sum(size for _, size in sent) == 65535
    assert sum(size for stream, size in sent if stream == 1) == 50_000
    made.receive(window_update(3, 10_000) + window_update(0, 100_000))
    rest = [(stream, len(p)) for kind, _, stream, p in written(made) if kind == frames.DATA]
    assert sum(size for _, size in rest) == 60_000 - 15535
    assert {stream for stream, _ in rest} == {3}
    assert set(made.streams) == {1}
    made.receive(window_update(1, 10_000))
    assert [f[:2] for f in written(made)][-1] == (frames.HEADERS, WHOLE | END)
    assert not made.streams
    assert made.sender.waiting == 0


def test_streams_that_wait_for_the_connection_take_turns_frame_by_frame():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 1 << 20) + b"".join(opened(n, last=True) for n in (1, 3, 5)))
    made.respond(1, OK, (bytes(65535 + 40_000),), 65535 + 40_000, OK)
    for stream in (3, 5):
        made.respond(stream, OK, (bytes(40_000),), 40_000, OK)
    written(made)
    made.receive(window_update(0, 3 * 16384))
    assert [stream for kind, _, stream, _ in written(made) if kind == frames.DATA] == [1, 3, 5]


def test_a_smaller_initial_window_can_make_windows_negative():
    made = connection()
    made.receive(opened(1, last=True))
    made.respond(1, OK, (bytes(70_000),), 70_000, OK)
    written(made)
    made.receive(window_update(0, 100_000) + setting(Setting.INITIAL_WINDOW_SIZE, 100))
    made.receive(window_update(1, 65435))
    assert not [f for f in written(made) if f[0] == frames.DATA]
    made.receive(window_update(1, 7))
    assert [len(f[3]) for f in written(made) if f[0] == frames.DATA] == [7]


def test_a_larger_initial_window_is_acknowledged_before_it_is_used():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 0) + opened(1, last=True))
    made.respond(1, OK, (bytes(10),), 10, OK)
    written(made)
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 65535))
    assert [kind for kind, *_ in written(made)] == [frames.SETTINGS, frames.DATA, frames.HEADERS]


def test_a_stream_whose_window_is_taken_while_it_waits_for_the_connections_sends_nothing():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 100_000) + opened(1, last=True))
    made.respond(1, OK, (bytes(70_000),), 70_000, OK)
    written(made)
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 0) + window_update(0, 100_000))
    assert [kind for kind, *_ in written(made)] == [frames.SETTINGS]
    made.receive(window_update(1, 65535 + 10))
    assert [len(f[3]) for f in written(made) if f[0] == frames.DATA] == [10]


def test_frames_are_no_longer_than_the_peer_takes():
    made = connection()
    made.receive(opened(1, last=True))
    made.respond(1, OK, (bytes(65535),), 65535, OK)
    assert max(len(f[3]) for f in written(made)) == 16384


def test_an_empty_window_holds_up_data_but_no_trailers_of_others():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 0) + opened(1, last=True) + opened(3, last=True))
    written(made)
    made.respond(1, OK, (b"x",), 1, OK)
    made.finish(3, OK)
    assert [(k, s) for k, _, s, _ in written(made)] == [(frames.HEADERS, 1), (frames.HEADERS, 3)]
    assert made.waiting(1) == 1
    assert made.receive(window_update(1, 5)) == [Drained(1)]


def test_a_stream_taken_back_leaves_nothing_waiting():
    made = connection()
    made.receive(setting(Setting.INITIAL_WINDOW_SIZE, 0) + opened(1, last=True))
    made.respond(1, OK, (bytes(1000),), 1000, OK)
    assert made.receive(RESET) == [Ended(1)]
    assert made.sender.waiting == 0
    made.respond(1, OK, (b"x",), 1, OK)
    written(made)
    made.receive(window_update(0, 1000))
    assert written(made) == []


def test_a_stream_may_send_what_its_window_holds_and_more_when_credited():
    made = connection(window=40_000, whole_window=1 << 20)
    made.receive(opened(1) + data(1, bytes(16384)) + data(1, bytes(16384)))
    written(made)
    made.credit(1, 32768)
    assert written(made) == [(frames.WINDOW_UPDATE, 0, 1, LONG(32768))]
    made.receive(data(1, bytes(16384)) * 2)
    assert ends(made) == {}
    made.receive(data(1, bytes(16384)))
    assert ends(made) == {1: Code.FLOW_CONTROL_ERROR}


def test_padding_counts_for_windows():
    made = connection(window=100, whole_window=100_000)
    made.receive(opened(1) + frame(frames.DATA, frames.PADDED, 1, b"\xc8" + bytes(201)))
    assert ends(made) == {1: Code.FLOW_CONTROL_ERROR}


def test_a_peer_that_sends_more_than_the_connections_window_is_cut_off():
    made = connection(window=1 << 20, whole_window=16383)
    made.receive(opened(1) + data(1, bytes(16384)))
    assert ends(made) == {0: Code.FLOW_CONTROL_ERROR}


# floods and ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flood",
    [
        PING,
        frame(frames.SETTINGS, 0, 0),
        frame(frames.PRIORITY, 0, 1, b"12345"),
        frame(0xBB, 0, 0),
        frame(frames.RST_STREAM, 0, 1, LONG(8)),
        frame(frames.GOAWAY, 0, 0, bytes(8)),
        data(3),
    ],
)
def test_control_frames_beyond_their_budget_end_the_connection(flood):
    made = connection(controls=100, controls_per_second=50)
    made.receive(opened(1) + RESET + opened(3))
    made.receive(flood * 90)
    assert not made.is_over
    made.refill()
    made.receive(flood * 50)
    assert not made.is_over
    made.receive(flood * 20)
    assert ends(made)[0] == Code.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "way",
    [
        lambda n: opened(n) + frame(frames.RST_STREAM, 0, n, LONG(8)),  # rapid reset
        lambda n: opened(n) + window_update(n, 0),  # made us reset
        lambda n: opened(n, fields=HEAD_FIELDS[:2]),
    ],
)
def test_streams_reset_beyond_their_budget_end_the_connection(way):
    made = connection(resets=10, resets_per_second=5)
    made.receive(b"".join(map(way, range(1, 21, 2))))
    assert not made.is_over
    made.refill()
    made.receive(b"".join(map(way, range(21, 31, 2))))
    assert not made.is_over
    made.receive(way(31))
    assert ends(made)[0] == Code.ENHANCE_YOUR_CALM


def test_leaving_is_said_twice_and_the_second_says_from_where_on():
    made = connection()
    made.receive(opened(1))
    made.leave(is_final=False)
    assert written(made) == [(frames.GOAWAY, 0, 0, LONG(frames.MOST_ID) + LONG(0))]
    assert [type(e) for e in made.receive(opened(3))] == [Opened]
    made.leave(is_final=True)
    assert written(made) == [(frames.GOAWAY, 0, 0, LONG(3) + LONG(0))]
    assert made.receive(opened(5) + data(5, b"x")) == []
    assert ends(made) == {}
    made.respond(1, OK, (b"x",), 1, OK)
    assert [f[2] for f in written(made) if f[0] == frames.DATA] == [1]


def test_goaway_says_which_stream_was_the_last():
    made = connection()
    made.receive(opened(7) + b"\0\0\0" + bytes((frames.PUSH_PROMISE, 0, 0, 0, 0, 1)))
    assert written(made)[-1][3][:8] == LONG(7) + LONG(Code.PROTOCOL_ERROR)


def test_the_peers_goaway_is_remembered_and_its_streams_go_on():
    made = connection()
    made.receive(opened(1) + frame(frames.GOAWAY, 0, 0, bytes(8)))
    assert made.is_leaving
    made.respond(1, OK, (b"x",), 1, OK)
    assert len([f for f in written(made) if f[2] == 1]) == 4
