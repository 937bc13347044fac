"""A report's tables and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table."""
    line = "| " + " | ".join(header) + " |"
    rule = "|" + " --- |" * len(header)
    return [line, rule, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)]


def draw(path: Path, draw: "Callable[[Axes], None]", size: tuple[float, float]) -> None:
    """One picture, `size` in inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow to import, and only drawing needs it)

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.add_subplot())
    figure.savefig(path, dpi=150)
