"""E12 asks whether NVML's counters (GPM) tell what the memory and the tensor cores do, and from which window on."""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from devices import Gpu, held
from kit import GIGABYTE, Context, NotHereError, Result, judged
from loops import Torch, beside, rate

from gpulet.errors import GpuletError

if TYPE_CHECKING:
    from gpulet.executors.nvmllibrary import Library

_WINDOWS_S = (0.1, 0.3, 1.0)
_TRUSTED_S = 0.3
_PEAK = 4800 * GIGABYTE
"""Of an H200's memory by its datasheet; the counter is a part of the peak."""
_OFF_PCT = 15.0
_IDLE_PCT = 5.0


def run(context: Context) -> Result:
    """BAD where the memory's counter is far from the bytes that a known copy moves, or not near zero when nothing runs."""
    numbers: dict[str, Any] = {}
    with held(context) as gpu:
        loops = _loads(context, gpu)
        for name, (loop, each) in loops.items():
            numbers[name] = _watched(context, gpu, loop, each)
        gpu.drop(gpu.layout.everything)
    if not context.is_real:
        return judged([], "no counters on a CPU; the loads ran", numbers)
    idle, copying = (numbers[name]["windows"][str(_TRUSTED_S)].get("DRAM_BW_UTIL") for name in ("idle", "copy"))
    if idle is None or copying is None:
        return judged(["the counter of the memory is not given"], "models' use of memory must be probed", numbers)
    wanted = 100 * numbers["copy"]["per_second"] / _PEAK
    complaints = []
    if abs(copying - wanted) > _OFF_PCT:
        complaints.append(f"a copy moves {wanted:.0f} % of the peak, the counter says {copying:.0f} %")
    if idle > _IDLE_PCT:
        complaints.append(f"the counter says {idle:.0f} % when nothing runs")
    said = f"copy {copying:.0f} % ({wanted:.0f} % by bytes), "
    return judged(complaints, f"{said}product's tensor cores {numbers['product']['windows'][str(_TRUSTED_S)]}", numbers)


def _loads(context: Context, gpu: Gpu) -> dict[str, tuple[Torch | None, float]]:
    """Nothing, a copy far larger than the L2, and a large product, with bytes or operations of each."""
    share = gpu.pool.share(gpu.layout.everything)
    elements, side = (1 << 28, 8192) if context.is_real else (1 << 14, 64)
    kind = torch.bfloat16 if context.is_real else torch.float32
    source = torch.ones(elements, device=context.device)
    target, a = torch.empty_like(source), torch.randn(side, side, device=context.device, dtype=kind)
    works: dict[str, tuple[Callable[[], object], float]] = {
        "copy": (partial(torch.add, source, 1, out=target), 2.0 * 4 * elements),
        "product": (lambda: a @ a, 2.0 * side**3),
    }
    made: dict[str, tuple[Torch | None, float]] = {"idle": (None, 0.0)}
    for name, (work, each) in works.items():
        made[name] = (Torch(gpu.driver, share, work, is_real=context.is_real), each)
    return made


def _watched(context: Context, gpu: Gpu, loop: Torch | None, each: float) -> dict[str, Any]:
    """The counters over several windows of the same load, and what the load does by the clock."""
    found: dict[str, Any] = {"windows": {}}
    library = _opened(context)
    for window in _WINDOWS_S if context.is_real else _WINDOWS_S[:1]:
        times: list[list[int]] = []
        meanwhile = partial(_load, gpu, loop, window, times)
        if library is None:
            meanwhile()
            continue
        try:
            counters = library.measured(0, meanwhile)
            found["windows"][str(window)] = {metric.name: round(value, 2) for metric, value in counters.items()}
        except GpuletError as error:
            found["windows"][str(window)] = {"error": str(error)}
        if times:
            found["per_second"] = rate(times[0], each)
    if library:
        library.close()
    return found


def _load(gpu: Gpu, loop: Torch | None, seconds: float, times: list[list[int]]) -> None:
    if loop is None:
        time.sleep(seconds)
    else:
        times += beside(gpu.driver, [loop], seconds)


def _opened(context: Context) -> "Library | None":
    """NVML; a GPU without it cannot be asked."""
    if not context.is_real:
        return None
    from gpulet.executors.nvmllibrary import open_nvml  # noqa: PLC0415

    try:
        return open_nvml()
    except GpuletError as error:
        raise NotHereError(str(error)) from None
