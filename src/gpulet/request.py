"""A request as the core sees it: ids, sizes and deadlines, never payloads."""

import msgspec

from gpulet.units import PLAIN, Instant


class Request(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One request: `rows` of one shape class, due at `deadline`.

    `hard` says that nobody wants the answer after the deadline (the client gave a timeout); otherwise only a system
    that drops early gives it up. `priority` 1 is served first, 0 means the default, as in Triton's protocol.
    """

    id: int
    model: str
    arrival: Instant
    deadline: Instant
    rows: int = 1
    shape: str = PLAIN
    priority: int = 0
    hard: bool = False
