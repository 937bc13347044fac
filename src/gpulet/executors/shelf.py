"""The models of a server's workers: what is wanted, what each post did load, which are refused and why."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from gpulet.errors import ModelError
from gpulet.executors.base import Signature, Tell
from gpulet.executors.ground import Post
from gpulet.executors.stations import LONGEST_PAUSE_S, Station
from gpulet.executors.wire import ModelReady, Prepare, WorkerModel
from gpulet.units import Duration


class Shelf:
    """Models by name. `wanted` are those that workers load, of the ones that their gpulets are planned with.

    `signatures` and `refused` are the catalog's as well, so they are changed, never replaced.
    """

    def __init__(self, models: Mapping[str, WorkerModel], tell: Tell) -> None:
        self.signatures: dict[str, Signature] = {}
        self.refused: dict[str, str] = {}
        self.load_times: dict[str, Duration] = {}
        self.wanted = dict(models)
        self.check: Callable[[str, Signature], None] = lambda _name, _signature: None
        self._quarantined: set[str] = set()
        self._tell = tell

    def checked(self, models: tuple[ModelReady, ...]) -> tuple[ModelReady, ...]:
        """The same, those refused that `check` raises `ModelError` for: they are not what was said of them."""
        return tuple(map(self._checked, models))

    def _checked(self, ready: ModelReady) -> ModelReady:
        if ready.error:
            return ready
        try:
            self.check(ready.name, ready.signature)
        except ModelError as error:
            return msgspec.structs.replace(ready, error=str(error))
        return ready

    def for_post(self, post: Post, wanted: Mapping[str, WorkerModel] | None = None) -> tuple[WorkerModel, ...]:
        """The wanted models of its gpulets; a worker of several gets all, for the next plan may give it others."""
        wanted = self.wanted if wanted is None else wanted
        if not post.is_alone:
            return tuple(wanted.values())
        names = dict.fromkeys(model for gpulet in post.gpulets for model in (*gpulet.models, *gpulet.spare))
        return tuple(wanted[name] for name in names if name in wanted)

    def foreseen(self, stations: Iterable[Station], most: int) -> Prepare | None:
        """What whoever takes over from one of these is to have loaded, as far as it takes no more than `most` bytes."""
        on_cores = [station for station in stations if station.post.cores]
        sizes = Counter(gpulet.size.sms for station in on_cores for gpulet in station.post.gpulets)
        if not sizes or not most:
            return None
        threads = sizes.most_common(1)[0][0]
        alike = [s for s in on_cores if any(gpulet.size.sms == threads for gpulet in s.post.gpulets)]
        taken = {ready.name: ready.bytes for s in alike for ready in s.told if not ready.error}
        models: dict[str, WorkerModel] = {}
        for model in (given for s in alike for given in s.given if given.name in taken):
            if sum(taken[name] for name in {*models, model.name}) <= most:
                models[model.name] = model
        return Prepare(threads, tuple(models.values()))

    def want(self, wanted: Mapping[str, WorkerModel]) -> None:
        """These from now on, but for what has been quarantined meanwhile."""
        self.wanted = {name: model for name, model in wanted.items() if name not in self._quarantined}

    def bytes_of(self, name: str, stations: Iterable[Station]) -> int:
        """What its copies take together, as the workers that loaded them measured."""
        return sum(ready.bytes for station in stations for ready in station.told if ready.name == name)

    def forgive(self, name: str) -> None:
        """It may be tried again."""
        self.refused.pop(name, None)
        self._quarantined.discard(name)

    def must_retry(self, station: Station, missing: Mapping[str, str]) -> bool:
        """A worker without a model that loads elsewhere, or did before, is replaced: a few times, then kept."""
        lost = [name for name in missing if name in self.signatures]
        if not lost or station.pause_s >= LONGEST_PAUSE_S:
            return False
        self._tell("reload_failed", device=station.post.device, model=lost[0], error=missing[lost[0]])
        return True

    def learn(self, station: Station, models: tuple[ModelReady, ...], stations: Iterable[Station]) -> list[Station]:
        """What a worker has loaded; the posts that came up without a model which does load, so should try again.

        A model is refused by name while no post has it.
        """
        told, stations = [m for m in models if m.name not in self._quarantined], list(stations)
        loaded = [m for m in told if not m.error]
        station.told = models
        station.loaded = {m.name for m in loaded}
        self.signatures.update({m.name: m.signature for m in loaded})
        self.load_times.update({m.name: m.took for m in loaded if m.took})
        for name in station.loaded:
            self.refused.pop(name, None)
        for model in told:
            if model.error and not any(model.name in other.loaded for other in stations):
                self.refused[model.name] = model.error
                self._tell("model_refused", model=model.name, error=model.error)
        return [other for other in stations if _lacks(other, station.loaded)]

    def quarantine(self, model: str, stations: Iterable[Station]) -> None:
        """No worker gets it any more."""
        self.wanted.pop(model, None)
        self._quarantined.add(model)
        self.refused[model] = "quarantined: its worker died twice of the same request"
        self._tell("model_quarantined", model=model)
        for station in stations:
            station.loaded.discard(model)
            station.given = tuple(given for given in station.given if given.name != model)


def _lacks(station: Station, there: Iterable[str]) -> bool:
    wants = station.models & set(there) - set(station.loaded)
    return bool(wants) and station.is_up and station.worker is not None and station.pause_s < LONGEST_PAUSE_S
