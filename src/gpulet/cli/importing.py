"""What others measured: `import-profile`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gpulet.cli.common import AsJson, out, print_json
from gpulet.device import find_kind
from gpulet.errors import BadInput, ProfileError
from gpulet.importing import import_tables
from gpulet.importing.cells import Oddity
from gpulet.importing.formats import EVERY
from gpulet.importing.overheads import USAGE, parse_overhead
from gpulet.importing.table import Table, read_table
from gpulet.profile import Point
from gpulet.profiletable import format_profile

_OVERHEAD = f"host time beside the measured one, repeatable, adds up: {USAGE}; FILE has columns shape, batch, concat_ms"
_UTILIZATION = (
    "L2 and DRAM in use at 100 % share (columns model, batch, l2_pct, dram_pct): linear between its batches, "
    "times each size's share, as in gpu-lets' artifact"
)
_PROCESSES = "parvagpu: rows of so many processes in an instance, or all, which system segments plans with"


def import_profile(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE", help="published tables of one device kind")],
    kind: Annotated[str, typer.Option("--kind", help="the device they were measured on: rtx2080ti, v100, a100-80gb")],
    form: Annotated[
        str, typer.Option("--format", help="glet, igniter, parvagpu, migprofiler, or auto: by header")
    ] = "auto",
    processes: Annotated[str, typer.Option("--processes", help=_PROCESSES)] = "1",
    overhead: Annotated[list[str] | None, typer.Option("--overhead", help=_OVERHEAD)] = None,
    utilization: Annotated[Path | None, typer.Option("--utilization", help=_UTILIZATION)] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="write the table here, not to standard output")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn published profile tables into ours, for `profile = "FILE"` in a fleet file; tell what is odd about them.

    Example: gpulet import-profile latency.csv --kind rtx2080ti --overhead concat.csv:3x224x224:1.9:vgg16 --out p.csv
    """
    _refuse_misuse(kind, out_file, as_json=as_json)
    points, odd = import_tables(
        [_read(path) for path in tables],
        find_kind(kind),
        form,
        _parse_processes(processes),
        [parse_overhead(option, lambda name: _read(Path(name))) for option in overhead or ()],
        _read(utilization) if utilization else None,
    )
    _write(format_profile(points), out_file)
    _tell(odd)
    if out_file:
        _report(points, odd, out_file, as_json=as_json)


def _refuse_misuse(kind: str, out_file: Path | None, *, as_json: bool) -> None:
    if as_json and not out_file:
        msg = "--json needs --out FILE: the table itself goes to standard output"
        raise BadInput(msg)
    if kind == "cpu":
        msg = "--kind cpu: published tables are of GPUs; measure a CPU with `gpulet profile`"
        raise BadInput(msg)


def _parse_processes(text: str) -> int:
    if text == "all":
        return EVERY
    if not text.isdecimal() or int(text) < 1:
        msg = f"--processes {text!r}: a whole number from 1, or all"
        raise BadInput(msg)
    return int(text)


def _read(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"table {path} cannot be read: {error}"
        raise ProfileError(msg) from None
    return read_table(text, str(path))


def _write(table: str, path: Path | None) -> None:
    if not path:
        typer.echo(table, nl=False)
        return
    try:
        path.write_text(table, encoding="utf-8")
    except OSError as error:
        msg = f"table {path} cannot be written: {error}"
        raise BadInput(msg) from None


def _tell(odd: Sequence[Oddity]) -> None:
    """One line for each, on standard error, where it is in nobody's way."""
    err = Console(stderr=True, soft_wrap=True)
    for o in odd:
        err.print(f"{o.kind.replace('_', ' ')}: {o.model}: {o.where}: {o.value}", markup=False, highlight=False)


def _report(points: Sequence[Point], odd: Sequence[Oddity], path: Path, *, as_json: bool) -> None:
    """What was written to `path`."""
    models = list(dict.fromkeys(p.model for p in points))
    if as_json:
        warnings = [{"kind": o.kind, "model": o.model, "where": o.where, "value": o.value} for o in odd]
        print_json({"written": len(points), "models": models, "warnings": warnings})
    else:
        line = f"{len(points)} points of {len(models)} models in {path}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
