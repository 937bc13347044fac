"""A thin client of any Open Inference Protocol v2 server over HTTP: numpy in and out, deadlines, retries.

    with Client("localhost:8000") as client:
        logits = client.infer("digits-small", {"image": images}, deadline_s=0.05)["logits"]

`AsyncClient` is the same, awaited. Inputs and outputs travel as binary tensors. BYTES are object arrays of `bytes` (`str`
is sent as UTF-8); BF16 arrays have the dtype `BF16`. Whatever goes wrong is a `ServerError`, or `BadInput` before
anything is sent. What a server refused with 429 or 503, and what found no connection, is tried again, as often as
`retries` says, no sooner than its Retry-After and never beyond the deadline: an infer request changes nothing on a
server, so twice is as good as once.
"""

from importlib.util import find_spec

from gpulet.errors import (
    BadInput,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    Unreachable,
    Unusable,
)

if find_spec("httpx") is None:
    msg = "gpulet.client needs httpx; pip install 'gpulet[client]'"
    raise Unusable(msg)

from gpulet.client.asynchronous import AsyncClient
from gpulet.client.blocking import Client
from gpulet.client.tensors import BF16

__all__ = [
    "BF16",
    "AsyncClient",
    "BadInput",
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "NotFound",
    "Overloaded",
    "ServerError",
    "Unreachable",
]
