"""What would be: `plan`, `capacity`, `simulate`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from gpulet.bounded import LEAST_REQUESTS, MOST_REQUESTS, REQUESTS
from gpulet.capacity import (
    Asked,
    Held,
    SimulationReport,
    fewest_devices,
    held_factor,
    largest_factor,
    simulated,
    simulated_factor,
)
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
    jobs_bar,
    labelled,
    out,
    planned,
    print_json,
    profile_of,
    refuse,
)
from gpulet.core.ports import Infeasible, Problem
from gpulet.errors import BadInput
from gpulet.fleetfile import Site, open_site, usable_cores
from gpulet.plan import Plan
from gpulet.planfile import to_doc, to_json
from gpulet.problems import front_end_share, make_problem
from gpulet.remedies import Remedies, remedies
from gpulet.reports.carving import emitted, find_form
from gpulet.reports.pictures import draw_plan
from gpulet.reports.plans import promise_table, shape_table
from gpulet.reports.runs import run_table, usage_text
from gpulet.units import Duration, to_ms

_ALL = 100
_MOST_REPLICATIONS = 1000


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


def capacity(
    target: Target,
    by: Annotated[str, typer.Option("--by", help="plan: what the planner accepts; simulation: what holds")] = "plan",
    system: SystemName = "",
    devices: Annotated[bool, typer.Option("--devices", help="instead: the fewest devices that hold the rates")] = False,
    duration: Seconds = 30.0,
    seed: Seed = 1,
    percentile: Annotated[
        float | None, typer.Option("--percentile", help="by simulation: so many percent in time, for one plan")
    ] = None,
    requests: Annotated[int, typer.Option("--requests", help="with --percentile: at every rate")] = REQUESTS,
    replications: Annotated[
        int, typer.Option("--replications", help="with --percentile: searches, each with a seed of its own")
    ] = 1,
    workers: Annotated[int, typer.Option("--workers", help="with --percentile: processes; 0: one per core")] = 0,
    as_json: AsJson = False,
) -> None:
    """The largest factor on all rates that still holds, or the fewest devices.

    By simulation it holds while at most 1 % of every model's requests are late or unanswered; each factor is planned for.

    With --percentile P it holds while P % of every model's requests are in time (latency-bounded throughput): the rate is
    doubled until it fails, then bisected, with the same requests at every rate, the first tenth of them not counted. The
    plan is made once, at the fleet's rates, and what there is of it counts even if the planner refuses them: the factor
    is what this plan holds. Rates are then requests/s.

    Example: gpulet capacity fleet.toml --by simulation
    """
    if percentile is None:
        _refuse_unbounded(requests, replications, workers)
        asked = None
    else:
        _check_bounded(by, percentile, requests, replications, workers, devices=devices)
        seeds = range(seed, seed + replications)
        asked = Asked(percentile, requests, seeds, workers or len(usable_cores()))
    site = open_site(target, system=system)
    measured = profile_of(site)
    problem = make_problem(site, measured)
    if devices:
        _print_fewest(fewest_devices(site, problem), problem, as_json=as_json)
        return
    if asked:
        outcome, _ = planned(site, problem)
        with jobs_bar("capacity") as advance:
            held = held_factor(site, problem, outcome, asked, advance)
        _print_held(problem, asked, held, as_json=as_json)
        return
    if by == "plan":
        factor, limiting = largest_factor(site, measured)
    elif by == "simulation":
        factor, limiting = simulated_factor(site, measured, duration, seed)
    else:
        msg = f"--by {by!r}: known are plan, simulation"
        raise BadInput(msg)
    needed = {name: rate / problem.rows_of(name).mean for name, rate in problem.demand.items()}
    rates = {name: rate * factor for name, rate in {**problem.rates, **needed}.items()}
    answer = {"factor": factor, "rates": rates, "limiting_model": limiting}
    if as_json:
        print_json(labelled(answer, measured))
    else:
        out.print(f"factor {factor:.3f}, limited by {limiting or 'nothing'}")
        for name, rate in rates.items():
            out.print(f"  {name}: {rate:.1f}/s")


def _refuse_unbounded(requests: int, replications: int, workers: int) -> None:
    if (requests, replications, workers) != (REQUESTS, 1, 0):
        msg = "--requests, --replications and --workers are for --percentile"
        raise BadInput(msg)


def _check_bounded(
    by: str, percentile: float, requests: int, replications: int, workers: int, *, devices: bool
) -> None:
    """Before anything is planned."""
    wrong = ""
    if by != "simulation" or devices:
        wrong = f"--percentile {percentile:g}: goes with --by simulation, and without --devices"
    elif not 0 < percentile <= _ALL:
        wrong = f"--percentile {percentile:g}: must be above 0 and at most {_ALL}"
    elif not LEAST_REQUESTS <= requests <= MOST_REQUESTS:
        wrong = f"--requests {requests}: must be {LEAST_REQUESTS} to {MOST_REQUESTS}"
    elif not 1 <= replications <= _MOST_REPLICATIONS:
        wrong = f"--replications {replications}: must be 1 to {_MOST_REPLICATIONS}"
    elif workers < 0:
        wrong = f"--workers {workers}: must be 0 or more"
    if wrong:
        raise BadInput(wrong)


def _print_held(problem: Problem, asked: Asked, held: Held, *, as_json: bool) -> None:
    rates = {name: rate * held.factor for name, rate in problem.rates.items()}
    answer = {"factor": held.factor, "rates": rates, "limiting_model": held.limiting}
    if as_json:
        told = {**answer, "percentile": asked.percentile, "replications": held.factors}
        print_json(labelled(told, problem.profile))
        return
    out.print(f"factor {held.factor:.3f} with {asked.percentile:g} % in time, limited by {held.limiting or 'nothing'}")
    if len(held.factors) > 1:
        out.print(f"  replications: {', '.join(f'{factor:.3f}' for factor in held.factors)}")
    for name, rate in rates.items():
        out.print(f"  {name}: {rate:.1f} requests/s")


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
        for name, report in reports.items():
            out.print(run_table(report, f"{name}: {duration:g} s of {workload}, seed {seed}"))
            out.print(usage_text(report))
            out.print(f"{report['simulated_per_second']:.0f} simulated requests/s")
        for name, refusal in refusals.items():
            out.print(f"{name}: no plan: {refusal['infeasible']}", markup=False)
    if refusals and (check or not reports):
        raise typer.Exit(1)
    for report in reports.values():
        check_attainment(report, wanted=check)


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


def _print_fewest(count: int | Infeasible, problem: Problem, *, as_json: bool) -> None:
    of = len(problem.devices)
    if isinstance(count, Infeasible):
        refuse(count)
    elif as_json:
        print_json(labelled({"devices": count, "of": of}, problem.profile))
    else:
        out.print(f"{count} of {of} devices hold the rates")
