"""The machine's CPU and memory by Triton's names, read from /proc whenever they are scraped; nothing where there is none."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_PROC = Path("/proc")
_IDLE = slice(3, 5)  # idle and waiting for a disk
_COUNTED = slice(0, 8)  # without guests', which are in user and nice already


class HostUse(Collector):
    """Utilization is of the time since the last scrape, whoever's it was; at first since this was made."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._last = self._ticks()
        self._share = 0.0

    def collect(self) -> Iterator[Metric]:
        if not any(self._last):
            return
        yield GaugeMetricFamily("nv_cpu_utilization", "share of all cores' time, 0 to 1", value=self._utilization())
        total, available = self._memory()
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "memory of the machine", value=total)
        yield GaugeMetricFamily("nv_cpu_memory_used_bytes", "what is not available of it", value=total - available)

    def _utilization(self) -> float:
        """As it was, where no tick has passed: two scrapers at the same time."""
        busy, whole = self._ticks()
        if whole > self._last[1]:
            self._share = (busy - self._last[0]) / (whole - self._last[1])
            self._last = busy, whole
        return self._share

    def _ticks(self) -> tuple[int, int]:
        """Busy and all, since the machine started, of all cores together."""
        try:
            words = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return 0, 0
        ticks = [int(word) for word in words]
        whole = sum(ticks[_COUNTED])
        return whole - sum(ticks[_IDLE]), whole

    def _memory(self) -> tuple[int, int]:
        lines = (line.split() for line in (self._proc / "meminfo").read_text().splitlines())
        kib = {words[0]: int(words[1]) for words in lines}
        return kib["MemTotal:"] * 1024, kib["MemAvailable:"] * 1024
