"""What a run was worth, for people: the same table for `simulate`, `bench` and the demo."""

from collections.abc import Mapping

from rich.table import Table

from gpulet.core.metrics import Rows

_COUNTS = ("arrived", "served", "late", "rejected", "expired", "cancelled", "failed", "lost")
_MEASURES = {
    "attainment": ".2%",
    "goodput": ".1f",
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
        table.add_row(name.removesuffix("_ms"), *(f"{row[name]:{unit}}" for row in columns.values()))
    return table
