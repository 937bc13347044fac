"""A plan as a picture: its devices cut into gpulets, with the runs of a session, or shared uncut."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulet.device import Device, Mechanism
from gpulet.plan import Gpulet, Plan, Resident, Timeline, TimelineRun
from gpulet.units import to_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (
    "#4c78a8",
    "#f58518",
    "#54a24b",
    "#e45756",
    "#72b7b2",
    "#eeca3b",
    "#b279a2",
    "#ff9da6",
    "#9d755d",
    "#bab0ac",
)
_PER_ROW = 4
_BOX: Mapping[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}


def draw_plan(plan: Plan, path: Path) -> None:
    """Devices as columns: cut into gpulets, whose turns share the width as they share a duty cycle; with the runs of a
    session; or with what is guaranteed to models that share it uncut.

    The format follows the file's ending: .png or .svg.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that other commands need not wait for)

    columns = min(_PER_ROW, len(plan.devices))
    rows = -(-len(plan.devices) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    models = sorted({turn.model for g in plan.gpulets for turn in g.turns} | {*plan.promises, *_uncut(plan)})
    colours = {model: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(models)}
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, device in zip(grid.flat, plan.devices, strict=False):
        axes.set_axis_on()
        axes.set_title(f"device {device.index}: {device.kind.name}, {device.mechanism}", fontsize=9)
        axes.tick_params(labelsize=8)
        line = next((line for line in plan.timelines if line.device == device.index), None)
        residents = [resident for resident in plan.residents if resident.device == device.index]
        gpulets = [g for g in plan.gpulets if g.device == device.index]
        if line:
            _draw_session(axes, device, line, colours)
        elif residents and not gpulets:
            _draw_residents(axes, device, residents, colours)
        else:
            _draw_device(axes, device, gpulets, colours)
    figure.savefig(path, dpi=144)


def _uncut(plan: Plan) -> set[str]:
    return {run.model for line in plan.timelines for run in line.runs} | {r.model for r in plan.residents}


def placed(runs: Sequence[TimelineRun], sms: int) -> Iterator[tuple[TimelineRun, int, int]]:
    """(run, first SM, SMs) for a picture: each run in the lowest hole that holds it, else in several pieces."""
    until = [-inf] * sms
    for run in sorted(runs, key=lambda run: (run.start, -run.size.sms)):
        free = [place for place, busy in enumerate(until) if busy <= run.start]
        whole = next((low for low, height in _pieces(free) if height >= run.size.sms), None)
        chosen = free[: run.size.sms] if whole is None else range(whole, whole + run.size.sms)
        for place in chosen:
            until[place] = run.start + run.length
        for low, height in _pieces(chosen):
            yield run, low, height


def _pieces(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and number of neighbouring places."""
    for _, group in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        found = [place for _, place in group]
        yield found[0], len(found)


def _draw_session(axes: "Axes", device: Device, line: Timeline, colours: dict[str, str]) -> None:
    """Time from left to right, SMs from the bottom up."""
    seen: set[str] = set()
    for run, low, height in placed(line.runs, device.kind.sms):
        span = (to_ms(run.start), to_ms(run.length))
        axes.broken_barh([span], (low, height), facecolor=colours[run.model], edgecolor="white", linewidth=1)
        if run.model not in seen:
            seen.add(run.model)
            axes.text(to_ms(run.start), low + height / 2, f" {run.model}", va="center", fontsize=7, bbox=_BOX)
    axes.set(xlim=(0, to_ms(line.period)), ylim=(0, device.kind.sms), yticks=[0, device.kind.sms])
    axes.set_xlabel("ms of a session, which repeats", fontsize=7)
    axes.set_ylabel("SMs", fontsize=8, labelpad=-8)


def _draw_residents(axes: "Axes", device: Device, residents: Sequence[Resident], colours: dict[str, str]) -> None:
    """Guaranteed SMs from the bottom up; what nobody is guaranteed is for all."""
    low = 0.0
    for resident in residents:
        if resident.guaranteed:
            axes.bar(0, resident.guaranteed, 1, low, align="edge", color=colours[resident.model], edgecolor="white")
            text = f"{resident.model}, {resident.guaranteed:.1f} SMs guaranteed"
            axes.text(0.5, low + resident.guaranteed / 2, text, ha="center", va="center", fontsize=7, bbox=_BOX)
            low += resident.guaranteed
    shared = ", ".join(r.model for r in residents) if not low else "whoever needs it"
    axes.text(
        0.5, (low + device.kind.sms) / 2, shared, ha="center", va="center", fontsize=7, color="#555555", wrap=True
    )
    axes.set(xlim=(0, 1), ylim=(0, device.kind.sms), xticks=[], yticks=[0, device.kind.sms])
    axes.set_xlabel("not cut: sizes are chosen run by run", fontsize=7)
    axes.set_ylabel("SMs", fontsize=8, labelpad=-8)


def _draw_device(axes: "Axes", device: Device, gpulets: Sequence[Gpulet], colours: dict[str, str]) -> None:
    """From the bottom up in the device's own unit; what overlaps (`whole`) is stacked."""
    is_whole = device.mechanism is Mechanism.WHOLE
    height = _height(device, gpulets)
    axes.set(xlim=(0, 1), ylim=(0, height), xticks=[], yticks=[0, height])
    axes.set_xlabel("one duty cycle: what is full colour is planned", fontsize=7)
    if not gpulets:
        axes.text(0.5, height / 2, "free", ha="center", va="center", fontsize=9, color="#888888")
    axes.set_ylabel(_unit(device), fontsize=8, labelpad=-8)
    bottom = 0.0
    for g in gpulets:
        low = bottom if is_whole else g.offset
        _draw_gpulet(axes, g, low, _extent(device, g), height, colours)
        bottom += g.size.sms


def _draw_gpulet(axes: "Axes", g: Gpulet, low: float, extent: float, height: float, colours: dict[str, str]) -> None:
    left = 0.0
    total = sum(turn.latency for turn in g.turns) or 1
    busy = min(1.0, total / g.duty_cycle) if g.duty_cycle else 1.0
    axes.bar(0, extent, 1, low, align="edge", color=colours[g.turns[-1].model], alpha=0.2, linewidth=0)
    for turn in g.turns:
        width = busy * turn.latency / total
        axes.bar(left, extent, width, low, align="edge", color=colours[turn.model], edgecolor="white", linewidth=1.5)
        left += width
    axes.bar(0, extent, 1, low, align="edge", fill=False, edgecolor="#333333", linewidth=1)
    lines = [f"{turn.model}  {turn.rate:.0f}/s, batch {turn.batch}" for turn in g.turns]
    processes = f", {g.processes} processes" if g.processes > 1 else ""
    share = f"{g.size.sms} ({g.size.share_pct:.3g} %){processes}, duty {to_ms(g.duty_cycle):.1f} ms"
    fits = extent / height > 0.05 * (len(lines) + 1)
    text = "\n".join([*lines, share]) if fits else ", ".join(turn.model for turn in g.turns)
    axes.text(0.5, low + extent / 2, text, ha="center", va="center", fontsize=7, bbox=_BOX)


def _unit(device: Device) -> str:
    match device.mechanism:
        case Mechanism.MPS:
            return "% of SMs"
        case Mechanism.MIG:
            return "memory slices"
        case Mechanism.CPU:
            return "cores"
        case Mechanism.WHOLE:
            return "threads, shared" if device.kind.name == "cpu" else "SMs, shared"
        case Mechanism.GREEN:
            return "SMs"


def _height(device: Device, gpulets: Sequence[Gpulet]) -> float:
    match device.mechanism:
        case Mechanism.MPS:
            return 100
        case Mechanism.MIG:
            return device.kind.geometry.slots
        case Mechanism.WHOLE:
            return max(device.kind.sms, sum(g.size.sms for g in gpulets))
        case Mechanism.CPU | Mechanism.GREEN:
            return device.kind.sms


def _extent(device: Device, g: Gpulet) -> float:
    match device.mechanism:
        case Mechanism.MPS:
            return g.size.share_pct
        case Mechanism.MIG:
            return next((t.span for t in device.kind.mig_types if t.label == g.size.label), 1)
        case Mechanism.CPU | Mechanism.GREEN | Mechanism.WHOLE:
            return g.size.sms
