"""What a fleet's repositories offer: the models to load at the start, those that may be loaded later, those that cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gpulet.config import ModelSection, ServerSection
from gpulet.errors import ConfigError
from gpulet.repository.artifact import Artifact
from gpulet.repository.controlling import Control, at_start
from gpulet.repository.scanning import NOTHING, Scan, scan
from gpulet.units import US, to_ms


@dataclass(frozen=True, slots=True)
class Offer:
    """`start` are the models to load at the start, of all those that `found` has."""

    found: Scan
    start: Mapping[str, Artifact]
    repositories: tuple[Path, ...] = ()
    formats: tuple[str, ...] = ()

    def again(self, known: Mapping[str, Artifact]) -> Scan:
        """The repositories as they are now; files that are as they were in `known` are not read."""
        return scan(self.repositories, self.formats, known)

    def why_empty(self) -> str:
        """Why there is nothing to serve."""
        if self.found.refused:
            return f"no model is left to serve; refused were {'; '.join(map(': '.join, self.found.refused.items()))}"
        return "no models: write [[models]] or name a repository under [server]"

    def is_refused(self, name: str) -> bool:
        """Whether a model is in the repositories and cannot be served."""
        return name in self.found.refused

    def is_later(self, name: str) -> bool:
        """Whether a model is loaded once it is asked for by name."""
        return name in self.found.artifacts and name not in self.start


EMPTY = Offer(Scan(NOTHING, MappingProxyType({}), MappingProxyType({})), NOTHING)


def offer_of(server: ServerSection, folder: Path, formats: Sequence[str]) -> Offer:
    """What `[server]` names, relative to `folder`; raises `ConfigError` where there is nothing at all, or a name is not there."""
    named = [server.repository] if isinstance(server.repository, str) else server.repository
    repositories = tuple(folder / name for name in named if name)
    if not repositories:
        return EMPTY
    found = scan(repositories, formats)
    if not found.artifacts and not found.refused:
        msg = f"model repository {', '.join(map(str, repositories))} holds no <model>/<version>/{' or '.join(formats)}"
        raise ConfigError(msg)
    there = [*found.artifacts, *found.refused]
    start = at_start(Control(server.model_control), there, server.load_models)
    loaded = {name: found.artifacts[name] for name in start if name in found.artifacts}
    return Offer(found, loaded, repositories, tuple(formats))


def wished(section: ModelSection, artifact: Artifact | None) -> ModelSection:
    """A model's section with what its own configuration says: its objective counts more than the section's, its delay less."""
    if artifact is None:
        return section
    wishes = artifact.wishes
    said: dict[str, float] = {}
    if wishes.slo:
        said["slo_ms"] = to_ms(wishes.slo)
    if wishes.max_queue_delay and "max_queue_delay_us" not in section.model_fields_set:
        said["max_queue_delay_us"] = wishes.max_queue_delay // US
    if wishes.shapes and not section.shapes:
        return section.model_copy(update={**said, "shapes": list(wishes.shapes)})
    return section.model_copy(update=said)
