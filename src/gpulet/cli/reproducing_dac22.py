"""PARIS and ELSA beside ours: `reproduce dac22`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gpulet.cli.common import AsJson, jobs_bar, out, print_json
from gpulet.cli.reproducing import make_folder
from gpulet.errors import BadInput
from gpulet.planners.paris import THETA, UTILIZATIONS, Rounding
from gpulet.reproduce.dac22.cases import Case
from gpulet.reproduce.dac22.designs import DESIGNS, Effort
from gpulet.reproduce.dac22.jobs import Asked, Row, check, reproduce, studies, unknown_design
from gpulet.reproduce.dac22.report import write_report
from gpulet.rows import DEFAULT_LARGEST, parse_mu

_PROFILE = Path("../shared/data/a100_parvagpu/profile.csv")


def dac22(
    profile: Annotated[
        Path, typer.Option("--profile", help="a table of ours, or a published one of MIG slices")
    ] = _PROFILE,
    model: Annotated[str, typer.Option("--model", help="one row of this model; left out: the studies")] = "",
    gpus: Annotated[int, typer.Option("--gpus", min=1, max=1024, help="GPUs; counts fill six slices of each")] = 4,
    mu: Annotated[str, typer.Option("--mu", help="of the log-normal rows: a number, or ln4")] = "ln4",
    sigma: Annotated[float, typer.Option("--sigma", help="of the log-normal rows")] = 0.9,
    largest: Annotated[int, typer.Option("--largest", min=1, help="most rows of a request")] = DEFAULT_LARGEST,
    sla: Annotated[float, typer.Option("--sla", help="times the largest request's latency on seven slices")] = 1.5,
    theta: Annotated[float, typer.Option("--theta", help="utilization at the knee")] = THETA,
    rounding: Annotated[Rounding, typer.Option("--rounding", help="of fractional counts")] = Rounding.MAXMIN,
    utilization: Annotated[str, typer.Option("--utilization", help=f"known: {', '.join(UTILIZATIONS)}")] = "saturation",
    systems: Annotated[str, typer.Option("--systems", help=f"separated by commas, of {', '.join(DESIGNS)}")] = "",
    draws: Annotated[int, typer.Option("--draws", min=1, help="random pools of a row, averaged")] = 20,
    requests: Annotated[int, typer.Option("--requests", min=100, help="simulated at each rate")] = 20_000,
    seed: Annotated[int, typer.Option("--seed", help="of the requests")] = 1,
    full: Annotated[bool, typer.Option("--full", help="all studies, six models")] = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="processes; 0: one per core")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--out", help="report, plots and finished points; left out: out/dac22, none with --json"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """PARIS and ELSA (DAC 2022): knees, counts and the throughput that each design point holds within its SLA.

    With --model one row; else the sensitivity studies on mobilenetv2 and resnet50. Goes on where an earlier run with the
    same --out stopped.

    Example: gpulet reproduce dac22 --model mobilenetv2 --gpus 4 --mu ln4 --json
    """
    if model:
        case = Case(model, gpus, _mu(mu), sigma, largest, sla, _theta(theta), rounding, _utilization(utilization))
        rows: tuple[Row, ...] = (Row(case, _designs(systems) or DESIGNS, draws),)
    else:
        rows = tuple(_with(row, _designs(systems)) for row in studies(full=full, busy=_busy(profile)))
    place = folder or (None if as_json else Path("out/dac22"))
    asked = Asked(profile, rows, Effort(requests, seed), workers or len(os.sched_getaffinity(0)), place)
    check(asked)
    if place:
        make_folder(place)
    with jobs_bar("reproduce dac22") as advance:
        values = reproduce(asked, advance)
    report = write_report(values, place) if place else None
    if as_json:
        print_json(values[0] if model else {"rows": values})
    else:
        out.print(f"report: {report}", markup=False)


def _with(row: Row, designs: tuple[str, ...]) -> Row:
    return replace(row, designs=designs or row.designs)


def _designs(systems: str) -> tuple[str, ...]:
    """The names between the commas; `, largest idle` is part of a name."""
    names = tuple(systems.replace(", largest idle", "; largest idle").split(",")) if systems else ()
    names = tuple(name.replace("; largest idle", ", largest idle") for name in names)
    unknown = unknown_design(names)
    if unknown or "" in names:
        msg = f"--systems {unknown!r}: known are {', '.join(DESIGNS)}"
        raise BadInput(msg)
    return names


def _busy(profile: Path) -> Path | None:
    """MIGProfiler's table where it lies beside ParvaGPU's."""
    beside = profile.parent.parent / "a100_migprofiler" / "vision.csv"
    return beside if beside.exists() else None


def _mu(text: str) -> float:
    try:
        return parse_mu(text)
    except ValueError:
        msg = f"--mu {text!r}: give a number, or ln and a number above 0 (ln4)"
        raise BadInput(msg) from None


def _theta(value: float) -> float:
    if not 0 < value <= 1:
        msg = f"--theta must be above 0 and at most 1, is {value:g}"
        raise BadInput(msg)
    return value


def _utilization(name: str) -> str:
    if name not in UTILIZATIONS:
        msg = f"--utilization {name!r}: known are {', '.join(UTILIZATIONS)}"
        raise BadInput(msg)
    return name
