"""Gpulets by MIG: a worker process for each, bound to its instance by UUID; several in one instance through MPS in it.

Instances are made only on GPUs that an operator named. A re-cut is made beside what serves: places that workers use stay
until `settle` says that they are gone, so a plan that needs their slots is refused and the plan in force stays.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpulet.device import Device, Placement, Size, overcut
from gpulet.errors import CarveError, Unproven, Unusable
from gpulet.executors.daemons import Daemons, client_environment
from gpulet.executors.ground import Ground, Post
from gpulet.executors.mig import Carver, Made
from gpulet.executors.migbinding import bound, check, visible
from gpulet.executors.mpscontrol import BINARY, Client
from gpulet.executors.nvml import CarvingNvml, Nvml
from gpulet.executors.wire import Ready
from gpulet.plan import Gpulet, Plan

_TRIES = 20
_PAUSE_S = 0.1
"""A process that has ended may be listed for a moment; two seconds in all."""


@dataclass(frozen=True, slots=True)
class MadeFile:
    """What we made and did not end, as JSON: for the next process, should this one not live to end it."""

    path: Path

    def read(self) -> tuple[Made, ...]:
        """Nothing where there is no file; raises `Unusable` for one that cannot be read."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=tuple[Made, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            msg = f"{self.path}: cannot be read, and says which MIG instances are ours: {error}; "
            raise Unusable(msg + "an operator may end them and remove it") from None

    def write(self, made: tuple[Made, ...]) -> None:
        """All of it or nothing, and on the disk; raises `Unusable`."""
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(made), indent=2))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            msg = f"{self.path}: cannot be written, so no MIG instance can be made: {error.strerror}"
            raise Unusable(msg) from None


