"""The commands: the only place where files, systems, drivers and reports are put together."""

import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from gpulet import __version__
from gpulet.config import describe
from gpulet.core.journal import read_header, replay
from gpulet.core.ports import Infeasible, Problem
from gpulet.drivers.sim import simulate as run_simulation
from gpulet.errors import BadInput, ConfigError, GpuletError, ModelError
from gpulet.fleetfile import Site, front_end_share, largest_factor, load_profile, make_problem, open_site, stored_points
from gpulet.loadgen import bench_server, parse_load
from gpulet.logs import configure as configure_logs
from gpulet.logs import tell
from gpulet.measuring import measure, missing
from gpulet.plan import Plan
from gpulet.planfile import read_plan, to_doc, to_json
from gpulet.profile import Point, Profile
from gpulet.profiler import P99_SAMPLES
from gpulet.reports.plans import draw_plan, gpulet_table, promise_table
from gpulet.reports.runs import run_table
from gpulet.serving import LiveServer, make_server, serve_until_stopped
from gpulet.store import Machine
from gpulet.systems import SYSTEMS, find_system, make_scheduler
from gpulet.units import MS, SECOND, to_ms
from gpulet.workload import Arrivals, drawn, parse_process, parse_trace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Serve many models on few devices, each within its latency objective (SLO).",
)
config_app = typer.Typer(no_args_is_help=True, help="Fleet files.")
app.add_typer(config_app, name="config")
out = Console()

Target = Annotated[Path, typer.Argument(help="a fleet file, or a directory: a model repository on all cores")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
SystemName = Annotated[str, typer.Option("--system", help="a system's name, or package.module:NAME")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="use this plan (what `plan --json` wrote)")]
Seconds = Annotated[float, typer.Option("--duration", min=0.001, help="seconds of arrivals")]
Seed = Annotated[int, typer.Option("--seed", help="of the arrivals")]
Workload = Annotated[
    str, typer.Option("--workload", help="poisson, gamma:CV, mmpp:RATE1,SECONDS1,RATE2,SECONDS2, trace:FILE")
]


_BUDGET_S = 1.0
_ATTAINED = 0.99
"""At most 1 % late or unanswered: what the field's papers call holding a rate."""


def main() -> None:
    """Run the command line; an error we raise on purpose is one line and an exit code."""
    sys.path.insert(0, os.fspath(Path.cwd()))  # so that `--system my_module:NAME` finds a file beside the user
    try:
        app()
    except GpuletError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(error.exit_code) from None


