"""E13 asks whether two shares that serve mixed models at once ever answer otherwise than the whole GPU does.

Scratch or memory that two graphs share gives wrong numbers, not errors.
"""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from devices import Served, serving
from kit import Context, Result, judged, quantile
from numpy.typing import NDArray

from gpulet.executors.cuda.graphs import TOLERANCE
from gpulet.executors.cuda.layout import Interval

_MODELS = ("resnet50", "bert-base", "mobilenet_v2", "vgg16", "lenet")
_BUCKETS = (1, 4, 8)
_SEEDS = 4
_KINDS = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "INT64": np.int64}
Outputs = list[NDArray[np.float64]]


def run(context: Context) -> Result:
    """BAD where one output of any batch is farther from the whole GPU's than a graph's check allows."""
    models = _MODELS[:2] if context.tiny else _MODELS
    with serving(context, models) as served:
        half = len(served.gpu.layout.groups) // 2 * served.gpu.layout.group
        intervals = served.gpu.halves(half)
        served.gpu.shares(intervals)
        for model in models:
            for interval in (served.gpu.layout.everything, *intervals):
                for bucket in _BUCKETS:
                    served.graph(model, bucket, interval)
        golden = {
            (model, seed): _answers(served, model, seed, served.gpu.layout.everything)
            for model in models
            for seed in range(_SEEDS)
        }
        seconds = 1.0 if context.tiny else max(1.0, context.left - 5)
        found = _soaked(served, models, golden, intervals, seconds)
    errors = [error for each in found for error in each]
    wrong = [error for error in errors if not error <= TOLERANCE]
    numbers: dict[str, Any] = {"batches": len(errors), "wrong": len(wrong), "largest": max(errors)}
    numbers |= {"median": quantile(errors, 0.5), "p99": quantile(errors, 0.99), "by_share": [len(e) for e in found]}
    said = f"{len(errors)} batches of {len(models)} models on {' and '.join(map(str, intervals))}, "
    said += f"largest difference {max(errors):.2g} of {TOLERANCE:g}"
    return judged([f"{len(wrong)} batches are wrong"] if wrong else [], said, numbers)


def _answers(served: Served, model: str, seed: int, interval: Interval) -> Outputs:
    """All rows of one seed's inputs."""
    return _replayed(served, model, seed, _BUCKETS[-1], interval)


def _replayed(served: Served, model: str, seed: int, rows: int, interval: Interval) -> Outputs:
    """The first `rows` rows of that seed's inputs, by the smallest graph that takes them."""
    bucket = next(b for b in _BUCKETS if b >= rows)
    graph = served.cache.graph(served.key(model, bucket, interval))
    (whole,) = served.given(model, _BUCKETS[-1], seed)[0]
    given = [[whole[: len(whole) * rows // _BUCKETS[-1]]]]
    served.gpu.driver.wait(graph.replay(rows, given))
    kinds = [_KINDS[tensor.datatype] for tensor in served.cache.signatures[model].outputs]
    answered = zip(graph.outputs(rows), kinds, strict=True)
    return [np.frombuffer(a.data, kind).reshape(a.shape).astype(np.float64) for a, kind in answered]


def _soaked(
    served: Served,
    models: tuple[str, ...],
    golden: dict[tuple[str, int], Outputs],
    intervals: tuple[Interval, ...],
    seconds: float,
) -> list[list[float]]:
    """Each share in a thread of its own, in an order of its own; the differences of all batches."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.start()

    def soak(place: int) -> list[float]:
        drawn, found = random.Random(place), []
        while not stop.is_set():
            model, seed, rows = drawn.choice(models), drawn.randrange(_SEEDS), drawn.randint(1, _BUCKETS[-1])
            mine = _replayed(served, model, seed, rows, intervals[place])
            found.append(max(_apart(a, b[:rows]) for a, b in zip(mine, golden[model, seed], strict=True)))
        return found

    with ThreadPoolExecutor(len(intervals), initializer=served.gpu.driver.enter) as pool:
        found = list(pool.map(soak, range(len(intervals))))
    timer.join()
    return found


def _apart(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    """Relative to the largest number; what is no number is infinitely far."""
    if not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max() / (np.abs(wanted).max() + 1e-12))
