"""What is served, as the protocol's users see it: names, versions, signatures, readiness."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gpulet.core.fleet import Fleet
from gpulet.executors.base import Signature
from gpulet.model import Model


@dataclass(slots=True)
class Served:
    """One model of the catalog; `version` is the only one that serves, `shapes` its shape classes where they are few.

    `pads`: they are buckets.
    """

    model: Model
    version: str
    shapes: tuple[str, ...] = ()
    pads: bool = False


@dataclass(slots=True)
class Catalog:
    """Models by name. Signatures and refusals come from the executor, as it loads; readiness from the fleet.

    Applications are listed as models are; `applications` says which models each of them needs.
    """

    models: Mapping[str, Served]
    signatures: Mapping[str, Signature]
    refused: dict[str, str]
    fleet: Fleet
    is_open: bool = False
    applications: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    serves: Callable[[str], bool] = field(default=lambda _: True)
    """Whether the executor has a model up that no gpulet hosts."""

    def is_ready(self, name: str) -> bool:
        """Whether a request for this model would be run now: loaded somewhere that is up."""
        if name in self.applications:
            return all(self.is_ready(model) for model in self.applications[name])
        hosts = [g for g in self.fleet.gpulets if name in g.planned.models]
        return name in self.signatures and (any(g.is_up for g in hosts) if hosts else self.serves(name))

    @property
    def is_carved(self) -> bool:
        """Every gpulet is up, or where there is none every model loaded; those refused by name are not waited for."""
        wanted = [g for g in self.fleet.gpulets if not set(g.planned.models) <= set(self.refused)]
        is_loaded = bool(self.fleet.gpulets) or {*self.models} <= {*self.signatures, *self.refused, *self.applications}
        return self.is_open and is_loaded and all(g.is_up for g in wanted)
