"""L2 and DRAM in use, from a table that was measured on the whole device.

A smaller gpulet drives them in proportion to its share: so do gpu-lets' artifact and its interference model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from gpulet.errors import ProfileError
from gpulet.importing.cells import Cell, Oddity, OddKind
from gpulet.importing.curves import linear
from gpulet.importing.table import Table

Use = tuple[float, float]
"""L2 and DRAM as fractions of their peaks."""


def with_utilization(cells: Sequence[Cell], table: Table | None) -> tuple[tuple[Cell, ...], tuple[Oddity, ...]]:
    """Every cell with the use of its model and batch times its share, and which cells nothing is known of."""
    measured = _read(table) if table else {}
    used = tuple(_used(cell, measured[cell.model]) if cell.model in measured else cell for cell in cells)
    return used, (*_unknown(used, measured), *_held(used, measured))


def _read(table: Table) -> dict[str, dict[int, Use]]:
    table.need(("model", "batch", "l2_pct", "dram_pct"), "a table of utilization")
    measured: dict[str, dict[int, Use]] = {}
    for line in table.lines:
        own = measured.setdefault(line.text("model"), {})
        use = line.not_negative("l2_pct", top=100) / 100, line.not_negative("dram_pct", top=100) / 100
        if own.setdefault(line.count("batch"), use) != use:
            msg = (
                f"{line.where}: model {line.text('model')}, batch {line.count('batch')} has two different utilizations"
            )
            raise ProfileError(msg)
    return measured


def _used(cell: Cell, measured: Mapping[int, Use]) -> Cell:
    l2, dram = (linear({rows: use[i] for rows, use in measured.items()}, cell.rows) for i in (0, 1))
    share = cell.size.share_pct / 100
    return replace(cell, l2=l2 * share, dram=dram * share)


def _unknown(cells: Sequence[Cell], measured: Mapping[str, Mapping[int, Use]]) -> Iterator[Oddity]:
    """Where some cells know their use, those that do not would pass for models that leave the memory alone."""
    bare = sorted((c for c in cells if not c.l2 and not c.dram), key=lambda c: c.size)
    if len(bare) == len(cells) and not measured:
        return
    for model in dict.fromkeys(c.model for c in bare):
        labels = dict.fromkeys(c.size.label for c in bare if c.model == model)
        yield Oddity(OddKind.UNKNOWN_UTILIZATION, model, ", ".join(labels), "0 % of L2 and DRAM")


def _held(cells: Sequence[Cell], measured: Mapping[str, Mapping[int, Use]]) -> Iterator[Oddity]:
    for model in dict.fromkeys(c.model for c in cells if c.model in measured):
        largest, known = max(c.rows for c in cells if c.model == model), max(measured[model])
        if largest > known:
            yield Oddity(OddKind.HELD_UTILIZATION, model, f"batch {known + 1} to {largest}", f"as at batch {known}")
