"""How much a fleet holds: `capacity`."""

from typing import Annotated

import typer

from gpulet.bounded import LEAST_REQUESTS, MOST_REQUESTS, REQUESTS
from gpulet.capacity import Asked, Held, fewest_devices, held_factor, largest_factor, simulated_factor
from gpulet.cli.common import (
    AsJson,
    Seconds,
    Seed,
    SystemName,
    Target,
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
from gpulet.problems import make_problem
from gpulet.profile import Profile

_ALL = 100
_MOST_REPLICATIONS = 1000

By = Annotated[str, typer.Option("--by", help="plan: what the planner accepts; simulation: what holds")]
Fewest = Annotated[bool, typer.Option("--devices", help="instead: the fewest devices that hold the rates")]
Percentile = Annotated[
    float | None, typer.Option("--percentile", help="by simulation: so many percent in time, for one plan")
]
Requests = Annotated[int, typer.Option("--requests", help="with --percentile: at every rate")]
Replications = Annotated[
    int, typer.Option("--replications", help="with --percentile: searches, each with a seed of its own")
]
Processes = Annotated[int, typer.Option("--workers", help="with --percentile: processes; 0: one per core")]


def capacity(
    target: Target,
    by: By = "plan",
    system: SystemName = "",
    devices: Fewest = False,
    duration: Seconds = 30.0,
    seed: Seed = 1,
    percentile: Percentile = None,
    requests: Requests = REQUESTS,
    replications: Replications = 1,
    workers: Processes = 0,
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
    elif asked:
        _print_held(problem, asked, _held(site, problem, asked), as_json=as_json)
    else:
        _print_factor(problem, *_factor(site, measured, by, duration, seed), as_json=as_json)


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


def _factor(site: Site, measured: Profile, by: str, duration: float, seed: int) -> tuple[float, str]:
    """The largest, and what limits it."""
    if by == "plan":
        return largest_factor(site, measured)
    if by == "simulation":
        return simulated_factor(site, measured, duration, seed)
    msg = f"--by {by!r}: known are plan, simulation"
    raise BadInput(msg)


def _held(site: Site, problem: Problem, asked: Asked) -> Held:
    outcome, _ = planned(site, problem)
    with jobs_bar("capacity") as advance:
        return held_factor(site, problem, outcome, asked, advance)


def _print_factor(problem: Problem, factor: float, limiting: str, *, as_json: bool) -> None:
    needed = {name: rate / problem.rows_of(name).mean for name, rate in problem.demand.items()}
    rates = {name: rate * factor for name, rate in {**problem.rates, **needed}.items()}
    if as_json:
        print_json(labelled({"factor": factor, "rates": rates, "limiting_model": limiting}, problem.profile))
        return
    out.print(f"factor {factor:.3f}, limited by {limiting or 'nothing'}")
    for name, rate in rates.items():
        out.print(f"  {name}: {rate:.1f}/s")


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


def _print_fewest(count: int | Infeasible, problem: Problem, *, as_json: bool) -> None:
    of = len(problem.devices)
    if isinstance(count, Infeasible):
        refuse(count)
    elif as_json:
        print_json(labelled({"devices": count, "of": of}, problem.profile))
    else:
        out.print(f"{count} of {of} devices hold the rates")
