"""A histogram of durations with 64 buckets to the octave: at most 0.8 % off, in constant memory."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from gpulet.units import Duration

_BITS = 6
_EXACT = 1 << (_BITS + 1)


class Histogram:
    """Counts durations; `percentile` reads them back. Duration and bucket are whole nanoseconds."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total: Duration = 0

    def add(self, value: Duration, times: int = 1) -> None:
        """Count a duration, once or more; below 0 counts as 0, except in the total."""
        if value < _EXACT:
            bucket = max(0, value)
        else:  # as `_bucket`, without the call: this runs several times for each request
            shift = value.bit_length() - _BITS - 1
            bucket = (shift << (_BITS + 1)) + (value >> shift)
        buckets = self._buckets
        buckets[bucket] = buckets.get(bucket, 0) + times
        self.count += times
        self.total += value * times

    def merge(self, other: "Histogram") -> None:
        """Count everything that `other` counted."""
        self._buckets.update(other._buckets)  # noqa: SLF001 (its own kind)
        self.count += other.count
        self.total += other.total

    def remove(self, other: "Histogram") -> None:
        """Forget everything that `other` counted, all of which is counted here."""
        self._buckets.subtract(other._buckets)  # noqa: SLF001 (its own kind)
        self.count -= other.count
        self.total -= other.total

    @property
    def mean(self) -> float:
        """Of the counted durations, exactly; 0 when none was counted."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """The duration that `percent` of the counted ones do not exceed (nearest rank); 0 when none was counted."""
        rank = max(1, -int(-self.count * percent // 100))
        for middle, _, seen in self.cumulative():
            if seen >= rank:
                return middle
        return 0.0

    def within(self, limits: Sequence[Duration]) -> list[int]:
        """How many counted durations are in buckets that end at or below each of the limits, which ascend."""
        lasts = [_last_within(limit) for limit in limits]
        between = [0] * (len(limits) + 1)
        for bucket, count in self._buckets.items():  # as they come: a scrape sorts nothing, since it holds the loop up
            between[bisect_left(lasts, bucket)] += count
        return list(accumulate(between[:-1]))

    def cumulative(self) -> Iterator[tuple[float, int, int]]:
        """From the shortest: the bucket's middle, its end, and how many are in it or below."""
        seen = 0
        for bucket in sorted(self._buckets):
            low, high = _bounds(bucket)
            seen += self._buckets[bucket]
            yield (low + high) / 2, high, seen


def _bucket(value: Duration) -> int:
    """The leading bits of the value and where they stand."""
    if value < _EXACT:
        return max(0, value)
    shift = value.bit_length() - _BITS - 1
    return (shift << (_BITS + 1)) + (value >> shift)


def _last_within(limit: Duration) -> int:
    """The last bucket that ends at or below the limit."""
    bucket = _bucket(limit)
    return bucket if _bounds(bucket)[1] <= limit else bucket - 1


def _bounds(bucket: int) -> tuple[int, int]:
    if bucket < _EXACT:
        return bucket, bucket
    shift, lead = divmod(bucket, _EXACT)
    return lead << shift, ((lead + 1) << shift) - 1