@app.command()
def plan(
    target: Target,
    system: SystemName = "",
    picture: Annotated[Path | None, typer.Option("--picture", help="draw it to this .png or .svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Cut the devices for the models' rates and SLOs.

    Example: gpulet plan fleet.toml --picture plan.png
    """
    site = open_site(target, system=system)
    problem = make_problem(site, load_profile(site))
    outcome, took = _planned(site, problem)
    shown = outcome.partial if isinstance(outcome, Infeasible) else outcome
    if picture:
        _draw(shown, picture)
    if as_json:
        doc = to_json(to_doc(outcome, _system_name(site, system), took))
        if site.executor == "cpu":
            doc["front_end_share"] = front_end_share(site, problem)
        _print_json(doc)
    else:
        out.print(gpulet_table(shown), promise_table(shown))
    if isinstance(outcome, Infeasible):
        _refuse(outcome, quiet=as_json)


@app.command()
def capacity(
    target: Target,
    by: Annotated[str, typer.Option("--by", help="plan: what the planner accepts; simulation: what holds")] = "plan",
    system: SystemName = "",
    devices: Annotated[bool, typer.Option("--devices", help="instead: the fewest devices that hold the rates")] = False,
    duration: Seconds = 30.0,
    seed: Seed = 1,
    as_json: AsJson = False,
) -> None:
    """The largest factor on all rates that still holds, or the fewest devices.

    By simulation it holds while at most 1 % of every model's requests are late or unanswered.

    Example: gpulet capacity fleet.toml --by simulation
    """
    site = open_site(target, system=system)
    problem = make_problem(site, load_profile(site))
    if devices:
        _fewest_devices(site, problem, as_json=as_json)
        return
    if by == "plan":
        factor, limiting = largest_factor(problem, site.system)
    elif by == "simulation":
        factor, limiting = _simulated_factor(site, problem, duration, seed)
    else:
        msg = f"--by {by!r}: known are plan, simulation"
        raise BadInput(msg)
    rates = {name: rate * factor for name, rate in problem.demand.items()}
    answer = {"factor": factor, "rates": rates, "limiting_model": limiting}
    if as_json:
        _print_json(answer)
    else:
        out.print(f"factor {factor:.3f}, limited by {limiting or 'nothing'}")
        for name, rate in rates.items():
            out.print(f"  {name}: {rate:.1f}/s")


@app.command()
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
    reports = {}
    for name in compare.split(",") if compare else [system]:
        site = open_site(target, system=name)
        problem = make_problem(site, load_profile(site))
        chosen = _chosen_plan(site, problem, plan_file)
        arrivals = _arrivals(problem, workload, duration, seed)
        reports[_system_name(site, name)] = _simulated(site, problem, chosen, arrivals)
    if as_json:
        _print_json(reports if compare else next(iter(reports.values())))
    else:
        for name, report in reports.items():
            out.print(run_table(report, f"{name}: {duration:g} s of {workload}, seed {seed}"))
            out.print(f"{report['simulated_per_second']:.0f} simulated requests/s")
    for report in reports.values():
        _check(report, wanted=check)


@app.command()
def serve(
    target: Target,
    system: SystemName = "",
    plan_file: PlanFile = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535, help="instead of the fleet file's")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="likewise")] = None,
    journal: Annotated[str, typer.Option("--journal", help="write every step to this file")] = "",
) -> None:
    """Profile what is not profiled yet, plan, carve, serve until SIGTERM.

    Example: gpulet serve examples/digits
    """
    site = _with_options(open_site(target, system=system), http_port, metrics_port, journal)
    configure_logs(site.config.server.log_format)
    refused = _measured(site, _BUDGET_S) if site.executor == "cpu" and not site.profile_path else {}
    for model, error in refused.items():
        tell("model_refused", model=model, error=error)
    site = site.without(refused)
    problem = make_problem(site, load_profile(site))
    chosen = _chosen_plan(site, problem, plan_file)
    name = _system_name(site, system)
    tell("planned", system=name, gpulets=len(chosen.gpulets), devices=chosen.devices_used)
    uvloop.run(_serve(site, problem, chosen, name, refused))


@app.command()
def profile(
    target: Target,
    budget: Annotated[float, typer.Option("--budget", min=0.01, help="seconds of runs for each point")] = _BUDGET_S,
    again: Annotated[bool, typer.Option("--again", help="forget what was measured before")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency by (model, cores, batch) on real workers; goes on where an earlier run stopped.

    Example: gpulet profile examples/digits
    """
    site = open_site(target)
    if again:
        for artifact in site.artifacts.values():
            site.store.path(artifact.digest).unlink(missing_ok=True)
        site.store.write_machine(Machine())
    refused = _measured(site, budget)
    points = sorted(stored_points(site), key=lambda p: (p.model, p.shape, p.size, p.rows))
    if as_json:
        machine = asdict(site.store.read_machine())
        _print_json({"points": [_point_json(p) for p in points], "machine": machine, "refused": refused})
    else:
        _print_profile(points, site.store.read_machine())
    if refused:
        model, error = next(iter(refused.items()))
        msg = f"model {model}: {error}"
        raise ModelError(msg)


def _print_profile(points: Sequence[Point], machine: Machine) -> None:
    table = Table("model", "cores", "batch", "mean", "p95", "p99", "runs", title="latency in ms")
    for p in points:
        p99 = f"{p.p99 / MS:.3f}" if p.samples >= P99_SAMPLES else f"max {p.p99 / MS:.3f}"
        times = (f"{p.mean / MS:.3f}", f"{p.p95 / MS:.3f}", p99)
        table.add_row(f"{p.model} {p.shape}".rstrip(), str(p.size), str(p.rows), *times, str(p.samples))
    out.print(table, f"front-end {machine.front_end_us:.0f} us per request, contention {machine.contention:.2f}")


def _point_json(p: Point) -> dict[str, Any]:
    """`p99_is_max`: too few runs for a p99, the largest stands in its place."""
    times = {"mean_ms": to_ms(p.mean), "p95_ms": to_ms(p.p95), "p99_ms": to_ms(p.p99)}
    key = {"model": p.model, "shape": p.shape, "size": p.size, "batch": p.rows}
    return {**key, **times, "samples": p.samples, "p99_is_max": p.samples < P99_SAMPLES}


@app.command()
def bench(
    url: Annotated[str, typer.Argument(help="HOST:PORT of a v2 server, ours or a peer's")],
    load: Annotated[list[str], typer.Option("--load", help="MODEL:RATE[:SLO_MS], once for each model")],
    duration: Seconds = 10.0,
    seed: Seed = 1,
    workload: Workload = "poisson",
    rows: Annotated[int, typer.Option("--rows", min=1, help="rows of each request")] = 1,
    connections: Annotated[int, typer.Option("--connections", min=1, help="HTTP connections")] = 256,
    check: Annotated[bool, typer.Option("--check", help="exit 1 when a model attains less than 99 %")] = False,
    as_json: AsJson = False,
) -> None:
    """Open-loop load with random inputs; latency counts from the scheduled arrival.

    Example: gpulet bench 127.0.0.1:8000 --load digits-small:400:25 --load digits-large:20:150
    """
    loads = [parse_load(text) for text in load]
    models = tuple(item.model for item in loads)
    demand = {item.model.name: item.rate for item in loads}
    arrivals = _arrivals(Problem({m.name: m for m in models}, demand, (), Profile(())), workload, duration, seed)
    outcome = uvloop.run(bench_server(url, loads, arrivals, rows, connections))
    report = outcome.report(arrivals.duration)
    if as_json:
        _print_json(report)
    else:
        out.print(run_table(report, f"{duration:g} s of {workload} at {url}, seed {seed}"))
        out.print(f"client CPU {outcome.client_cpu_us:.0f} us per request")
        for error, count in outcome.errors.items():
            out.print(f"{count} x {error}", markup=False)
    _check(report, wanted=check)


@app.command("replay")
def replay_command(
    journal: Annotated[Path, typer.Argument(help="what [server] journal wrote")], as_json: AsJson = False
) -> None:
    """Feed a live journal to a fresh core and say where its commands differ.

    Example: gpulet replay gpulet.journal
    """
    try:
        lines = journal.read_bytes().splitlines()
    except OSError as error:
        msg = f"journal {journal} cannot be read: {error}"
        raise BadInput(msg) from None
    header = read_header(lines[0] if lines else b"")
    scheduler = make_scheduler(find_system(header.system), header.problem(), header.plan, header.limits)
    differences = list(replay(scheduler, lines[1:]))
    if as_json:
        _print_json({"steps": len(lines) - 1, "differences": [asdict(d) for d in differences]})
    else:
        for d in differences[:10]:
            out.print(f"line {d.line}: journal {d.journal}, replayed {d.replayed}", markup=False)
        out.print(f"{len(lines) - 1} steps, {len(differences)} differ")
    if differences:
        raise typer.Exit(1)


@app.command("systems")
def list_systems() -> None:
    """The systems that `--system` takes."""
    for name, found in SYSTEMS.items():
        out.print(f"{name}: {found.about}")


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Every key of a fleet file with its default and meaning.

    Example: gpulet config show
    """
    rows = list(describe())
    if as_json:
        _print_json([{"section": s, "key": k, "default": d, "meaning": m} for s, k, d, m in rows])
        return
    table = Table("section", "key", "default", "meaning")
    for section, key, default, meaning in rows:
        shown = '""' if default == "" else str(default)
        table.add_row(section, key, shown, meaning)
    out.print(table)


@app.command()
def version() -> None:
    """The version."""
    out.print(__version__)


async def _serve(site: Site, problem: Problem, chosen: Plan, name: str, refused: dict[str, str]) -> None:
    server = make_server(site, problem, chosen, name, refused)
    host = site.config.server.host
    gc.collect()
    gc.freeze()  # what is here now stays; the collector need not look at it again

    def announce(ready: LiveServer) -> None:
        tell(
            "ready",
            url=f"http://{host}:{ready.http.http_port}",
            metrics=f"http://{host}:{ready.http.metrics_port}/metrics",
        )

    await serve_until_stopped(server, announce)


def _with_options(site: Site, http_port: int | None, metrics_port: int | None, journal: str) -> Site:
    """The fleet file's server section, overridden by what was typed."""
    path = str(Path(journal).resolve()) if journal else None
    typed = {"http_port": http_port, "metrics_port": metrics_port, "journal": path}
    given = {key: value for key, value in typed.items() if value is not None}
    section = site.config.server.model_copy(update=given)
    return replace(site, config=site.config.model_copy(update={"server": section}))


def _measured(site: Site, budget_s: float) -> dict[str, str]:
    """Measure what is missing, with a progress bar; the models that were refused."""
    budget = round(budget_s * SECOND)
    todo = missing(site, budget)
    if not todo.total and not todo.machine:
        return {}
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("profiling", total=todo.total)

        def step(model: str, point: Point) -> None:
            bar.update(task, advance=1, description=f"profiling {model}, {point.size} cores, batch {point.rows}")

        return asyncio.run(measure(site, budget, step))


def _check(report: dict[str, Any], *, wanted: bool) -> None:
    if wanted and any(row["attainment"] < _ATTAINED for row in report["models"].values()):
        raise typer.Exit(1)


def _planned(site: Site, problem: Problem) -> tuple[Plan | Infeasible, int]:
    before = time.perf_counter_ns()
    outcome = site.system.planner(problem)
    return outcome, time.perf_counter_ns() - before


def _chosen_plan(site: Site, problem: Problem, plan_file: Path | None) -> Plan:
    """The plan of a file, or a fresh one; a refusal ends the command with exit code 1."""
    if plan_file:
        try:
            text = plan_file.read_bytes()
        except OSError as error:
            msg = f"plan {plan_file} cannot be read: {error}"
            raise BadInput(msg) from None
        return read_plan(text, problem, str(plan_file))
    outcome, _ = _planned(site, problem)
    return outcome if isinstance(outcome, Plan) else _refuse(outcome)


def _refuse(refusal: Infeasible, *, quiet: bool = False) -> Plan:
    if not quiet:
        Console(stderr=True, soft_wrap=True).print(f"no plan: {refusal}", markup=False, highlight=False)
    raise typer.Exit(1)


def _draw(shown: Plan, picture: Path) -> None:
    if picture.suffix not in {".png", ".svg"}:
        msg = f"--picture {picture}: the file must end in .png or .svg"
        raise BadInput(msg)
    draw_plan(shown, picture)


def _arrivals(problem: Problem, workload: str, duration: float, seed: int) -> Arrivals:
    models = tuple(problem.models.values())
    nanoseconds = round(duration * SECOND)
    if workload.startswith("trace:"):
        path = Path(workload.removeprefix("trace:"))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"trace {path} cannot be read: {error}"
            raise ConfigError(msg) from None
        return parse_trace(text, models, nanoseconds, seed, str(path))
    return drawn(models, problem.demand, nanoseconds, seed, parse_process(workload))


def _simulated(site: Site, problem: Problem, chosen: Plan, arrivals: Arrivals) -> dict[str, Any]:
    scheduler = make_scheduler(site.system, problem, chosen, site.limits)
    before = time.perf_counter()
    metrics = run_simulation(scheduler, problem.profile, chosen, arrivals)
    took = time.perf_counter() - before
    return {**metrics.report(arrivals.duration), "simulated_per_second": len(arrivals) / took if took else 0.0}


def _fewest_devices(site: Site, problem: Problem, *, as_json: bool) -> None:
    """Algorithm 2 of gpu-lets (ATC'22), off line: one device more until the planner accepts."""
    refusal: Plan | Infeasible = Infeasible("", "no devices", "add one", {}, Plan(()))
    for count in range(1, len(problem.devices) + 1):
        refusal, _ = _planned(site, replace(problem, devices=problem.devices[:count]))
        if isinstance(refusal, Plan):
            if as_json:
                _print_json({"devices": count, "of": len(problem.devices)})
            else:
                out.print(f"{count} of {len(problem.devices)} devices hold the rates")
            return
    assert isinstance(refusal, Infeasible)
    _refuse(refusal)


def _simulated_factor(site: Site, problem: Problem, duration: float, seed: int) -> tuple[float, str]:
    """Bisection on the factor: planned for the scaled rates, simulated, at most 1 % violations for every model."""
    low, high, limiting = 0.0, largest_factor(problem, site.system)[0], ""
    for _ in range(12):
        middle = (low + high) / 2
        worst, attainment = _worst(site, problem, middle, duration, seed)
        if attainment < _ATTAINED:
            high, limiting = middle, worst
        else:
            low = middle
    return low, limiting


def _worst(site: Site, problem: Problem, factor: float, duration: float, seed: int) -> tuple[str, float]:
    demand = {name: rate * factor for name, rate in problem.demand.items()}
    scaled = Problem(problem.models, demand, problem.devices, problem.profile)
    outcome, _ = _planned(site, scaled)
    if isinstance(outcome, Infeasible):
        return outcome.model, 0.0
    models: dict[str, Any] = _simulated(site, scaled, outcome, _arrivals(scaled, "poisson", duration, seed))["models"]
    worst = min(models, key=lambda name: models[name]["attainment"])
    return worst, models[worst]["attainment"]


def _system_name(site: Site, override: str) -> str:
    return override or site.config.fleet.system


def _print_json(value: dict[str, Any] | Sequence[Any]) -> None:
    out.print(json.dumps(value), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
