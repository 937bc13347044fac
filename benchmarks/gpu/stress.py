"""Work that asks for the memory alone, or for the L2 alone: kernels on a share's SMs, no copy engine."""

from dataclasses import dataclass
from functools import partial

import torch
from devices import Gpu
from kit import Context
from loops import Torch
from torch import Tensor

from gpulet.executors.cuda.contexts import Share

MEGABYTE = 1_000_000
_DRAM_MB = 1100
"""Read and written, far beyond any L2."""
_L2_MB = 20
_L2_TIMES = 40


@dataclass(frozen=True, slots=True)
class Stress:
    """A loop, and the bytes that one launch of it reads and writes."""

    loop: Torch
    size: float


def dram(context: Context, gpu: Gpu, share: Share) -> Stress:
    """Passes over arrays far larger than the L2."""
    return passing(context, gpu, share, _DRAM_MB, 2)


def l2(context: Context, gpu: Gpu, share: Share, megabytes: int = _L2_MB) -> Stress:
    """Passes over arrays of that many megabytes together."""
    return passing(context, gpu, share, megabytes, _L2_TIMES)


def passing(context: Context, gpu: Gpu, share: Share, megabytes: int, times: int) -> Stress:
    """Read one array, write the other, so many times in one graph."""
    elements = megabytes * MEGABYTE // 8 // (1 if context.is_real else 400)
    source = torch.ones(elements, device=context.device)
    work = partial(_pass, source, torch.empty_like(source), times)
    return Stress(Torch(gpu.driver, share, work, is_real=context.is_real), 8.0 * elements * times)


def _pass(source: Tensor, target: Tensor, times: int) -> None:
    for _ in range(times):
        torch.mul(source, 1.0001, out=target)
