"""What would be: `plan`, `simulate`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gpulet.capacity import SimulationReport, simulated
from gpulet.cli.common import (
    AsJson,
    PlanFile,
    Seconds,
    Seed,
    SystemName,
    Target,
    Workload,
    arrivals_of,
    check_attainment,
    chosen_plan,
    labelled,
    out,
    planned,
    print_json,
    profile_of,
    refuse,
)
from gpulet.core.ports import Infeasible, Problem
from gpulet.errors import BadInput
from gpulet.fleetfile import Site, open_site
from gpulet.plan import Plan
from gpulet.planfile import to_doc, to_json
from gpulet.problems import front_end_share, make_problem
from gpulet.remedies import Remedies, remedies
from gpulet.reports.carving import emitted, find_form
from gpulet.reports.pictures import draw_plan
from gpulet.reports.plans import promise_table, shape_table
from gpulet.reports.runs import change_text, run_table, usage_text
from gpulet.units import Duration, to_ms


def plan(
    target: Target,
    system: SystemName = "",
    picture: Annotated[Path | None, typer.Option("--picture", help="draw it to this .png or .svg")] = None,
    emit: Annotated[
        str, typer.Option("--emit", help="instead print it for those who carve: mig, nvidia-smi, dra, env")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Cut the devices for the models' rates and SLOs.

    Example: gpulet plan fleet.toml --picture plan.png
    """
    _check_emit(emit, as_json=as_json)
    site = open_site(target, system=system)
    problem = make_problem(site, profile_of(site))
    outcome, took = planned(site, problem)
    found = Remedies()
    if isinstance(outcome, Infeasible):
        found = remedies(site.system.probe, problem, outcome, adds_devices=site.executor != "cpu")
        outcome = replace(outcome, nearest=str(found))
    shown = outcome.partial if isinstance(outcome, Infeasible) else outcome
    if picture:
        _draw(shown, picture)
    if as_json:
        print_json(_plan_doc(site, problem, outcome, took, found))
    elif not emit:
        out.print(shape_table(shown), promise_table(shown))
    elif isinstance(outcome, Plan):
        typer.echo(emitted(outcome, emit), nl=False)
    if isinstance(outcome, Infeasible):
        refuse(outcome, quiet=as_json)


def simulate(
    target: Target,
    duration: Seconds = 60.0,
    seed: Seed = 1,
    workload: Workload = "poisson",
    system: SystemName = "",
    plan_file: PlanFile = None,
    compare: Annotated[str, typer.Option("--compare", help="several systems, separated by commas")] = "",
    check: Annotated[bool, typer.Option("--check", help="exit 1 when a model attains less than 99 %")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a workload against a plan in virtual time, through the code that serves.

    Example: gpulet simulate fleet.toml --duration 60 --seed 1 --workload gamma:2 --compare gpulet,elastic
    """
    names = _names(compare) if compare else [system]
    reports: dict[str, SimulationReport] = {}
    refusals: dict[str, dict[str, str]] = {}
    measured = profile_of(open_site(target, system=names[0]))
    for name in names:
        site = open_site(target, system=name)
        problem = make_problem(site, measured)
        outcome = planned(site, problem)[0] if compare and not plan_file else chosen_plan(site, problem, plan_file)
        if isinstance(outcome, Infeasible):
            refusals[site.name] = {"infeasible": str(outcome)}
            continue
        arrivals = arrivals_of(problem, workload, duration, seed)
        reports[site.name] = simulated(site, problem, outcome, arrivals)
    if as_json:
        told = {name: labelled(report, measured) for name, report in reports.items()}
        print_json({**told, **refusals} if compare else next(iter(told.values())))
    else:
        _print_runs(reports, f"{duration:g} s of {workload}, seed {seed}", refusals)
    if refusals and (check or not reports):
        raise typer.Exit(1)
    for report in reports.values():
        check_attainment(report, wanted=check)


def _print_runs(reports: Mapping[str, SimulationReport], what: str, refusals: Mapping[str, Mapping[str, str]]) -> None:
    for name, report in reports.items():
        out.print(run_table(report, f"{name}: {what}"))
        out.print(usage_text(report))
        for change in report["changes"]:
            out.print(change_text(change), markup=False)
        out.print(f"{report['simulated_per_second']:.0f} simulated requests/s")
    for name, refusal in refusals.items():
        out.print(f"{name}: no plan: {refusal['infeasible']}", markup=False)


def _check_emit(emit: str, *, as_json: bool) -> None:
    """Before anything is planned."""
    if emit and as_json:
        msg = "--emit and --json both want standard output: ask for one of them"
        raise BadInput(msg)
    if emit:
        find_form(emit)


def _plan_doc(
    site: Site, problem: Problem, outcome: Plan | Infeasible, took: Duration, found: Remedies
) -> dict[str, Any]:
    doc = to_json(to_doc(outcome, site.name, took))
    if site.executor == "cpu":
        doc["front_end_share"] = front_end_share(site, problem)
    if isinstance(outcome, Infeasible):
        doc["remedies"] = {"devices": found.devices, "slo_ms": to_ms(found.slo), "rate": found.rate}
    return labelled(doc, problem.profile)


def _names(compare: str) -> list[str]:
    names = compare.split(",")
    if "" in names:
        msg = f"--compare {compare!r}: an empty name between commas"
        raise BadInput(msg)
    return names


def _draw(shown: Plan, picture: Path) -> None:
    if picture.suffix not in {".png", ".svg"}:
        msg = f"--picture {picture}: the file must end in .png or .svg"
        raise BadInput(msg)
    try:
        draw_plan(shown, picture)
    except OSError as error:
        msg = f"--picture {picture} cannot be written: {error}"
        raise BadInput(msg) from None
