"""The reproduction of D-STACK as Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpulet.reproduce.page import table


def write_report(values: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write `report.md` into `folder`; the path of the report."""
    lines = ["# D-STACK (IEEE TCC 2024), reproduced", ""]
    for value in values:
        rows = [(name, f"{found['total_per_s']:.0f}") for name, found in value["systems"].items()]
        lines += [f"## {value['mix']}, {value['arrivals']}", "", *table(("system", "images/s"), rows), ""]
    path = folder / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
