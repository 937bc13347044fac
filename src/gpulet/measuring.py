"""Profiles for a site: what is missing is measured and stored, point by point, so that it can be resumed."""

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time_ns

from gpulet.config import FleetFile
from gpulet.errors import BadInput, ModelError, Unusable
from gpulet.executors.wire import WorkerModel
from gpulet.fleetfile import Site, site_of, usable_cores
from gpulet.gpuseats import GpuSeats, gpu_sizes
from gpulet.grounds import ground_of, program_of
from gpulet.plan import Plan
from gpulet.problems import DEFAULT_MAX_BATCH, make_problem, stored_points
from gpulet.profile import Point, Profile
from gpulet.profiler import CoreSeats, Grid, default_batches, default_sizes, measure_contention, measure_model
from gpulet.profiletable import format_profile
from gpulet.repository import Artifact
from gpulet.serving import LiveServer, make_server
from gpulet.store import Machine
from gpulet.systems import find_system
from gpulet.units import MS, PLAIN, SECOND, US, Duration, from_ms

_LIMIT_WITHOUT_SLO: Duration = SECOND
_PROBE_RATE = 400
_PROBE_S = 2.0
Progress = Callable[[str, Point], None]
"""Told of each new point: the model and what was measured."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a site's profiles lack: how many points, and whether the machine's own figures."""

    points: Mapping[str, int]
    machine: bool

    @property
    def total(self) -> int:
        """Points to measure, at most: rows that end early need fewer."""
        return sum(self.points.values())


def missing(site: Site, budget: Duration) -> Missing:
    """How much `measure` would have to do; raises `BadInput` where there is nothing real to measure."""
    if site.executor == "simulated":
        msg = "nothing to measure: the fleet's devices are simulated; name their profile under [[devices]]"
        raise BadInput(msg)
    if not site.artifacts:
        msg = "nothing to measure: name a model repository under [server]"
        raise BadInput(msg)
    counts = {name: _lacks(site, name, budget) for name in site.artifacts}
    return Missing({n: c for n, c in counts.items() if c}, _lacks_machine(site))


def _lacks_machine(site: Site) -> bool:
    """What the front-end costs is of its device only where it is on the same cores."""
    return site.executor == "cpu" and site.store.read_machine() == Machine()


def _lacks(site: Site, name: str, budget: Duration) -> int:
    return len(_grid(site, name, budget).missing(_known(site, name)))


async def measure(site: Site, budget: Duration, progress: Progress) -> dict[str, str]:
    """Measure and store what is missing; the models that cannot be loaded, and why."""
    refused: dict[str, str] = {}
    for name, artifact in site.artifacts.items():
        if _lacks(site, name, budget):
            try:
                await _measure_one(site, name, artifact, budget, progress)
            except ModelError as error:
                refused[name] = str(error).removeprefix(f"model {name}: ")
    usable = [name for name in site.artifacts if name not in refused]
    if usable and _lacks_machine(site):
        site.store.write_machine(await _measure_machine(site, usable[0]))
    return refused


async def _measure_one(site: Site, name: str, artifact: Artifact, budget: Duration, progress: Progress) -> None:
    points, grid = _known(site, name), _grid(site, name, budget)

    def keep(point: Point) -> None:
        points.append(point)
        site.store.write(artifact.digest, format_profile(points))
        progress(name, point)

    if site.executor == "cpu":
        model = WorkerModel(name, str(artifact.path), 1, grid.shapes, batches=artifact.declaration.batches)
        await measure_model(model, CoreSeats(usable_cores()), grid, tuple(points), keep)
        return
    model = WorkerModel(name, str(artifact.path), grid.batches[-1], grid.shapes, batches=artifact.declaration.batches)
    program = program_of(replace(site, artifacts={name: artifact}))  # which imports what this model needs
    seats = GpuSeats(site.devices[0], ground_of(site), program)
    await measure_model(model, seats, grid, tuple(points), keep)


def _known(site: Site, name: str) -> list[Point]:
    return [p for p in stored_points(site) if p.model == name]


def _grid(site: Site, name: str, budget: Duration) -> Grid:
    section = next(s for s in site.sections if s.name == name)
    limit = from_ms(section.slo_ms) if section.slo_ms else _LIMIT_WITHOUT_SLO
    largest = site.most_rows(section) or DEFAULT_MAX_BATCH
    shapes = tuple(section.shapes) or (PLAIN,)
    is_cpu = site.executor == "cpu"
    sizes = default_sizes(site.devices[0].kind.sms) if is_cpu else gpu_sizes(site.devices[0])
    return Grid(sizes, default_batches(largest), budget, limit, shapes, pads=not is_cpu)


async def _measure_machine(site: Site, name: str) -> Machine:
    model = WorkerModel(name, str(site.artifacts[name].path), 1, _grid(site, name, SECOND).shapes)
    contention = await measure_contention(model, usable_cores()[: site.devices[0].kind.sms])
    return Machine(await measure_front_end(), contention)


_PROBE_FLEET = {
    "fleet": {"system": "dedicated"},
    "devices": [{"kind": "cpu", "cores": 1, "executor": "simulated", "mechanism": "cpu", "profile": "-"}],
    "models": [{"name": "probe", "slo_ms": 100.0, "rate": float(_PROBE_RATE)}],
    "server": {"http_port": 0, "grpc_port": 0, "metrics_port": 0},
}


async def measure_front_end() -> float:
    """CPU microseconds that this process spends on one request: HTTP, core, metrics, with an emulated device behind.

    The load comes from a process of its own, over loopback, at a rate at which requests arrive one by one.
    """
    server = _probe_server()
    await server.open()
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "gpulet.cli", "bench", f"127.0.0.1:{server.ends.http_port}"),
        *("--load", f"probe:{_PROBE_RATE}", "--duration", str(_PROBE_S), "--json"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        while not server.metrics.models["probe"].served and client.returncode is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        before, served = process_time_ns(), server.metrics.models["probe"].served
        await client.wait()
        count = server.metrics.models["probe"].served - served
        used = process_time_ns() - before
    finally:
        await server.close()
    if count <= 0:
        msg = "the front-end's own cost could not be measured: its load did not arrive"
        raise Unusable(msg)
    return used / US / count


def _probe_server() -> LiveServer:
    site = site_of(FleetFile.model_validate(_PROBE_FLEET), Path())
    profile = Profile(tuple(Point("probe", 1, n, MS, MS, MS) for n in (1, 32)))
    problem = make_problem(site, profile)
    plan = find_system("dedicated").planner(problem)
    assert isinstance(plan, Plan), "one emulated device holds the probe"
    return make_server(site, problem, plan)
