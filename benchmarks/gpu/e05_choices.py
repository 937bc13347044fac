"""E5b asks whether to tell cuBLAS the share's SMs at capture, and whether cuDNN should time its algorithms on the share."""

from collections.abc import Mapping
from math import exp, log
from typing import Any

from devices import serving
from kit import Context, Result, Verdict, judged, quantile
from loops import device_times

from gpulet.units import MS

_POINTS = (("resnet50", 32), ("bert-base", 32), ("mobilenet_v2", 8), ("resnet50", 8))
_SIZES = (132, 64, 32)
_CHOICES: Mapping[str, Mapping[str, bool]] = {
    "as served": {},
    "no target": {"sm_target": False},
    "timed": {"benchmark": True},
}
_WORTH = 0.95
"""What a default must be beaten by before it is called wrong."""


def run(context: Context) -> Result:
    """BAD where another choice than the server's takes less than 95 % of the time, over all points."""
    found = {name: _measured(context, options) for name, options in _CHOICES.items() if context.left > 0}
    if len(found) < len(_CHOICES) or not all(found.values()):
        return Result(Verdict.PARTLY, f"only {', '.join(found)} measured", {"ms": found})
    served, rest = found["as served"], {name: ms for name, ms in found.items() if name != "as served"}
    ratios = {name: _ratio(ms, served) for name, ms in rest.items()}
    numbers: dict[str, Any] = {"ms": found, "over_as_served": ratios}
    better = [f"{name} takes {ratio:.3f} of the time" for name, ratio in ratios.items() if ratio < _WORTH]
    said = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
    return judged(better if context.is_real else [], f"time over that as served: {said}", numbers)


def _measured(context: Context, options: Mapping[str, bool]) -> dict[str, float]:
    """Every point that the time allows, in ms."""
    found: dict[str, float] = {}
    with serving(context, sorted({model for model, _ in _POINTS}), **options) as served:
        for size in served.gpu.sizes(_SIZES):
            for model, rows in _POINTS:
                if context.left > 0:
                    n = min(rows, 2) if context.tiny else rows
                    loop = served.loop(model, n, served.gpu.prefix(size))
                    found[f"{model} {rows} {size}"] = quantile(device_times(served.gpu.driver, loop, 9), 0.5) / MS
    return found


def _ratio(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Geometric mean over the points that both have."""
    logs = [log(one[name] / other[name]) for name in one.keys() & other.keys() if one[name] > 0 < other[name]]
    return exp(sum(logs) / len(logs)) if logs else 1.0
