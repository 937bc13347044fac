"""What a live server may load: the files of its repositories as they are now, the rules, and polling for changes."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress

from gpulet.api.catalog import Catalog, Served
from gpulet.config import ModelSection
from gpulet.core.ports import Problem
from gpulet.drivers.live import Live
from gpulet.errors import GpuletError, ModelError
from gpulet.executors.base import Signature, Tell
from gpulet.executors.wire import WorkerModel
from gpulet.fleetfile import Site
from gpulet.logs import tell
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.repository.artifact import Artifact, Declaration
from gpulet.repository.completing import check
from gpulet.repository.controlling import Added, Change, Changed, Removed, changes
from gpulet.residency import Residency, Surroundings
from gpulet.roster import Found, Rules
from gpulet.units import MIB, PLAIN, SECOND

_NOTHING = Declaration()


class Files:
    """Models on disk by name, each to be warmed for the largest batch that it is planned with."""

    def __init__(self, site: Site, problem: Problem, plan: Plan) -> None:
        self._offer = site.offer
        self._models = problem.models
        self._plan = plan
        self._shapes = _shapes(site)
        self._is_emulated = site.executor == "simulated"
        self.artifacts: Mapping[str, Artifact] = site.artifacts

    def all(self) -> dict[str, Found]:
        """What there is at the start."""
        if self._is_emulated:
            return {name: self._emulated(name) for name in self._models}
        return {name: self._found(item) for name, item in self.artifacts.items()}

    def admit(self, site: Site, model: Model) -> None:
        """There is one model more, which is the only one of that site."""
        self._offer = site.offer
        self._models = {**self._models, model.name: model}
        self._shapes |= _shapes(site)
        self.artifacts = {**self.artifacts, **site.artifacts}

    def find(self, name: str) -> Found:
        """One as it is now. Reads files that have changed: call it on a thread. Raises `ModelError`."""
        if self._is_emulated:
            return self._emulated(name)
        scan = self._offer.again(self.artifacts)
        if name not in scan.artifacts:
            raise ModelError(scan.refused.get(name, "no version is available"))
        self.artifacts = {**self.artifacts, name: scan.artifacts[name]}
        return self._found(scan.artifacts[name])

    def again(self) -> Mapping[str, Artifact]:
        """All that can be served now, of the models that are planned; as `find`."""
        return self._offer.again(self.artifacts).artifacts

    def declaration(self, name: str) -> Declaration:
        """What is said of a model beside its file."""
        return self.artifacts[name].declaration if name in self.artifacts else _NOTHING

    def check(self, name: str, signature: Signature) -> None:
        """Raises `ModelError` for a model that is not as its declaration says."""
        check(self.declaration(name), signature)

    def _emulated(self, name: str) -> Found:
        return Found("1", WorkerModel(name, "", self._models[name].max_batch), 0)

    def _found(self, item: Artifact) -> Found:
        turns = (turn for gpulet in self._plan.hosts(item.name) for turn in gpulet.turns if turn.model == item.name)
        largest = max((turn.batch for turn in turns), default=self._models[item.name].max_batch)
        shapes, batches = self._shapes[item.name], item.declaration.batches
        file = WorkerModel(item.name, str(item.path), largest, shapes, item.digest, batches)
        return Found(item.version, file, item.path.stat().st_size)


def _shapes(site: Site) -> dict[str, tuple[str, ...]]:
    return {section.name: tuple(section.shapes) or (PLAIN,) for section in site.sections}


def served(site: Site, section: ModelSection, model: Model) -> Served:
    """What clients see of a model."""
    artifact = site.artifacts.get(section.name)
    version, labels = (artifact.version, dict(artifact.labels)) if artifact else ("1", {})
    return Served(model, version, tuple(section.shapes), labels, pads=section.pad)


def make_residency(site: Site, plan: Plan, files: Files, live: Live, catalog: Catalog) -> Residency:
    """The models of the plan that are loaded, by the fleet file's rules; the catalog knows which of them sleep."""
    limits, server = site.config.limits, site.config.server
    live.door.patience, live.door.most = round(server.load_wait_s * SECOND), limits.max_queue

    def changed(name: str, version: str) -> None:
        catalog.models[name].version = version

    around = Surroundings(
        live.timer,
        live.door,
        live.holds,
        lambda name: live.metrics.models[name].arrived if name in live.metrics.models else 0,
        files.find,
        changed,
        tell,
        site.store.read_memory(),
        site.store.write_memory,
    )
    found = files.all()
    rules = Rules(
        round(limits.memory_mib * MIB),
        round(server.idle_unload_s * SECOND),
        round(server.drain_s * SECOND),
        frozenset(section.name for section in site.sections if section.pin),
        {name: sum(name in gpulet.held for gpulet in plan.gpulets) or 1 for name in found},
    )
    residency = Residency(found, rules, around, [name for name in found if not site.offer.is_later(name)])
    catalog.asleep, catalog.wake = live.door.asleep, residency.wake
    return residency


class Poller:
    """Looks at the repositories now and then, and loads what changed, once two looks agree: a file may still be written."""

    def __init__(self, files: Files, residency: Residency, every_s: float, tell: Tell) -> None:
        self._files = files
        self._residency = residency
        self._every_s = every_s
        self._tell = tell
        self._served: Mapping[str, Artifact] = files.artifacts
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From now on."""
        self._task = asyncio.get_running_loop().create_task(self._poll())

    async def close(self) -> None:
        """No more."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _poll(self) -> None:
        last: Mapping[str, Artifact] = self._served
        while True:
            await asyncio.sleep(self._every_s)
            try:
                now = await asyncio.to_thread(self._files.again)
            except (GpuletError, OSError) as error:
                self._tell("poll_failed", error=str(error))
                continue
            for change in changes(self._served, now):
                name = change.artifact.name
                if isinstance(change, Removed) is (name not in last) and now.get(name) == last.get(name):
                    await self._follow(change)
            last = now

    async def _follow(self, change: Change) -> None:
        artifact = change.artifact
        served = {name: a for name, a in self._served.items() if name != artifact.name}
        self._served = served if isinstance(change, Removed) else {**served, artifact.name: artifact}
        try:
            match change:
                case Removed():
                    await self._residency.unload(artifact.name)
                case Added() | Changed():
                    await self._residency.load(artifact.name)
        except GpuletError as error:
            self._tell("poll_failed", model=artifact.name, error=str(error))
