"""Decisions of live control as rows of a report."""

from typing import TypedDict

from gpulet.core.messages import Explain
from gpulet.units import SECOND, Instant


class ChangeRow(TypedDict):
    """One decision: when, and in words what was seen, considered and chosen."""

    at_s: float
    number: int
    seen: str
    considered: str
    chosen: str


def change_row(now: Instant, told: Explain) -> ChangeRow:
    """A decision for a report; `at_s` counts from the start."""
    return {
        "at_s": now / SECOND,
        "number": told.number,
        "seen": told.seen,
        "considered": told.considered,
        "chosen": told.chosen,
    }
