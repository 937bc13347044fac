"""E3 asks what things cost in time and memory: contexts, streams, proofs, captures, replays; and whether the ledger bills enough."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from devices import Gpu, Served, held, serving
from kit import Context, Result, judged, quantile
from loops import device_times, wall_times

from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ledger import SHARE_BYTES
from gpulet.units import MIB, MS

Made = TypeVar("Made")
_MODELS = ("lenet", "resnet50", "bert-base")
_ROWS = 8
_LONGEST_MS = 50.0
"""A context that takes longer would be felt by those who wait for a new plan."""


def run(context: Context) -> Result:
    """BAD where a context is slow, or where memory is taken that the ledger has no account of."""
    numbers: dict[str, Any] = {}
    with held(context) as gpu:
        numbers["contexts"] = _contexts(gpu)
        numbers["shares"] = _shares(gpu)
    numbers["select_stream_us"] = _selecting(context)
    with serving(context, _MODELS) as served:
        numbers["graphs"] = _graphs(context, served)
    each, create = numbers["contexts"]["bytes_each"], numbers["contexts"]["create_ms"]
    complaints = []
    if create > _LONGEST_MS:
        complaints.append(f"a context takes {create:.1f} ms")
    if each > SHARE_BYTES:
        complaints.append(f"a context takes {each / MIB:.1f} MiB, a share is billed {SHARE_BYTES / MIB:.0f}")
    complaints += _unbilled(numbers["graphs"])
    said = f"context {create:.2f} ms and {each / MIB:.2f} MiB, proven share {numbers['shares']['median_ms']:.1f} ms, "
    return judged(complaints, said + _line(numbers["graphs"]), numbers)


def _timed(act: Callable[[], Made]) -> tuple[float, Made]:
    began = time.perf_counter()
    made = act()
    return 1000 * (time.perf_counter() - began), made


def _contexts(gpu: Gpu) -> dict[str, float]:
    """All prefixes and suffixes at once, bare."""
    groups = len(gpu.layout.groups)
    intervals = [*(Interval(0, n) for n in range(1, groups)), *(Interval(n, gpu.places) for n in range(1, groups))]
    before = gpu.driver.memory().free
    contexts = [_timed(lambda i=i: gpu.driver.make_context(gpu.layout.sets(i))) for i in intervals]
    between = gpu.driver.memory().free
    streams = [_timed(lambda c=c: gpu.driver.make_stream(c)) for _, c in contexts]
    after = gpu.driver.memory().free
    ends = [_timed(lambda s=s: gpu.driver.destroy_stream(s))[0] for _, s in streams]
    ends += [_timed(lambda c=c: gpu.driver.destroy_context(c))[0] for _, c in contexts]
    return {
        "count": len(intervals),
        "first_create_ms": contexts[0][0],
        "create_ms": quantile([ms for ms, _ in contexts], 0.5),
        "longest_create_ms": max(ms for ms, _ in contexts),
        "bytes_each": (before - between) / len(intervals),
        "stream_ms": quantile([ms for ms, _ in streams], 0.5),
        "stream_bytes_each": (between - after) / len(intervals),
        "destroy_ms": quantile(ends, 0.5),
        "bytes_kept": before - gpu.driver.memory().free,
    }


def _shares(gpu: Gpu) -> dict[str, float]:
    """With their proofs, as the server makes them; then shown to be apart."""
    intervals = gpu.parts(4)
    made = [_timed(lambda i=i: gpu.pool.share(i))[0] for i in intervals]
    apart, _ = _timed(lambda: gpu.pool.prove_apart(intervals))
    gpu.drop(*intervals)
    return {"median_ms": quantile(made, 0.5), "longest_ms": max(made), "four_apart_ms": apart}


def _selecting(context: Context) -> float:
    """Of one change of torch's current stream, which each replay makes."""
    if not context.is_real:
        return 0.0
    streams = [torch.cuda.Stream() for _ in range(2)]
    began = time.perf_counter()
    for _ in range(1000):
        for stream in streams:
            with torch.cuda.stream(stream):
                pass
    return 1e6 * (time.perf_counter() - began) / 2000


def _graphs(context: Context, served: Served) -> dict[str, Any]:
    """Of each model on two shares: the first pays for loading, and for what is compiled or chosen once."""
    found: dict[str, Any] = {}
    half = len(served.gpu.layout.groups) // 2 * served.gpu.layout.group
    for model in _MODELS:
        for order, interval in zip(("first", "second"), served.gpu.halves(half), strict=True):
            if context.left > 0:
                found[f"{model} {order}"] = _graph(served, model, interval)
    return found


def _graph(served: Served, model: str, interval: Interval) -> dict[str, float]:
    driver, key = served.gpu.driver, served.key(model, _ROWS, interval)
    share: Share = served.gpu.pool.share(interval)
    before, guess = driver.memory().free, served.runtime.need(key)
    build, graph = _timed(lambda: served.cache.build(key))
    taken, need = before - driver.memory().free, served.runtime.need(key)
    check, error = _timed(lambda: served.runtime.error(key, graph))
    loop = served.loop(model, _ROWS, interval)
    launch, _ = _timed(loop.launch)
    driver.drain(share.stream)
    device, wall = (times(driver, loop, 15) for times in (device_times, wall_times))
    return {
        "build_ms": build,
        "check_ms": check,
        "error": error,
        "launch_ms": launch,
        "device_ms": quantile(device, 0.5) / MS,
        "wall_ms": quantile(wall, 0.5) / MS,
        "bytes": taken,
        "guessed_bytes": guess.weights + guess.staging + guess.pool,
        "measured_bytes": need.weights + need.staging + need.pool,
    }


def _unbilled(graphs: dict[str, Any]) -> list[str]:
    """The first graph of a model takes its weights too, the second what a share takes."""
    bills = {name: each["measured_bytes"] + SHARE_BYTES for name, each in graphs.items()}
    over = {name: each["bytes"] - bills[name] for name, each in graphs.items() if each["bytes"] > bills[name]}
    return [f"{name}: {more / MIB:.0f} MiB beyond its bill of {bills[name] / MIB:.0f}" for name, more in over.items()]


def _line(graphs: dict[str, Any]) -> str:
    said = (f"{name} {g['build_ms']:.0f} ms to build, {g['wall_ms']:.2f} to run" for name, g in graphs.items())
    return "; ".join(said)
