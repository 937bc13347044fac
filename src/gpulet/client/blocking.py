"""The client for threads."""

import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from time import monotonic_ns, sleep
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


class Client:
    """A server at `url` (`HOST:PORT` or `http[s]://...`); close it, or use it in a `with`. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        verify: bool | ssl.SSLContext = True,
        retries: int = 2,
        random: Random | None = None,
    ) -> None:
        self._http = httpx.Client(**options(url, token, verify))
        self._retry = Retry(retries, random or Random())
        self._names: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def infer(
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
        named = inputs if isinstance(inputs, Mapping) else {self._only_input(model, version, deadline): inputs}
        return results(self._send(Infer(model, named, outputs, version, priority, request_id).call, deadline))

    def metadata(self, model: str, version: str = "") -> Document:
        """A model's name, versions, platform, inputs and outputs."""
        document: Document = self._ask(get(model_path(model, version)))
        return document

    def models(self) -> tuple[str, ...]:
        """The names of all models that are served; Triton has `index` only."""
        return tuple(self._ask(get("/v2/models"))["models"])

    def is_live(self) -> bool:
        """Whether the server runs; raises `Unreachable` where nobody answers."""
        return self._try(get("/v2/health/live"), Attempts(self._retry, NEVER), NEVER).is_yes()

    def is_ready(self, model: str | None = None) -> bool:
        """Whether the server, or a model of it, would answer now."""
        return self._try(get(ready_path(model)), Attempts(self._retry, NEVER), NEVER).is_yes()

    def index(self) -> Sequence[Document]:
        """Every model of the repository: name, version, state, reason."""
        listed: Sequence[Document] = self._ask(post("/v2/repository/index"))
        return listed

    def load(self, model: str) -> None:
        """Load a model of the repository, or its newest files."""
        self._ask(post(repository_path(model, "load")))

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._ask(post(repository_path(model, "unload")))

    def statistics(self, model: str = "", version: str = "") -> Sequence[Document]:
        """What a model, or each, has done so far: counts and nanoseconds."""
        found: Sequence[Document] = self._ask(get(statistics_path(model, version)))["model_stats"]
        return found

    def _only_input(self, model: str, version: str, deadline: Instant) -> str:
        key = (model, version)
        if key not in self._names:
            ask = get(model_path(model, version))
            self._names[key] = only_input(self._send(lambda _: ask, deadline).document())
        return self._names[key]

    def _ask(self, call: Call) -> Any:
        return self._send(lambda _: call, NEVER).document()

    def _send(self, make: Callable[[Duration], Call], deadline: Instant) -> Answer:
        attempts = Attempts(self._retry, deadline)
        while True:
            left = attempts.left(monotonic_ns())
            try:
                return self._try(make(left), attempts, left).check()
            except ServerError as failure:
                wait = attempts.wait(monotonic_ns(), datetime.now(UTC), failure)
            sleep(wait / SECOND)

    def _try(self, call: Call, attempts: Attempts, left: Duration) -> Answer:
        """One attempt. httpx times each operation, not their sum: an answer that trickles in is timed part by part."""
        with (
            translated(attempts, left),
            self._http.stream(
                call.method, call.path, content=call.body, headers=call.headers, timeout=timeout(left)
            ) as response,
        ):
            parts = []
            for part in response.iter_bytes():
                attempts.left(monotonic_ns())
                parts.append(part)
            return Answer(response.status_code, response.headers, b"".join(parts))
