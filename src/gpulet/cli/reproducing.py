"""A paper's tables beside ours: `reproduce`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, jobs_bar, out, print_json
from gpulet.errors import BadInput
from gpulet.reproduce.atc22.data import load
from gpulet.reproduce.atc22.jobs import ON_REQUEST, PARTS, SYSTEMS, Asked, reproduce
from gpulet.reproduce.atc22.report import write_report
from gpulet.systems import find_system

_LEVELS = 4


def atc22(
    levels: Annotated[
        str, typer.Option("--levels", help="four rates (requests/s) over which the five models are combined")
    ] = "0,100,200,400",
    systems: Annotated[str, typer.Option("--systems", help="which to compare, separated by commas")] = ",".join(
        SYSTEMS
    ),
    only: Annotated[str, typer.Option("--only", help=f"parts, separated by commas: {', '.join(PARTS)}")] = "",
    data: Annotated[Path, typer.Option("--data", help="folder with the published measurements")] = Path(
        "../shared/data"
    ),
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes; 0: one per core")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="where the report and its plots go; left out: out/atc22, none with --json"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """gpu-lets (USENIX ATC 2022): saturation, schedulability, peak rates, interference, fluctuating load.

    Writes a report with the paper's figures, the artifact's own and ours side by side.

    Example: gpulet reproduce atc22 --levels 0,100,200,400 --only schedulable --systems sbp,glet
    """
    parts = tuple(only.split(",")) if only else tuple(part for part in PARTS if part not in ON_REQUEST)
    asked = Asked(data, _numbers(levels), tuple(systems.split(",")), parts, workers or len(os.sched_getaffinity(0)))
    _refuse_unknown(asked)
    place = folder or (None if as_json else Path("out/atc22"))
    if place:
        make_folder(place)
    with jobs_bar("reproduce atc22") as advance:
        result = reproduce(asked, advance)
    report = write_report(result, place) if place else None
    if as_json:
        print_json(result)
    else:
        out.print(f"report: {report}", markup=False)


def _refuse_unknown(asked: Asked) -> None:
    """What is misspelt or missing is said before the bar is drawn."""
    for name in asked.systems:
        find_system(name)
    unknown = [part for part in asked.only if part not in PARTS]
    if unknown:
        msg = f"--only {unknown[0]!r}: known are {', '.join(PARTS)}"
        raise BadInput(msg)
    load(asked.data)


def make_folder(folder: Path) -> None:
    """Before any work: a folder that cannot be made is bad input."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"--out {folder} cannot be made: {error}"
        raise BadInput(msg) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != _LEVELS or not all(0 <= value < float("inf") for value in values):
        msg = f"--levels {text!r}: give four rates of 0 or more, separated by commas"
        raise BadInput(msg)
    return values
