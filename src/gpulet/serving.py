"""A live server put together: driver, executor, catalog, sockets; and its life from carving to drain."""

import asyncio
import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gpulet.api.catalog import Catalog, Served
from gpulet.api.exchange import Front, HttpLimits
from gpulet.api.exposition import make_registry
from gpulet.api.gathered import gathered_signature
from gpulet.api.server import HttpServer, bind_ports
from gpulet.application import Application, models_of
from gpulet.config import ServerSection
from gpulet.core.journal import Header, encode_header
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Problem
from gpulet.drivers.live import Live
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import BadInput, GpuletError
from gpulet.executors.base import LiveExecutor
from gpulet.executors.loading import EmulatedLoader, WorkerLoader
from gpulet.executors.simulated import EMULATED, Simulated
from gpulet.executors.stations import Patience
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.fleetfile import Site
from gpulet.grounds import ground_of, program_of
from gpulet.logs import RefusalLog, tell
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.repository import Artifact, Finder
from gpulet.residency import Residency, Surroundings
from gpulet.roster import Found, Rules
from gpulet.systems import make_scheduler
from gpulet.units import MIB, PLAIN, SECOND
from gpulet.useful import useful_sizes

_FLUSH_S = 1.0
_JOURNAL_BUFFER = 1 * MIB


class JournalFile:
    """Appends lines to a file; the operating system gets them once a second, and at the end."""

    def __init__(self, path: Path, header: bytes) -> None:
        try:
            if path.is_file():  # an earlier server's, perhaps of the crash that made this one start
                path.replace(path.with_name(path.name + ".previous"))
            self._file: BinaryIO = path.open("wb", buffering=_JOURNAL_BUFFER)
        except OSError as error:
            msg = f"[server] journal: {path} cannot be written: {error.strerror}"
            raise BadInput(msg) from None
        self._is_open = True
        self._file.write(header)
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(_FLUSH_S, self._flush)

    def write(self, line: bytes) -> None:
        """Append one line; a full disk ends the journal, not the server."""
        if self._is_open:
            self._guard(lambda: self._file.write(line))

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self._is_open = False
            tell("journal_stopped", error=str(error))

    def _flush(self) -> None:
        if self._is_open:
            self._guard(self._file.flush)
        self._handle = self._loop.call_later(_FLUSH_S, self._flush)

    def close(self) -> None:
        """Write out what is left."""
        self._handle.cancel()
        self._guard(self._file.close)


@dataclass(slots=True)
class LiveServer:
    """Everything of one running server."""

    live: Live
    executor: LiveExecutor
    catalog: Catalog
    http: HttpServer
    metrics: Metrics
    timer: LiveTimer
    journal: JournalFile | None
    drain_s: float
    residency: Residency

    async def open(self) -> None:
        """Accept connections and begin to carve; ready once that is done."""
        self.executor.carve()
        self.residency.begin()
        await self.http.open()
        self.catalog.is_open = True

    async def ready(self) -> None:
        """Wait until the plan is carved, loaded, verified and warm."""
        while not self.catalog.is_carved:  # noqa: ASYNC110 (once in a life)
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Be ready no more, take no more requests, answer those that are there, stop the workers."""
        self.catalog.is_open = False
        await self.residency.close()
        if not await self.live.drain(self.drain_s):
            tell("drain_incomplete", after_s=self.drain_s)
        await self.http.close()
        await self.executor.close()
        self.timer.close()
        if self.journal:
            self.journal.close()


def make_server(
    site: Site,
    problem: Problem,
    plan: Plan,
    refused: Mapping[str, str] | None = None,
    start: Collection[str] | None = None,
) -> LiveServer:
    """Put a server together and bind its ports; nothing runs yet. Call it on the loop.

    `refused` are models that could not be loaded, and why: requests for them are told so. `start`: the models to load at
    first, the others are loaded by name; left out: all. Raises `Unusable` when a port is taken, `BadInput` when the journal cannot be written.
    """
    plan = plan.unfolded()
    server = site.config.server
    sockets = bind_ports(server.host, server.http_port, server.metrics_port)
    scheduler = make_scheduler(site.system, problem, plan, site.limits)
    versions = {name: a.version for name, a in site.artifacts.items()}
    shapes = {section.name: tuple(section.shapes) for section in site.sections}
    served = {name: Served(model, versions.get(name, "1"), shapes[name]) for name, model in problem.models.items()}
    served |= {application.name: _served_application(application, problem) for application in problem.applications}
    timer = LiveTimer(asyncio.get_running_loop())
    metrics = Metrics(
        list(served),
        plan,
        knees=useful_sizes(problem),
        applications=[application.name for application in problem.applications],
        begins=timer.now(),
    )
    applications = {application.name: models_of(application) for application in problem.applications}
    catalog = Catalog(served, {}, {}, scheduler.fleet, applications=applications)
    journal = _journal(site, server, Header.of(site.dispatcher_name, problem, plan, site.limits))
    refusals = RefusalLog(lambda request: live.client(request).name)
    live = Live(scheduler, timer, metrics, journal.write if journal else None, [refusals.observe])
    front = Front(live, catalog, _http_limits(site))
    http = HttpServer(front, make_registry(metrics, served, scheduler.fleet), sockets)
    for here, planned in zip(site.devices, plan.devices, strict=True):
        if here.mechanism is not planned.mechanism:
            tell("not_cut_as_asked", device=here.index, asked=here.mechanism, planned=planned.mechanism)
    residency = _residency(site, problem, plan, front, start)
    catalog.asleep, catalog.wake = live.door.asleep, residency.wake
    executor = _executor(site, problem, plan, live, catalog, residency)
    if isinstance(executor, Workers):
        residency.attach(WorkerLoader(executor, round(server.drain_s * SECOND)))
    else:
        residency.attach(EmulatedLoader(catalog.signatures))
    catalog.refused.update(refused or {})
    live.attach(executor)
    return LiveServer(live, executor, catalog, http, metrics, timer, journal, server.drain_s, residency)


def _residency(
    site: Site, problem: Problem, plan: Plan, front: Front, start: Collection[str] | None = None
) -> Residency:
    """The models of the plan that are loaded, by the fleet file's rules."""
    live, limits, server = front.live, site.config.limits, site.config.server
    live.door.patience, live.door.most = round(server.load_wait_s * SECOND), limits.max_queue
    found, find = _files(site, problem, plan)

    def changed(name: str, version: str) -> None:
        front.forget(name)
        front.catalog.models[name].version = version

    around = Surroundings(
        live.timer,
        live.door,
        live.holds,
        lambda name: live.metrics.models[name].arrived,
        find,
        changed,
        tell,
        site.store.read_memory(),
        site.store.write_memory,
    )
    rules = Rules(
        round(limits.memory_mib * MIB),
        round(server.idle_unload_s * SECOND),
        round(server.drain_s * SECOND),
        frozenset(section.name for section in site.sections if section.pin),
        {name: len(plan.hosts(name)) or 1 for name in problem.models},
    )
    return Residency(found, rules, around, start)


