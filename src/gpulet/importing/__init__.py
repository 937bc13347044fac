"""Profile tables that others published, read into ours: what is impossible is refused, what is odd is kept and told."""

from collections.abc import Iterable

from gpulet.device import Kind
from gpulet.importing.cells import Cell, Oddity, merged
from gpulet.importing.doubts import doubts
from gpulet.importing.formats import read_cells
from gpulet.importing.overheads import Overhead, with_overheads
from gpulet.importing.table import Table
from gpulet.importing.utilization import with_utilization
from gpulet.profile import Point


def import_tables(
    tables: Iterable[Table],
    kind: Kind,
    form: str = "auto",
    processes: int = 1,
    overheads: Iterable[Overhead] = (),
    utilization: Table | None = None,
) -> tuple[tuple[Point, ...], tuple[Oddity, ...]]:
    """The points of all tables together, and what is odd about them; raises `ProfileError` with file, line and value.

    Where a table has rows of several numbers of processes in an instance, those of `processes` are read, or of `EVERY`.
    """
    read, odd = read_cells(tables, kind, form, processes)
    measured, twins = merged(read)
    cells = with_overheads(measured, overheads)
    cells, unknown = with_utilization(cells, utilization)
    return _points(cells), (*odd, *twins, *doubts(measured, kind), *unknown)


def _points(cells: Iterable[Cell]) -> tuple[Point, ...]:
    """Of each model, size by size: what a reader of the table looks for."""
    return tuple(sorted((c.point() for c in cells), key=lambda p: (p.model, p.shape, p.size, p.processes, p.rows)))
