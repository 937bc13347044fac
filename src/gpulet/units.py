"""Time is `int` nanoseconds everywhere inside, so that two ways to compute one instant agree.

As floats, `now + t <= d` and `t <= d - now` disagree in a quarter of the cases where `d` is exactly `now + t`.
"""

from typing import TypeAlias

Instant: TypeAlias = int
"""Nanoseconds since the driver's epoch (process start when live, 0 when simulated)."""
Duration: TypeAlias = int
"""Nanoseconds."""

US: Duration = 1_000
MS: Duration = 1_000_000
SECOND: Duration = 1_000_000_000
NEVER: Instant = 2**63 - 1

MIB = 2**20
GIB = 2**30

PLAIN = ""
"""The shape class of models without variable dimensions."""


def from_ms(ms: float) -> Duration:
    """Milliseconds, as files and people give them, to nanoseconds."""
    return round(ms * MS)


def to_ms(duration: Duration) -> float:
    """Nanoseconds to milliseconds, rounded to what a table can show (1 ns)."""
    return round(duration / MS, 6)
