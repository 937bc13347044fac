"""Our histograms as Prometheus has them: one list of limits, in whatever unit a name is in."""

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from gpulet.core.histogram import Histogram
from gpulet.units import MS, Duration

_STEPS_MS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_LIMITS: tuple[Duration, ...] = tuple(round(ms * MS) for ms in _STEPS_MS)


def add_histogram(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram, unit: Duration) -> None:
    """One series of the family, in `unit` nanoseconds."""
    within = zip(_LIMITS, histogram.within(_LIMITS), strict=True)
    buckets = [(_text(limit / unit), float(count)) for limit, count in within]
    family.add_metric(labels, [*buckets, ("+Inf", float(histogram.count))], histogram.total / unit)


def _text(limit: float) -> str:
    """As OpenMetrics wants limits written."""
    return str(floatToGoString(limit))  # type: ignore[no-untyped-call] # the library's annotations end here
