"""HTTP/2 frames as bytes: how one begins, what it may be, those that a server sends (RFC 9113, sections 4, 6 and 7)."""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = Struct(">HBBBL")  # length (16 + 8 bits), type, flags, stream
HEAD_BYTES: Final = 9
PAIR: Final = Struct(">HL")  # one setting
LONG: Final = Struct(">L")
MOST_ID: Final = (1 << 31) - 1
MOST_WINDOW: Final = (1 << 31) - 1
WINDOW: Final = 65535  # of streams and connections until somebody says more
MOST_FRAME: Final = 16384  # what every peer takes, and what we take

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """What a peer may say of itself."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(Exception):  # noqa: N818 (RFC 9113 calls it a connection error, which Python has)
    """The peer broke a rule after which nothing on this connection can be trusted."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


class StreamFault(Exception):  # noqa: N818 (as above)
    """The peer broke a rule on one stream."""

    def __init__(self, stream: int, code: Code) -> None:
        super().__init__(code.name)
        self.stream = stream
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Any frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(pairs: dict[Setting, int]) -> bytes:
    """What we say of ourselves."""
    return frame(SETTINGS, 0, 0, b"".join(PAIR.pack(key, value) for key, value in pairs.items()))


def window_update(stream: int, size: int) -> bytes:
    """The peer may send so many bytes more."""
    return HEAD.pack(0, 4, WINDOW_UPDATE, 0, stream) + LONG.pack(size)


def rst_stream(stream: int, code: Code) -> bytes:
    """The end of a stream."""
    return HEAD.pack(0, 4, RST_STREAM, 0, stream) + LONG.pack(code)


def goaway(last: int, code: Code, why: str = "") -> bytes:
    """The end of a connection: no stream above `last` was looked at."""
    return frame(GOAWAY, 0, 0, LONG.pack(last) + LONG.pack(code) + why.encode()[:256])


def unpadded(payload: bytes) -> bytes:
    """What a padded frame carries."""
    if not payload:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, f"{padding} bytes of padding in a frame of {len(payload)}")
    return payload[1 : len(payload) - padding]
