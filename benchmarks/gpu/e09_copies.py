"""E9 asks what copies cost: pinned, pageable and registered shared memory; inside graphs; beside what computes."""

import mmap
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from devices import Gpu, held
from kit import GIGABYTE, MEGABYTE, Context, Result, judged
from loops import Torch, beside, device_times
from torch import Tensor

from gpulet.units import MS, SECOND

_SIZES = (150_528, 4_816_896, 64 << 20)
"""An image in bytes, 32 images of halves, and enough for the rate."""
_FAST = 10 * GIGABYTE
_SLOWER = 1.1


def run(context: Context) -> Result:
    """BAD where pinned copies are slower than 10 GB/s, or slow what computes on a share by more than a tenth."""
    numbers: dict[str, Any] = {"rates": _rates(context), "registered": _registered(context)}
    with held(context) as gpu:
        numbers |= _in_graphs(context, gpu)
    best = max(each["in"] for each in numbers["rates"]["pinned"].values())
    slower = numbers["compute_ms"]["beside_copies"] / numbers["compute_ms"]["alone"]
    complaints = []
    if context.is_real and best < _FAST / GIGABYTE:
        complaints.append(f"pinned memory goes in at {best:.1f} GB/s")
    if context.is_real and slower > _SLOWER:
        complaints.append(f"copies slow what computes by {slower:.2f}")
    said = f"pinned {best:.1f} GB/s in, compute beside copies {slower:.2f} times as long, "
    return judged(complaints, said + f"registered shared memory: {numbers['registered'].get('said')}", numbers)


def _rates(context: Context) -> dict[str, Any]:
    """Gigabytes a second, by kind of memory and size."""
    found: dict[str, Any] = {}
    for kind in ("pinned", "pageable"):
        is_pinned = kind == "pinned" and context.is_real
        found[kind] = {}
        for size in _SIZES:
            host = torch.empty(size, dtype=torch.uint8, pin_memory=is_pinned)
            found[kind][str(size)] = _both_ways(context, host)
    return found


def _both_ways(context: Context, host: Tensor) -> Mapping[str, float]:
    device = torch.empty_like(host, device=context.device)
    return {
        "in": _rate(context, host.numel(), lambda: device.copy_(host, non_blocking=True)),
        "out": _rate(context, host.numel(), lambda: host.copy_(device, non_blocking=True)),
    }


def _rate(context: Context, size: int, act: Callable[[], object]) -> float:
    times = max(4, min(64, (256 << 20) // size)) if context.is_real else 4
    act()
    _settle(context)
    began = time.perf_counter()
    for _ in range(times):
        act()
    _settle(context)
    return round(times * size / (time.perf_counter() - began) / GIGABYTE, 3)


def _settle(context: Context) -> None:
    if context.is_real:
        torch.cuda.synchronize()


def _registered(context: Context) -> dict[str, Any]:
    """Shared memory that CUDA is told to pin: it would save a copy; a sandbox may refuse it."""
    if not context.is_real:
        return {"said": "not tried"}
    size = _SIZES[-1]
    with mmap.mmap(-1, size) as shared:
        host = torch.frombuffer(shared, dtype=torch.uint8)
        host.zero_()
        code = int(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), size, 0))
        if code:
            found: dict[str, Any] = {"said": f"refused ({code})"}
        else:
            found = dict(_both_ways(context, host))
            found["said"] = f"{found['in']:.1f} GB/s in"
            torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
        del host
    return found


def _in_graphs(context: Context, gpu: Gpu) -> dict[str, Any]:
    """A copy as a node of a graph, and products on the other share, alone and beside it."""
    host = torch.empty(_SIZES[1], dtype=torch.uint8, pin_memory=context.is_real)
    device = torch.empty_like(host, device=context.device)
    side = 4096 if context.is_real else 128
    kind = torch.float16 if context.is_real else torch.float32
    a = torch.ones(side, side, device=context.device, dtype=kind)
    intervals = gpu.halves(len(gpu.layout.groups) // 2 * gpu.layout.group)
    here, there = gpu.shares(intervals)
    copies = Torch(gpu.driver, here, lambda: device.copy_(host, non_blocking=True), is_real=context.is_real)
    products = Torch(gpu.driver, there, lambda: a @ a, is_real=context.is_real)
    times = sorted(device_times(gpu.driver, copies, 31))
    seconds = 1.0 if context.is_real else 0.1
    alone = sorted(beside(gpu.driver, [products], seconds)[0])
    both = sorted(beside(gpu.driver, [products, copies], seconds)[0])
    gpu.drop(*intervals)
    node = times[len(times) // 2]
    rate = round(host.numel() * SECOND / max(1, node) / GIGABYTE, 3)
    return {
        "copy_node": {"megabytes": host.numel() / MEGABYTE, "ms": node / MS, "gb_s": rate},
        "compute_ms": {"alone": alone[len(alone) // 2] / MS, "beside_copies": both[len(both) // 2] / MS},
    }
