"""A plan beside the one that serves, as the core asks for it: BUILD, then ADOPT, then RETIRE gpulet by gpulet.

Where each gpulet is a process, the new ones are manned, loaded and proven in the shadow of those that serve, and the core
hands over one by one. One of cores that is to be like one that goes, but elsewhere, waits for that one's worker: it moves in
milliseconds once its last batch has ended. A process that holds a whole device re-cuts itself instead, and drains by itself: what it took
away goes down, what it cut comes up, and the core has nothing left to hand over.
"""

from collections.abc import Iterable
from functools import partial

from gpulet.core.messages import Adopt, Build, Built, GpuletDown, GpuletUp, NotBuilt, Retire
from gpulet.errors import GpuletError, PlanError, Unusable
from gpulet.executors.base import Changer
from gpulet.executors.change import Aim, Gently
from gpulet.executors.recutting import dismiss, man_all, recut, refuse_other_signatures
from gpulet.executors.stations import Station
from gpulet.executors.workers import Workers
from gpulet.plan import GpuletId, Plan


class Building:
    """All changes of plan of one server's workers, one at a time. `gently` is how new workers come up beside serving."""

    def __init__(self, workers: Workers, gently: Gently) -> None:
        self._workers = workers
        self._gently = gently
        self._heirs: dict[GpuletId, Station] = {}

    def build(self, command: Build) -> None:
        """As the port says."""
        self._workers.do(self._build(command))

    async def _build(self, command: Build) -> None:
        workers = self._workers
        await workers.carved.wait()
        async with workers.changing:
            try:
                await self._bring(command)
            except Exception as error:  # noqa: BLE001 (whatever it is, the core must not wait for ever)
                why = str(error) if isinstance(error, GpuletError) else repr(error)
                workers.tell("change_failed", number=command.number, error=why)
                workers.emit(NotBuilt(command.number, why))
            else:
                workers.emit(Built(command.number))
            workers.stand_by()

    async def _bring(self, command: Build) -> None:
        workers, plan = self._workers, command.plan
        violations = plan.violations()
        if violations:
            raise PlanError(violations[0])
        known = {g.id for station in workers.stations for g in station.post.gpulets}
        if all(station.post.is_alone for station in workers.stations):
            await self._man_new(plan, known, None if command.is_urgent else self._gently)
        else:
            await self._recut(plan, known)

    async def _man_new(self, plan: Plan, known: set[GpuletId], gently: Gently | None) -> None:
        """Those that have no worker yet get one; whatever fails ends them again, and only them."""
        workers = self._workers
        posts = await workers.on_ground(partial(workers.ground.prepare, plan))
        fresh = [Station(post) for post in posts if not {g.id for g in post.gpulets} <= known]
        for station in fresh:
            station.given = workers.shelf.for_post(station.post)
        heirs = _heirs(fresh, self._leaving(plan))
        manned = [station for station in fresh if station.given and station not in heirs.values()]
        try:
            await man_all(workers, manned, Aim(plan, None, gently))
            refuse_other_signatures(workers, manned)
            _refuse_dead(manned)
        except BaseException:
            for station in fresh:
                await workers.take_off(station)
                if station.worker:
                    station.worker.kill()
                await dismiss(station)
            await workers.on_ground(partial(workers.ground.settle, workers.plan))
            raise
        self._heirs = heirs
        workers.take_over((*workers.stations, *fresh))
        for station in manned:
            station.asked = None
            workers.shelf.learn(station, station.told, workers.stations)
            for gpulet in station.post.gpulets:
                workers.tell_up(station, gpulet)
                workers.emit(GpuletUp(gpulet.id))

    def _leaving(self, plan: Plan) -> list[Station]:
        """Those that serve, and have no gpulet in that plan."""
        planned = {g.id for g in plan.gpulets}
        return [s for s in self._workers.stations if s.is_up and not planned & {g.id for g in s.post.gpulets}]

    async def _recut(self, plan: Plan, known: set[GpuletId]) -> None:
        workers = self._workers
        await recut(workers, plan)
        for station in workers.stations:
            for gpulet in station.post.gpulets:
                if gpulet.id not in known:
                    workers.emit((GpuletUp if station.is_up else GpuletDown)(gpulet.id))

    def adopt(self, command: Adopt) -> None:
        """Who stays may have other turns from now on; a successor is made for this plan."""
        workers = self._workers
        workers.plan = command.plan
        planned = {g.id: g for g in command.plan.gpulets}
        for station in workers.stations:
            if station.post.is_alone:
                station.post = station.post.planned(planned)

    def retire(self, command: Retire) -> None:
        """Its worker ends, for whoever is to have its place has come up beside it already; or it moves to its heir's."""
        workers = self._workers
        station = next((s for s in workers.stations if command.gpulet in {g.id for g in s.post.gpulets}), None)
        heir = self._heirs.pop(command.gpulet, None)
        if heir in workers.stations:  # else other models were loaded since
            workers.succeed(station, heir)
        if station is None or not station.post.is_alone:
            return
        workers.take_over(other for other in workers.stations if other is not station)
        workers.do(self._end(station))

    async def _end(self, station: Station) -> None:
        await dismiss(station)
        workers = self._workers
        async with workers.changing:
            await workers.on_ground(partial(workers.ground.settle, workers.plan))


def _heirs(fresh: Iterable[Station], leaving: Iterable[Station]) -> dict[GpuletId, Station]:
    """By who goes: the post that can have its worker, for nothing but the cores is another."""
    heirs: dict[GpuletId, Station] = {}
    left = [station for station in leaving if station.post.cores]
    for station in fresh:
        alike = [other for other in left if station.given and _could_be(other, station)]
        if alike:
            old = min(alike, key=lambda other: len(other.given))
            left.remove(old)
            heirs[old.post.gpulets[0].id] = station
    return heirs


def _could_be(old: Station, new: Station) -> bool:
    (before,), (after,) = old.post.gpulets, new.post.gpulets
    is_cut_alike = (before.size.sms, before.priority) == (after.size.sms, after.priority)
    return is_cut_alike and {*new.given} <= {*old.given}


def _refuse_dead(manned: Iterable[Station]) -> None:
    """One that was ready may have died while others were not."""
    for station in manned:
        if not station.is_up:
            msg = f"the new worker of gpulet {station.post.gpulets[0].id} died before it could serve"
            raise Unusable(msg)


_FITS: type[Changer] = Building
"""The type checker's proof."""
