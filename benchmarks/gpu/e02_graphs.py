"""E2 asks where the nodes of a graph run: on the SMs of the stream they were captured on, wherever it is replayed."""

from collections.abc import Callable
from typing import Any

import torch
from devices import Gpu, held
from kit import Context, Result, judged
from loops import Torch, device_times
from torch.nn import functional

from gpulet.errors import Unproven
from gpulet.executors.cuda.contexts import Share
from gpulet.units import MS, US

_BLOCKS = 64
_HOLD = 20 * US
_CLOSE = 0.25
"""Two times that are one: work on 8 SMs takes many times as long as on 132."""


def run(context: Context) -> Result:
    """BAD where a replay leaves its share; libraries' kernels are judged by their time, which tells where they ran."""
    numbers: dict[str, Any] = {"kernels": [], "libraries": {}}
    try:
        return _judged(context, numbers)
    except Unproven as error:
        return judged([str(error)], "no share without a proof", numbers)


def _judged(context: Context, numbers: dict[str, Any]) -> Result:
    with held(context) as gpu:
        half = len(gpu.layout.groups) // 2 * gpu.layout.group
        intervals = [*gpu.halves(half), gpu.layout.everything]
        shares = [gpu.pool.share(interval) for interval in intervals]
        complaints = _kernels(gpu, shares, numbers)
        gpu.drop(*intervals)
        complaints += _libraries(context, gpu, numbers)
    said = f"{len(numbers['kernels'])} replays of our kernel and {len(numbers['libraries'])} library kernels stayed"
    if complaints:
        said = f"of {len(numbers['kernels'])} replays and {len(numbers['libraries'])} library kernels"
    return judged(complaints, said, numbers)


def _kernels(gpu: Gpu, shares: list[Share], numbers: dict[str, Any]) -> list[str]:
    """Captured on each, replayed on each: the ids of SMs are those of the capture."""
    complaints = []
    for captured in shares:
        for replayed in shares:
            ids = gpu.driver.replayed_ids(captured.stream, replayed.stream, _BLOCKS * gpu.layout.whole, _HOLD)
            astray = len(ids - captured.ids)
            pair = {"captured": str(captured.interval), "replayed": str(replayed.interval)}
            numbers["kernels"].append({**pair, "sms": len(ids), "astray": astray, "missed": len(captured.ids - ids)})
            if astray:
                complaints.append(f"captured on {captured.interval}, {astray} SMs outside when replayed elsewhere")
    return complaints


def _libraries(context: Context, gpu: Gpu, numbers: dict[str, Any]) -> list[str]:
    """Captured on one group; replayed on a stream of all SMs it takes as long as on its own, not as short as there."""
    complaints = []
    small = gpu.pool.share(gpu.prefix(gpu.layout.group))
    whole = gpu.pool.share(gpu.layout.everything)
    for name, work in _works(context).items():
        here = Torch(gpu.driver, small, work, is_real=context.is_real)
        there = Torch(gpu.driver, whole, work, is_real=context.is_real)
        own, wide = (_median(gpu, loop) for loop in (here, there))
        here.stream = whole.stream
        elsewhere = _median(gpu, here)
        numbers["libraries"][name] = {"own_ms": own, "whole_ms": wide, "own_replayed_on_whole_ms": elsewhere}
        if context.is_real and abs(elsewhere / own - 1) > _CLOSE:
            complaints.append(
                f"{name}: {own:.3f} ms on its 8 SMs, {elsewhere:.3f} ms replayed on the whole GPU's stream"
            )
        if context.is_real and own < 2 * wide:
            complaints.append(f"{name}: {own:.3f} ms on one group, {wide:.3f} ms on all: it is not confined")
    gpu.drop(small.interval, whole.interval)
    return complaints


def _median(gpu: Gpu, loop: Torch) -> float:
    times = sorted(device_times(gpu.driver, loop, 7))
    return max(1, times[len(times) // 2]) / MS


def _works(context: Context) -> dict[str, Callable[[], object]]:
    size, kind, rows = (2048, torch.float16, 16) if context.is_real else (64, torch.float32, 1)
    a, b = (torch.ones(size, size, device=context.device, dtype=kind) for _ in range(2))
    images = torch.ones(rows, 64, 56, 56, device=context.device, dtype=kind).to(memory_format=torch.channels_last)
    weights = torch.ones(64, 64, 3, 3, device=context.device, dtype=kind).to(memory_format=torch.channels_last)
    return {
        "product": lambda: a @ b,
        "convolution": lambda: functional.conv2d(images, weights, padding=1),
        "softmax": lambda: torch.softmax(a, 1),
        "attention": lambda: functional.scaled_dot_product_attention(*(a.view(-1, size // 64, 64, 64),) * 3),
    }
