"""One model's counters, and its line of a report.

arrived = served + rejected + expired + cancelled + failed + lost. `lost` is never answered: 0 once nothing waits or runs.
`late` is part of served; attainment = (served - late) / arrived; goodput = (served - late) per second; violations = late +
rejected + expired + failed + lost, per second (D-STACK's measure, TCC 2024): who cancels has no claim left.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from gpulet.core.fairness import jain
from gpulet.core.histogram import Histogram
from gpulet.core.messages import Reason
from gpulet.core.usage import NO_TIME, ModelTime
from gpulet.request import Request
from gpulet.units import SECOND, Duration, Instant, to_ms


class ModelRow(TypedDict):
    """One model's line of a report: counts, shares of 1, answers and violations per second, milliseconds.

    `gpu_s`: how long its batches ran; `gpu_area_s`: the same times the share of the device that each held. Both are 0,
    as `mean_batch` is, where a client measures.
    """

    arrived: int
    served: int
    late: int
    rejected: int
    expired: int
    cancelled: int
    failed: int
    lost: int
    attainment: float
    goodput: float
    violations_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float
    gpu_s: float
    gpu_area_s: float


_SUMMED = ("arrived", "served", "late", "rejected", "expired", "cancelled", "failed", "batches", "rows")


@dataclass(slots=True)
class Counts:
    """One model's counters. `latency` counts served requests from arrival; `rows` and `batches` count what started."""

    arrived: int = 0
    served: int = 0
    late: int = 0
    rejected: int = 0
    expired: int = 0
    cancelled: int = 0
    failed: int = 0
    batches: int = 0
    rows: int = 0
    latency: Histogram = field(default_factory=Histogram)

    @property
    def unanswered(self) -> int:
        """Still waiting or running; lost, once the run is over."""
        return self.arrived - self.served - self.rejected - self.expired - self.cancelled - self.failed

    @property
    def attainment(self) -> float:
        """The share of arrivals that were served in time."""
        return (self.served - self.late) / self.arrived if self.arrived else 1.0

    @property
    def violations(self) -> int:
        """Requests that were late or got no result, but for those that nobody wants any more."""
        return self.late + self.rejected + self.expired + self.failed

    def add(self, other: "Counts") -> None:
        """Count everything that `other` counted."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.latency.merge(other.latency)

    def remove(self, other: "Counts") -> None:
        """Forget what `other` counted, all of which is counted here."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) - getattr(other, name))
        self.latency.remove(other.latency)

    def end(self, request: Request, now: Instant) -> None:
        """One request is served."""
        self.served += 1
        self.late += now > request.deadline
        self.latency.add(now - request.arrival)

    def refuse(self, reason: Reason) -> None:
        """One request got no result."""
        setattr(self, OUTCOMES[reason], getattr(self, OUTCOMES[reason]) + 1)

    def report(self, duration: Duration, time: ModelTime = NO_TIME) -> ModelRow:
        """The shape of `simulate --json` and `bench --json`."""
        good = self.served - self.late
        p50, p95, p99 = (to_ms(round(self.latency.percentile(p))) for p in (50, 95, 99))
        return {
            "arrived": self.arrived,
            "served": self.served,
            "late": self.late,
            "rejected": self.rejected,
            "expired": self.expired,
            "cancelled": self.cancelled,
            "failed": self.failed,
            "lost": self.unanswered,
            "attainment": self.attainment,
            "goodput": good * SECOND / duration if duration else 0.0,
            "violations_per_s": (self.violations + self.unanswered) * SECOND / duration if duration else 0.0,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "mean_batch": self.rows / self.batches if self.batches else 0.0,
            "gpu_s": time.ran / SECOND,
            "gpu_area_s": time.area / SECOND,
        }


def goodput_fairness(counts: Iterable[Counts]) -> float:
    """Jain's index of goodput over what was asked; who was asked nothing is left out."""
    return jain(c.attainment for c in counts if c.arrived)


OUTCOMES: Mapping[Reason, str] = {
    Reason.UNKNOWN_MODEL: "rejected",
    Reason.TOO_LARGE: "rejected",
    Reason.QUEUE_FULL: "rejected",
    Reason.LATE: "rejected",
    Reason.STOPPED: "rejected",
    Reason.NOT_LOADED: "rejected",
    Reason.EXPIRED: "expired",
    Reason.CANCELLED: "cancelled",
    Reason.ABANDONED: "cancelled",
    Reason.RUN_FAILED: "failed",
    Reason.WORKER_LOST: "failed",
}
"""What became of a request that got no result, by the counter that counts it."""
