"""What a run was worth, for people: the same table for `simulate`, `bench` and the demo."""

from collections.abc import Mapping
from statistics import fmean

from rich.table import Table

from gpulet.core.decisions import ChangeRow
from gpulet.core.metrics import Rows, RunReport

_COUNTS = ("arrived", "served", "late", "rejected", "expired", "cancelled", "failed", "lost")
_MEASURES = {
    "attainment": ".2%",
    "goodput": ".1f",
    "violations_per_s": ".1f",
    "p50_ms": ".2f",
    "p95_ms": ".2f",
    "p99_ms": ".2f",
    "mean_batch": ".2f",
}


def run_table(report: Rows, title: str) -> Table:
    """One column per model and one for all; `report` is what `simulate --json` prints."""
    columns: dict[str, Mapping[str, object]] = {**report["models"], "total": report["total"]}
    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(name or "(unknown)", justify="right")
    for name in _COUNTS:
        table.add_row(name, *(str(row[name]) for row in columns.values()))
    for name, unit in _MEASURES.items():
        table.add_row(
            name.removesuffix("_ms").replace("_per_", "/"), *(f"{row[name]:{unit}}" for row in columns.values())
        )
    return table


def change_text(change: ChangeRow) -> str:
    """A decision of live control in one line."""
    considered = f"; {change['considered']}" if change["considered"] else ""
    return f"{change['at_s']:.3f} s: {change['seen']}{considered}: {change['chosen']}"


def usage_text(report: RunReport) -> str:
    """Two lines: how much of the devices was used, on average over them, and `fairness_text`."""
    devices = report["devices"]
    shares = [(d["busy"], d["useful"], d["allocated"]) for d in devices] or [(0.0, 0.0, 0.0)]
    busy, useful, allocated = map(fmean, zip(*shares, strict=True))
    switches, resizes = sum(d["switches"] for d in devices), sum(d["resizes"] for d in devices)
    used = f"busy {busy:.1%}, useful {useful:.1%}, allocated {allocated:.1%}"
    return f"devices {used}; {switches} switches, {resizes} resizes\n{fairness_text(report)}"


def fairness_text(report: Rows) -> str:
    """Jain's index of everything that is known of how even the models are."""
    return "fairness " + ", ".join(f"{of} {index:.2f}" for of, index in report["fairness"].items())
