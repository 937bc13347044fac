"""How far batches end from their predicted ends: measured minus estimated time, which `Start.expected` is."""

from collections.abc import Iterable
from typing import TypedDict

from gpulet.core.histogram import Histogram
from gpulet.core.messages import Start
from gpulet.units import Duration, to_ms


class EstimateRow(TypedDict):
    """The error of all batches that had an estimate. The p95 is 0 where fewer than 5 % took longer than estimated."""

    batches: int
    mean_error_ms: float
    p95_error_ms: float


class Estimates:
    """The errors by model: their totals are signed, below 0 they count as 0 otherwise."""

    def __init__(self, models: Iterable[str]) -> None:
        self.errors = {name: Histogram() for name in models}

    def add(self, start: Start, ran: Duration) -> None:
        """A batch took so long; a dispatcher need not have said how long it expected."""
        if start.expected:
            self.errors[start.model].add(ran - start.expected)

    def report(self) -> EstimateRow:
        """Over all models."""
        total = Histogram()
        for errors in self.errors.values():
            total.merge(errors)
        return {
            "batches": total.count,
            "mean_error_ms": to_ms(round(total.mean)),
            "p95_error_ms": to_ms(round(total.percentile(95))),
        }
