"""The reproduction of PARIS and ELSA as Markdown with plots: what is recalled of the paper, and what these profiles give."""

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gpulet.reproduce.page import draw, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
_STUDIES = {
    4: "Location of the rows (4)",
    1: "Spread of the rows (1)",
    2: "Largest request (2)",
    3: "SLA multiple (3)",
    5: "Theta (5)",
    6: "Utilization at the knee (6), MIGProfiler's ResNet50 on sizes 1/2/3/7",
    7: "Runs that vary, and alpha (7)",
    8: "Another distribution than planned for (8)",
}
_DRAWN = {
    "GPU(7)": "#bab0ac",
    "GPU(max)": "#777777",
    "Random+ELSA": "#eeca3b",
    "PARIS+ELSA": "#4c78a8",
    "gpulet": "#e45756",
}

_PREFACE = """Latency-bounded throughput (requests/s): the highest Poisson rate at which 95 % of the requests are within the SLA, which is
a multiple of the largest request's latency on seven slices. Requests bring log-normal rows; all design points see the same
20,000. Counts fill six slices of each GPU; GPU(7) has as many GPUs, or fewer where the slices come out even.

**No result number of the paper is known to us**: the method is reproduced from a summary of it and checked by its worked
example. Measurements: ParvaGPU's profile of an A100-80GB (MIT licence), eager PyTorch, in place of the paper's models.
PARIS and ELSA are the subject of patent applications (US 2024/0012690 A1).

`gpulet` merges requests into batches, has the same slices as PARIS, and gives up requests that would be late, which count
as late. The seed of the requests moves a rate by up to 4 %."""


def write_report(rows: Sequence[Row], folder: Path) -> Path:
    """Write `report.md` and its picture into `folder`; the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# PARIS and ELSA (DAC 2022), reproduced", "", _PREFACE, ""]
    for study in dict.fromkeys(row["study"] for row in rows):
        mine = [row for row in rows if row["study"] == study]
        lines += [f"## {_STUDIES.get(study, 'As asked')}", "", *_partitionings(mine), "", *_throughputs(mine), ""]
    lines += ["## Claims", "", *table(("claim (recalled of the paper)", "here"), list(_claims(rows))), ""]
    draw(folder / "throughput.png", lambda axes: _draw_bars(axes, rows), (10, 0.5 + 0.42 * len(rows)))
    lines += ["![throughput over GPU(max)](throughput.png)", ""]
    path = folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def name_of(row: Row) -> str:
    """A case in a line: what differs from the base case."""
    parts = [f"{row['model']}, {row['gpus']} GPUs, median {exp(row['mu']):g}"]
    if row["sigma"] != 0.9:  # noqa: PLR2004 (the base case)
        parts.append(f"sigma {row['sigma']:g}")
    if row["largest"] != 32:  # noqa: PLR2004
        parts.append(f"at most {row['largest']} rows")
    if row["sla"] != 1.5:  # noqa: PLR2004
        parts.append(f"SLA x {row['sla']:g}")
    if row["theta"] != 0.8:  # noqa: PLR2004
        parts.append(f"theta {row['theta']:g}")
    if row["utilization"] != "saturation":
        parts.append(row["utilization"])
    if row["noise"]:
        parts.append(f"noise {row['noise']:.0%}, alpha {row['alpha']:g}")
    if row["served_mu"] is not None:
        parts.append(f"served median {exp(row['served_mu']):g}")
    return ", ".join(parts)


def _partitionings(rows: Sequence[Row]) -> list[str]:
    cells = [
        (
            name_of(row),
            f"{row['sla_ms']:.1f}",
            *("/".join(f"{v:{form}}" for v in row[key].values()) for key, form in _STEPS.items()),
        )
        for row in rows
    ]
    return table(("case", "SLA ms", "knees", "R ms", "fractional", "counts of 1/2/3/4/7"), cells)


_STEPS = {"knees": "d", "r_ms": ".3f", "n_real": ".2f", "counts": "d"}


def _throughputs(rows: Sequence[Row]) -> list[str]:
    designs = list(dict.fromkeys(d for row in rows for d in row["lbt"]))
    cells = [(name_of(row), *(f"{row['lbt'][d]:.0f}" if d in row["lbt"] else "" for d in designs)) for row in rows]
    return table(("case", *designs), cells)


def _claims(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    yield "PARIS+ELSA is above GPU(7) with FIFS", _ratios(rows, "PARIS+ELSA", "GPU(7)")
    yield "PARIS+ELSA is above GPU(max) with FIFS", _ratios(rows, "PARIS+ELSA", "GPU(max)")
    yield "PARIS+FIFS is poor: heterogeneous gpulets need ELSA", _ratios(rows, "PARIS+FIFS", "PARIS+ELSA")
    yield "Random+ELSA improves on Random+FIFS", _ratios(rows, "Random+FIFS", "Random+ELSA")
    best = {row["model"]: _best_size(row) for row in rows if row["study"] in {0, 4}}
    yield "the best homogeneous size differs by model", ", ".join(f"{m}: {size}" for m, size in best.items())
    yield "(ours) gpulet over the best of all of them", _ratios(rows, "gpulet", "")


def _best_size(row: Row) -> str:
    sizes = {name: rate for name, rate in row["lbt"].items() if name.startswith("GPU(") and name[4].isdigit()}
    return max(sizes, key=lambda name: sizes[name]) if sizes else ""


def _ratios(rows: Sequence[Row], one: str, other: str) -> str:
    """How often, and by how much: the median and the range of one over the other, or over the best of the others."""
    ratios = []
    for row in rows:
        others = [rate for name, rate in row["lbt"].items() if (name == other if other else name != one)]
        if one in row["lbt"] and others and max(others):
            ratios.append(row["lbt"][one] / max(others))
    if not ratios:
        return "not compared"
    above = sum(ratio > 1 for ratio in ratios)
    found = f"median {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), above 1 in {above} of {len(ratios)} cases"
    return f"{one} over {other or 'the best of the others'}: {found}"


def _draw_bars(axes: "Axes", rows: Sequence[Row]) -> None:
    """One group of bars for each case, over its GPU(max)."""
    width = 0.8 / len(_DRAWN)
    for number, (design, colour) in enumerate(_DRAWN.items()):
        values = [row["lbt"].get(design, 0.0) / (row["lbt"].get("GPU(max)") or 1.0) for row in rows]
        places = [-place - number * width for place in range(len(rows))]
        axes.barh(places, values, width, color=colour, label=design)
    axes.set_yticks(
        [-place - 0.4 + width / 2 for place in range(len(rows))], [name_of(row) for row in rows], fontsize=7
    )
    axes.axvline(1.0, color="#333333", linewidth=0.8)
    axes.set_xlabel("latency-bounded throughput over GPU(max)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
