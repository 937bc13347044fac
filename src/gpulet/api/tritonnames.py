"""Triton's metrics by Triton's names, for dashboards that must go on working; docs/metrics.md says what each means here.

A request is what a client sent, an inference one of its rows, an execution a batch that ran. Only answered ones count.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

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
    Reason.NOT_LOADED: "OTHER",
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


class _Model(NamedTuple):
    """One model's counters; `labels` are its name and version."""

    labels: tuple[str, str]
    counts: Counts
    phases: Phases


class TritonNames(Collector):
    """Everything of one model each; `load_times` changes as models are loaded."""

    def __init__(self, metrics: Metrics, served: Mapping[str, Served], load_times: Mapping[str, Duration]) -> None:
        self._metrics = metrics
        self._served = served
        self._load_times = load_times

    def collect(self) -> Iterator[Metric]:
        models = self._models()
        for name, meaning, value in _SUMS:
            yield _untyped(name, meaning, _LABELS, ((m.labels, value(m.counts, m.phases)) for m in models))
        failures = (((*m.labels, why), count) for m in models for why, count in self._failures(m.labels[0]).items())
        yield _untyped("nv_inference_request_failure", "requests without a result", (*_LABELS, "reason"), failures)
        waiting = self._metrics.waiting()
        yield _gauge("nv_inference_pending_request_count", "requests not started yet", models, waiting, 1)
        took = self._load_times
        yield _gauge("nv_model_load_duration_secs", "the last load with its warm-up", models, took, SECOND)
        for name, meaning, unit, histogram in _HISTOGRAMS:
            family = HistogramMetricFamily(name, meaning, labels=_LABELS)
            for model in models:
                add_histogram(family, model.labels, histogram(model.counts, model.phases), unit)
            yield family

    def _models(self) -> list[_Model]:
        """What is served now and was counted: models may come and go."""
        counts, phases = self._metrics.models, self._metrics.phases
        known = [(name, served.version) for name, served in self._served.items() if name in counts]
        return [_Model((name, version), counts[name], phases[name]) for name, version in known]

    def _failures(self, model: str) -> dict[str, int]:
        counts = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for reason, theirs in FAILURES.items():
            counts[theirs] += self._metrics.reasons.get((model, reason), 0)
        return counts


def _gauge(
    name: str, meaning: str, models: Iterable[_Model], values: Mapping[str, int], unit: int
) -> GaugeMetricFamily:
    """Of the models that have a value."""
    family = GaugeMetricFamily(name, meaning, labels=_LABELS)
    for model in models:
        if model.labels[0] in values:
            family.add_metric(model.labels, values[model.labels[0]] / unit)
    return family


def _untyped(
    name: str, meaning: str, labels: tuple[str, ...], series: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    """A counter of no declared type: Triton's names lack the `_total` that OpenMetrics wants of every counter."""
    metric = Metric(name, meaning, "unknown")
    for values, value in series:
        metric.add_sample(name, dict(zip(labels, values, strict=True)), value)
    return metric
