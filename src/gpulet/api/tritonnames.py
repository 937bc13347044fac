"""Triton's metrics by Triton's names, for dashboards that must go on working; docs/metrics.md says what each means here.

A request is what a client sent, an inference one of its rows, an execution a batch that ran. Only answered ones count.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpulet.api.catalog import Served
from gpulet.api.histograms import add_histogram
from gpulet.core.counts import Counts
from gpulet.core.histogram import Histogram
from gpulet.core.messages import Reason
from gpulet.core.metrics import Metrics
from gpulet.core.phases import Phases
from gpulet.units import MS, SECOND, US, Duration

FAILURES: Mapping[Reason, str] = {
    Reason.UNKNOWN_MODEL: "OTHER",
    Reason.TOO_LARGE: "OTHER",
    Reason.QUEUE_FULL: "REJECTED",
    Reason.LATE: "REJECTED",
    Reason.EXPIRED: "REJECTED",
    Reason.CANCELLED: "CANCELED",
    Reason.ABANDONED: "CANCELED",
    Reason.RUN_FAILED: "BACKEND",
    Reason.WORKER_LOST: "BACKEND",
    Reason.STOPPED: "OTHER",
}
"""Triton's reasons for ours. What waited past its deadline is rejected, as with Triton's queue policy."""

_LABELS = ("model", "version")
_SUMS: tuple[tuple[str, str, Callable[[Counts, Phases], float]], ...] = (
    ("nv_inference_request_success", "requests answered with a result", lambda c, _: c.served),
    ("nv_inference_count", "rows run and answered", lambda _, p: sum(n * r.count for n, r in p.runs.items())),
    ("nv_inference_exec_count", "batches run and answered", lambda _, p: sum(r.count for r in p.runs.values())),
    ("nv_inference_request_duration_us", "arrival to answer, summed", lambda c, _: c.latency.total / US),
    ("nv_inference_queue_duration_us", "arrival to start, summed", lambda _, p: p.queue.total / US),
    ("nv_inference_compute_input_duration_us", "copying inputs, summed", lambda _, p: p.input.total / US),
    ("nv_inference_compute_infer_duration_us", "in the runtime, summed", lambda _, p: p.infer.total / US),
    ("nv_inference_compute_output_duration_us", "runtime's end to answer, summed", lambda _, p: p.output.total / US),
)
_HISTOGRAMS: tuple[tuple[str, str, Duration, Callable[[Counts, Phases], Histogram]], ...] = (
    ("nv_inference_first_response_histogram_ms", "arrival to answer", MS, lambda c, _: c.latency),
    ("nv_inference_request_duration_histogram_us", "arrival to answer", US, lambda c, _: c.latency),
    ("nv_inference_queue_duration_histogram_us", "arrival to start", US, lambda _, p: p.queue),
    ("nv_inference_compute_input_duration_histogram_us", "copying inputs", US, lambda _, p: p.input),
    ("nv_inference_compute_infer_duration_histogram_us", "in the runtime", US, lambda _, p: p.infer),
    ("nv_inference_compute_output_duration_histogram_us", "runtime's end to answer", US, lambda _, p: p.output),
)


class TritonNames(Collector):
    """Everything of one model each; `load_times` changes as models are loaded."""

    def __init__(self, metrics: Metrics, served: Mapping[str, Served], load_times: Mapping[str, Duration]) -> None:
        self._metrics = metrics
        self._served = served
        self._load_times = load_times

    def collect(self) -> Iterator[Metric]:
        models = [
            (n, (n, self._served[n].version), c, self._metrics.phases[n]) for n, c in self._metrics.models.items() if n
        ]
        for name, meaning, value in _SUMS:
            yield _untyped(name, meaning, _LABELS, ((labels, value(c, p)) for _, labels, c, p in models))
        failures = (((*labels, why), count) for n, labels, _, _ in models for why, count in self._failures(n).items())
        yield _untyped("nv_inference_request_failure", "requests without a result", (*_LABELS, "reason"), failures)
        waiting = GaugeMetricFamily("nv_inference_pending_request_count", "requests not started yet", labels=_LABELS)
        for name, count in self._metrics.waiting().items():
            waiting.add_metric((name, self._served[name].version), count)
        yield waiting
        loads = GaugeMetricFamily("nv_model_load_duration_secs", "the last load with its warm-up", labels=_LABELS)
        for name, took in self._load_times.items():
            loads.add_metric((name, self._served[name].version), took / SECOND)
        yield loads
        for name, meaning, unit, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(name, meaning, labels=_LABELS)
            for _, labels, counts, phases in models:
                add_histogram(family, labels, histogram(counts, phases), unit)
            yield family

    def _failures(self, model: str) -> dict[str, int]:
        counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for reason, theirs in FAILURES.items():
            counts[theirs] += self._metrics.reasons.get((model, reason), 0)
        return counts


def _untyped(
    name: str, meaning: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    """A counter of no declared type: Triton's names lack the `_total` that OpenMetrics wants of every counter."""
    metric = Metric(name, meaning, "unknown")
    for values, value in series:
        metric.add_sample(name, dict(zip(labels, values, strict=True)), value)
    return metric
