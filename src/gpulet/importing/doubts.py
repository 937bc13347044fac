"""What is odd about a grid of cells as a whole. The measurements stay as they are: a `Profile` is monotone by itself."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from operator import attrgetter

from gpulet.device import Kind, Size
from gpulet.importing.cells import Cell, Oddity, OddKind

ODD_STEP = 0.02
"""A step the wrong way by more is told; a repeated measurement varies by less."""


def doubts(cells: Sequence[Cell], kind: Kind) -> tuple[Oddity, ...]:
    """Shares and sizes that do not fit, holes, and steps that run the wrong way."""
    return (
        *_shares_not_offered(cells, kind),
        *_sizes_differ(cells),
        *_missing_cells(cells),
        *_faster_with_batch(cells),
        *_slower_with_size(cells),
        *_faster_with_processes(cells),
    )


def _by(cells: Iterable[Cell], *names: str) -> Iterator[tuple[Cell, ...]]:
    """The cells in groups that agree in these attributes, each group by size, then by processes, then by rows."""
    key = attrgetter(*names)
    ordered = sorted(cells, key=lambda c: (key(c), c.size, c.processes, c.rows))
    return (tuple(group) for _, group in groupby(ordered, key))


def _sizes(cells: Iterable[Cell]) -> set[Size]:
    return {c.size for c in cells}


def _labels(sizes: Iterable[Size]) -> str:
    return ", ".join(size.label for size in sorted(sizes))


def _shares_not_offered(cells: Sequence[Cell], kind: Kind) -> Iterator[Oddity]:
    """Plans cut only what the kind offers; what lies between serves interpolation alone."""
    offered = {t.label for t in kind.mig_types} | {f"{share:g} %" for share in kind.mps_shares}
    for mine in _by(cells, "model"):
        other = {size for size in _sizes(mine) if size.label not in offered}
        if other:
            where = f"{kind.name} offers {', '.join(map(str, kind.mps_shares))} %"
            yield Oddity(OddKind.SHARE_NOT_OFFERED, mine[0].model, where, _labels(other))


def _sizes_differ(cells: Sequence[Cell]) -> Iterator[Oddity]:
    everywhere = _sizes(cells)
    for mine in _by(cells, "model"):
        own = _sizes(mine)
        if own != everywhere:
            yield Oddity(OddKind.SIZES_DIFFER, mine[0].model, f"measured at {_labels(own)}", _labels(everywhere - own))


def _missing_cells(cells: Sequence[Cell]) -> Iterator[Oddity]:
    """Batches of the grid that were not measured at a model's size and shape: out of memory, or nobody tried."""
    batches = sorted({c.rows for c in cells})
    for row in _by(cells, "model", "shape", "size", "processes"):
        there = {c.rows for c in row}
        missing = [n for n in batches if n not in there]
        if missing:
            value = f"{len(missing)} cells: batch {_runs(batches, there)}"
            yield Oddity(OddKind.MISSING_CELLS, row[0].model, row[0].at(row[0].size.label), value)


def _runs(batches: Sequence[int], there: Container[int]) -> str:
    """What is not there, neighbours in the grid drawn together: 1, 4 to 32."""
    groups = [list(group) for is_there, group in groupby(batches, lambda n: n in there) if not is_there]
    return ", ".join(f"{g[0]} to {g[-1]}" if g[1:] else str(g[0]) for g in groups)


def _faster_with_batch(cells: Sequence[Cell]) -> Iterator[Oddity]:
    for row in _by(cells, "model", "shape", "size", "processes"):
        for small, large in pairwise(row):
            if _growth(small, large) < -ODD_STEP:
                at = small.at(f"{small.size.label}, batch {small.rows} to {large.rows}")
                yield Oddity(OddKind.FASTER_WITH_BATCH, small.model, at, f"{_growth(small, large):+.1%}")


def _slower_with_size(cells: Sequence[Cell]) -> Iterator[Oddity]:
    for column in _by(cells, "model", "shape", "rows", "processes"):
        for small, large in pairwise(column):
            if _growth(small, large) > ODD_STEP:
                at = small.at(f"batch {small.rows}, {small.size.label} to {large.size.label}")
                yield Oddity(OddKind.SLOWER_WITH_SIZE, small.model, at, f"{_growth(small, large):+.1%}")


def _faster_with_processes(cells: Sequence[Cell]) -> Iterator[Oddity]:
    for pile in _by(cells, "model", "shape", "size", "rows"):
        for few, many in pairwise(pile):
            if _growth(few, many) < -ODD_STEP:
                at = f"{few.size.label}, batch {few.rows}, processes {few.processes} to {many.processes}"
                at = f"shape {few.shape}, {at}" if few.shape else at
                yield Oddity(OddKind.FASTER_WITH_PROCESSES, few.model, at, f"{_growth(few, many):+.1%}")


def _growth(before: Cell, after: Cell) -> float:
    return after.latency / before.latency - 1
