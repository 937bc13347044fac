"""What is: `serve`, `profile`, `bench`, `replay`."""

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from gpulet import __version__
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
    print_json,
    tell_analytic,
)
from gpulet.configcontrol import ControlSection
from gpulet.core.journal import read_header, replay, span
from gpulet.core.ports import Problem
from gpulet.errors import BadInput, ModelError
from gpulet.exposure import refuse_exposed
from gpulet.fleetfile import Site, open_site, servable
from gpulet.httpwire import parse_address, random_requests
from gpulet.loadgen import Outcome, Stream, drive
from gpulet.loadgen.spec import LoadSpec, parse_load
from gpulet.logs import configure as configure_logs
from gpulet.logs import tell
from gpulet.measuring import measure, missing
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.problems import load_profile, make_problem, stored_points
from gpulet.profile import Point, Profile
from gpulet.profiler import P99_SAMPLES
from gpulet.reports.runs import fairness_text, run_table, usage_text
from gpulet.rows import parse_rows
from gpulet.serving import LiveServer, make_server, serve_until_stopped
from gpulet.steering import make_core
from gpulet.store import Machine
from gpulet.systems import find_system, make_metrics
from gpulet.units import MS, SECOND, to_ms
from gpulet.workload import Arrivals

_BUDGET_S = 1.0


def serve(
    target: Target,
    system: SystemName = "",
    plan_file: PlanFile = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535, help="instead of the fleet file's")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535, help="likewise")] = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65535, help="likewise")] = None,
    allow_client_shm: Annotated[
        bool, typer.Option("--allow-client-shm", help="clients may register shared memory")
    ] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="bind beyond loopback without protection")] = False,
    journal: Annotated[str, typer.Option("--journal", help="write every step to this file")] = "",
) -> None:
    """Profile what is not profiled yet, plan, carve, serve until SIGTERM.

    Example: gpulet serve examples/digits
    """
    ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    flags = {"allow_client_shm": allow_client_shm or None, "insecure": insecure or None}
    path = str(Path(journal).resolve()) if journal else None
    site = servable(_with_options(open_site(target, system=system), {**ports, **flags, "journal": path}))
    refuse_exposed(site.config.server)
    configure_logs(site.config.server.log_format)
    tell("starting", version=__version__, target=str(target), system=site.name, models=len(site.sections))
    _tell_reports(site)
    measured = _measured(site, _BUDGET_S) if site.executor != "simulated" and not site.profile_path else {}
    refused = {**site.refused, **measured}
    for model, error in refused.items():
        tell("model_refused", model=model, error=error)
    site = site.without(refused)
    problem = make_problem(site, load_profile(site))
    if problem.profile.analytic:
        tell("analytic", profile=problem.profile.analytic)
    chosen = chosen_plan(site, problem, plan_file)
    tell("planned", system=site.name, gpulets=len(chosen.gpulets), devices=chosen.devices_used)
    uvloop.run(_serve(site, problem, chosen, refused))


def _tell_reports(site: Site) -> None:
    """What of models' own configurations has no effect; docs/triton.md says why."""
    for model, report in site.reports.items():
        if report.unknown:
            tell("config_unknown", model=model, fields=report.unknown)
        if report.not_used:
            tell("config_not_used", model=model, fields=report.not_used)
    for model, artifact in site.artifacts.items():
        if artifact.idle:
            tell("versions_not_served", model=model, serves=artifact.version, others=artifact.idle)


