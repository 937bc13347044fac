import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.api.chunks import Chunks
from gpulet.errors import RequestError


def chunked(parts, trailers=b""):
    return b"".join(b"%X;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailers + b"\r\n"


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(1, 30), max_size=40),
    trailers=st.sampled_from([b"", b"a: b\r\n", b"a: b\r\nc: d\r\n"]),
)
def test_a_body_is_the_same_however_its_bytes_come_and_what_follows_is_left(parts, cuts, trailers):
    sent, chunks, buffer = chunked(parts, trailers) + b"GET", Chunks(1 << 20), bytearray()
    ended = False
    for cut in [*cuts, len(sent)]:
        buffer += sent[:cut]
        sent = sent[cut:]
        ended = ended or chunks.take(buffer)
    assert ended
    assert bytes(chunks.body) == b"".join(parts)
    assert bytes(buffer) == b"GET"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"xyz\r\n", "hexadecimal number, is b'xyz'"),
        (b"-1\r\n", "hexadecimal"),
        (b"\r\n", "hexadecimal"),
        (b"0x5\r\n", "hexadecimal"),
        (b"F" * 16 + b"\r\n", "hexadecimal"),
        (b"3\r\nabcd\r\n", "not as long as it says"),
        (b"65\r\n", "body of 101 bytes is larger than 100"),
        (b"5\r\nabcde\r\n60\r\n", "body of 101 bytes is larger than 100"),
        (b"1" * 2000, "a line between chunks is longer"),
        (b"0\r\n" + b"a: b\r\n" * 2000, "trailers are larger"),
    ],
)
def test_what_is_no_chunk_or_too_much_is_refused(data, message):
    with pytest.raises(RequestError, match=message):
        Chunks(100).take(bytearray(data))


def test_chunks_of_a_byte_each_are_refused_before_they_hold_the_loop():
    with pytest.raises(RequestError, match="bytes a chunk are wanted"):
        Chunks(1 << 20).take(bytearray(chunked([b"a"] * 5000)))
