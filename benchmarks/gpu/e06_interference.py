"""E6 asks how much neighbours on other SMs slow each other: models, and stressors of the memory and of the L2.

Writes `interference.csv` and `solo.csv`, which `gpulet interference fit interference.csv` reads. `dram_pct` and `l2_pct` of
a stressor are its rate alone as a part of the best rate; those of a model are NVML's counter of the memory where there is
one, else the part of its rate that the stressor on the other SMs loses beside it: no counter of the L2 is to be had without
a profiler.
"""

import csv
from collections.abc import Callable, Mapping
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from counters import counted
from devices import Gpu, bare, held
from kit import Context, Result, Verdict, judged, keep, quantile
from loops import Torch, beside
from stress import Stress, dram, l2

from gpulet.executors.cuda.contexts import Share
from gpulet.fitting import PAIR_COLUMNS, SOLO_COLUMNS
from gpulet.units import MS, SECOND

_MODELS = {"resnet50": 32, "bert-base": 16, "mobilenet_v2": 32, "vgg16": 8}
_STRESSORS = ("dram", "l2")
_CUTS = (64, 32, 96)
_FOOTPRINTS = (10, 20, 40, 80)
_L2 = 60
"""Megabytes of an H200's L2, as torch reports them."""
_WORST = 4.0
_SATURATION, _KAPPA = 0.9, 1.0
"""What simulations assume where nothing is fitted."""


class Sides:
    """The loops on both sides of one cut, captured when they are first asked for: kernels alone, no copies from the host."""

    def __init__(self, gpu: Gpu, works: Mapping[str, Callable[[], object]], cut: int) -> None:
        self.gpu = gpu
        self.cut = cut
        self.intervals = gpu.halves(cut)
        self.shares = gpu.shares(self.intervals)
        self.sizes: dict[str, float] = {}
        self._works = works
        self._loops: dict[tuple[str, int], Torch] = {}

    def loop(self, name: str, side: int) -> Torch:
        """Of a model or a stressor."""
        if (name, side) not in self._loops:
            self._loops[name, side] = self._made(name, self.shares[side])
        return self._loops[name, side]

    def _made(self, name: str, share: Share) -> Torch:
        context = self.gpu.context
        if name in self._works:
            return Torch(self.gpu.driver, share, self._works[name], is_real=context.is_real)
        stress: Stress = (dram if name == "dram" else l2)(context, self.gpu, share)
        self.sizes[name] = stress.size
        return stress.loop

    def drop(self) -> None:
        """Graphs, then shares."""
        self._loops.clear()
        self.gpu.drop(*self.intervals)


def rows_of(context: Context, name: str) -> int:
    """Of a model's batches."""
    return 2 if context.tiny else _MODELS[name]


def run(context: Context) -> Result:
    """BAD where a neighbour slows somebody more than fourfold, which planning would have to forbid."""
    numbers: dict[str, Any] = {"solo": {}, "pairs": {}, "footprints": {}, **context.numbers("E6")}
    models = list(_MODELS)[: 2 if context.tiny else None]
    cuts = _CUTS[:1] if context.tiny else _CUTS
    todo = 0
    with held(context) as gpu:
        works = {model: bare(context, model, rows_of(context, model)) for model in models}
        for cut in cuts:
            sides = Sides(gpu, works, cut)
            todo += _pairs(sides, models, numbers)
            if cut == cuts[0] and not numbers["footprints"]:
                numbers["footprints"] = _footprints(sides)
            sides.drop()
            keep(context, "E6", numbers)
        whole = gpu.layout.whole
    _write_tables(context, numbers, whole)
    numbers["fit"] = fit = fitted(numbers)
    worst = max(((max(pair["slowdowns"]), name) for name, pair in numbers["pairs"].items()), default=(1.0, "none"))
    said = f"{len(numbers['pairs'])} pairs, worst slowdown {worst[0]:.2f} ({worst[1]}); fitted {fit}"
    if todo:
        return Result(Verdict.PARTLY, f"{todo} pairs to go; {said}", numbers)
    is_worse = context.is_real and worst[0] > _WORST
    return judged([f"{worst[1]}: {worst[0]:.2f} times as long"] if is_worse else [], said, numbers)


def _pairs(sides: Sides, models: list[str], numbers: dict[str, Any]) -> int:
    """Stressors first, which models' use is read from; gives how many are to go."""
    pairs = [(a, b) for a in models for b in _STRESSORS] + [(b, a) for a in models for b in _STRESSORS]
    pairs += [("dram", "dram"), ("l2", "l2"), ("l2", "dram"), *combinations_with_replacement(models, 2)]
    todo = 0
    for one, other in pairs:
        name = f"{one} | {other} at {sides.cut}"
        if name in numbers["pairs"]:
            continue
        if sides.gpu.context.left < 0:
            todo += 1
            continue
        alone = [_solo(sides, which, side, numbers) for side, which in enumerate((one, other))]
        loops = [sides.loop(which, side) for side, which in enumerate((one, other))]
        both = [_middle(times) for times in beside(sides.gpu.driver, loops, _window(sides.gpu.context))]
        slowdowns = [round(b / a["ms"], 4) for a, b in zip(alone, both, strict=True)]
        numbers["pairs"][name] = {"models": [one, other], "cut": sides.cut, "ms": both, "slowdowns": slowdowns}
    return todo


