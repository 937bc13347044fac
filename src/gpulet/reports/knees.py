"""Where more SMs stop paying, by model and batch: a table, JSON, and a picture of latency and efficacy against size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from gpulet.efficacy import efficacy
from gpulet.errors import ProfileError
from gpulet.knee import efficient, knee, within
from gpulet.parallelism import Ramp, fitted
from gpulet.profile import Profile
from gpulet.units import MS, Duration, to_ms

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEWEST_SIZES = 2
_FEWEST_POINTS = 3
_MOST_LINES = 8


@dataclass(frozen=True, slots=True)
class Curve:
    """One batch of a model: its latency at each measured size, ascending."""

    rows: int
    sizes: tuple[int, ...]
    latencies: tuple[Duration, ...]

    @property
    def efficacies(self) -> tuple[float, ...]:
        """D-STACK's rows / (latency^2 x size), by size."""
        return tuple(efficacy(size, self.rows, took) for size, took in zip(self.sizes, self.latencies, strict=True))

    @property
    def knees(self) -> Mapping[str, int]:
        """The knee in SMs by each rule: the most efficacy, latency within 10 % of the largest size's, Kneedle's on rows/s."""
        rates = [self.rows / max(1, took) for took in self.latencies]
        return {
            "efficacy": self.sizes[efficient(self.sizes, self.latencies)],
            "latency": self.sizes[within(self.sizes, self.latencies)],
            "kneedle": self.sizes[knee(self.sizes, rates)],
        }


@dataclass(frozen=True, slots=True)
class Knees:
    """A model's curves by measured batch, and the ramp of kernels that comes closest to all of them."""

    model: str
    curves: tuple[Curve, ...]
    ramp: Ramp


def knees_of(profile: Profile, model: str) -> Knees:
    """Every batch that was measured, alone on its gpulet, at two sizes or more.

    Raises `ProfileError` for a model that was not measured so, or at fewer than three points in all.
    """
    known = profile.sizes(model)
    batches = sorted({p.rows for p in profile.points if p.model == model and p.processes == 1})
    curves = []
    for rows in batches:
        sizes = tuple(size for size in known if profile.max_batch(model, size) >= rows)
        if len(sizes) >= _FEWEST_SIZES:
            curves.append(Curve(rows, sizes, tuple(profile.latency(model, size, rows) for size in sizes)))
    points = [(s, c.rows, took) for c in curves for s, took in zip(c.sizes, c.latencies, strict=True)]
    if len(points) < _FEWEST_POINTS:
        msg = f"model {model}: {len(points)} points of batches that were measured at two sizes or more; a knee needs "
        raise ProfileError(msg + f"{_FEWEST_POINTS} at least")
    return Knees(model, tuple(curves), fitted(points))


def knee_table(found: Iterable[Knees], whole: int) -> Table:
    """One row per model and batch; `whole` is the device's SMs, 0 where nobody said."""
    caption = "ms: latency at the efficacy's knee; ramp: of the kernels fitted to all points of a model"
    table = Table(title="knees in SMs" + (" (% of the device)" if whole else ""), caption=caption)
    for name in ("model", "batch", "efficacy", "ms", "+10 %", "Kneedle", "ramp"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for k in found:
        for c in k.curves:
            best, *others = (f"{s} ({100 * s / whole:.0f} %)" if whole else str(s) for s in c.knees.values())
            took = to_ms(c.latencies[c.sizes.index(c.knees["efficacy"])])
            table.add_row(k.model, str(c.rows), best, f"{took:.4g}", *others, _shown(k.ramp.knee(c.rows), c.sizes[-1]))
    return table


def _shown(knee_sms: float, largest: int) -> str:
    """A knee beyond what was measured is only said to be there."""
    return f"{knee_sms:.1f}" if knee_sms <= largest else f"> {largest}"


def knee_document(found: Iterable[Knees], whole: int) -> dict[str, object]:
    """The same for machines, with every curve and the ramp's parameters."""
    return {"device_sms": whole or None, "models": {k.model: _document(k) for k in found}}


def _document(k: Knees) -> dict[str, object]:
    ramp = {"serial_ms": k.ramp.serial / MS, "parallel_ms": k.ramp.parallel / MS, "sms_per_row": k.ramp.per_row}
    return {"ramp": {**ramp, "error": k.ramp.error}, "batches": [_batch(c, k.ramp) for c in k.curves]}


def _batch(c: Curve, ramp: Ramp) -> dict[str, object]:
    columns = {"size": c.sizes, "latency_ms": tuple(map(to_ms, c.latencies)), "efficacy": c.efficacies}
    return {"batch": c.rows, "knees": {**c.knees, "ramp": ramp.knee(c.rows)}, **columns}


def draw_knees(found: Sequence[Knees], path: Path) -> None:
    """A row per model: latency and efficacy against size, a line per batch, a ring at efficacy's knee.

    Beyond eight batches only some have a line. The format follows the file's ending: .png or .svg.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (half a second that other commands need not wait for)

    figure = Figure(figsize=(9, 2.9 * len(found) + 0.2), layout="constrained")
    for (left, right), k in zip(
        figure.subplots(len(found), 2, squeeze=False, gridspec_kw={"wspace": 0.06}), found, strict=True
    ):
        _draw_model(left, right, k)
    figure.savefig(path, dpi=110)


def _draw_model(left: "Axes", right: "Axes", k: Knees) -> None:
    from matplotlib import colormaps  # noqa: PLC0415 (as above)

    shown = _spread(k.curves)
    for i, c in enumerate(shown):
        colour = colormaps["viridis"](0.9 * i / max(1, len(shown) - 1))
        at = c.sizes.index(c.knees["efficacy"])
        most = max(c.efficacies)
        for axes, values in ((left, [to_ms(t) for t in c.latencies]), (right, [e / most for e in c.efficacies])):
            axes.plot(c.sizes, values, color=colour, marker=".", markersize=4, linewidth=1.2, label=str(c.rows))
            axes.plot(c.sizes[at], values[at], "o", color=colour, markersize=9, fillstyle="none")
    left.set(title=f"{k.model}: latency", xlabel="SMs", ylabel="ms", yscale="log")
    right.set(title=f"{k.model}: efficacy, rings at the knees", xlabel="SMs", ylabel="part of its best", ylim=(0, 1.08))
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.grid(visible=True, alpha=0.3)
    right.legend(title="batch", fontsize=7, title_fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _spread(curves: Sequence[Curve]) -> Sequence[Curve]:
    """At most eight, the first and the last among them."""
    if len(curves) <= _MOST_LINES:
        return curves
    step = (len(curves) - 1) / (_MOST_LINES - 1)
    return [curves[round(i * step)] for i in range(_MOST_LINES)]