def _files(site: Site, problem: Problem, plan: Plan) -> tuple[dict[str, Found], Callable[[str], Found]]:
    """What there is to load, each to be warmed for the largest batch that it is planned with; and how to look again."""
    if site.executor == "simulated":
        emulated = {
            name: Found("1", WorkerModel(name, "", model.max_batch), 0) for name, model in problem.models.items()
        }
        return emulated, emulated.__getitem__
    shapes = {section.name: tuple(section.shapes) or (PLAIN,) for section in site.sections}
    finder = Finder(site.folder / site.config.server.repository, site.formats, site.artifacts.values())

    def found(item: Artifact) -> Found:
        turns = (turn for gpulet in plan.hosts(item.name) for turn in gpulet.turns if turn.model == item.name)
        largest = max((turn.batch for turn in turns), default=problem.models[item.name].max_batch)
        file = WorkerModel(item.name, str(item.path), largest, shapes[item.name], item.digest)
        return Found(item.version, file, item.path.stat().st_size)

    return {name: found(item) for name, item in site.artifacts.items()}, lambda name: found(finder.find(name))


def _served_application(application: Application, problem: Problem) -> Served:
    """As a model: it takes as many rows as the least of its models."""
    most_rows = min(problem.models[name].max_batch for name in models_of(application))
    return Served(Model(application.name, application.slo, most_rows), "1")


def _executor(
    site: Site, problem: Problem, plan: Plan, live: Live, catalog: Catalog, residency: Residency
) -> LiveExecutor:
    if site.executor == "simulated":
        whole = {application.name: gathered_signature(application, EMULATED) for application in problem.applications}
        catalog.signatures = {**dict.fromkeys(problem.models, EMULATED), **whole}
        return Simulated(
            problem.profile, plan, live.timer, live.feed, keeps_rows=True, interference=problem.interference
        )
    files = residency.wanted
    patience = None if site.executor == "cpu" else Patience()
    ground, program = ground_of(site), program_of(site)
    workers = Workers(plan, files, ground, program, live.timer, live.feed, live.client, tell, live.abandon, patience)
    catalog.signatures, catalog.refused, catalog.serves = workers.signatures, workers.refused, workers.serves
    return workers


def _journal(site: Site, server: ServerSection, header: Header) -> JournalFile | None:
    return JournalFile(site.folder / server.journal, encode_header(header)) if server.journal else None


def _http_limits(site: Site) -> HttpLimits:
    limits = site.config.limits
    return HttpLimits(
        round(limits.max_body_mib * MIB),
        limits.max_header_kib * 1024,
        limits.max_connections,
        site.config.server.overload_status,
    )


async def serve_until_stopped(server: LiveServer, announce: Callable[[LiveServer], None]) -> None:
    """Open, say when ready, and stay until SIGTERM or SIGINT; then drain. Raises `GpuletError` when the core fails."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        await server.open()
        waiting = asyncio.ensure_future(stopped.wait())
        carving = asyncio.ensure_future(server.ready())
        await asyncio.wait((waiting, carving, server.live.failed), return_when=asyncio.FIRST_COMPLETED)
        if carving.done():
            announce(server)
        await asyncio.wait((waiting, server.live.failed), return_when=asyncio.FIRST_COMPLETED)
        carving.cancel()
        waiting.cancel()
    finally:
        await server.close()
    if server.live.failed.done():
        error = server.live.failed.exception()
        if isinstance(error, GpuletError):
            raise error
        tell("core_failed", error=repr(error))
        msg = f"the core stopped: {error!r}; the journal, if there is one, shows how"
        raise GpuletError(msg)
