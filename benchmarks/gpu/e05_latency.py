"""E5 asks how long models, a product and a copy take by size and batch, and whether kernels are chosen for the share."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from devices import Gpu, Served, serving
from kit import GIGABYTE, SIZES, Context, Result, Verdict, judged, keep, quantile
from loops import Loop, Torch, device_times

from gpulet.errors import DeviceLost, GpuletError
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.graphs import TOLERANCE
from gpulet.roofline import FORMS, Form
from gpulet.roofline.fit import Fitted, best_form, fitted
from gpulet.roofline.hardware import HALF
from gpulet.roofline.works import WORKS
from gpulet.units import MS, SECOND

_MODELS = ("resnet50", "bert-base", "mobilenet_v2")
_ROWS = (1, 8, 32)
_ORDER = (132, 64, 32, 8, 96, 16, 128, 112, 48, 80)
"""Most valuable first."""
_FIT = ((1, 132), (8, 132), (32, 132), (1, 32), (8, 32), (32, 64))
_HELD_OUT = ((8, 96), (1, 16), (32, 16))
_SLOWER = 1.1
_TWO_WAVES = 1.3
_SATURATED = 0.9
_KIND = "h200-141gb"
_PRODUCT = 8192


def run(context: Context) -> Result:
    """BAD where more SMs are slower, a product on 128 SMs runs in two waves, or a result differs from the whole GPU's."""
    numbers: dict[str, Any] = {"points": {}, "errors": {}, "refused": {}, **context.numbers("E5")}
    rows = _ROWS[:2] if context.tiny else _ROWS
    with serving(context, _MODELS) as served:
        sizes = set(served.gpu.sizes(SIZES[:2] if context.tiny else SIZES))
        for model in _MODELS:
            served.graph(model, 1, served.gpu.layout.everything)
        for size in [n for n in _ORDER if n in sizes] + sorted(sizes - set(_ORDER)):
            if context.left > 0:
                _tried(context, served, size, rows, numbers)
                keep(context, "E5", numbers)
        wanted = {f"{model} {n} {size}" for model in _MODELS for n in rows for size in sizes}
        whole = served.gpu.layout.whole
    missing = {name for name in wanted - numbers["points"].keys() if name.split()[2] not in numbers["refused"]}
    numbers["fits"] = fits(numbers["points"])
    numbers["derived"] = rates = derived(numbers["points"], whole, context)
    said = f"{len(numbers['points'])} points, product {rates.get('tflop_s')} TFLOP/s, copy {rates.get('gb_s')} GB/s, "
    said += f"90 % of it from {rates.get('saturating_sms')} SMs; held-out fit errors {numbers['fits']}"
    if missing:
        return Result(Verdict.PARTLY, f"{len(missing)} points to go; {said}", numbers)
    return judged(complaints(numbers, whole) if context.is_real else [], said, numbers)


def _tried(context: Context, served: Served, size: int, rows: tuple[int, ...], numbers: dict[str, Any]) -> None:
    """What one size refuses says nothing of the others."""
    try:
        _size(context, served, size, rows, numbers)
    except DeviceLost:
        raise
    except GpuletError as error:
        numbers["refused"][str(size)] = str(error)


def _size(context: Context, served: Served, size: int, rows: tuple[int, ...], numbers: dict[str, Any]) -> None:
    """All works on one share; its graphs go before the next share's come."""
    with served.gpu.keeping(served.gpu.prefix(size)) as share:
        _bare(context, served.gpu, share, numbers["points"])
        for model in _MODELS:
            for n in rows:
                if f"{model} {n} {size}" not in numbers["points"] and context.left > 0:
                    _graph(served, share, model, n, numbers)


def _bare(context: Context, gpu: Gpu, share: Share, points: dict[str, float]) -> None:
    for name, (work, tuning) in _works(context, share).items():
        if name not in points and context.left > 0:
            with tuning:
                loop = Torch(gpu.driver, share, work, is_real=context.is_real)
            points[name] = _median(gpu, loop)


def _graph(served: Served, share: Share, model: str, rows: int, numbers: dict[str, Any]) -> None:
    name, key = f"{model} {rows} {share.sms}", served.key(model, rows, share.interval)
    was_there = key in served.cache
    graph = served.cache.build(key)
    numbers["points"][name] = _median(served.gpu, served.loop(model, rows, share.interval))
    numbers["errors"][name] = served.runtime.error(key, graph)
    if not was_there:
        served.cache.drop(key)


