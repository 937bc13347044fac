"""How busy this server is, for load balancers: the header `endpoint-load-metrics` of ORCA (Envoy's and Triton's)."""

from typing import Final, Protocol

import orjson

from gpulet.core.metrics import Metrics
from gpulet.units import SECOND, Instant

_WINDOW: Final = SECOND // 2


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> Instant: ...


class LoadReport:
    """Shares of the devices that batches held and requests served per second, over half a second."""

    def __init__(self, metrics: Metrics, clock: Clock) -> None:
        self._metrics = metrics
        self._clock = clock
        self._since = clock.now()
        self._busy, self._served = self._totals()
        self._figures: dict[str, float] = {"application_utilization": 0.0, "rps_fractional": 0.0}

    def report(self, form: str) -> str:
        """As `text` or `json`; requests that wait or run are among the named metrics."""
        now = self._clock.now()
        if now - self._since >= _WINDOW:
            self._renew(now)
        waiting = float(sum(c.unanswered for c in self._metrics.models.values()))
        if form == "json":
            return "JSON " + orjson.dumps({**self._figures, "named_metrics": {"unanswered": waiting}}).decode()
        return "TEXT " + ", ".join(
            f"{name}={value:g}" for name, value in {**self._figures, "named_metrics.unanswered": waiting}.items()
        )

    def _renew(self, now: Instant) -> None:
        busy, served = self._totals()
        seconds = (now - self._since) / SECOND
        sms = sum(device.sms for device in self._metrics.usage.devices.values()) or 1
        self._figures["application_utilization"] = round((busy - self._busy) / SECOND / seconds / sms, 4)
        self._figures["rps_fractional"] = round((served - self._served) / seconds, 2)
        self._since, self._busy, self._served = now, busy, served

    def _totals(self) -> tuple[float, int]:
        """SM nanoseconds that batches held, requests served."""
        busy = sum(time.busy for time in self._metrics.usage.by_device().values())
        return busy, sum(counts.served for counts in self._metrics.models.values())
