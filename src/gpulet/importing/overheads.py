"""What the host adds to every batch beside the device's measured time, such as joining the tensors of its requests."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NoReturn

from gpulet.errors import BadInput, ProfileError
from gpulet.importing.cells import Cell
from gpulet.importing.curves import linear
from gpulet.importing.table import Table
from gpulet.units import Duration, from_ms

CONSTANT = "const"
USAGE = "FILE:SHAPE:FACTOR:MODEL,... or const:MS:MODEL,..."


@dataclass(frozen=True, slots=True)
class Overhead:
    """Host time of some models: `by_batch`, or the same `constant` for every batch; `source` says who says so."""

    source: str
    models: tuple[str, ...]
    by_batch: Mapping[int, Duration]
    constant: Duration = 0

    def of(self, rows: int) -> Duration:
        """The host time of one batch; raises `ProfileError` for a batch that the table does not hold."""
        if not self.by_batch:
            return self.constant
        if rows not in self.by_batch:
            msg = f"{self.source}: no concat_ms for batch {rows}; the table ends at {max(self.by_batch)}"
            raise ProfileError(msg)
        return self.by_batch[rows]


def parse_overhead(option: str, read: Callable[[str], Table]) -> Overhead:
    """One `--overhead`; `read` gives the table of a file. Raises `BadInput` for an option that is not `USAGE`."""
    if option.startswith(f"{CONSTANT}:"):
        _, ms, models = _split(option, 3)
        return Overhead(option, _names(models, option), {}, from_ms(_amount(ms, option)))
    file, shape, factor, models = _split(option, 4)
    table = read(file)
    return Overhead(table.source, _names(models, option), _by_batch(table, shape, _amount(factor, option)))


def _split(option: str, count: int) -> list[str]:
    """From the right, since a file's name may hold colons."""
    parts = option.rsplit(":", count - 1)
    if len(parts) != count or not all(parts):
        _refuse(option)
    return parts


def _refuse(option: str) -> NoReturn:
    msg = f"--overhead {option!r}: give {USAGE}"
    raise BadInput(msg)


def _names(models: str, option: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in models.split(","))
    return names if all(names) else _refuse(option)


def _amount(text: str, option: str) -> float:
    """A factor, or milliseconds: finite and not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        msg = f"--overhead {option!r}: {text!r} must be a number, 0 or more; give {USAGE}"
        raise BadInput(msg)
    return value


def _by_batch(table: Table, shape: str, factor: float) -> dict[int, Duration]:
    table.need(("shape", "batch", "concat_ms"), "a table of overheads")
    mine = [line for line in table.lines if line.text("shape") == shape]
    if not mine:
        known = ", ".join(dict.fromkeys(line.text("shape") for line in table.lines))
        msg = f"{table.source}: no shape {shape}; there are {known}"
        raise ProfileError(msg)
    found: dict[int, Duration] = {}
    for line in mine:
        rows = line.count("batch")
        added = from_ms(factor * line.not_negative("concat_ms"))
        if found.setdefault(rows, added) != added:
            msg = f"{line.where}: shape {shape}, batch {rows} has two different concat_ms"
            raise ProfileError(msg)
    return found


def with_overheads(cells: Sequence[Cell], overheads: Iterable[Overhead]) -> tuple[Cell, ...]:
    """Every batch of the models concerned, since an overhead is not linear between measured ones; of others, as is."""
    named = tuple(overheads)
    _refuse_strangers(cells, named)
    grown: list[Cell] = []
    for _, group in groupby(sorted(cells, key=_row), _row):
        row = list(group)
        mine = [o for o in named if row[0].model in o.models]
        grown += _dense(row, mine) if mine else row
    return tuple(grown)


def _refuse_strangers(cells: Iterable[Cell], overheads: Iterable[Overhead]) -> None:
    known = dict.fromkeys(c.model for c in cells)
    for overhead in overheads:
        strangers = [name for name in overhead.models if name not in known]
        if strangers:
            msg = f"--overhead: model {strangers[0]} is not in the tables; there are {', '.join(known)}"
            raise BadInput(msg)


def _row(cell: Cell) -> tuple[str, str, int, int]:
    return cell.model, cell.shape, cell.size.sms, cell.processes


def _dense(row: list[Cell], overheads: Sequence[Overhead]) -> Iterator[Cell]:
    """One (model, shape, size, processes) at every batch up to the largest measured one; several overheads add up."""
    latency = {c.rows: c.latency for c in row}
    l2, dram = {c.rows: c.l2 for c in row}, {c.rows: c.dram for c in row}
    for rows in range(1, max(latency) + 1):
        host = sum(o.of(rows) for o in overheads)
        device = round(linear(latency, rows))
        yield replace(row[0], rows=rows, latency=device, host=host, l2=linear(l2, rows), dram=linear(dram, rows))