def _works(context: Context, share: Share) -> Mapping[str, tuple[Callable[[], object], AbstractContextManager[object]]]:
    """A large product, the same with kernels asked for the share's SMs, and a copy far beyond the L2."""
    side, elements = (_PRODUCT, 1 << 28) if context.is_real else (64, 1 << 14)
    kind = torch.float16 if context.is_real else torch.float32
    a = torch.randn(side, side, device=context.device, dtype=kind)
    source = torch.ones(elements, device=context.device)
    target = torch.empty_like(source)
    return {
        f"product {side} {share.sms}": (lambda: a @ a, nullcontext()),
        f"tuned {side} {share.sms}": (lambda: a @ a, _tuned(context, share.sms)),
        f"copy {elements} {share.sms}": (lambda: torch.mul(source, 1.0, out=target), nullcontext()),
    }


def _tuned(context: Context, sms: int) -> AbstractContextManager[object]:
    """As the runtime tells cuBLAS."""
    if not context.is_real:
        return nullcontext()
    from gpulet.executors.cuda.torchdevice import GpuDevice, GpuOptions, find_target  # noqa: PLC0415

    return GpuDevice(0, GpuOptions(), find_target()).tuned(sms)


def _median(gpu: Gpu, loop: Loop) -> float:
    return quantile(device_times(gpu.driver, loop, 15), 0.5) / MS


def fits(points: Mapping[str, float]) -> dict[str, str | float]:
    """The analytic model from six points, judged on three others, in percent; under the form that suits all best."""
    found: dict[Form, dict[str, Fitted]] = {}
    for form in FORMS:
        for model in _MODELS:
            known = [
                [(s, n, round(points[f"{model} {n} {s}"] * MS)) for n, s in spots if f"{model} {n} {s}" in points]
                for spots in (_FIT, _HELD_OUT)
            ]
            if len(known[0]) == len(_FIT) and known[1]:
                found.setdefault(form, {})[model] = fitted(*known, WORKS[model], HALF[_KIND], form)
    if not found:
        return {}
    form = best_form({form: fits.values() for form, fits in found.items()})
    return {"form": str(form), **{model: round(fit.held_out_pct, 1) for model, fit in found[form].items()}}


def derived(points: Mapping[str, float], whole: int, context: Context) -> dict[str, Any]:
    """Rates on the whole GPU, and how few SMs saturate the memory."""
    by_size = {kind: _by_size(points, kind) for kind in ("product", "tuned", "copy")}
    found: dict[str, Any] = {}
    if whole in by_size["product"] and context.is_real:
        found["tflop_s"] = round(2 * _PRODUCT**3 / by_size["product"][whole] * SECOND / MS / 1e12, 1)
    if whole in by_size["copy"] and context.is_real:
        found["gb_s"] = round(2 * 4 * (1 << 28) / by_size["copy"][whole] * SECOND / MS / GIGABYTE, 1)
    if whole in by_size["copy"]:
        fast = (size for size, ms in by_size["copy"].items() if by_size["copy"][whole] >= _SATURATED * ms)
        found["saturating_sms"] = min(fast)
    found["tuned_over_plain"] = {size: round(ms / by_size["product"][size], 3) for size, ms in by_size["tuned"].items()}
    return found


def _by_size(points: Mapping[str, float], kind: str) -> dict[int, float]:
    split = {tuple(name.split()): ms for name, ms in points.items()}
    return {int(size): ms for (name, _, size), ms in sorted(split.items(), key=lambda p: int(p[0][2])) if name == kind}


def complaints(numbers: Mapping[str, Any], whole: int) -> list[str]:
    """More SMs that are slower, products in two waves, sizes that were refused, results that are off."""
    points, found = numbers["points"], []
    rows = {tuple(name.split()[:2]) for name in points}
    for kind, n in sorted(rows):
        curve = {int(name.split()[2]): ms for name, ms in points.items() if name.split()[:2] == [kind, n]}
        for small, large in zip(sorted(curve), sorted(curve)[1:], strict=False):
            if curve[large] > _SLOWER * curve[small]:
                found.append(f"{kind} {n}: {curve[small]:.3f} ms on {small} SMs, {curve[large]:.3f} on {large}")
        if kind in {"product", "tuned"} and curve.get(128, 0) > _TWO_WAVES * curve[whole]:
            found.append(f"{kind}: {curve[128]:.3f} ms on 128 SMs, {curve[whole]:.3f} on all: two waves")
    wrong = {name: error for name, error in numbers["errors"].items() if not error <= TOLERANCE}
    found += [f"{size} SMs: {error}" for size, error in numbers["refused"].items()]
    return found + [f"{name} is {error:.3g} off the whole GPU" for name, error in wrong.items()]
