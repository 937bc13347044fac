"""The rates that come, against those that paces are made for."""

from collections.abc import Mapping
from math import sqrt

from gpulet.units import SECOND, Duration, Instant

LOOK: Duration = SECOND
"""So often are arrivals compared with the rates that paces are made for."""
DRIFT = 1 / 3
"""So far off they must be before paces change."""


class Rates:
    """Rows/s of each model that paces are made for, against those that come: counted anew from second to second."""

    __slots__ = ("_rates", "_since", "came", "look_at")

    def __init__(self, demand: Mapping[str, float]) -> None:
        self._rates = dict(demand)
        self._since: Instant | None = None
        self.came = dict.fromkeys(demand, 0)
        self.look_at: Instant = 0

    def drifted(self, now: Instant) -> Mapping[str, float] | None:
        """The rates as they are now, where one of them is no longer what it was; counting starts again."""
        off: dict[str, float] = {}
        if self._since is not None:
            seconds = (now - self._since) / SECOND
            off = {n: came / seconds for n, came in self.came.items() if _is_off(came, self._rates[n] * seconds)}
        self._rates |= off
        self._since, self.look_at = now, now + LOOK
        self.came = dict.fromkeys(self.came, 0)
        return dict(self._rates) if off else None


def _is_off(came: int, expected: float) -> bool:
    """By more than a third, and by more than chance would have it: four standard deviations of Poisson arrivals."""
    return abs(came - expected) > max(DRIFT * expected, 4 * sqrt(max(1.0, expected)))
