"""Another plan, or other models, into force while workers serve: what is new comes up beside the old, then one swap for all.

PLAN, BUILD, CHECK: the ground prepares, new posts are manned, loaded and proven, posts that hold a whole device re-cut
themselves. DRAIN: posts that go end what they run and park what comes. SWAP, RESUME: new posts take over, parked batches go
to the gpulet of the same id. Whatever fails before the swap is undone, and the plan in force has noticed nothing.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from gpulet.core.messages import GpuletDown, GpuletUp, Start
from gpulet.errors import GpuletError, ModelError, PlanError, Unusable
from gpulet.executors.base import Times
from gpulet.executors.change import Aim, Change, Gently, change_to
from gpulet.executors.process import WorkerProcess
from gpulet.executors.stations import Station
from gpulet.executors.wire import Recut, Recutted, WorkerModel
from gpulet.executors.workers import Workers
from gpulet.executors.yielding import yielding
from gpulet.plan import GpuletId, Plan
from gpulet.units import SECOND, Duration

_LONGEST_S = 600.0
"""For building: many graphs of large models take minutes."""


async def recut(workers: Workers, plan: Plan, patience: Duration = SECOND) -> Times:
    """Bring `plan` into force. Raises `PlanError`, `Unusable`, `ModelError`: then the old plan still is.

    One at a time; `patience` is how long running batches may take to end.
    """
    return await _bring(workers, Aim(plan), patience)


async def reload(
    workers: Workers, wanted: Mapping[str, WorkerModel], patience: Duration = SECOND, gently: Gently | None = None
) -> Times:
    """Have exactly these models loaded, of those that the plan in force has. Raises as `recut` does.

    A process that holds a device of several gpulets loads its models with its plan: raises `Unusable`.
    """
    _refuse_shared(workers, wanted)
    try:
        return await _bring(workers, Aim(workers.plan, wanted, gently or Gently()), patience)
    finally:
        workers.stand_by()


async def _bring(workers: Workers, aim: Aim, patience: Duration) -> Times:
    plan = aim.plan
    violations = plan.violations()
    if violations:
        raise PlanError(violations[0])
    old, began = workers.plan, workers.timer.now()
    posts = await workers.on_ground(partial(workers.ground.prepare, plan))
    change = change_to(aim, posts, workers)
    moved: dict[Station, WorkerProcess] = {}
    try:
        built = await _build(workers, change, aim, patience, moved)
        refuse_other_signatures(workers, change.fresh)
        build = workers.timer.now() - began
        await _drain(workers, change.gone, patience)
        _refuse_dead(built.holders)
    except (GpuletError, asyncio.CancelledError):
        await _undo(workers, change, old, patience, moved)
        raise
    drain = workers.timer.now() - began - build
    swap = _swap(workers, change, old, aim)
    await asyncio.gather(*(dismiss(station) for station in change.gone))
    await workers.on_ground(partial(workers.ground.settle, plan))
    if built.answers:  # posts that re-cut themselves know their times better
        return Times(*(max(getattr(t, name) for t in built.answers) for name in ("build", "drain", "swap")))
    return Times(build, drain, swap)


@dataclass(frozen=True, slots=True)
class _Built:
    """What posts that re-cut themselves said, and which worker is to serve the new plan at each new post and at those."""

    answers: Sequence[Recutted]
    holders: Mapping[Station, WorkerProcess | None]


def _refuse_shared(workers: Workers, wanted: Mapping[str, WorkerModel]) -> None:
    changed = {m.name for m in {*workers.shelf.wanted.values()} ^ {*wanted.values()}}
    if changed and any(not station.post.is_alone for station in workers.stations):
        msg = f"{', '.join(sorted(changed))}: a process that holds a whole GPU loads its models with its plan"
        raise Unusable(msg)


def refuse_other_signatures(workers: Workers, fresh: Iterable[Station]) -> None:
    """Raises `ModelError`. Requests for the file that serves are on their way; one that takes others can only come after it has left."""
    serving = {name for station in workers.stations for name in station.loaded}
    for ready in (told for station in fresh for told in station.told):
        if ready.name in serving and not ready.error and ready.signature != workers.signatures[ready.name]:
            msg = f"model {ready.name}: it takes or gives other tensors than the file that serves; unload that first"
            raise ModelError(msg)


async def _build(
    workers: Workers, change: Change, aim: Aim, patience: Duration, moved: dict[Station, WorkerProcess]
) -> _Built:
    """New posts first, since nothing is in force yet by them; then the others all at once. `moved` are those that did."""
    for station, _ in change.inner:
        _refuse_unmanned(station)
    await man_all(workers, change.manned, aim)
    holders = {station: station.worker for station in change.manned}
    done: list[Recutted] = []

    async def move(station: Station) -> None:
        done.append(await _ask(station, aim.plan, patience))
        workers.shelf.learn(station, done[-1].models, workers.stations)
        if station.worker:
            moved[station] = station.worker

    ends = await asyncio.gather(*(move(station) for station, _ in change.inner), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return _Built(done, {**holders, **moved})


async def man_all(workers: Workers, stations: Sequence[Station], aim: Aim) -> None:
    """New workers for these; raises what the first unlucky one says, once all have answered."""
    loop = asyncio.get_running_loop()
    for station in stations:
        station.asked = loop.create_future()
        workers.man(station, aim.plan, aim.wanted, is_gentle=aim.gently is not None)
    if aim.gently:
        await _load_gently(workers, stations, aim, aim.gently)
    await _answers([station.asked for station in stations if station.asked])


async def _load_gently(workers: Workers, stations: Iterable[Station], aim: Aim, gently: Gently) -> None:
    """Where the idle time was not enough, another worker begins anew and takes what time it needs."""
    asked = [station.asked for station in stations if station.asked]
    if not asked:
        return
    # One on a GPU may hold what others need there.
    on_cores = [station.worker for station in stations if station.worker and station.post.cores]
    async with yielding(on_cores, gently.waits):
        _, late = await asyncio.wait(asked, timeout=gently.most_s / 3)
    if late:
        _, late = await asyncio.wait(late, timeout=gently.most_s * 2 / 3)
    for station in stations:
        if station.asked in late and station.worker:
            pid, worker = station.worker.pid, station.worker
            workers.tell("load_hurried", device=station.post.device, pid=pid, after_s=gently.most_s)
            await workers.take_off(station)
            worker.hear, worker.gone = lambda _: None, lambda: None
            worker.kill()
            workers.man(station, aim.plan, aim.wanted)


def _refuse_dead(holders: Mapping[Station, WorkerProcess | None]) -> None:
    """A new post whose worker died since is manned by nobody; one that re-cut itself has a successor in the old plan."""
    for station, worker in holders.items():
        if worker is None or station.worker is not worker:
            names = ", ".join(str(gpulet.id) for gpulet in station.post.gpulets)
            msg = f"re-cut given up: the new worker of gpulet {names} died before the swap"
            raise Unusable(msg)


def _refuse_unmanned(station: Station) -> WorkerProcess:
    if station.worker is None or not station.is_up:
        msg = f"device {station.post.device} has no worker now"
        raise Unusable(msg)
    return station.worker


async def _ask(station: Station, plan: Plan, patience: Duration) -> Recutted:
    worker = _refuse_unmanned(station)
    station.asked = asyncio.get_running_loop().create_future()
    worker.send(Recut(plan, patience))
    (answer,) = await _answers([station.asked])
    station.asked = None
    assert answer, "a worker answers a re-cut"
    return answer


async def _answers(asked: Sequence["asyncio.Future[Recutted | None]"]) -> "list[Recutted | None]":
    """Wait for every one, then raise what the first unlucky one says: nothing may still be on its way."""
    try:
        async with asyncio.timeout(_LONGEST_S):
            ends = await asyncio.gather(*asked, return_exceptions=True)
    except TimeoutError:
        msg = f"re-cut given up: a worker was not ready within {_LONGEST_S:g} s"
        raise Unusable(msg) from None
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


async def _drain(workers: Workers, gone: Iterable[Station], patience: Duration) -> None:
    """Wait until these run nothing; what is started meanwhile is parked."""
    for station in gone:
        station.parked = []
    with suppress(TimeoutError):
        async with asyncio.timeout(patience / SECOND):
            await _ended(workers, gone)
    if any(station.running for station in gone):
        msg = f"re-cut given up: a running batch did not end within {patience / SECOND:g} s"
        raise Unusable(msg)


async def _ended(workers: Workers, gone: Iterable[Station]) -> None:
    while any(station.running for station in gone):
        workers.runs.ended.clear()
        await workers.runs.ended.wait()


def _swap(workers: Workers, change: Change, old: Plan, aim: Aim) -> Duration:
    """From here on the new posts serve; the core hears of gpulets that it knows: those that are gone, those that are new."""
    began, plan = workers.timer.now(), aim.plan
    for station, post in (*change.kept, *change.inner):
        station.post = post
    for station in change.fresh:
        station.asked = None
    staying = [station for station, _ in (*change.kept, *change.inner)]
    workers.plan = plan
    workers.take_over((*staying, *change.fresh))
    if aim.wanted is not None:
        workers.shelf.want(aim.wanted)
    for station in change.manned:
        workers.shelf.learn(station, station.told, workers.stations)
    known, planned = {g.id for g in old.gpulets}, {g.id for g in plan.gpulets}
    for lost in sorted(known - planned):
        workers.emit(GpuletDown(lost))
    for station, gpulet in ((s, g) for s in change.fresh for g in s.post.gpulets):
        if gpulet.id in known:
            workers.emit((GpuletUp if station.is_up else GpuletDown)(gpulet.id))
    _resume(workers, change.gone)
    return workers.timer.now() - began


def _resume(workers: Workers, stations: Iterable[Station]) -> None:
    """Parked batches that no gpulet takes any more go back to the core, as those of a gpulet that went down."""
    parked = [start for station in stations for start in station.parked or ()]
    for station in stations:
        station.parked = None
    for start in parked:
        target = workers.station(start)
        if target and target.is_up and start.model in target.loaded:
            workers.runs.begin(target, start)
        else:
            _give_back(workers, start, is_up=bool(target and target.is_up))


def _give_back(workers: Workers, start: Start, *, is_up: bool) -> None:
    assert isinstance(start.on, GpuletId), "only gpulets drain"
    workers.emit(GpuletDown(start.on))
    if is_up:
        workers.emit(GpuletUp(start.on))


async def _undo(
    workers: Workers, change: Change, old: Plan, patience: Duration, moved: Mapping[Station, WorkerProcess]
) -> None:
    """New workers go, posts that have re-cut themselves go back, what was parked runs where it would have."""
    _resume(workers, change.gone)
    for station in change.fresh:  # they may be busy loading, and are not given the time to end it
        await workers.take_off(station)
        if station.worker:
            station.worker.kill()
    await asyncio.gather(*(dismiss(station) for station in change.fresh))
    for station, _ in change.inner:
        await _send_back(workers, station, old, patience, moved.get(station))
    await workers.on_ground(partial(workers.ground.settle, old))


async def _send_back(
    workers: Workers, station: Station, old: Plan, patience: Duration, moved: WorkerProcess | None
) -> None:
    """Where nobody knows which plan its worker is in, it ends: its successor carves the old one."""
    is_unknown = station.asked is not None and station.asked.cancelled()
    station.asked = None
    worker = station.worker
    if worker and worker is moved:
        try:
            answer = await _ask(station, old, patience)
            workers.shelf.learn(station, answer.models, workers.stations)
        except GpuletError:
            station.asked = None
            is_unknown = station.worker is worker
    if worker and is_unknown:
        worker.kill()


async def dismiss(station: Station) -> None:
    """Its worker ends, and nobody hears of that."""
    worker, station.worker = station.worker, None
    station.is_up = False
    if worker:
        worker.hear, worker.gone = lambda _: None, lambda: None
        await worker.close()
