"""D-STACK beside its rivals and ours: `reproduce tcc24`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from gpulet.cli.common import AsJson, jobs_bar, out, print_json
from gpulet.cli.reproducing import make_folder
from gpulet.errors import BadInput
from gpulet.reproduce.tcc24.against import MIXES as COMPARED
from gpulet.reproduce.tcc24.against import against
from gpulet.reproduce.tcc24.arrivals import Kind, Process, Source
from gpulet.reproduce.tcc24.cases import IDEALS, WINDOWS, Case, find_mix, find_models
from gpulet.reproduce.tcc24.jobs import RIVALS, Asked, Row, defaults, everything, reproduce, without_timelines
from gpulet.reproduce.tcc24.published import system_at_knees
from gpulet.reproduce.tcc24.report import write_report


def tcc24(
    mix: Annotated[str, typer.Option("--mix", help="c2, c3, c4, c7 or convnets; left out: all of them")] = "",
    models: Annotated[str, typer.Option("--models", help="any models of the table, separated by commas")] = "",
    systems: Annotated[
        str, typer.Option("--systems", help="as --system takes them, or ideal-kernels, separated by commas")
    ] = "",
    arrivals: Annotated[Kind, typer.Option("--arrivals", help="with --mix or --models: who comes when")] = (
        Kind.SATURATED
    ),
    process: Annotated[Process, typer.Option("--process", help="of arrivals that do not saturate")] = Process.UNIFORM,
    windows: Annotated[int, typer.Option("--windows", min=1, help="sessions, each as long as the largest SLO")] = (
        WINDOWS
    ),
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=64, help="with --mix or --models: GPUs")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="of the arrivals")] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes; 0: one per core")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="report, plots and finished points; left out: out/tcc24, none with --json"),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="gpulet against every other system too, on 24 mixes: half an hour on two cores"),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """D-STACK (IEEE TCC 2024): throughput, utilisation, fairness and missed windows of every scheduler on its mixes.

    With --mix or --models one case; else all mixes, arrivals and the cluster. Goes on where an earlier run with the same
    --out stopped.

    Example: gpulet reproduce tcc24 --mix c4 --systems dstack,temporal,ideal-kernels --json
    """
    names = _systems(systems)
    chosen = _models(mix, models)
    if chosen and full:
        msg = "--full compares on mixes of its own: leave --mix and --models out"
        raise BadInput(msg)
    rows = everything(names, windows)
    if chosen:
        if not systems and arrivals is not Kind.SATURATED:
            names = tuple(name for name in names if name not in IDEALS)
        rows = (Row(Case(chosen, Source(arrivals, process, seed), windows, gpus), names),)
    place = folder or (None if as_json else Path("out/tcc24"))
    if place:
        make_folder(place)
    workers = workers or len(os.sched_getaffinity(0))
    with jobs_bar("reproduce tcc24") as advance:
        values = reproduce(Asked(rows, workers, place), advance)
    compared: list[Any] = []
    if full:
        with jobs_bar("gpulet against every other system") as advance:
            compared = against(COMPARED, RIVALS, workers, place, advance)
    report = write_report(values, place, compared) if place else None
    if as_json:
        bare = [without_timelines(value) for value in values]
        print_json(bare[0] if chosen else {"cases": bare, "against": compared})
    else:
        out.print(f"report: {report}", markup=False)


def _systems(text: str) -> tuple[str, ...]:
    """What is misspelt is said before the bar is drawn."""
    names = tuple(dict.fromkeys(text.split(","))) if text else defaults()
    for name in names:
        if name not in IDEALS:
            system_at_knees(name)
    return names


def _models(mix: str, models: str) -> tuple[str, ...]:
    if mix and models:
        msg = f"--mix {mix} and --models {models}: give one of them"
        raise BadInput(msg)
    return find_mix(mix) if mix else find_models(models) if models else ()
