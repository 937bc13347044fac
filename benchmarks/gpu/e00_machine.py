"""E0 asks what is there: versions, SMs and how they split, NVML, copies; and whether green contexts are allowed."""

import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from devices import Gpu, held
from kit import GIGABYTE, Context, Result, judged

from gpulet.errors import GpuletError

_PACKAGES = (
    *("torch", "triton", "cuda-bindings", "cuda-core", "nvidia-ml-py", "nvidia-cublas", "nvidia-cudnn-cu13"),
    *("nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "numpy", "msgspec", "onnxruntime", "cupy-cuda13x"),
)
_PROGRAMS = ("nvidia-smi", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server", "ncu", "nvcc")
_COPIED = 256 << 20


def run(context: Context) -> Result:
    """BAD where the GPU cannot be cut into at least two shares."""
    numbers: dict[str, Any] = {**versions(), "nvml": _asked_nvml(), "copies": _copies(context)}
    numbers["programs"] = {name: shutil.which(name) for name in _PROGRAMS}
    with held(context) as gpu:
        whole, layout = gpu.driver.whole(), gpu.layout
        left = layout.whole - len(layout.groups) * layout.group
        numbers["gpu"] = {"name": gpu.driver.name, "cuda": gpu.driver.version, "memory": gpu.driver.memory().total}
        numbers["sms"] = {"whole": whole.sms, "least": whole.least, "alignment": whole.alignment}
        numbers["layout"] = {"groups": len(layout.groups), "of": layout.group, "left": left}
        numbers["layout"]["left_is_merged"] = layout.remainder is not None
        numbers["splits"] = _splits(gpu)
        complaints = _complaints(gpu)
    merged = "merged" if numbers["layout"]["left_is_merged"] else "idle"
    said = f"{numbers['gpu']['name']}: {whole.sms} SMs = {len(layout.groups)} x {layout.group} + {left} ({merged})"
    return judged(complaints, f"{said}, CUDA {numbers['gpu']['cuda']}, driver {numbers['nvml'].get('driver')}", numbers)


def versions() -> dict[str, Any]:
    """Of everything that latencies depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    kernel = Path("/proc/version")
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "kernel": kernel.read_text().strip() if kernel.exists() else "",
        "cores": os.cpu_count(),
        "packages": found,
        "cudnn": torch.backends.cudnn.version(),
        "connections": os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS"),
    }


def _asked_nvml() -> Mapping[str, Any]:
    """NVML may be missing, and some answers are not given everywhere: that is an answer too."""
    from gpulet.executors.nvmllibrary import open_nvml  # noqa: PLC0415

    try:
        nvml = open_nvml()
    except GpuletError as error:
        return {"error": str(error)}
    found: dict[str, Any] = {}
    try:
        found["driver"], found["cuda"] = nvml.versions()
        found["gpus"] = [str(gpu) for gpu in nvml.gpus()]
        for what, ask in {"usage": nvml.usage, "slowed_by": nvml.slowed_by}.items():
            found[what] = str(ask(0))
    except GpuletError as error:
        found["error"] = str(error)
    nvml.close()
    return found


def _copies(context: Context) -> Mapping[str, float]:
    """Gigabytes a second between pinned memory and the GPU."""
    if not context.is_real:
        return {}
    host = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    found = {}
    for name, (to, source) in {"in": (device, host), "out": (host, device)}.items():
        to.copy_(source)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(4):
            to.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        found[name] = round(4 * _COPIED / (time.perf_counter() - began) / GIGABYTE, 2)
    return found


def _splits(gpu: Gpu) -> Mapping[str, Any]:
    """What the driver makes of other sizes of groups."""
    found: dict[str, Any] = {}
    for group in (2, 8, 16, 32, 64, 72):
        try:
            split = gpu.driver.split(gpu.driver.whole(), group)
            left = split.remainder.sms if split.remainder else 0
            found[str(group)] = {"groups": [s.sms for s in split.groups], "left": left}
        except GpuletError as error:
            found[str(group)] = str(error)
    return found


def _complaints(gpu: Gpu) -> list[str]:
    found = []
    if len(gpu.layout.groups) < 2:  # noqa: PLR2004 (two shares need two)
        found.append(f"only {len(gpu.layout.groups)} group")
    try:
        context = gpu.driver.make_context(gpu.layout.groups[:1])
        sms = gpu.driver.sms(context)
        gpu.driver.destroy_context(context)
    except GpuletError as error:
        return [*found, f"green contexts are refused: {error}"]
    return found if sms == gpu.layout.group else [*found, f"a context of one group has {sms} SMs"]
