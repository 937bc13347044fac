"""Clients that send malformed requests among good ones, on kept connections, and count what came of them."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from malformed import Case, binary, infer
from malformed_rpc import SERVICE, RpcCase, good

from gpulet.api.rpc.messages import MESSAGES

VALUES = b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40\0\0\x80\x40"
GOOD = infer({"inputs": [binary(16)], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, "tiny", VALUES)
PATIENCE_S = 10.0
WORKERS = {"http": 6, "grpc": 4}
ALLOWED = {501, 505, *range(400, 500)}
OVERLOAD = {429, 503}
CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
}


@dataclass(slots=True)
class Tally:
    """What came of the requests; `wrong` are those that had another fate than they may."""

    outcomes: Counter[str] = field(default_factory=Counter)
    families: dict[str, Counter[str]] = field(default_factory=dict)
    worst_ms: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def add(self, family: str, outcome: str, began: float, *, is_right: bool, detail: object = "") -> None:
        """One request."""
        self.outcomes[outcome if is_right else "wrong"] += 1
        self.families.setdefault(family, Counter())[outcome] += 1
        self.worst_ms[family] = max(self.worst_ms.get(family, 0.0), 1e3 * (time.perf_counter() - began))
        if not is_right:
            self.wrong.append(f"{family}: {outcome}: {str(detail)[:300]}")


@dataclass(slots=True)
class Connection:
    """One kept-alive connection of a worker, opened again when it has been closed."""

    port: int
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None

    async def send(self, data: bytes) -> None:
        """Whole; what the server takes no more of is no error, its answer says why."""
        if self.writer is None or self.writer.is_closing() or (self.reader and self.reader.at_eof()):
            self.close()
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20)
        self.writer.write(data)
        with suppress(ConnectionError):
            await asyncio.wait_for(self.writer.drain(), PATIENCE_S)

    async def answer(self) -> tuple[int, bytes]:
        """Status and body of the next one."""
        return await asyncio.wait_for(self._answer(), PATIENCE_S)

    async def _answer(self) -> tuple[int, bytes]:
        assert self.reader
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        body = await self.reader.readexactly(size)
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Leave."""
        if self.writer:
            self.writer.close()
        self.writer = None


async def over_http(port: int, cases: Iterator[tuple[str, Case]], tally: Tally) -> None:
    """One worker: malformed ones, and a good one after each few."""
    connection = Connection(port)
    for number, (family, case) in enumerate(cases):
        began = time.perf_counter()
        try:
            await connection.send(case.data)
            if case.is_cut:
                connection.close()
                tally.add(family, "left", began, is_right=True)
                continue
            status, body = await connection.answer()
            is_right = status in ALLOWED or (case.may_pass and status == 200) or status in OVERLOAD  # noqa: PLR2004 (HTTP)
            tally.add(family, str(status), began, is_right=is_right, detail=(body[:150], case.data[:300]))
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            tally.add(family, "silence", began, is_right=False, detail=(repr(error), case.data[:300]))
            connection.close()
        if case.closes:
            connection.close()
        if number % 8 == 0:
            await good_over_http(connection, tally)
    connection.close()
    await asyncio.sleep(0)  # asyncio closes in the turn that follows


async def good_over_http(connection: Connection, tally: Tally) -> None:
    """Its answer is what was sent."""
    began = time.perf_counter()
    try:
        await connection.send(GOOD)
        status, body = await connection.answer()
    except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
        connection.close()
        tally.add("good", "silence", began, is_right=False, detail=error)
        return
    is_right = (status == 200 and body.endswith(VALUES)) or status in OVERLOAD  # noqa: PLR2004 (HTTP)
    tally.add("good", str(status), began, is_right=is_right, detail=body[:200])


async def over_grpc(address: str, cases: Iterator[tuple[str, RpcCase]], tally: Tally) -> None:
    """The same on one channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        for number, (family, case) in enumerate(cases):
            began = time.perf_counter()
            outcome, detail = await (streamed(channel, case) if case.is_stream else called(channel, case))
            is_right = (
                outcome in {code.name for code in CODES} or outcome == "left" or (outcome == "OK" and case.may_pass)
            )
            tally.add(family, outcome, began, is_right=is_right, detail=(detail, case.messages[0][:200]))
            if number % 8 == 0:
                await good_over_grpc(channel, tally)


async def called(channel: grpc.aio.Channel, case: RpcCase) -> tuple[str, str]:
    """The outcome of a call, and what was told."""
    call = channel.unary_unary(case.method)(case.messages[0], timeout=PATIENCE_S)
    if case.is_cancelled:
        await asyncio.sleep(0)
        call.cancel()
        return "left", ""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


async def streamed(channel: grpc.aio.Channel, case: RpcCase) -> tuple[str, str]:
    """A stream must answer each of its messages, and end."""
    call = channel.stream_stream(case.method)(iter(case.messages), timeout=PATIENCE_S)
    if case.is_cancelled:
        await call.read()
        call.cancel()
        return "left", ""
    try:
        answers = [MESSAGES["ModelStreamInferResponse"].FromString(answer) async for answer in call]
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    right: Any = [a for a in answers if a.infer_response.raw_output_contents]  # type: ignore[attr-defined] # known at run time
    is_right = len(answers) == len(case.messages) and len(right) >= 2  # noqa: PLR2004 (the first and the last)
    return ("OK", "") if is_right else ("unanswered", f"{len(answers)} answers, {len(right)} good ones")


async def good_over_grpc(channel: grpc.aio.Channel, tally: Tally) -> None:
    """Its answer is what was sent."""
    began = time.perf_counter()
    try:
        data = await channel.unary_unary(SERVICE + "ModelInfer")(good(VALUES), timeout=PATIENCE_S)
    except grpc.aio.AioRpcError as error:
        is_right = error.code() is grpc.StatusCode.UNAVAILABLE
        tally.add("good", error.code().name, began, is_right=is_right, detail=error.details())
        return
    tally.add("good", "OK", began, is_right=data.endswith(VALUES), detail=data[:200])
