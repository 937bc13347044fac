"""Open-loop load against any Open Inference Protocol v2 server over HTTP.

Arrivals are drawn beforehand, as for the simulator. A request that finds no free connection waits for one, and its
latency counts from the instant it was due, so a slow server cannot slow its own measurement (coordinated omission).
"""

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from time import process_time_ns
from typing import Final

import orjson

from gpulet.core.counts import Counts, goodput_fairness
from gpulet.core.metrics import Rows
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import BadInput, Unusable
from gpulet.model import Model
from gpulet.units import SECOND, US, Duration, Instant, from_ms
from gpulet.workload import Arrivals

_HEAD_END: Final = b"\r\n\r\n"
_GRACE_S: Final = 10.0
_RECONNECT_S: Final = 0.1
_OVERLOADED: Final = frozenset({429, 503})
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


class LoadReport(Rows):
    """What a client saw, with its own CPU time per request. `wrong` answers by model, `errors` by message."""

    wrong: dict[str, int]
    errors: dict[str, int]
    refused_p99_ms: float
    client_cpu_us_per_request: float


@dataclass(slots=True)
class Outcome:
    """What became of a load. `events` are (due, model, is good) of every answer, for plots and outage times."""

    counts: dict[str, Counts]
    wrong: dict[str, int]
    refusal_latency: Counts = field(default_factory=Counts)
    client_cpu_us: float = 0.0
    events: list[tuple[Instant, str, bool]] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def report(self, duration: Duration) -> LoadReport:
        """The shape of `simulate --json`, with wrong answers and the client's own CPU time beside."""
        total = Counts()
        for counts in self.counts.values():
            total.add(counts)
        models = {name: counts.report(duration) for name, counts in self.counts.items()}
        return {
            "models": models,
            "total": total.report(duration),
            "fairness": {"goodput": goodput_fairness(self.counts.values())},
            "wrong": self.wrong,
            "errors": self.errors,
            "refused_p99_ms": self.refusal_latency.latency.percentile(99) / 1e6,
            "client_cpu_us_per_request": self.client_cpu_us,
        }


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
    """A run under way."""

    def __init__(
        self, streams: Sequence[Stream], arrivals: Arrivals, timer: LiveTimer, reconnect: Callable[[], None]
    ) -> None:
        self._streams = streams
        self._timer = timer
        self._reconnect = reconnect
        columns = (arrivals.times, arrivals.which, arrivals.rows)
        self._due = zip(*(column.tolist() for column in columns), strict=True)
        self._coming = list(islice(self._due, 1))
        self._sent: Counter[tuple[int, int]] = Counter()
        self._left = len(arrivals)
        self._waiting: deque[_Due] = deque()
        self._start: Instant = 0
        self.free: deque[_Connection] = deque()
        self.open: set[_Connection] = set()
        self.done = asyncio.Event()
        self.outcome = Outcome({s.model: Counts() for s in streams}, {s.model: 0 for s in streams})

    def add(self, connection: _Connection) -> None:
        """A connection that may be used."""
        if connection.transport.is_closing():
            return
        self.open.add(connection)
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self.free.append(connection)

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
        if self._waiting:
            self._send(connection, *self._waiting.popleft())
        else:
            self.free.append(connection)

    def lost(self, connection: _Connection) -> None:
        """The server closed a connection; what was under way on it has failed. Another takes its place."""
        self.open.discard(connection)
        if connection in self.free:
            self.free.remove(connection)
        if not self.done.is_set():
            self._reconnect()
        if connection.due is not None:
            due, which, _ = connection.due
            self._count_error("connection closed")
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
            self._refused(counts, status, body, latency)
        self._finish(due, which, is_good=is_good)

    def _refused(self, counts: Counts, status: int, body: bytes, latency: Duration) -> None:
        message = _message(body)
        self._count_error(f"{status} {message}")
        if status in _OVERLOADED and "deadline" in message:
            counts.expired += 1
        elif status in _OVERLOADED and "died" not in message:
            counts.rejected += 1
            self.outcome.refusal_latency.latency.add(latency)
        else:
            counts.failed += 1

    def _count_error(self, message: str) -> None:
        self.outcome.errors[message] = self.outcome.errors.get(message, 0) + 1

    def _finish(self, due: Instant, which: int, *, is_good: bool) -> None:
        self.outcome.events.append((due - self._start, self._streams[which].model, is_good))
        self._left -= 1
        if not self._left:
            self.done.set()


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:80].decode("utf-8", "replace")


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
    loop = asyncio.get_running_loop()
    timer = LiveTimer(loop)
    tasks: set[asyncio.Task[None]] = set()

    async def connect() -> None:
        _, connection = await loop.create_connection(lambda: _Connection(load), host, port)
        load.add(connection)

    async def connect_again() -> None:
        await asyncio.sleep(_RECONNECT_S)
        with suppress(OSError):  # the server is gone; what waits for a connection will not be answered
            await connect()

    def reconnect() -> None:
        task = loop.create_task(connect_again())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    load = _Load(streams, arrivals, timer, reconnect)
    try:
        for _ in range(connections):
            await connect()
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


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """One model's load as typed: `MODEL:RATE[:SLO_MS]`."""

    model: Model
    rate: float


_NO_SLO_MS: Final = 1e6
_LOAD: Final = re.compile(r"(?P<model>[^:]+):(?P<rate>\d+(\.\d+)?)(:(?P<slo>\d+(\.\d+)?))?")


def parse_load(text: str) -> LoadSpec:
    """`MODEL:RATE[:SLO_MS]`; raises `BadInput` that shows the form."""
    found = _LOAD.fullmatch(text)
    if found is None or not float(found["rate"]):
        msg = f"--load {text!r}: give MODEL:RATE or MODEL:RATE:SLO_MS, with a rate above 0"
        raise BadInput(msg)
    return LoadSpec(Model(found["model"], from_ms(float(found["slo"] or _NO_SLO_MS))), float(found["rate"]))
