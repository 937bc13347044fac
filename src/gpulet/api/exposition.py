"""Prometheus metrics from the core's counters, made when they are scraped: our own names; Triton's are in `tritonnames`."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gpulet.api.catalog import Served
from gpulet.api.histograms import add_histogram
from gpulet.api.hostuse import HostUse
from gpulet.api.tritonnames import TritonNames
from gpulet.core.counts import Counts
from gpulet.core.fleet import Fleet
from gpulet.core.messages import Reason
from gpulet.core.metrics import Metrics
from gpulet.core.replan import Demand
from gpulet.units import SECOND, Duration

_END = b"# EOF\n"
"""Of an OpenMetrics text, once; the other format has no end."""


def make_registry(
    metrics: Metrics,
    served: Mapping[str, Served],
    fleet: Fleet,
    load_times: Mapping[str, Duration],
    demand: Callable[[], Demand] | None = None,
) -> CollectorRegistry:
    """A registry of its own, so that two servers in one process do not meet. `load_times` by model, as they come.

    `demand` is what live control sees, where there is any.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(metrics, served, fleet))
    registry.register(_Plans(metrics, demand))
    registry.register(TritonNames(metrics, served, load_times))
    registry.register(HostUse())
    return registry


async def expose(registry: Collector, accept: str) -> tuple[bytes, str]:
    """All metrics in the format that is accepted, and what it is called.

    A family at a time: with twenty models the whole text takes some 60 ms, and the loop has requests to serve meanwhile.
    """
    encode, kind = choose_encoder(accept)
    parts: list[bytes] = []
    is_ended = False
    for family in registry.collect():
        text = encode(_Single(family))
        parts.append(text.removesuffix(_END))
        is_ended = text.endswith(_END)
        await asyncio.sleep(0)
    return b"".join((*parts, _END if is_ended else b"")), kind


class _Single(CollectorRegistry):
    """One family as a registry, which is what encoders take."""

    def __init__(self, family: Metric) -> None:
        super().__init__()
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family


class _Plans(Collector):
    """Plans as they change, and the rates they are made for."""

    def __init__(self, metrics: Metrics, demand: Callable[[], Demand] | None) -> None:
        self._metrics = metrics
        self._demand = demand

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("gpulet_plan_changes", "plans that came into force", value=self._metrics.changes)
        devices = self._metrics.usage.devices
        used = sum(device.is_in_use for device in devices.values())
        yield GaugeMetricFamily("gpulet_devices_in_use", "devices that the plan in force uses", value=used)
        if self._demand is None:
            return
        demand = self._demand()
        rates = GaugeMetricFamily("gpulet_rate", "rows/s as live control sees them", labels=("model",))
        targets = GaugeMetricFamily("gpulet_target_rate", "rows/s that a plan would be made for", labels=("model",))
        for name, rate in demand.rates.items():
            rates.add_metric((name,), rate)
            targets.add_metric((name,), demand.targets[name])
        yield rates
        yield targets


