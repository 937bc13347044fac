"""What the tests of our HTTP/2 share: requests as bytes, frames read back, a connection that has shaken hands."""

import struct

import hpack

from gpulet.api.h2 import frames
from gpulet.api.h2.connection import Connection
from gpulet.api.h2.fields import request_fields
from gpulet.api.h2.frames import frame
from gpulet.api.h2.streams import Limits

HEAD_FIELDS = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/m"),
    (b":authority", b"here"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]
BLOCK = hpack.Encoder().encode(HEAD_FIELDS, huffman=True)
HELLO = frames.PREFACE + frame(frames.SETTINGS, 0, 0)
OK = b"\x88"
END = frames.END_STREAM
WHOLE = frames.END_HEADERS


class Head:
    """A request's fields."""

    def __init__(self, fields):
        self.fields = request_fields(fields)
        self.content_length = int(self.fields.get(b"content-length", b"-1"))

    def __eq__(self, other):
        return self.fields == other.fields

    __hash__ = None


def connection(**limits):
    """One that has greeted; what it said so far is forgotten."""
    made = Connection(Limits(**{"head": 16384, **limits}), Head)
    assert made.receive(HELLO) == []
    written(made)
    return made


def plain(fields):
    """A block that adds nothing to the table."""
    encoder = hpack.Encoder()
    return b"".join(encoder.add((name, value), sensitive=True, huffman=False) for name, value in fields)


def opened(stream, *, last=False, fields=HEAD_FIELDS):
    """HEADERS of a request, by no table."""
    return frame(frames.HEADERS, WHOLE | (END if last else 0), stream, plain(fields))


def data(stream, payload=b"", *, last=False):
    return frame(frames.DATA, END if last else 0, stream, payload)


def written(made):
    """The frames that left since the last look: (kind, flags, stream, payload)."""
    raw = b"".join(made.sender.out)
    made.sender.out.clear()
    return read(raw)


def read(raw):
    found = []
    while raw:
        high, low, kind, flags, stream = frames.HEAD.unpack_from(raw)
        size = high << 8 | low
        found.append((kind, flags, stream, raw[9 : 9 + size]))
        raw = raw[9 + size :]
    return found


def ends(made):
    """How streams and the connection were ended: {stream: code}, 0 for the connection."""
    found = {}
    for kind, _, stream, payload in written(made):
        if kind == frames.RST_STREAM:
            found[stream] = frames.Code(struct.unpack(">L", payload)[0])
        if kind == frames.GOAWAY:
            found[0] = frames.Code(struct.unpack(">L", payload[4:8])[0])
    return found


def setting(key, value):
    return frame(frames.SETTINGS, 0, 0, frames.PAIR.pack(key, value))
