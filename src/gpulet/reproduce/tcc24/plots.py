"""The reproduction's pictures: who ran when at which share, throughput by model, fairness, utilisation."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpulet.device import Size
from gpulet.plan import TimelineRun
from gpulet.reports.pictures import placed
from gpulet.reproduce.tcc24.data import KIND, ROWS
from gpulet.units import from_ms, to_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Value = Mapping[str, Any]
COLOURS: Mapping[str, str] = {
    "mobilenet": "#4c78a8",
    "alexnet": "#f58518",
    "bert": "#b279a2",
    "resnet18": "#72b7b2",
    "resnet50": "#54a24b",
    "inception": "#eeca3b",
    "vgg19": "#e45756",
    "resnext50": "#9d755d",
    "convnet1": "#1b6f8a",
    "convnet2": "#d37295",
    "convnet3": "#8c8c8c",
}
_SHOWN = ("temporal", "gslice-static", "max-throughput", "rolling", "dstack", "gpulet")
"""Systems with a timeline, where they are compared."""


def timelines(path: Path, value: Value) -> bool:
    """Coloured rectangles, time by share, one panel for each system; whether there was anything to draw."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow to import, and only drawing needs it)
    from matplotlib.patches import Patch  # noqa: PLC0415

    names = [name for name in _SHOWN if value["systems"].get(name, {}).get("timeline")]
    if not names:
        return False
    session = max(ROWS[model].slo_ms for model in _models(value))
    figure = Figure(figsize=(11, 0.9 + 1.45 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)
    for panel, name in zip(panels[:, 0], names, strict=True):
        _draw_timeline(panel, value["systems"][name]["timeline"], 2 * session)
        panel.axvline(session, color="#333333", linewidth=1.0, linestyle=":", zorder=3)
        panel.set_title(f"{name}, {value['systems'][name]['total_per_s']:,.0f}/s", fontsize=9, loc="left")
    panels[-1, 0].set_xlabel("ms; a session ends at the dotted line", fontsize=8)
    figure.supylabel("share of the GPU (%)", fontsize=9)
    handles = [Patch(color=_colour(model), label=model) for model in _models(value)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return True


def _colour(model: str) -> str:
    return COLOURS[model.removesuffix("_t4")]


def _models(value: Value) -> list[str]:
    return list(next(iter(value["systems"].values()))["models"])


def _draw_timeline(axes: "Axes", runs: Sequence[Sequence[Any]], end: float) -> None:
    for run, low, height in placed([_as_run(run) for run in runs if run[1] == 0], KIND.sms):
        span = (to_ms(run.start), to_ms(run.length))
        axes.broken_barh([span], (low, height), facecolor=_colour(run.model), edgecolor="white", linewidth=0.6)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100])
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _as_run(run: Sequence[Any]) -> TimelineRun:
    model, _, sms, start, end = run
    return TimelineRun(from_ms(start), from_ms(end) - from_ms(start), model, Size(sms, 0.0), 0)


Draw = Callable[["Axes", Value], None]


def bars(path: Path, values: Sequence[Value], draw: Draw, label: str) -> None:
    """One panel for each mix, a line for each system, one legend."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    across = min(3, len(values))
    down = -(-len(values) // across)
    tall = max(len(value["systems"]) for value in values)
    figure = Figure(figsize=(4.6 * across, 0.5 + down * (0.8 + 0.24 * tall)), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel, value in zip(panels, values, strict=False):
        draw(panel, value)
        names = list(value["systems"])
        panel.set_yticks([-place for place in range(len(names))], names, fontsize=7.5)
        panel.set_ylim(-len(names) + 0.4, 0.6)
        panel.set_title(value["mix"], fontsize=10, loc="left")
        panel.set_xlabel(label, fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(values) :]:
        panel.set_visible(False)
    known = {text: handle for panel in panels for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    columns = min(len(known), 4 * across)
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def draw_throughput(axes: "Axes", value: Value) -> None:
    """Stacked by model."""
    for place, found in enumerate(value["systems"].values()):
        left = 0.0
        for model, rate in found["models"].items():
            axes.barh(-place, rate, 0.75, left=left, color=_colour(model), label="" if place else model)
            left += rate


def draw_fairness(axes: "Axes", value: Value) -> None:
    """Jain's index, and the least served model over the mean."""
    for place, found in enumerate(value["systems"].values()):
        first = "" if place else "Jain on runtime"
        second = "" if place else "least served over mean"
        axes.barh(-place + 0.19, found["jain"], 0.36, color="#4c78a8", label=first)
        axes.barh(-place - 0.19, found["least_runtime_over_mean"], 0.36, color="#f58518", label=second)
    axes.set_xlim(0, 1.02)


def draw_utilisation(axes: "Axes", value: Value) -> None:
    """What is planned, where anything is, and what is of use."""
    for place, found in enumerate(value["systems"].values()):
        planned = found["planned_utilisation"]
        axes.barh(-place, 100 * found["useful_utilisation"], 0.7, color="#54a24b", label="" if place else "useful")
        if planned is not None:
            axes.plot([100 * planned] * 2, [-place - 0.42, -place + 0.42], color="#333333", linewidth=1.6)
    axes.plot([], [], color="#333333", linewidth=1.6, label="planned")
    axes.set_xlim(0, 104)