@dataclass(frozen=True, slots=True)
class Permission:
    """Which GPUs, by UUID, an operator lets us cut; how NVML is opened for them, and where is noted what we made there."""

    gpus: Collection[str]
    open_nvml: Callable[[Collection[str]], CarvingNvml]
    noted: MadeFile


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an instance stands, as a plan has it."""

    device: int
    size: Size
    start: int


class MigGround:
    """Instances that are found, or made under a `Permission`; without `daemons` every gpulet is one process."""

    def __init__(
        self,
        open_nvml: Callable[[], Nvml],
        permission: Permission | None = None,
        daemons: Daemons | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._open_nvml = open_nvml
        self._permission = permission if permission and permission.gpus else None
        self._daemons = daemons
        self._pause = pause
        self._devices: dict[int, Device] = {}
        self._used: dict[_Place, str] = {}

    @property
    def lost(self) -> tuple[int, ...]:
        """The devices with an instance whose MPS daemon has died: as `MpsGround.lost`."""
        dead = self._daemons.dead if self._daemons else ()
        return tuple(dict.fromkeys(place.device for place, uuid in self._used.items() if uuid in dead))

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        with closing(self._open_nvml()) as nvml:
            check(nvml, plan)
        self._refuse_unshared(plan)
        self._refuse_blocked(plan)
        self._devices |= {d.index: d for d in plan.devices}
        there = self._found(plan)
        try:
            with self._shared({there[_place(g)] for g in plan.gpulets if g.fellows > 1}):
                posts = tuple(self._post(g, there[_place(g)]) for g in plan.gpulets)
        except BaseException:
            with suppress(Unusable):  # the error that led here says more
                self._give_back()
            raise
        self._used = there
        return posts

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        (gpulet,) = post.gpulets
        sms = ready.sms
        if self._daemons and gpulet.fellows > 1:
            self._daemons.prove(_uuid(post), pid)
        if sms != gpulet.size.sms:
            msg = f"gpulet {gpulet.id}: process {pid} counts {sms} SMs; {_named(_place(gpulet))} has {gpulet.size.sms}"
            raise Unproven(msg)

    def settle(self, plan: Plan) -> None:
        kept = {_place(g) for g in plan.gpulets}
        self._used = {place: uuid for place, uuid in self._used.items() if place in kept}
        if self._daemons:
            self._daemons.keep({self._used[_place(g)] for g in plan.gpulets if g.fellows > 1})
        with suppress(Unusable):  # what a process holds for a moment yet is ended by the next plan, or by close
            self._give_back()

    def dismiss(self, post: Post, pid: int) -> None:
        """As `MpsGround.dismiss`."""
        if self._daemons and post.gpulets[0].fellows > 1:
            self._daemons.dismiss(_uuid(post), pid)

    def close(self) -> None:
        """End what we made; raises `Unusable` where somebody else computes there: it stays noted as ours."""
        if self._daemons:
            self._daemons.close()
        self._used = {}
        for attempt in range(_TRIES):
            try:
                self._give_back()
            except CarveError:
                raise
            except Unusable:
                if attempt == _TRIES - 1:
                    raise
                self._pause(_PAUSE_S)
            else:
                return

    def _refuse_unshared(self, plan: Plan) -> None:
        for g in plan.gpulets:
            assert g.replicas == 1, "a plan is unfolded before it is served"
            if g.fellows > 1 and self._daemons is None:
                msg = f"{g.fellows} processes in {_named(_place(g))} need {BINARY}, which is not installed"
                raise Unusable(msg)

    def _refuse_blocked(self, plan: Plan) -> None:
        """Raise for slots that workers use."""
        for device in plan.devices:
            used = [place for place in self._used if place.device == device.index]
            fresh = {place for place in map(_place, plan.gpulets) if place.device == device.index}.difference(used)
            blocked = [(f, u) for f in fresh for u in used if overcut(device, [_placement(f), _placement(u)])]
            if blocked:
                asked = ", ".join(sorted({f"{f.size.label} at {f.start}" for f, _ in blocked}))
                held = ", ".join(sorted({f"{u.size.label} at {u.start}" for _, u in blocked}))
                msg = f"GPU {device.index}: {asked} cannot be made beside {held}, where workers serve; that plan stays"
                raise Unusable(msg)

    def _found(self, plan: Plan) -> dict[_Place, str]:
        """The UUID of every place that workers use or will."""
        fresh = [place for place in dict.fromkeys(map(_place, plan.gpulets)) if place not in self._used]
        if self._permission:
            return self._carved([*self._used, *fresh])
        with closing(self._open_nvml()) as nvml:
            found = self._bound(nvml, fresh)
        return {**self._used, **found}

    def _bound(self, nvml: Nvml, places: Collection[_Place]) -> dict[_Place, str]:
        uuids = bound(nvml, self._plan(places), self._used.values())
        found = dict(zip(places, uuids.values(), strict=True))
        for place, uuid in found.items():
            if pids := nvml.pids(uuid):
                msg = f"{_named(place)} is held by process {', '.join(map(str, pids))}"
                raise Unusable(msg)
        return found

    def _carved(self, places: Collection[_Place]) -> dict[_Place, str]:
        """Make these where they are missing, end what else is ours on the devices that we know."""
        assert self._permission is not None
        noted, allowed = self._permission.noted, self._permission.gpus
        with closing(self._permission.open_nvml(allowed)) as nvml:
            carver = Carver(nvml, allowed, noted.read(), self._pause, noted.write, tuple(self._used.values()))
            noted.write(carver.made)  # what cannot be noted is not made
            uuids = carver.carve(self._plan(places))
            noted.write(carver.made)  # less what others ended
        return dict(zip(places, uuids.values(), strict=True))

    def _give_back(self) -> None:
        if self._permission and self._devices:
            self._carved(self._used)

    def _plan(self, places: Iterable[_Place]) -> Plan:
        gpulets = (Gpulet(n, place.device, place.size, place.start, 0, ()) for n, place in enumerate(places))
        return Plan(tuple(self._devices.values()), tuple(gpulets))

    @contextmanager
    def _shared(self, uuids: Collection[str]) -> Iterator[None]:
        if self._daemons is None:
            yield
            return
        with self._daemons.started(uuids):
            yield

    def _post(self, gpulet: Gpulet, uuid: str) -> Post:
        environment = visible(uuid)
        if self._daemons and gpulet.fellows > 1:
            environment = client_environment(self._daemons[uuid], Client(), uuid)
        return Post(gpulet.device, (gpulet,), environment, is_alone=True)


def _place(g: Gpulet) -> _Place:
    return _Place(g.device, g.size, g.offset)


def _placement(place: _Place) -> Placement:
    return Placement(place.size, place.start)


def _named(place: _Place) -> str:
    return f"{place.size.label} at {place.start} of GPU {place.device}"


def _uuid(post: Post) -> str:
    return post.environment["CUDA_VISIBLE_DEVICES"]


_FITS: type[Ground] = MigGround
"""The type checker's proof."""