def profile(
    target: Target,
    budget: Annotated[float, typer.Option("--budget", min=0.01, help="seconds of runs for each point")] = _BUDGET_S,
    again: Annotated[bool, typer.Option("--again", help="forget what was measured before")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency by (model, size, batch) on real workers; goes on where an earlier run stopped.

    Example: gpulet profile examples/digits
    """
    site = open_site(target)
    if again:
        for artifact in site.artifacts.values():
            site.store.path(artifact.digest).unlink(missing_ok=True)
        site.store.write_machine(Machine())
    refused = {**site.refused, **_measured(site, budget)}
    points = sorted(stored_points(site), key=lambda p: (p.model, p.shape, p.size, p.rows))
    if as_json:
        machine = asdict(site.store.read_machine())
        print_json({"points": [_point_json(p) for p in points], "machine": machine, "refused": refused})
    else:
        _print_profile(points, site.store.read_machine())
    if refused:
        model, error = next(iter(refused.items()))
        msg = f"model {model}: {error}"
        raise ModelError(msg)


def _print_profile(points: Sequence[Point], machine: Machine) -> None:
    table = Table("model", "size", "batch", "mean", "p95", "p99", "runs", title="latency in ms")
    for p in points:
        p99 = f"{p.p99 / MS:.3f}" if p.samples >= P99_SAMPLES else f"max {p.p99 / MS:.3f}"
        times = (f"{p.mean / MS:.3f}", f"{p.p95 / MS:.3f}", p99)
        table.add_row(f"{p.model} {p.shape}".rstrip(), str(p.size), str(p.rows), *times, str(p.samples))
    out.print(table)
    if machine != Machine():
        out.print(f"front-end {machine.front_end_us:.0f} us per request, contention {machine.contention:.2f}")


def _point_json(p: Point) -> dict[str, Any]:
    """`p99_is_max`: too few runs for a p99, the largest stands in its place."""
    times = {"mean_ms": to_ms(p.mean), "p95_ms": to_ms(p.p95), "p99_ms": to_ms(p.p99)}
    key = {"model": p.model, "shape": p.shape, "size": p.size, "batch": p.rows}
    return {**key, **times, "samples": p.samples, "p99_is_max": p.samples < P99_SAMPLES}


def bench(
    url: Annotated[str, typer.Argument(help="HOST:PORT of a v2 server, ours or a peer's")],
    load: Annotated[list[str], typer.Option("--load", help="MODEL:RATE[:SLO_MS], once for each model")],
    duration: Seconds = 10.0,
    seed: Seed = 1,
    workload: Workload = "poisson",
    rows: Annotated[
        str,
        typer.Option(
            "--rows",
            help="rows of each request, unless a trace has them: N, lognormal:MU,SIGMA[,LARGEST], weights:W1,...",
        ),
    ] = "1",
    connections: Annotated[int, typer.Option("--connections", min=1, help="HTTP connections")] = 256,
    check: Annotated[bool, typer.Option("--check", help="exit 1 when a model attains less than 99 %")] = False,
    as_json: AsJson = False,
) -> None:
    """Open-loop load with random inputs; latency counts from the scheduled arrival.

    Example: gpulet bench 127.0.0.1:8000 --load digits-small:400:25 --load digits-large:20:150
    """
    loads = [parse_load(text) for text in load]
    models = tuple(item.model for item in loads)
    rates = {item.model.name: item.rate for item in loads}
    brought = dict.fromkeys(rates, parse_rows(rows))
    asked = Problem({m.name: m for m in models}, rates, (), Profile(()), sent=rates, rows=brought)
    arrivals = arrivals_of(asked, workload, duration, seed)
    outcome = uvloop.run(_drive(parse_address(url), loads, arrivals, connections))
    report = outcome.report(arrivals.duration)
    if as_json:
        print_json(report)
    else:
        out.print(run_table(report, f"{duration:g} s of {workload} at {url}, seed {seed}"))
        out.print(fairness_text(report))
        out.print(f"client CPU {outcome.client_cpu_us:.0f} us per request")
        for error, count in outcome.errors.items():
            out.print(f"{count} x {error}", markup=False)
    check_attainment(report, wanted=check)


def replay_journal(
    journal: Annotated[Path, typer.Argument(help="what [server] journal wrote")], as_json: AsJson = False
) -> None:
    """Feed a live journal to a fresh core: where its commands differ, and what the run was worth by them.

    Example: gpulet replay gpulet.journal
    """
    try:
        lines = journal.read_bytes().splitlines(keepends=True)
    except OSError as error:
        msg = f"journal {journal} cannot be read: {error}"
        raise BadInput(msg) from None
    header = read_header(lines[0] if lines else b"")
    problem = header.problem()
    tell_analytic(problem.profile)
    control = ControlSection.model_validate(header.control)
    core = make_core(control, find_system(header.system), problem, header.plan, header.limits, header.began)
    begins, ends = span(lines[1:])
    metrics = make_metrics(problem, header.plan, begins)
    differences = list(replay(core, lines[1:], metrics.record))
    report = metrics.report(ends - begins)
    if as_json:
        told = {"steps": len(lines) - 1, "differences": [asdict(d) for d in differences], **report}
        print_json(labelled(told, problem.profile))
    else:
        out.print(run_table(report, f"{(ends - begins) / SECOND:.1f} s of {journal}"))
        out.print(usage_text(report))
        for d in differences[:10]:
            out.print(f"line {d.line}: journal {d.journal}, replayed {d.replayed}", markup=False)
        out.print(f"{len(lines) - 1} steps, {len(differences)} differ")
    if differences:
        raise typer.Exit(1)


async def _drive(address: tuple[str, int], loads: Sequence[LoadSpec], arrivals: Arrivals, connections: int) -> Outcome:
    """Ask the server what its models take, then drive it with random inputs of as many rows as the arrivals bring."""
    streams = [await _stream(address, load.model, arrivals.rows_of(load.model.name)) for load in loads]
    return await drive(*address, streams, arrivals, connections=connections)


async def _stream(address: tuple[str, int], model: Model, rows: Iterable[int]) -> Stream:
    requests = await random_requests(*address, model.name, rows)
    return Stream(model.name, model.slo, {count: [request] for count, request in requests.items()})


async def _serve(site: Site, problem: Problem, chosen: Plan, refused: dict[str, str]) -> None:
    server = make_server(site, problem, chosen, refused)
    host = site.config.server.host
    gc.collect()
    gc.freeze()  # what is here now stays; the collector need not look at it again

    def announce(ready: LiveServer) -> None:
        scheme = "https" if ready.ends.has_tls else "http"
        rpc = {"grpc": f"{host}:{ready.ends.grpc_port}"} if ready.ends.grpc_port else {}
        url, metrics = (
            f"{scheme}://{host}:{ready.ends.http_port}",
            f"{scheme}://{host}:{ready.ends.metrics_port}/metrics",
        )
        tell("ready", url=url, metrics=metrics, **rpc)

    await serve_until_stopped(server, announce)
    tell("stopped", served={name: counts.served for name, counts in server.metrics.models.items()})


def _with_options(site: Site, typed: Mapping[str, object]) -> Site:
    """The fleet file's server section, overridden by what was typed."""
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
            bar.update(task, advance=1, description=f"profiling {model}, size {point.size}, batch {point.rows}")

        return uvloop.run(measure(site, budget, step))
