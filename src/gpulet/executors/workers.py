"""Gpulets in worker processes: who holds which post, who takes over from the dead; what runs there is in `runs.py`.

How posts come about is the ground's (`ground.py`): cores, green contexts, MPS, MIG. A worker that dies is replaced by the
standby, whose runtime is imported already; repeated deaths are answered more and more slowly. A model that kills its
worker twice with the same request is quarantined.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import assert_never

import msgspec

from gpulet.core.messages import (
    BatchId,
    Carve,
    GpuletDown,
    GpuletUp,
    Load,
    RunFailed,
    Start,
    Unload,
)
from gpulet.errors import GpuletError, ModelError, Unusable
from gpulet.executors.base import Emit, GiveUp, Outputs, Payloads, Signature, Tell, Timer
from gpulet.executors.crew import Crew
from gpulet.executors.errands import Errands, Made
from gpulet.executors.ground import Ground, is_place_of, plan_of
from gpulet.executors.process import Program, WorkerProcess
from gpulet.executors.runs import Runs
from gpulet.executors.shelf import Shelf
from gpulet.executors.stations import Patience, Station
from gpulet.executors.watchdog import Watchdog
from gpulet.executors.wire import (
    Assign,
    Done,
    Failed,
    FromWorker,
    ModelReady,
    Move,
    Occupy,
    Proven,
    Ready,
    Recutted,
    Refused,
    Returned,
    Shown,
    Told,
    ToWorker,
    WorkerModel,
)
from gpulet.plan import Gpulet, GpuletId, Plan
from gpulet.units import Duration


class Workers:
    """Carries out commands by worker processes, on whatever ground. Without `patience` nothing that runs is given up."""

    def __init__(
        self,
        plan: Plan,
        models: Mapping[str, WorkerModel],
        ground: Ground,
        program: Program,
        timer: Timer,
        emit: Emit,
        payloads: Payloads,
        tell: Tell,
        give_up: GiveUp,
        patience: Patience | None = None,
    ) -> None:
        self.plan = plan
        self.ground = ground
        self.stations: list[Station] = []
        self.emit = emit
        self.tell = tell
        self.carved = asyncio.Event()
        self.timer = timer
        self.shelf = Shelf(models, tell)
        self.runs = Runs(self.shelf, timer, emit, payloads, tell)
        self._crew = Crew(program, tell)
        self._give_up = give_up
        self._patience = patience
        self._by_gpulet: dict[GpuletId, Station] = {}
        self._is_closing = False
        self.changing = asyncio.Lock()
        self._errands = Errands("ground")
        self.do = self._errands.do

    @property
    def signatures(self) -> dict[str, Signature]:
        """Of the models that some worker has loaded."""
        return self.shelf.signatures

    @property
    def refused(self) -> dict[str, str]:
        """Models that no worker could load, and why."""
        return self.shelf.refused

    @property
    def load_times(self) -> dict[str, Duration]:
        """How long the last load of each model took, where its worker says."""
        return self.shelf.load_times

    def serves(self, model: str) -> bool:
        """Whether a worker that is up has it."""
        return any(station.is_up and model in station.loaded for station in self.stations)

    @property
    def pids(self) -> dict[GpuletId, int]:
        """The worker process of each gpulet that has one."""
        return {g.id: s.worker.pid for s in self.stations for g in s.post.gpulets if s.worker}

    def carve(self) -> None:
        """Make the plan's posts, start a worker for each, and one to stand by."""
        self._crew.stand_by()
        self._errands.do(self._carve())
        if self._patience:
            watchdog = Watchdog(self._patience, self.timer, self.tell, self._end_worker)
            self._errands.do(watchdog.watch(lambda: tuple(self.stations)))

    async def _carve(self) -> None:
        try:
            posts = await self.on_ground(partial(self.ground.prepare, self.plan))
            self.take_over([Station(post) for post in posts])
            for station in self.stations:
                if self.shelf.for_post(station.post) or not station.post.is_alone:
                    self.man(station, self.plan)
            self._crew.stand_by()
            self.carved.set()
        except Exception as error:  # noqa: BLE001 (whatever it is, a server that never carves must not look as if it would)
            self._give_up(error)

    def take_over(self, stations: Iterable[Station]) -> None:
        """These are the posts from here on."""
        self.stations = list(stations)
        self._by_gpulet = {gpulet.id: station for station in self.stations for gpulet in station.post.gpulets}

    def start(self, command: Start) -> None:
        """Put the batch's inputs together in a slot and tell the worker; while its post drains it waits."""
        station = self.station(command)
        if station is None or not station.is_up:
            if isinstance(command.on, Carve):
                self.emit(RunFailed(command.batch))  # `worker_died` has told why
            elif station is None:
                self.emit(GpuletDown(command.on))  # a re-cut has taken it away
            return  # of a gpulet that died in this turn; GpuletDown is on its way
        if station.parked is None:
            self.runs.begin(station, command)
        else:
            station.parked.append(command)

    def station(self, command: Start) -> Station | None:
        """The post that a batch is for, if there is one."""
        if not isinstance(command.on, Carve):
            return self._by_gpulet.get(command.on)
        device = command.on.device
        return next((s for s in self.stations if s.post.device == device and not s.post.is_alone), None)

    def outputs(self, batch: BatchId) -> Outputs:
        """Views into the slot; the next batch in it overwrites them."""
        return self.runs.outputs(batch)

    def load(self, command: Load) -> None:
        """Workers hold the models of their gpulets from the start."""
        msg = f"load of {command.model}: workers load models with their gpulet"
        raise AssertionError(msg)

    def unload(self, command: Unload) -> None:
        """As `load`."""
        msg = f"unload of {command.model}: workers unload models with their gpulet"
        raise AssertionError(msg)

    async def close(self) -> None:
        """Stop every worker and the standby, then give the ground back."""
        self._is_closing = True
        await self._errands.give_up()
        for station in self.stations:
            if station.running or not station.is_up:
                await self.take_off(station)
        await self._crew.close()
        await self.on_ground(self.ground.close)
        self._errands.close()

    def man(
        self, station: Station, plan: Plan, wanted: Mapping[str, WorkerModel] | None = None, *, is_gentle: bool = False
    ) -> None:
        """Give the post a worker, the standby where there is one, and its task in that plan: of `wanted` models, if others.

        `is_gentle`: it is not to disturb those who serve.
        """
        worker = self._crew.hire(is_gentle=is_gentle)
        self._listen(station, worker)
        station.man(worker, self.shelf.for_post(station.post, wanted))
        worker.send(self._task(station, plan, is_gentle=is_gentle))
        if not is_gentle:
            worker.hasten()  # after the task is sent, which is what keeps it from loading more

    def succeed(self, old: Station | None, heir: Station) -> None:
        """The worker of a post that is given up moves to another one's cores; where it has died a new worker takes them."""
        heir.was_up = True  # whatever becomes of it, others serve on
        worker = old.worker if old and old.is_up else None
        if old is None or worker is None:
            self.do(self._replace(heir))
            return
        heir.inherit(old)
        self._listen(heir, worker)
        worker.send(Move(heir.post.cores, tuple(model.name for model in heir.given)))

    def _listen(self, station: Station, worker: WorkerProcess) -> None:
        """What that worker says is said of that post."""
        worker.hear = lambda message: self._hear(station, message)
        worker.gone = lambda: self._gone(station)

    def stand_by(self) -> None:
        """Let a worker be ready that nobody is served by yet, without haste."""
        foreseen = self.shelf.foreseen(self.stations, self._crew.program.standby_bytes)
        self._crew.stand_by(foreseen, is_gentle=True)

    def _task(self, station: Station, plan: Plan, *, is_gentle: bool) -> ToWorker:
        post, slots = station.post, self._crew.program.slots
        if post.cores:
            (gpulet,) = post.gpulets
            threads, priority = gpulet.size.sms, gpulet.priority
            return Assign(post.cores, threads, station.given, slots, is_gentle, post.spare, priority)
        return Occupy(post.environment, plan_of(post, plan), post.device, station.given, slots)

    def _hear(self, station: Station, message: FromWorker) -> None:
        match message:
            case Done() | Failed():
                self.runs.end(station, message)
            case Ready():
                ready = msgspec.structs.replace(message, models=self.shelf.checked(message.models))
                self._errands.do(self._admit(station, ready))
            case Recutted():
                station.reply(msgspec.structs.replace(message, models=self.shelf.checked(message.models)))
            case Refused():
                self._refuse(station, message)
            case Returned():
                self.runs.take_back(station, message)
            case Told():
                self.tell(message.event, **message.fields)
            case Shown() | Proven():
                pass  # to doctor alone
            case _:
                assert_never(message)

    def _refuse(self, station: Station, refused: Refused) -> None:
        """A first carving that cannot be ends the server; later its worker is replaced, more and more slowly."""
        error = Unusable(refused.error)
        if station.reply(error):
            return
        if station.was_up:
            self.tell("carving_refused", device=station.post.device, error=refused.error)
        else:
            self._give_up(error)

    async def _admit(self, station: Station, ready: Ready) -> None:
        """A post is up once its models are loaded and its share is proven."""
        worker = station.worker
        if worker is None:
            return
        try:
            await self.on_ground(partial(self.ground.prove, station.post, worker.pid, ready))
        except Exception as error:  # noqa: BLE001 (as in `_replace`: told, and the next worker tries)
            self._refuse(station, Refused(str(error) or repr(error), is_final=True))
            worker.kill()
            return
        if station.worker is not worker:  # died meanwhile
            return
        missing = {m.name: m.error for m in ready.models if m.error}
        if station.asked and missing:
            station.reply(ModelError("; ".join(f"model {name}: {error}" for name, error in missing.items())))
        elif self.shelf.must_retry(station, missing):
            worker.kill()
        else:
            self._rise(station, ready.models)

    def _rise(self, station: Station, models: tuple[ModelReady, ...]) -> None:
        station.rise(self.timer.now())
        station.told = models
        if station.reply(None):  # a re-cut says when it serves, and with it what it has loaded
            return
        lacking = self.shelf.learn(station, models, self.stations)
        for other in lacking:
            if other.worker:
                other.worker.kill()
        for gpulet in station.post.gpulets:
            if self.tell_up(station, gpulet) or not gpulet.models:  # who has no turns may get some
                self.emit(GpuletUp(gpulet.id))
        if all(other.is_up for other in self.stations if other.given):
            self.stand_by()

    def tell_up(self, station: Station, gpulet: Gpulet) -> list[str]:
        """Which of its models are there."""
        pid = station.worker.pid if station.worker else 0
        here = [name for name in gpulet.models if name in station.loaded]
        size, cores = gpulet.size.sms, station.post.cores
        self.tell("gpulet_up", gpulet=gpulet.id, pid=pid, size=size, cores=cores, models=here)
        return here

    def _gone(self, station: Station) -> None:
        """Take a dead worker's batches back at once and man the post again."""
        assert station.worker is not None
        self.tell("worker_died", device=station.post.device, pid=station.worker.pid)
        parked = station.parked or []
        ran = station.fall(self.timer.now())
        station.reply(Unusable("its worker died"))
        self.runs.ended.set()
        if station not in self.stations:
            return
        for gpulet in station.post.gpulets:
            self.emit(GpuletDown(gpulet.id))
        for start in (*(batch.start for batch in ran), *parked):
            if isinstance(start.on, Carve):
                self.runs.fail(start, "its worker died")
        convicted = self.runs.suspects.accuse(ran, self.timer.now())
        if convicted:
            self.shelf.quarantine(convicted, self.stations)
        if not self._is_closing:
            self._errands.do(self._replace(station))

    async def _replace(self, station: Station) -> None:
        await asyncio.sleep(station.pause())
        plan = self.plan
        try:
            posts = await self.on_ground(partial(self.ground.prepare, plan))
            if plan is not self.plan:  # a re-cut came between
                self._errands.do(self._replace(station))
            elif station in self.stations:  # unless a re-cut has taken its place
                post = next((post for post in posts if is_place_of(station.post, post)), None)
                if post:  # else its gpulet is leaving
                    station.post = post
                    self.man(station, plan)
                    self.stand_by()
        except Exception as error:  # noqa: BLE001 (as in `_carve`: told and tried again, ever more slowly)
            self.tell("carving_refused", device=station.post.device, error=str(error) or repr(error))
            self._errands.do(self._replace(station))

    async def _end_worker(self, station: Station) -> None:
        """One that answers while the ground is told lives on."""
        worker, asked = station.worker, set(station.running)
        await self.take_off(station)
        if worker and asked & station.running.keys():
            worker.kill()

    async def take_off(self, station: Station) -> None:
        """Its worker, which may be busy, is to end: tell the ground first."""
        if station.worker:
            with suppress(GpuletError):  # it ends all the same
                await self.on_ground(partial(self.ground.dismiss, station.post, station.worker.pid))

    async def on_ground(self, call: Callable[[], Made]) -> Made:
        """The ground is asked one thing at a time."""
        return await self._errands.blocking(call)
