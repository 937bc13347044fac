"""The rate of one model's rows as it changes: a mean since the last jump, a trend, and how bursty arrivals are.

Jumps are found by Page's CUSUM (Biometrika, 1954) on the likelihood of Poisson arrivals, two ratios in each direction: the
mean then starts anew where the sum last was zero, which is the likeliest instant of the jump. What comes in bursts is
discounted by its dispersion, the variance of counts over their mean, 1 for Poisson. Slow changes are followed by double
exponential smoothing (Brown, 1959), which does not lag behind a straight line.
"""

from math import exp, log, sqrt
from typing import Final

from gpulet.units import SECOND, Duration, Instant

_RATIOS: Final = (1.35, 2.5, 1 / 1.35, 1 / 2.5)
_THRESHOLD: Final = 12.0
"""In nats: by chance a sum gets there about once in e^12 arrivals."""
_CONFIRMED: Final = SECOND // 50
"""A jump lasts that long before it is believed: a loop that was held up hands over many requests at one instant."""
_MEMORY_S: Final = 10.0
_FAST_S: Final = 2.0
_SLOW_S: Final = 8.0
_DISPERSION_S: Final = 30.0
_MOST_DISPERSION: Final = 50.0
_LEAST: Final = 0.2
"""Rows/s: below it a rate is not told from none, and a first request is no jump."""
_SIGNIFICANT: Final = 3.0
_TREND_VARIANCE: Final = 1 / (2 * _FAST_S) + 1 / (2 * _SLOW_S) - 2 / (_FAST_S + _SLOW_S)
"""Of the difference of both smoothed rates, for a rate of one."""


class _Sum:
    """One CUSUM: the evidence that the rate is `ratio` times what it was, since `count` rows and instant `since`."""

    __slots__ = ("count", "gain", "loss", "since", "value")

    def __init__(self, ratio: float, now: Instant) -> None:
        self.gain = log(ratio)
        self.loss = ratio - 1
        self.value = 0.0
        self.since = now
        self.count = 0

    def add(self, now: Instant, count: int, rows: int, expected: float) -> None:
        """So many rows came where so many were expected; `count` are all so far."""
        value = self.value + rows * self.gain - expected * self.loss
        if value <= 0:
            value, self.since, self.count = 0.0, now, count
        self.value = value

    def clear(self, now: Instant, count: int) -> None:
        """Begin anew."""
        self.value, self.since, self.count = 0.0, now, count


class Rate:
    """Rows/s of one model. `arrive` is called for each request, `look` now and then."""

    __slots__ = (
        "_before",
        "_count",
        "_falls",
        "_fast",
        "_high",
        "_last",
        "_looked",
        "_low",
        "_seen",
        "_slow",
        "_weight_s",
        "_weighted",
        "dispersion",
        "jumped",
        "mean",
        "slope",
    )

    def __init__(self, now: Instant, rate: float, sure_s: float = 0.0) -> None:
        """`rate` is expected, as sure as if it had been seen for `sure_s`."""
        self.mean = rate
        self.slope = 0.0
        self.dispersion = 1.0
        self.jumped: Instant = now
        self._count = 0
        self._seen = 0
        self._last = self._looked = now
        self._weighted, self._weight_s = rate * sure_s, sure_s
        self._fast = self._slow = rate
        self._before = max(rate, _LEAST)
        self._low, self._high, *self._falls = (_Sum(ratio, now) for ratio in _RATIOS)

    def arrive(self, now: Instant, rows: int) -> bool:
        """A request came; whether the rate has jumped up by the looks of it. What it costs every request pays.

        Where a loop stood still, all that came meanwhile arrives at one instant: a sum is set to zero between instants only.
        """
        low, high, last, count = self._low, self._high, self._last, self._count
        expected = 0.0
        if now > last:
            expected = self._before * (now - last) / SECOND
            self._last = now
            if low.value <= 0:
                low.value, low.since, low.count = 0.0, last, count
            if high.value <= 0:
                high.value, high.since, high.count = 0.0, last, count
        self._count = count + rows
        low.value = value = low.value + rows * low.gain - expected * low.loss
        high.value = other = high.value + rows * high.gain - expected * high.loss
        bound = _THRESHOLD * self.dispersion
        return (value > bound and now - low.since >= _CONFIRMED) or (other > bound and now - high.since >= _CONFIRMED)

    def look(self, now: Instant) -> None:
        """Take in what came since the last look."""
        passed_s = (now - self._looked) / SECOND
        if passed_s <= 0:
            return
        rows = self._count - self._seen
        self._looked, self._seen = now, self._count
        self.arrive(now, 0)
        for total in self._falls:
            total.add(now, self._count, rows, self._before * passed_s)
        if not self._jump(now):
            self._follow(rows, passed_s)
        self._before = max(self.mean, _LEAST)

    def error(self) -> float:
        """The standard deviation of `mean`."""
        return sqrt(self.dispersion * max(self.mean, _LEAST) / max(self._weight_s, 1e-3))

    def ahead(self, lead: Duration) -> float:
        """The rate after `lead`, if it goes on changing as it does."""
        return max(0.0, self.mean + self.slope * lead / SECOND)

    def _jump(self, now: Instant) -> bool:
        """Where some sum says so the mean is what came since, and all begin anew."""
        sums = (self._low, self._high, *self._falls)
        strongest = max(sums, key=lambda total: total.value if now - total.since >= _CONFIRMED else 0.0)
        if strongest.value <= _THRESHOLD * self.dispersion or now - strongest.since < _CONFIRMED:
            return False
        since_s = (now - strongest.since) / SECOND
        self.mean = self._fast = self._slow = (self._count - strongest.count) / since_s
        self._weighted, self._weight_s, self.slope = self.mean * since_s, since_s, 0.0
        self.jumped = strongest.since
        for total in sums:
            total.clear(now, self._count)
        return True

    def _follow(self, rows: int, passed_s: float) -> None:
        expected = self.mean * passed_s
        if expected > 0:
            part = 1 - exp(-passed_s / _DISPERSION_S)
            measured = min((rows - expected) ** 2 / max(expected, 1.0), _MOST_DISPERSION)
            self.dispersion = max(1.0, self.dispersion + part * (measured - self.dispersion))
        rate = rows / passed_s
        self._fast += (1 - exp(-passed_s / _FAST_S)) * (rate - self._fast)
        self._slow += (1 - exp(-passed_s / _SLOW_S)) * (rate - self._slow)
        kept = exp(-passed_s / _MEMORY_S)
        self._weighted, self._weight_s = self._weighted * kept + rows, self._weight_s * kept + passed_s
        apart = self._fast - self._slow
        if apart**2 > _SIGNIFICANT**2 * self.dispersion * max(self._slow, _LEAST) * _TREND_VARIANCE:
            self.slope = apart / (_SLOW_S - _FAST_S)
            self.mean = max(0.0, self._fast + self.slope * _FAST_S)
        else:
            self.slope, self.mean = 0.0, self._weighted / self._weight_s
