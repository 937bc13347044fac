"""Requests sent when they are due over a bounded number of connections, and their answers."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import process_time_ns
from typing import Final

from gpulet.core.counts import Counts
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import Unusable
from gpulet.loadgen.outcome import Outcome
from gpulet.units import SECOND, US, Duration, Instant
from gpulet.workload import Arrivals

_HEAD_END: Final = b"\r\n\r\n"
_LAST: Final = b"\r\nconnection: close\r\n"
_GRACE_S: Final = 10.0
_RECONNECT_S: Final = 0.1
Check = Callable[[int, bytes, int], bool]
"""(index of the request among those of its rows, body of the answer, length of its JSON or 0) to whether it is right."""
_Due = tuple[Instant, int, int]
"""When a request is due, the place of its stream, and its rows."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is sent to one model: whole HTTP requests by their rows, those of as many rows taken in turn.

    Every number of rows that arrivals bring must be there. `check` judges answers.
    """

    model: str
    slo: Duration
    requests: Mapping[int, Sequence[bytes]]
    check: Check | None = None


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._buffer = bytearray()
        self._need = 0
        self.transport: asyncio.Transport
        self.due: tuple[Instant, int, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP's is one
        self.transport = transport

    def send(self, due: tuple[Instant, int, int], request: bytes) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._need:
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                return
            self._need = end + 4 + _header(self._buffer, b"content-length:", end)
        if len(self._buffer) >= self._need:
            answer = bytes(self._buffer[: self._need])
            del self._buffer[: self._need]
            self._need = 0
            self._load.answered(self, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self)


def _header(buffer: bytes | bytearray, name: bytes, end: int) -> int:
    """A whole number from a response head; 0 when it is absent."""
    head = bytes(buffer[:end]).lower()
    place = head.find(b"\r\n" + name)
    if place < 0:
        return 0
    start = place + 2 + len(name)
    stop = head.find(b"\r\n", start)
    return int(head[start : stop if stop >= 0 else end])


class _Load:
    """A run under way, against the server at `address`."""

    def __init__(
        self, address: tuple[str, int], streams: Sequence[Stream], arrivals: Arrivals, timer: LiveTimer
    ) -> None:
        self._address = address
        self._streams = streams
        self._timer = timer
        columns = (arrivals.times, arrivals.which, arrivals.rows)
        self._due = zip(*(column.tolist() for column in columns), strict=True)
        self._coming = list(islice(self._due, 1))
        self._sent: Counter[tuple[int, int]] = Counter()
        self._left = len(arrivals)
        self._waiting: deque[_Due] = deque()
        self._start: Instant = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.free: deque[_Connection] = deque()
        self.open: set[_Connection] = set()
        self.done = asyncio.Event()
        self.outcome = Outcome({s.model: Counts() for s in streams}, {s.model: 0 for s in streams})

    async def connect(self) -> None:
        """Have one more connection; raises `OSError`."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), *self._address)
        if connection.transport.is_closing():
            return
        self.open.add(connection)
        self._go_on(connection)

    def _go_on(self, connection: _Connection) -> None:
        """Use it for what waits, or keep it for what comes."""
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self.free.append(connection)

    async def _connect_again(self) -> None:
        await asyncio.sleep(_RECONNECT_S)
        with suppress(OSError):  # the server is gone; what waits for a connection will not be answered
            await self.connect()

    async def run(self, arrivals: Arrivals) -> None:
        """Let the first request fall due now; wait for the last answer, within the grace time."""
        self._start = self._timer.now()
        self._next(0)
        if not len(arrivals):
            return
        try:
            await asyncio.wait_for(self.done.wait(), arrivals.duration / SECOND + _GRACE_S)
        except TimeoutError:
            self.outcome.errors["never answered"] = sum(c.unanswered for c in self.outcome.counts.values())
        self.done.set()

    def close(self) -> None:
        """End every connection; what is under way on them no longer counts."""
        self.done.set()
        for connection in list(self.open):
            connection.due = None
            connection.transport.close()

    def _next(self, _: int) -> None:
        """Send everything that is due, and come back for the next."""
        while self._coming and self._start + self._coming[0][0] <= self._timer.now():
            time, which, rows = self._coming[0]
            self._fall((self._start + time, which, rows))
            self._coming = list(islice(self._due, 1))
        if self._coming:
            self._timer.at(self._start + self._coming[0][0], self._next, 0)

    def _fall(self, request: _Due) -> None:
        self.outcome.counts[self._streams[request[1]].model].arrived += 1
        if self.free:
            self._send(self.free.pop(), *request)  # the last used: an idle one may be about to be closed
        else:
            self._waiting.append(request)

    def _send(self, connection: _Connection, due: Instant, which: int, rows: int) -> None:
        requests = self._streams[which].requests[rows]
        index = self._sent[which, rows] % len(requests)
        self._sent[which, rows] += 1
        connection.send((due, which, index), requests[index])

    def answered(self, connection: _Connection, answer: bytes) -> None:
        """Judge one answer and use its connection again."""
        if connection.due is None:  # turned away at the door; `lost` follows
            connection.transport.close()
            return
        due, which, index = connection.due
        connection.due = None
        self._judge(due, which, index, answer)
        if answer.find(_LAST, 0, answer.find(_HEAD_END) + 2) >= 0:
            connection.transport.close()
        else:
            self._go_on(connection)

    def lost(self, connection: _Connection) -> None:
        """The server closed a connection; what was under way on it has failed. Another takes its place."""
        self.open.discard(connection)
        if connection in self.free:
            self.free.remove(connection)
        if not self.done.is_set():
            task = asyncio.get_running_loop().create_task(self._connect_again())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if connection.due is not None:
            due, which, _ = connection.due
            self.outcome.count_error("connection closed")
            self.outcome.counts[self._streams[which].model].failed += 1
            self._finish(due, which, is_good=False)

    def _judge(self, due: Instant, which: int, index: int, answer: bytes) -> None:
        stream = self._streams[which]
        counts = self.outcome.counts[stream.model]
        latency = self._timer.now() - due
        status = int(answer[9:12])
        end = answer.find(_HEAD_END)
        body = answer[end + 4 :]
        is_good = status == 200 and latency <= stream.slo  # noqa: PLR2004 (HTTP)
        if status == 200:  # noqa: PLR2004 (HTTP)
            counts.served += 1
            counts.late += latency > stream.slo
            counts.latency.add(latency)
            json_bytes = _header(answer, b"inference-header-content-length:", end)
            if stream.check and not stream.check(index, body, json_bytes):
                self.outcome.wrong[stream.model] += 1
        else:
            self.outcome.refuse(stream.model, status, body, latency)
        self._finish(due, which, is_good=is_good)

    def _finish(self, due: Instant, which: int, *, is_good: bool) -> None:
        self.outcome.events.append((due - self._start, self._streams[which].model, is_good))
        self._left -= 1
        if not self._left:
            self.done.set()


async def drive(
    host: str,
    port: int,
    streams: Sequence[Stream],
    arrivals: Arrivals,
    *,
    connections: int = 64,
    pause_s: float = 0.0,
) -> Outcome:
    """Send the arrivals, each with its rows (`arrivals.models` in the order of `streams`), and wait for the answers, at
    most ten seconds. `pause_s` after connecting, in which a slow server accepts what would else delay the first requests.

    Raises `Unusable` when nobody listens there.
    """
    timer = LiveTimer(asyncio.get_running_loop())
    load = _Load((host, port), streams, arrivals, timer)
    try:
        for _ in range(connections):
            await load.connect()
    except OSError as error:
        msg = f"no server at {host}:{port}: {error.strerror or error}"
        raise Unusable(msg) from None
    await asyncio.sleep(pause_s)
    before = process_time_ns()
    await load.run(arrivals)
    load.outcome.client_cpu_us = (process_time_ns() - before) / US / max(1, len(arrivals))
    load.close()
    timer.close()
    await asyncio.sleep(0)
    return load.outcome
