"""Bodies packed by gzip or deflate (zlib's format), as HTTP names them."""

import zlib
from http import HTTPStatus
from typing import Final

from gpulet.errors import RequestError
from gpulet.executors.base import Buffer

ENCODINGS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
_FAST: Final = 1


def inflated(body: Buffer, encoding: str, most_bytes: int) -> bytes:
    """The body itself; raises `RequestError` where it is not packed so, cut short, or larger than `most_bytes`."""
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        data = unpacker.decompress(body, most_bytes + 1)
    except zlib.error as error:
        msg = f"body is not {encoding}: {error}"
        raise RequestError(msg) from None
    if len(data) > most_bytes:
        del data  # the error keeps this frame
        msg = f"body is larger than {most_bytes} bytes once unpacked"
        raise RequestError(msg, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    if not unpacker.eof or unpacker.unused_data:
        msg = f"body is not one whole {encoding} stream"
        raise RequestError(msg)
    return data


def deflated(body: bytes, encoding: str) -> bytes:
    """The body packed."""
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, ENCODINGS[encoding])
    return packer.compress(body) + packer.flush()
