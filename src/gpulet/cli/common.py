"""What commands share: their options, and how they plan, refuse and print."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpulet.capacity import ATTAINED
from gpulet.core.metrics import Rows
from gpulet.core.ports import Infeasible, Problem
from gpulet.errors import BadInput, ConfigError
from gpulet.fleetfile import Site
from gpulet.parallel import Advance
from gpulet.plan import Plan
from gpulet.planfile import read_plan
from gpulet.problems import load_profile
from gpulet.profile import Profile
from gpulet.replanning import on_fewest
from gpulet.units import SECOND
from gpulet.workload import Arrivals, drawn, parse_process, parse_trace

out = Console(emoji=False)

Target = Annotated[Path, typer.Argument(help="a fleet file, or a directory: a model repository on all cores")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
SystemName = Annotated[str, typer.Option("--system", help="a system's name, or package.module:NAME")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="use this plan (what `plan --json` wrote)")]
Seconds = Annotated[float, typer.Option("--duration", min=0.001, help="seconds of arrivals")]
Seed = Annotated[int, typer.Option("--seed", help="of the arrivals")]
Workload = Annotated[
    str, typer.Option("--workload", help="poisson, gamma:CV, mmpp:RATE1,SECONDS1,RATE2,SECONDS2, trace:FILE")
]


def profile_of(site: Site) -> Profile:
    """The site's profile; one line on standard error for each model left out, and one where nobody measured it."""
    for model, why in site.refused.items():
        Console(stderr=True, soft_wrap=True).print(f"model {model} refused: {why}", markup=False, highlight=False)
    profile = load_profile(site)
    tell_analytic(profile)
    return profile


def tell_analytic(profile: Profile) -> None:
    """One line on standard error, where it is in nobody's way, about a profile that nobody measured."""
    if profile.analytic:
        Console(stderr=True, soft_wrap=True).print(f"analytic: {profile.analytic}", markup=False, highlight=False)


def labelled(document: Mapping[str, Any], profile: Profile) -> dict[str, Any]:
    """The document, with `analytic` in it where nobody measured the profile."""
    return {**document, "analytic": profile.analytic} if profile.analytic else dict(document)


def planned(site: Site, problem: Problem) -> tuple[Plan | Infeasible, int]:
    """The planner's answer, and how long it thought (nanoseconds)."""
    before = time.perf_counter_ns()
    control = site.config.control
    fewest = control.fewest and control.mode != "off"
    outcome = on_fewest(site.system, problem) if fewest else site.system.planner(problem)
    return outcome, time.perf_counter_ns() - before


def chosen_plan(site: Site, problem: Problem, plan_file: Path | None) -> Plan:
    """The plan of a file, or a fresh one; a refusal ends the command with exit code 1."""
    if plan_file:
        try:
            text = plan_file.read_bytes()
        except OSError as error:
            msg = f"plan {plan_file} cannot be read: {error}"
            raise BadInput(msg) from None
        return read_plan(text, problem, str(plan_file))
    outcome, _ = planned(site, problem)
    return outcome if isinstance(outcome, Plan) else refuse(outcome)


def refuse(refusal: Infeasible, *, quiet: bool = False) -> Plan:
    """Say why there is no plan and end the command with exit code 1."""
    if not quiet:
        Console(stderr=True, soft_wrap=True, emoji=False).print(f"no plan: {refusal}", markup=False, highlight=False)
    raise typer.Exit(1)


def arrivals_of(problem: Problem, workload: str, duration: float, seed: int) -> Arrivals:
    """The arrivals of `--workload`; raises `ConfigError` for an unknown one or a trace that cannot be read."""
    models = problem.sources
    nanoseconds = round(duration * SECOND)
    if workload.startswith("trace:"):
        path = Path(workload.removeprefix("trace:"))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"trace {path} cannot be read: {error}"
            raise ConfigError(msg) from None
        return parse_trace(text, models, nanoseconds, seed, str(path), problem.rows)
    return drawn(models, problem.rates, nanoseconds, seed, parse_process(workload), problem.rows)


@contextmanager
def jobs_bar(title: str) -> Iterator[Advance]:
    """A bar on standard error while jobs are done."""
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("jobs", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)


def check_attainment(report: Rows, *, wanted: bool) -> None:
    """With `--check`, a model below 99 % ends the command with exit code 1."""
    if wanted and any(row["attainment"] < ATTAINED for row in report["models"].values()):
        raise typer.Exit(1)


def read_text(path: Path, what: str) -> str:
    """A file's text; one that cannot be read is bad input."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{what} {path} cannot be read: {error}"
        raise BadInput(msg) from None


def write_text(path: Path, text: str) -> None:
    """Write a file; one that cannot be written is bad input."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"{path} cannot be written: {error}"
        raise BadInput(msg) from None


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    out.print(json.dumps(value), markup=False, highlight=False, soft_wrap=True)
