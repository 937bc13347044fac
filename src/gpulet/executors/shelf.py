"""The models of a server's workers: what each post must load, what it did load, which are refused and why."""

from collections.abc import Iterable, Mapping

from gpulet.executors.base import Signature, Tell
from gpulet.executors.ground import Post
from gpulet.executors.stations import LONGEST_PAUSE_S, Station
from gpulet.executors.wire import ModelReady, WorkerModel
from gpulet.units import Duration


class Shelf:
    """Models by name. `signatures` and `refused` are the catalog's as well, so they are changed, never replaced."""

    def __init__(self, models: Mapping[str, WorkerModel], tell: Tell) -> None:
        self.signatures: dict[str, Signature] = {}
        self.refused: dict[str, str] = {}
        self.load_times: dict[str, Duration] = {}
        self._models = dict(models)
        self._quarantined: set[str] = set()
        self._tell = tell

    def all(self) -> tuple[WorkerModel, ...]:
        """Those that are not quarantined: a plan says which of them are loaded, and the next plan may want others."""
        return tuple(self._models.values())

    def for_post(self, post: Post) -> tuple[WorkerModel, ...]:
        """The models of its gpulets."""
        names = dict.fromkeys(model for gpulet in post.gpulets for model in gpulet.models)
        return tuple(self._models[name] for name in names if name in self._models)

    def must_retry(self, station: Station, missing: Mapping[str, str]) -> bool:
        """A worker without a model that loads elsewhere, or did before, is replaced: a few times, then kept."""
        lost = [name for name in missing if name in self.signatures]
        if not lost or station.pause_s >= LONGEST_PAUSE_S:
            return False
        self._tell("reload_failed", device=station.post.device, model=lost[0], error=missing[lost[0]])
        return True

    def learn(self, station: Station, models: Iterable[ModelReady], stations: Iterable[Station]) -> list[Station]:
        """What a worker has loaded; the posts that came up without a model which does load, so should try again.

        A model is refused by name while no post has it.
        """
        told, stations = [m for m in models if m.name not in self._quarantined], list(stations)
        loaded = [m for m in told if not m.error]
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
        self._models.pop(model, None)
        self._quarantined.add(model)
        self.refused[model] = "quarantined: its worker died twice of the same request"
        self._tell("model_quarantined", model=model)
        for station in stations:
            station.loaded.discard(model)


def _lacks(station: Station, there: Iterable[str]) -> bool:
    wants = station.models & set(there) - set(station.loaded)
    return bool(wants) and station.is_up and station.worker is not None and station.pause_s < LONGEST_PAUSE_S