class _Collector(Collector):
    def __init__(self, metrics: Metrics, served: Mapping[str, Served], fleet: Fleet) -> None:
        self._metrics = metrics
        self._served = served
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        yield from self._per_model()
        yield from self._latency()
        yield from self._gpulets()
        yield from self._devices()
        yield from self._fairness()

    def _per_model(self) -> Iterator[Metric]:
        answers = CounterMetricFamily("gpulet_requests", "requests by what became of them", labels=("model", "outcome"))
        for name, counts in self._known():
            for outcome in ("arrived", "served", "late", "rejected", "expired", "cancelled", "failed"):
                answers.add_metric((name, outcome), getattr(counts, outcome))
        yield answers
        refusals = CounterMetricFamily(
            "gpulet_refusals", "requests without a result, by why", labels=("model", "reason")
        )
        for name, _ in self._known():
            for reason in Reason:
                refusals.add_metric((name, reason.name.lower()), self._metrics.reasons.get((name, reason), 0))
        yield refusals
        violations = CounterMetricFamily("gpulet_violations", "late, or without a result", labels=("model",))
        for name, counts in self._known():
            violations.add_metric((name,), counts.violations)
        yield violations
        attainment = GaugeMetricFamily(
            "gpulet_attainment", "share of arrivals served within the SLO", labels=("model",)
        )
        waiting = GaugeMetricFamily("gpulet_unanswered", "requests that wait or run", labels=("model",))
        for name, counts in self._known():
            attainment.add_metric((name,), counts.attainment)
            waiting.add_metric((name,), counts.unanswered)
        yield attainment
        yield waiting
        objective = GaugeMetricFamily("gpulet_slo_seconds", "time allowed to the answer", labels=("model",))
        for name, served in self._served.items():
            objective.add_metric((name,), served.model.slo / SECOND)
        yield objective

    def _latency(self) -> Iterator[Metric]:
        latency = HistogramMetricFamily("gpulet_latency_seconds", "from arrival to answer", labels=("model",))
        for name, counts in self._known():
            add_histogram(latency, (name,), counts.latency, SECOND)
        yield latency
        mean = GaugeMetricFamily("gpulet_estimate_error_mean_seconds", "batch time over predicted", labels=("model",))
        p95 = GaugeMetricFamily("gpulet_estimate_error_p95_seconds", "its 95th percentile, from 0", labels=("model",))
        for name, errors in self._metrics.estimates.errors.items():
            mean.add_metric((name,), errors.mean / SECOND)
            p95.add_metric((name,), errors.percentile(95) / SECOND)
        yield mean
        yield p95

    def _gpulets(self) -> Iterator[Metric]:
        label = ("gpulet",)
        up = GaugeMetricFamily("gpulet_up", "whether the gpulet can run batches", labels=label)
        sms = GaugeMetricFamily("gpulet_size", "SMs or cores", labels=(*label, "device"))
        busy = CounterMetricFamily("gpulet_busy_seconds", "time in batches", labels=label)
        predicted = CounterMetricFamily(
            "gpulet_predicted_seconds", "time that batches were predicted to take", labels=label
        )
        batches = CounterMetricFamily("gpulet_batches", "batches run", labels=label)
        rows = CounterMetricFamily("gpulet_rows", "rows run", labels=label)
        run = HistogramMetricFamily("gpulet_run_seconds", "time of one batch", labels=label)
        for state in tuple(self._fleet.gpulets.values()):
            use, name = self._metrics.gpulets[state.id], str(state.id)
            up.add_metric((name,), float(state.is_up))
            sms.add_metric((name, str(use.device)), use.sms)
            busy.add_metric((name,), use.busy / SECOND)
            predicted.add_metric((name,), use.predicted / SECOND)
            batches.add_metric((name,), use.batches)
            rows.add_metric((name,), use.rows)
            add_histogram(run, (name,), use.run, SECOND)
        yield from (up, sms, busy, predicted, batches, rows, run)

    def _devices(self) -> Iterator[Metric]:
        """SM time of batches that have ended; rates of it over `gpulet_device_sms` are utilizations."""
        label = ("device",)
        sms = GaugeMetricFamily("gpulet_device_sms", "SMs or cores", labels=label)
        given = GaugeMetricFamily("gpulet_device_gpulet_sms", "SMs or cores in gpulets of the plan", labels=label)
        busy = CounterMetricFamily("gpulet_device_busy_sm_seconds", "SMs that batches held, times s", labels=label)
        useful = CounterMetricFamily(
            "gpulet_device_useful_sm_seconds", "the same, none beyond its model's knee", labels=label
        )
        carved = CounterMetricFamily("gpulet_device_carved_sm_seconds", "the same, carved for one run", labels=label)
        switches = CounterMetricFamily("gpulet_device_switches", "starts after another model's", labels=label)
        resizes = CounterMetricFamily("gpulet_device_resizes", "carves of another size than before", labels=label)
        times = self._metrics.usage.by_device()
        for index, use in self._metrics.usage.devices.items():
            name, time = (str(index),), times[index]
            sms.add_metric(name, use.sms)
            given.add_metric(name, use.gpulet_sms)
            busy.add_metric(name, time.busy / SECOND)
            useful.add_metric(name, time.useful / SECOND)
            carved.add_metric(name, time.carved / SECOND)
            switches.add_metric(name, use.switches)
            resizes.add_metric(name, use.resizes)
        yield from (sms, given, busy, useful, carved, switches, resizes)

    def _fairness(self) -> Iterator[Metric]:
        ran = CounterMetricFamily("gpulet_gpu_seconds", "time of a model's batches", labels=("model",))
        area = CounterMetricFamily("gpulet_gpu_area_seconds", "the same times shares of devices", labels=("model",))
        for name, time in self._metrics.usage.by_model().items():
            ran.add_metric((name,), time.ran / SECOND)
            area.add_metric((name,), time.area / SECOND)
        fairness = GaugeMetricFamily("gpulet_fairness", "Jain's index over models, 1 when even", labels=("of",))
        for of, index in self._metrics.fairness().items():
            fairness.add_metric((of,), index)
        yield from (ran, area, fairness)

    def _known(self) -> Iterator[tuple[str, Counts]]:
        return ((name, counts) for name, counts in self._metrics.models.items() if name)
