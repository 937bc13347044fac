"""A live server put together: driver, executor, catalog, sockets; and its life from carving to drain."""

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from gpulet.administration import Administration
from gpulet.api.catalog import Catalog, Served
from gpulet.api.control import Control, ReadOnly
from gpulet.api.exposition import make_registry
from gpulet.api.gathered import gathered_signature
from gpulet.api.info import Document
from gpulet.api.statistics import model_statistics
from gpulet.application import Application, models_of
from gpulet.core.control import Controlled
from gpulet.core.fleet import Fleet
from gpulet.core.journal import Header, encode_header
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Problem
from gpulet.core.scheduler import Scheduler
from gpulet.deciding import Deciding
from gpulet.drivers.live import Live
from gpulet.drivers.timers import LiveTimer
from gpulet.errors import GpuletError
from gpulet.executors.base import Changer, LiveExecutor, Signature
from gpulet.executors.building import Building
from gpulet.executors.change import Gently
from gpulet.executors.loading import EmulatedLoader, Loader, WorkerLoader
from gpulet.executors.simulated import EMULATED, Simulated
from gpulet.executors.stations import Patience
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers
from gpulet.fleetfile import Site
from gpulet.frontend import FrontEnd, Ports, bind
from gpulet.grounds import ground_of, program_of
from gpulet.journalfile import JournalFile
from gpulet.loads import Files, Poller, make_residency, served
from gpulet.logs import RefusalLog, tell, tell_changes
from gpulet.model import Model
from gpulet.newcomers import Newcomers
from gpulet.plan import Plan
from gpulet.planning_process import PlanningProcess, Question
from gpulet.recent import Recent
from gpulet.repository.completing import as_json, complete
from gpulet.residency import Residency
from gpulet.steering import make_core, spares_of
from gpulet.systems import make_metrics
from gpulet.tracing import open_tracing
from gpulet.tracing.port import Tracing
from gpulet.units import SECOND, Duration, from_ms

_UNKNOWN: Duration = 3 * SECOND
"""Of a run on cores, where its dispatcher does not say: a large model on one of them is slow, and does not hang."""


@dataclass(slots=True)
class LiveServer:
    """Everything of one running server."""

    live: Live
    executor: LiveExecutor
    catalog: Catalog
    ends: FrontEnd
    journal: JournalFile | None
    drain_s: float
    residency: Residency
    planning: PlanningProcess | None = None
    poller: Poller | None = None
    tracing: Tracing | None = None

    @property
    def metrics(self) -> Metrics:
        """What it was worth so far."""
        return self.live.metrics

    async def open(self) -> None:
        """Accept connections and begin to carve; ready once that is done."""
        self.executor.carve()
        self.residency.begin()
        await self.ends.open()
        if self.poller:
            self.poller.begin()
        self.catalog.is_open = True

    async def ready(self) -> None:
        """Wait until the plan is carved, loaded, verified and warm."""
        while not self.catalog.is_carved:  # noqa: ASYNC110 (once in a life)
            await asyncio.sleep(0.01)
        if self.planning:
            self.planning.warm()

    async def close(self) -> None:
        """Be ready no more, take no more requests, answer those that are there, stop the workers."""
        self.catalog.is_open = False
        self.ends.leave()
        if self.poller:
            await self.poller.close()
        await self.residency.close()
        if self.planning:
            await self.planning.close()
        if not await self.live.drain(self.drain_s):
            tell("drain_incomplete", after_s=self.drain_s)
        await self.ends.close()
        await self.executor.close()
        self.live.timer.close()
        if self.journal:
            self.journal.close()
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)


def make_server(site: Site, problem: Problem, plan: Plan, refused: Mapping[str, str] | None = None) -> LiveServer:
    """Put a server together and bind its ports; nothing runs yet. Call it on the loop.

    `refused` are models that could not be loaded, and why: requests for them are told so. Raises `Unusable` when a port is taken, `BadInput` when the journal cannot be written.
    """
    plan, server = spares_of(site).added(plan, problem.models).unfolded(), site.config.server
    ports = bind(site)
    timer = LiveTimer(asyncio.get_running_loop())
    steering, began = site.config.control, timer.now()
    core = make_core(steering, site.system, problem, plan, site.limits, began)
    header = Header.of(site.dispatcher_name, problem, plan, site.limits, steering.model_dump(), began)
    journal = _journal(site, header)
    metrics = make_metrics(problem, plan, timer.now())
    live = Live(core, timer, metrics, journal.write if journal else None)
    planning = _planning(site, problem, core, live)
    catalog = _catalog(site, problem, core.fleet)
    tracing = _observe(site, live, catalog)
    _tell_other_mechanisms(site, plan)
    files = Files(site, problem, plan)
    residency = make_residency(site, plan, files, live, catalog)
    if site.executor == "simulated":
        executor, changer, loader = _emulated(site, problem, plan, live, catalog)
    else:
        executor, changer, loader = _manned(site, plan, live, catalog, files, residency.wanted)
    live.attach(executor, changer)
    residency.attach(loader)
    catalog.refused.update(refused or {})
    control = residency if server.model_control == "explicit" else ReadOnly(residency)
    newcomers = Newcomers(site, files, residency, catalog)
    admin = _administration(site, live, core, catalog, residency, newcomers)
    ends = _ends(ports, live, catalog, control, executor, files, admin)
    poller = Poller(files, residency, server.poll_s, tell) if server.model_control == "poll" else None
    return LiveServer(live, executor, catalog, ends, journal, server.drain_s, residency, planning, poller, tracing)


