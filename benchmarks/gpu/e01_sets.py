"""E1 asks whether sets of SMs are real, disjoint and mergeable. Every prefix and suffix is proven as the server proves it."""

from typing import Any

import torch
from devices import Gpu, held
from kit import Context, Result, judged

from gpulet.errors import DeviceLost, GpuletError
from gpulet.executors.cuda.layout import Interval
from gpulet.units import US

_BLOCKS = 64
_HOLD = 20 * US


def run(context: Context) -> Result:
    """BAD where a set differs from what the driver counts, two sets share an SM, or work on a small set goes wrong."""
    numbers: dict[str, Any] = {}
    with held(context) as gpu:
        complaints = _cuts(context, gpu, numbers)
        if not complaints:  # else no share can be proven
            complaints = [*_overlap(gpu, numbers), *_one_split(gpu, numbers), *_products(context, gpu, numbers)]
        whole = gpu.layout.whole
    said = f"{len(numbers['cuts'])} cuts of {whole} SMs into a prefix and a suffix that is disjoint from it"
    return judged(complaints, said, numbers)


def _cuts(context: Context, gpu: Gpu, numbers: dict[str, Any]) -> list[str]:
    """The share's own proof raises where counts differ; here the ids are compared as well."""
    complaints: list[str] = []
    numbers["cuts"] = {}
    everywhere: set[int] = set()
    for stop in range(1, len(gpu.layout.groups)):
        if context.left < 5:  # noqa: PLR2004 (seconds for the rest)
            break
        pair = Interval(0, stop), Interval(stop, gpu.places)
        try:
            first, second = (gpu.pool.share(interval) for interval in pair)
        except DeviceLost:
            raise
        except GpuletError as error:
            complaints.append(f"cut at group {stop}: {error}")
            gpu.drop(*(i for i in pair if i in gpu.pool))
            continue
        common = first.ids & second.ids
        numbers["cuts"][str(stop)] = [sorted(first.ids), sorted(second.ids)]
        everywhere |= first.ids | second.ids
        if common:
            complaints.append(f"cut at group {stop}: {len(common)} SMs on both sides")
        gpu.drop(*pair)
    missing = gpu.layout.whole - len(everywhere)
    numbers["sms_on_no_side"] = missing
    if missing and gpu.layout.remainder:
        complaints.append(f"{missing} SMs are on no side of any cut")
    return complaints


def _overlap(gpu: Gpu, numbers: dict[str, Any]) -> list[str]:
    """Two contexts that overlap by intent, which CUDA allows, share exactly those groups."""
    quarter = len(gpu.layout.groups) // 4
    pair = Interval(0, 2 * quarter), Interval(quarter, 3 * quarter)
    one, other = (gpu.pool.share(interval) for interval in pair)
    found, wanted = len(one.ids & other.ids), quarter * gpu.layout.group
    numbers["overlap"] = {"wanted": wanted, "found": found}
    gpu.drop(*pair)
    return [] if found == wanted else [f"shares that overlap by {wanted} SMs have {found} in common"]


def _one_split(gpu: Gpu, numbers: dict[str, Any]) -> list[str]:
    """Groups merged, against one set that the driver splits off at that size."""
    half = len(gpu.layout.groups) // 2 * gpu.layout.group
    split = gpu.driver.split(gpu.driver.whole(), half)
    own = gpu.driver.make_context(split.groups[:1])
    stream = gpu.driver.make_stream(own)
    ids = gpu.driver.sm_ids(stream, _BLOCKS * gpu.layout.whole, _HOLD)
    gpu.driver.destroy_stream(stream)
    gpu.driver.destroy_context(own)
    merged = gpu.pool.share(gpu.prefix(half))
    numbers["split_against_merged"] = {"split": sorted(ids), "merged": sorted(merged.ids)}
    gpu.drop(merged.interval)
    return [] if len(ids) == half else [f"one split of {half} SMs ran on {len(ids)}"]


def _products(context: Context, gpu: Gpu, numbers: dict[str, Any]) -> list[str]:
    """Matrix products, whose kernels launch clusters on Hopper; the operands come from the default stream."""
    if not context.is_real:
        return []
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2048, 2048, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
    wanted = a.double() @ b.double()
    torch.cuda.synchronize()
    complaints = []
    numbers["product_error"] = {}
    for sms in gpu.sizes((8, 16, 64)):
        share = gpu.pool.share(gpu.prefix(sms))
        stream = torch.cuda.ExternalStream(int(share.stream))
        with torch.cuda.stream(stream):
            error = float((a @ b).double().sub_(wanted).norm() / wanted.norm())
        stream.synchronize()
        numbers["product_error"][str(sms)] = error
        if not error < 0.01:  # noqa: PLR2004 (bfloat16 has 8 bits)
            complaints.append(f"a product on {sms} SMs is {error:.2g} off")
        gpu.drop(share.interval)
    return complaints