def _solo(sides: Sides, name: str, side: int, numbers: dict[str, Any]) -> dict[str, Any]:
    """What one side takes while the other is idle."""
    key, context = f"{name} {side} at {sides.cut}", sides.gpu.context
    if key not in numbers["solo"]:
        loop = sides.loop(name, side)
        times: list[list[int]] = []
        counters = counted(context, lambda: times.extend(beside(sides.gpu.driver, [loop], _window(context))))
        ms = _middle(times[0])
        rate = sides.sizes.get(name, 0.0) * SECOND / MS / ms
        numbers["solo"][key] = {
            "model": name,
            "batch": rows_of(context, name) if name in _MODELS else 1,
            "sms": sides.shares[side].sms,
            "side": side,
            "cut": sides.cut,
            "ms": ms,
            "bytes_per_s": rate,
            "counters": counters,
        }
    found: dict[str, Any] = numbers["solo"][key]
    return found


def _footprints(sides: Sides) -> dict[str, float]:
    """How much longer passes over 20 MB take on one side beside passes over more and more on the other."""
    context, gpu = sides.gpu.context, sides.gpu
    victim = l2(context, gpu, sides.shares[0]).loop
    alone = _middle(beside(gpu.driver, [victim], _window(context))[0])
    found = {}
    for megabytes in _FOOTPRINTS:
        other = l2(context, gpu, sides.shares[1], megabytes).loop
        found[str(megabytes)] = _middle(beside(gpu.driver, [victim, other], _window(context))[0]) / alone
    return found


def _window(context: Context) -> float:
    return 0.3 if context.is_real else 0.05


def _middle(times: list[int]) -> float:
    return max(1, quantile(times, 0.5)) / MS


def fitted(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The part of the best rate that two stressors of the memory reach together, and how an L2 that is too small costs.

    The first is what simulations take for 0.9. The second is their kappa: traffic rises by kappa times the other's
    footprint over the L2, once both together exceed it.
    """
    peak, found = _peaks(numbers)["dram"], {"assumed_saturation": _SATURATION, "assumed_kappa": _KAPPA}
    reached = []
    for pair in numbers["pairs"].values():
        if pair["models"] == ["dram", "dram"]:
            sides = [numbers["solo"][f"dram {side} at {pair['cut']}"]["bytes_per_s"] for side in (0, 1)]
            reached.append(sum(rate / slow for rate, slow in zip(sides, pair["slowdowns"], strict=True)) / peak)
    if reached:
        found["saturation"] = round(quantile(reached, 0.5), 3)
    slow = {int(name): value for name, value in numbers["footprints"].items()}
    if slow:
        base = slow[min(slow)]
        rises = [(value / base - 1) * _L2 / size for size, value in slow.items() if size + 20 > _L2 - 1]
        found["kappa"] = round(quantile(rises, 0.5), 3)
    return found


def _peaks(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The best rate that a stressor reached, on whatever share."""
    solo = numbers["solo"].values()
    return {kind: max((s["bytes_per_s"] for s in solo if s["model"] == kind), default=1.0) for kind in _STRESSORS}


def _write_tables(context: Context, numbers: Mapping[str, Any], whole: int) -> None:
    """Pairs by model, batch and share. Where a model has the same size on two cuts, the first measurement of it counts."""
    alone: dict[tuple[str, int, float], list[object]] = {}
    peaks = _peaks(numbers)
    for solo in numbers["solo"].values():
        share = round(100 * solo["sms"] / whole, 4)
        use = [_use(numbers, solo, kind, peaks) for kind in ("l2", "dram")]
        row = [solo["model"], share, solo["batch"], round(solo["ms"], 6), *(round(100 * u, 3) for u in use)]
        alone.setdefault((solo["model"], solo["batch"], share), row)
    pairs = []
    for pair in numbers["pairs"].values():
        sides = [numbers["solo"][f"{name} {side} at {pair['cut']}"] for side, name in enumerate(pair["models"])]
        shares = [round(100 * s["sms"] / whole, 4) for s in sides]
        own = [alone[s["model"], s["batch"], share][3] for s, share in zip(sides, shares, strict=True)]
        scaled = [round(float(str(ms)) * slow, 6) for ms, slow in zip(own, pair["slowdowns"], strict=True)]
        pairs.append([*pair["models"], *(s["batch"] for s in sides), *shares, *scaled])
    _write(context.out / "solo.csv", SOLO_COLUMNS, list(alone.values()))
    _write(context.out / "interference.csv", PAIR_COLUMNS, pairs)


def _use(numbers: Mapping[str, Any], solo: Mapping[str, Any], kind: str, peaks: Mapping[str, float]) -> float:
    """Between 0 and 1."""
    if solo["model"] in _STRESSORS:
        is_own = solo["model"] == kind or kind == "l2"  # what passes through the memory passes through the L2
        return min(1.0, float(solo["bytes_per_s"]) / peaks[kind]) if is_own else 0.0
    counter = solo["counters"].get("DRAM_BW_UTIL")
    if kind == "dram" and counter is not None:
        return min(1.0, float(counter) / 100)
    names = (solo["model"], kind) if solo["side"] == 0 else (kind, solo["model"])
    pair = numbers["pairs"].get(f"{names[0]} | {names[1]} at {solo['cut']}")
    slowdown = float(pair["slowdowns"][1 - solo["side"]]) if pair else 1.0
    return max(0.0, 1 - 1 / slowdown)


def _write(path: Path, columns: tuple[str, ...], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
