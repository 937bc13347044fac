"""Structured log lines: one per start, plan, load, crash and burst of rejections; text or JSON.

Bursts are folded: refusals are counted and told once a second, with one client's request id as an example.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import orjson

from gpulet.core.messages import FIRST_STAGE_REQUEST, Adopt, Command, Drop, Event, Explain, Fail, Reason, RequestId
from gpulet.core.messages import Reject as Rejected
from gpulet.units import Instant

LOGGER = logging.getLogger("gpulet")
_FOLD_S = 1.0
_LONGEST_NAME = 256  # clients choose it


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        if record.exc_info:
            fields = {**fields, "error": repr(record.exc_info[1])}
        line = {"time": self.formatTime(record), "level": record.levelname, "event": record.getMessage(), **fields}
        return orjson.dumps(line, default=str).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        tail = " ".join(f"{name}={_plain(value)}" for name, value in fields.items())
        return f"{self.formatTime(record)} {record.levelname:<7} {record.getMessage()} {tail}".rstrip()


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    text = str(value)
    return repr(text) if " " in text else text


def configure(log_format: Literal["text", "json"]) -> None:
    """Send our lines to stderr, once."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if log_format == "json" else _Text())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    uvicorn = logging.getLogger("uvicorn.error")
    uvicorn.handlers[:] = [handler]
    uvicorn.setLevel(logging.ERROR)  # it warns of every request that is no HTTP
    logging.getLogger("opentelemetry").handlers[:] = [handler]  # a collector that is away is told as everything else


def tell(event: str, **fields: Any) -> None:
    """One line; what went wrong is a warning."""
    level = logging.WARNING if event in _WRONG else logging.INFO
    LOGGER.log(level, event, extra={"fields": fields})


_WRONG = frozenset(
    {
        "worker_died",
        "standby_died",
        "standby_failed",
        "change_failed",
        "model_refused",
        "config_unknown",
        "versions_not_served",
        "run_failed",
        "reload_failed",
        "journal_stopped",
        "requests_refused",
        "request_failed",
        "drain_incomplete",
        "core_failed",
    }
)


class RefusalLog:
    """Observes every step; folds what was refused into a line a second."""

    def __init__(self, name_of: Callable[[RequestId], str]) -> None:
        self._name_of = name_of
        self._counts: dict[Reason, int] = {}
        self._example: RequestId = 0
        self._name = ""

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Count refusals of what clients sent; the first of a second starts its line."""
        for command in commands:
            if isinstance(command, Rejected | Drop | Fail) and command.request < FIRST_STAGE_REQUEST:
                if not self._counts:
                    self._example, self._name = command.request, self._name_of(command.request)[:_LONGEST_NAME]
                    asyncio.get_running_loop().call_later(_FOLD_S, self._tell)
                self._counts[command.reason] = self._counts.get(command.reason, 0) + 1

    def _tell(self) -> None:
        counts, self._counts = self._counts, {}
        reasons = {str(reason).replace(" ", "_"): count for reason, count in counts.items()}
        example = {"first_request": self._example, "client_request_id": self._name}
        tell("requests_refused", total=sum(counts.values()), **example, **reasons)


def tell_changes(now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:  # noqa: ARG001 (an observer)
    """Why plans change, or do not."""
    for command in commands:
        if isinstance(command, Explain):
            tell("plan", number=command.number, seen=command.seen, considered=command.considered, chosen=command.chosen)
        elif isinstance(command, Adopt):
            plan = command.plan
            tell("plan_in_force", number=command.number, gpulets=len(plan.gpulets), devices=plan.devices_used)
