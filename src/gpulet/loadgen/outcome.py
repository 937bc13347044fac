"""What became of a load: every answer counted as the core counts requests, and what errors said."""

from dataclasses import dataclass, field
from typing import Final

import orjson

from gpulet.core.counts import Counts, goodput_fairness
from gpulet.core.metrics import Rows
from gpulet.units import Duration, Instant

_OVERLOADED: Final = frozenset({429, 503})


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

    def refuse(self, model: str, status: int, body: bytes, latency: Duration) -> None:
        """An answer that is an error: what kind of one, by what it says."""
        counts, message = self.counts[model], _message(body)
        self.count_error(f"{status} {message}")
        if status in _OVERLOADED and "deadline" in message:
            counts.expired += 1
        elif status in _OVERLOADED and "died" not in message:
            counts.rejected += 1
            self.refusal_latency.latency.add(latency)
        else:
            counts.failed += 1

    def count_error(self, message: str) -> None:
        """One more of these."""
        self.errors[message] = self.errors.get(message, 0) + 1


def _message(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:80].decode("utf-8", "replace")
