"""Triton's statistics extension: the core's counters as its `model_stats`, for HTTP as JSON and for gRPC alike.

Field names are `ModelStatistics`' of Triton's protocol. Times are sums over requests, those of `batch_stats` over batches.
"""

from collections.abc import Mapping
from typing import Any

from gpulet.api.catalog import Served
from gpulet.core.counts import Counts
from gpulet.core.metrics import Metrics
from gpulet.core.phases import Phases, Runs
from gpulet.units import MS, Duration, Instant


def model_statistics(
    metrics: Metrics, served: Mapping[str, Served], began_at: Instant, name: str = "", version: str = ""
) -> dict[str, Any]:
    """Of one model, or without a name of all; `began_at` is the driver's instant 0 in Unix nanoseconds.

    A name that is not served, or a version that its model does not have, gives an empty list.
    """
    known = {n: s.version for n, s in served.items() if n in metrics.models}
    wanted = {n: v for n, v in known.items() if name in {"", n} and version in {"", v}}
    return {"model_stats": [_statistics(metrics, n, v, began_at) for n, v in wanted.items()]}


def _statistics(metrics: Metrics, name: str, version: str, began_at: Instant) -> dict[str, Any]:
    counts, phases = metrics.models[name], metrics.phases[name]
    runs = sorted(phases.runs.items())
    return {
        "name": name,
        "version": version,
        "last_inference": (began_at + phases.last) // MS if phases.last else 0,
        "inference_count": sum(rows * run.count for rows, run in runs),
        "execution_count": sum(run.count for _, run in runs),
        "inference_stats": _inference_stats(counts, phases),
        "response_stats": {},  # of models that answer a request in several parts: there are none
        "batch_stats": [_batch_stats(rows, run) for rows, run in runs],
        "memory_usage": [],  # of the device memory that models hold nothing is known here
    }


def _inference_stats(counts: Counts, phases: Phases) -> dict[str, Any]:
    refused = counts.rejected + counts.expired + counts.cancelled + counts.failed
    return {
        "success": _duration(counts.served, counts.latency.total),
        "fail": _duration(refused, phases.refused),
        "queue": _duration(phases.queue.count, phases.queue.total),
        "compute_input": _duration(phases.input.count, phases.input.total),
        "compute_infer": _duration(phases.infer.count, phases.infer.total),
        "compute_output": _duration(phases.output.count, phases.output.total),
        "cache_hit": _duration(0, 0),
        "cache_miss": _duration(0, 0),
    }


def _batch_stats(rows: int, run: Runs) -> dict[str, Any]:
    return {
        "batch_size": rows,
        "compute_input": _duration(run.count, run.input),
        "compute_infer": _duration(run.count, run.infer),
        "compute_output": _duration(run.count, run.output),
    }


def _duration(count: int, total: Duration) -> dict[str, int]:
    return {"count": count, "ns": total}