def _administration(
    site: Site,
    live: Live,
    core: Scheduler | Controlled,
    catalog: Catalog,
    residency: Residency,
    newcomers: Newcomers,
) -> Administration | None:
    """Admin's calls need live control: without it a plan stays as it is."""
    if isinstance(core, Scheduler):
        return None
    recent = Recent([source.name for source in core.problem.sources])
    deciding = Deciding(live)
    live.show(recent.observe)
    live.show(deciding.observe)
    return Administration(site, live, core, catalog, residency, newcomers, recent, deciding)


def _planning(site: Site, problem: Problem, core: Scheduler | Controlled, live: Live) -> PlanningProcess | None:
    """Whoever makes plans while serving, where the core asks for any."""
    if isinstance(core, Scheduler):
        return None
    fleet = site.config.fleet
    question = Question(site.name, fleet.planner, fleet.dispatcher, site.limits, spares_of(site), problem)
    planning = PlanningProcess(question, lambda: core.problem, live.feed)
    live.ask = planning.ask
    live.show(tell_changes)
    return planning


def _journal(site: Site, header: Header) -> JournalFile | None:
    path = site.config.server.journal
    return JournalFile(site.folder / path, encode_header(header)) if path else None


def _catalog(site: Site, problem: Problem, fleet: Fleet) -> Catalog:
    """What clients see: models, and applications as if they were some."""
    sections = {section.name: section for section in site.sections}
    models = {name: served(site, sections[name], model) for name, model in problem.models.items()}
    applications = {application.name: _served_application(application, problem) for application in problem.applications}
    parts = {application.name: models_of(application) for application in problem.applications}
    return Catalog({**models, **applications}, {}, {}, fleet, applications=parts)


def _served_application(application: Application, problem: Problem) -> Served:
    """As a model: it takes as many rows as the least of its models."""
    most_rows = min(problem.models[name].max_batch for name in models_of(application))
    return Served(Model(application.name, application.slo, most_rows), "1")


def _observe(site: Site, live: Live, catalog: Catalog) -> Tracing | None:
    """Show steps to the log and to what traces them, if anything does."""
    live.show(RefusalLog(lambda request: live.client(request).name).observe)
    tracing = open_tracing(site.config.tracing, live.client, catalog.version_of, live.timer.began_at)
    if tracing:
        live.show(tracing.observe)
    return tracing


def _tell_other_mechanisms(site: Site, plan: Plan) -> None:
    for here, planned in zip(site.devices, plan.devices, strict=True):
        if here.mechanism is not planned.mechanism:
            tell("not_cut_as_asked", device=here.index, asked=here.mechanism, planned=planned.mechanism)


def _emulated(
    site: Site, problem: Problem, plan: Plan, live: Live, catalog: Catalog
) -> tuple[LiveExecutor, Changer, Loader]:
    """Nobody runs anything, and answers come when profiles say."""
    whole = {application.name: gathered_signature(application, EMULATED) for application in problem.applications}
    catalog.signatures = signatures = {**dict.fromkeys(problem.models, EMULATED), **whole}
    interference = problem.interference
    build_time = from_ms(site.config.control.build_ms)
    simulated = Simulated(
        problem.profile,
        plan,
        live.timer,
        live.feed,
        keeps_rows=True,
        interference=interference,
        build_time=build_time,
    )
    return simulated, simulated, EmulatedLoader(signatures, simulated)


def _manned(
    site: Site, plan: Plan, live: Live, catalog: Catalog, files: Files, wanted: Mapping[str, WorkerModel]
) -> tuple[LiveExecutor, Changer, Loader]:
    """Worker processes on the site's ground."""
    patience = Patience(unknown=_UNKNOWN) if site.executor == "cpu" else Patience()
    ground, program = ground_of(site), program_of(site)
    workers = Workers(plan, wanted, ground, program, live.timer, live.feed, live.client, tell, live.abandon, patience)
    workers.shelf.check = files.check
    catalog.signatures, catalog.refused, catalog.serves = workers.signatures, workers.refused, workers.serves
    waiting = catalog.fleet.waiting
    building = Building(workers, Gently(lambda: bool(waiting)))
    return workers, building, WorkerLoader(workers, round(site.config.server.drain_s * SECOND), lambda: bool(waiting))


def _ends(
    ports: Ports,
    live: Live,
    catalog: Catalog,
    control: Control,
    executor: LiveExecutor,
    files: Files,
    admin: Administration | None,
) -> FrontEnd:
    """With what they ask: metrics, statistics, the configurations of models."""

    def configs(name: str, signature: Signature) -> Document:
        return as_json(complete(files.declaration(name), name, signature, catalog.models[name].model.max_batch))

    demand = admin.demand if admin else None
    registry = make_registry(live.metrics, catalog.models, catalog.fleet, executor.load_times, demand)
    statistics = partial(model_statistics, live.metrics, catalog.models, live.timer.began_at)
    return FrontEnd(ports, live, catalog, control, registry, statistics, configs, admin)


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
