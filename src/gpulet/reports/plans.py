"""A plan for people: a table, and a picture of the devices cut into gpulets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from gpulet.device import Device, Mechanism
from gpulet.plan import Gpulet, Plan, TimelineRun
from gpulet.units import MIB, Duration, to_ms

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


def shape_table(plan: Plan) -> Table:
    """What stands on the devices: sessions, or gpulets, or just the models that share them uncut."""
    if plan.timelines:
        return timeline_table(plan)
    return resident_table(plan) if plan.residents and not plan.gpulets else gpulet_table(plan)


def gpulet_table(plan: Plan) -> Table:
    """One row per turn; where several processes share a gpulet, each with a batch of its own, it says 3 x 16 rows."""
    table = Table(title=f"{len(plan.gpulets)} gpulets on {plan.devices_used} of {len(plan.devices)} devices")
    for name in ("device", "gpulet", "size", "duty ms", "model", "batch", "rows/s", "run ms"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name in {"model", "size"})
    mig = {device.index for device in plan.devices if device.mechanism is Mechanism.MIG}
    for g in plan.gpulets:
        for turn in g.turns:
            table.add_row(
                str(g.device),
                str(g.id),
                g.size.label if g.device in mig else f"{g.size.sms} ({g.size.share_pct:.3g} %)",
                f"{to_ms(g.duty_cycle):.4g}",
                turn.model,
                f"{g.processes} x {turn.batch}" if g.processes > 1 else str(turn.batch),
                f"{turn.rate:.1f}",
                f"{to_ms(turn.latency):.4g}",
            )
    return table


def timeline_table(plan: Plan) -> Table:
    """One row per run of every device's session; devices that repeat the same one are named together."""
    alike: dict[tuple[Duration, tuple[TimelineRun, ...]], list[str]] = {}
    for line in plan.timelines:
        alike.setdefault((line.period, line.runs), []).append(str(line.device))
    periods = dict.fromkeys(f"{to_ms(line.period):g} ms" for line in plan.timelines)
    table = Table(title=f"sessions of {', '.join(periods)} on {len(plan.timelines)} of {len(plan.devices)} devices")
    for name in ("devices", "start ms", "end ms", "model", "size", "batch"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for (_, runs), devices in alike.items():
        for run in runs:
            size = f"{run.size.sms} ({run.size.share_pct:.3g} %)"
            span = (f"{to_ms(run.start):.4g}", f"{to_ms(run.start + run.length):.4g}")
            table.add_row(", ".join(devices), *span, run.model, size, str(run.batch))
    return table


def resident_table(plan: Plan) -> Table:
    """One row per model; devices that hold the same ones are named together."""
    alike: dict[tuple[tuple[str, int, float], ...], list[str]] = {}
    for device in plan.devices:
        held = tuple((r.model, r.memory, r.guaranteed) for r in plan.residents if r.device == device.index)
        alike.setdefault(held, []).append(str(device.index))
    used = len({r.device for r in plan.residents})
    table = Table(title=f"{len(plan.residents)} replicas on {used} of {len(plan.devices)} devices, uncut")
    for name in ("devices", "model", "memory MiB", "guaranteed SMs"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for held, devices in alike.items():
        for model, memory, sms in held:
            filled = (f"{memory / MIB:.0f}" if memory else "", f"{sms:.1f}" if sms else "")
            table.add_row(", ".join(devices), model, *filled)
    return table


def promise_table(plan: Plan) -> Table:
    """One row per model."""
    caption = "worst latency: a batch assembled and run, not a bound on waits" if plan.timelines else None
    table = Table(title="what each model is promised", caption=caption)
    for name in ("model", "demand", "throughput", "headroom", "worst latency", "SLO"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name == "model")
    for name, p in plan.promises.items():
        table.add_row(
            name,
            f"{p.demand:.1f}/s",
            f"{p.throughput:.1f}/s",
            f"{p.headroom:.0%}" if p.demand else "",
            f"{to_ms(p.worst_latency):.1f} ms",
            f"{to_ms(p.slo):.1f} ms",
        )
    return table


def draw_plan(plan: Plan, path: Path) -> None:
    """Devices as columns cut into gpulets; a gpulet's turns share its width as they share its duty cycle.

    The format follows the file's ending: .png or .svg.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that other commands need not wait for)

    columns = min(_PER_ROW, len(plan.devices))
    rows = -(-len(plan.devices) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    models = sorted({turn.model for g in plan.gpulets for turn in g.turns} | set(plan.promises))
    colours = {model: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(models)}
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, device in zip(grid.flat, plan.devices, strict=False):
        gpulets = [g for g in plan.gpulets if g.device == device.index]
        _draw_device(axes, device, gpulets, colours)
    figure.savefig(path, dpi=144)


def _draw_device(axes: "Axes", device: Device, gpulets: Sequence[Gpulet], colours: dict[str, str]) -> None:
    """From the bottom up in the device's own unit; what overlaps (`whole`) is stacked."""
    is_whole = device.mechanism is Mechanism.WHOLE
    height = _height(device, gpulets)
    axes.set_axis_on()
    axes.set(xlim=(0, 1), ylim=(0, height), xticks=[], yticks=[0, height])
    axes.set_title(f"device {device.index}: {device.kind.name}, {device.mechanism}", fontsize=9)
    axes.tick_params(labelsize=8)
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
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5}
    axes.text(0.5, low + extent / 2, text, ha="center", va="center", fontsize=7, bbox=box)


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
