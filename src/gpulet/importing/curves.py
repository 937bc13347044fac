"""Between two measured batches a line, beyond the ends the end."""

from bisect import bisect_left
from collections.abc import Mapping


def linear(measured: Mapping[int, float], rows: int) -> float:
    """The value at `rows`; exactly the measured one where there is one."""
    known = sorted(measured)
    right = bisect_left(known, rows)
    if right in {0, len(known)}:
        return measured[known[min(right, len(known) - 1)]]
    low, high = known[right - 1], known[right]
    return measured[high] + (measured[low] - measured[high]) * (high - rows) / (high - low)
