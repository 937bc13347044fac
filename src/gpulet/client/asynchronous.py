"""The client for an asyncio loop: `blocking.py`, awaited."""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from time import monotonic_ns
from types import TracebackType
from typing import Any, Self

import httpx
from numpy.typing import NDArray

from gpulet.client.calls import (
    Answer,
    Arrays,
    Call,
    Document,
    Infer,
    get,
    model_path,
    only_input,
    post,
    ready_path,
    repository_path,
    results,
    statistics_path,
)
from gpulet.client.retry import Attempts, Retry
from gpulet.client.transport import options, timeout, translated
from gpulet.errors import ServerError
from gpulet.units import NEVER, SECOND, Duration, Instant


class AsyncClient:
    """A server at `url` (`HOST:PORT` or `http[s]://...`); close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        verify: bool | ssl.SSLContext = True,
        retries: int = 2,
        random: Random | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**options(url, token, verify))
        self._retry = Retry(retries, random or Random())
        self._names: dict[tuple[str, str], str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def infer(
        self,
        model: str,
        inputs: Arrays | NDArray[Any],
        *,
        outputs: Sequence[str] | None = None,
        version: str = "",
        deadline_s: float | None = None,
        priority: int = 0,
        request_id: str = "",
    ) -> Arrays:
        """Outputs by name, read-only, all of them or those of `outputs`; a bare array is a model's only input.

        `deadline_s` is the time for everything, retries too; the server is told what is left of it. Priority 1 is first.
        """
        deadline = NEVER if deadline_s is None else monotonic_ns() + round(deadline_s * SECOND)
        named = inputs if isinstance(inputs, Mapping) else {await self._only_input(model, version, deadline): inputs}
        return results(await self._send(Infer(model, named, outputs, version, priority, request_id).call, deadline))

    async def metadata(self, model: str, version: str = "") -> Document:
        """A model's name, versions, platform, inputs and outputs."""
        document: Document = await self._ask(get(model_path(model, version)))
        return document

    async def models(self) -> tuple[str, ...]:
        """The names of all models that are served; Triton has `index` only."""
        return tuple((await self._ask(get("/v2/models")))["models"])

    async def is_live(self) -> bool:
        """Whether the server runs; raises `Unreachable` where nobody answers."""
        return (await self._try(get("/v2/health/live"), Attempts(self._retry, NEVER), NEVER)).is_yes()

    async def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or a model of it, would answer now."""
        return (await self._try(get(ready_path(model)), Attempts(self._retry, NEVER), NEVER)).is_yes()

    async def index(self) -> Sequence[Document]:
        """Every model of the repository: name, version, state, reason."""
        listed: Sequence[Document] = await self._ask(post("/v2/repository/index"))
        return listed

    async def load(self, model: str) -> None:
        """Load a model of the repository, or its newest files."""
        await self._ask(post(repository_path(model, "load")))

    async def unload(self, model: str) -> None:
        """Unload a model."""
        await self._ask(post(repository_path(model, "unload")))

    async def statistics(self, model: str = "", version: str = "") -> Sequence[Document]:
        """What a model, or each, has done so far: counts and nanoseconds."""
        found: Sequence[Document] = (await self._ask(get(statistics_path(model, version))))["model_stats"]
        return found

    async def _only_input(self, model: str, version: str, deadline: Instant) -> str:
        key = (model, version)
        if key not in self._names:
            ask = get(model_path(model, version))
            self._names[key] = only_input((await self._send(lambda _: ask, deadline)).document())
        return self._names[key]

    async def _ask(self, call: Call) -> Any:
        return (await self._send(lambda _: call, NEVER)).document()

    async def _send(self, make: Callable[[Duration], Call], deadline: Instant) -> Answer:
        attempts = Attempts(self._retry, deadline)
        while True:
            left = attempts.left(monotonic_ns())
            try:
                return (await self._try(make(left), attempts, left)).check()
            except ServerError as failure:
                wait = attempts.wait(monotonic_ns(), datetime.now(UTC), failure)
            await asyncio.sleep(wait / SECOND)

    async def _try(self, call: Call, attempts: Attempts, left: Duration) -> Answer:
        """One attempt, timed as a whole."""
        with translated(attempts, left):
            async with asyncio.timeout(None if left == NEVER else left / SECOND):
                response = await self._http.request(
                    call.method, call.path, content=call.body, headers=call.headers, timeout=timeout(left)
                )
        return Answer(response.status_code, response.headers, response.content)
