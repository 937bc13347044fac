"""The formats that can be read; this is the only list of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from gpulet.device import Kind, Mechanism, Size, mps_size, sizes
from gpulet.errors import ProfileError
from gpulet.importing.cells import Cell, Oddity, OddKind
from gpulet.importing.table import BARE, Columns, Line, Table
from gpulet.units import PLAIN, from_ms

_Row: TypeAlias = tuple[str, int, int, int]
"""Model, slices, batch, processes."""
AUTO = "auto"
_PUBLISHED_ROUNDING = 0.02
"""A throughput that contradicts its latency by more is not a matter of digits."""
_LONGEST_MS = 1e9
"""Eleven days for one batch: a slip of digits."""
EVERY = 0
"""In place of a number of processes: all that the table has."""


def _nothing(_table: Table, _processes: int) -> Iterator[Oddity]:
    yield from ()


@dataclass(frozen=True, slots=True)
class Format:
    """`marks` tell its header from the others'; it cannot do without `needs`; `odd` says what only it can know.

    `odd` is told the number of processes that is read.
    """

    marks: Columns
    needs: Columns
    read: Callable[[Line, Kind], Cell]
    odd: Callable[[Table, int], Iterator[Oddity]] = _nothing


def read_cells(
    tables: Iterable[Table], kind: Kind, name: str, processes: int
) -> tuple[tuple[Cell, ...], tuple[Oddity, ...]]:
    """The cells of all tables, each in the format `name` or in its own."""
    cells: list[Cell] = []
    odd: list[Oddity] = []
    for table in tables:
        found = _find_format(name, table)
        cells += [FORMATS[found].read(line, kind) for line in _chosen(table, found, processes)]
        odd += FORMATS[found].odd(table, processes)
    return tuple(cells), tuple(odd)


def _find_format(name: str, table: Table) -> str:
    """The format's name, checked against the header; `auto` takes the first whose marks are all there."""
    if name not in {AUTO, *FORMATS}:
        msg = f"{table.source}: unknown format {name!r}; known are {AUTO}, {', '.join(FORMATS)}"
        raise ProfileError(msg)
    candidates = [name] if name != AUTO else [n for n, f in FORMATS.items() if set(f.marks) <= set(table.columns)]
    if not candidates:
        msg = f"{table.source}: line 1: unknown format: columns {', '.join(table.columns)}; known are {', '.join(FORMATS)}"
        raise ProfileError(msg)
    table.need(FORMATS[candidates[0]].needs, candidates[0])
    return candidates[0]


def _chosen(table: Table, found: str, processes: int) -> Iterable[Line]:
    """ParvaGPU's rows of one number of processes in an instance, or of all but copies; every row of the others."""
    if found != "parvagpu":
        return table.lines
    if processes == EVERY:
        copies = _copies(table)
        return [line for line in table.lines if _key(line) not in copies]
    chosen = [line for line in table.lines if line.count("processes") == processes]
    if not chosen:
        there = ", ".join(str(n) for n in sorted({line.count("processes") for line in table.lines}))
        msg = f"{table.source}: no row has processes {processes}; there are {there}"
        raise ProfileError(msg)
    return chosen


def _read_share(line: Line, kind: Kind) -> Cell:
    size = mps_size(kind, line.above_zero("share_pct", top=100))
    l2, dram = (
        line.not_negative(name, top=100) / 100 if name in line.fields else 0.0 for name in ("l2_pct", "dram_pct")
    )
    return _cell(line, size, line.above_zero("latency_ms"), l2=l2, dram=dram)


def _read_parvagpu(line: Line, kind: Kind) -> Cell:
    """Its latency column may be rounded to 1 ms; throughput is what was measured."""
    ms = 1000 * line.count("batch") / line.above_zero("throughput_per_process")
    return replace(_cell(line, _mig_size(line, kind), ms), processes=line.count("processes"))


def _read_migprofiler(line: Line, kind: Kind) -> Cell:
    shape = str(line.count("seq_length")) if "seq_length" in line.fields else PLAIN
    busy = line.not_negative("gract", top=1) if "gract" in line.fields else 0.0
    return replace(_cell(line, _mig_size(line, kind), line.above_zero("latency_ms"), shape), busy=busy)


def _cell(line: Line, size: Size, ms: float, shape: str = PLAIN, l2: float = 0.0, dram: float = 0.0) -> Cell:
    if ms > _LONGEST_MS:
        msg = f"{line.where}: a latency of {ms:g} ms; at most {_LONGEST_MS:g} ms are believed"
        raise ProfileError(msg)
    return Cell(line.text("model"), size, line.count("batch"), from_ms(ms), line.where, shape, l2=l2, dram=dram)


def _mig_size(line: Line, kind: Kind) -> Size:
    """The MIG type of that many slices, which its label begins with: `3g.40gb`."""
    known = {int(size.label.partition("g")[0]): size for size in sizes(kind, Mechanism.MIG)}
    slices = line.count("mig_slices")
    if slices not in known:
        line.refuse("mig_slices", f"one of {', '.join(map(str, known))}")
    return known[slices]


def _copied(table: Table, processes: int) -> Iterator[Oddity]:
    """Among all numbers of processes a copy would pass for the best: there it is left out."""
    treated = ", the second is left out" if processes == EVERY else ""
    for (model, slices, batch, second), throughput in _copies(table).items():
        where = f"mig_slices {slices}, batch {batch}, processes {second - 1} and {second}"
        yield Oddity(OddKind.COPIED_ROW, model, where, f"{throughput:g}/s each{treated}")


def _copies(table: Table) -> dict[_Row, float]:
    """Two numbers of processes cannot reach the same throughput each: the second is a copy and overstates."""
    measured = {_key(line): line.above_zero("throughput_per_process") for line in table.lines}
    return {
        (model, slices, batch, processes + 1): throughput
        for (model, slices, batch, processes), throughput in measured.items()
        if measured.get((model, slices, batch, processes + 1)) == throughput
    }


def _key(line: Line) -> _Row:
    return line.text("model"), line.count("mig_slices"), line.count("batch"), line.count("processes")


def _contradicted(table: Table, _processes: int) -> Iterator[Oddity]:
    """A throughput that is not batch / latency, once for each model; the latency is what counts."""
    wrong = [line for line in table.lines if "throughput" in line.fields and _is_contradicted(line)]
    for model in dict.fromkeys(line.text("model") for line in wrong):
        mine = [line for line in wrong if line.text("model") == model]
        yield Oddity(OddKind.WRONG_THROUGHPUT, model, mine[0].where, f"in {len(mine)} rows; latency is used")


def _is_contradicted(line: Line) -> bool:
    said = line.not_negative("throughput")
    implied = 1000 * line.count("batch") / line.above_zero("latency_ms")
    return abs(said - implied) > _PUBLISHED_ROUNDING * implied


_MIG: Columns = ("model", "mig_slices", "batch")
FORMATS: Mapping[str, Format] = {
    "parvagpu": Format(
        ("mig_slices", "processes"), (*_MIG, "processes", "throughput_per_process"), _read_parvagpu, _copied
    ),
    "migprofiler": Format(("mig_slices",), (*_MIG, "latency_ms"), _read_migprofiler, _contradicted),
    "igniter": Format(("share_pct", "throughput"), BARE, _read_share),
    "glet": Format(("share_pct",), BARE, _read_share),
}
