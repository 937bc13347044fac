"""What is served, as the protocol's users see it: names, versions, signatures, readiness."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from gpulet.api.answers import Labels
from gpulet.core.fleet import Fleet
from gpulet.errors import RequestError
from gpulet.executors.base import Signature
from gpulet.model import Model

_VERSION: Final = re.compile(r"[0-9]+")


@dataclass(slots=True)
class Served:
    """One model of the catalog; `version` is the only one that serves, `shapes` its shape classes where they are few.

    `labels` are names of outputs' elements, for the classification extension.
    `pads`: they are buckets.
    """

    model: Model
    version: str
    shapes: tuple[str, ...] = ()
    labels: Labels = field(default_factory=dict)
    pads: bool = False


@dataclass(slots=True)
class Catalog:
    """Models by name. Signatures and refusals come from the executor, as it loads; readiness from the fleet.

    Applications are listed as models are; `applications` says which models each of them needs.
    """

    models: dict[str, Served]
    signatures: Mapping[str, Signature]
    refused: dict[str, str]
    fleet: Fleet
    is_open: bool = False
    applications: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    serves: Callable[[str], bool] = field(default=lambda _: True)
    """Whether the executor has a model up that no gpulet hosts."""
    asleep: Collection[str] = ()
    """Models that are loaded once they are asked for."""
    wake: Callable[[str], None] = field(default=lambda _: None)
    """A request came for a model of which not even the signature is known: load it, if it may be."""

    def find(self, name: str, version: str = "") -> Served:
        """A model that is served; raises `RequestError` for an unknown or refused one, and for another version."""
        served = self.models.get(name)
        if name in self.refused:
            msg = f"model {name} could not be loaded: {self.refused[name]}"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        if served is None:
            msg = f"unknown model {name[:256]!r}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        if version and not _VERSION.fullmatch(version):
            msg = f"version must be a whole number, is {version[:80]!r}"
            raise RequestError(msg)
        if version and version != served.version:
            msg = f"model {name} has version {served.version}, not {version[:80]}"
            raise RequestError(msg, HTTPStatus.NOT_FOUND)
        return served

    def version_of(self, name: str) -> str:
        """The one that serves now; empty for an unknown model."""
        served = self.models.get(name)
        return served.version if served else ""

    def signature(self, name: str) -> Signature:
        """What a model takes and gives; raises `RequestError` while no worker has loaded it."""
        signature = self.signatures.get(name)
        if signature is None:
            self.wake(name)
            is_shut = name in self.fleet.closed and name not in self.asleep
            msg = f"model {name} is {'not loaded' if is_shut else 'still loading'}"
            raise RequestError(msg, HTTPStatus.SERVICE_UNAVAILABLE)
        return signature

    def is_ready(self, name: str) -> bool:
        """Whether a request for this model would be run: loaded somewhere that is up, or asleep."""
        if name in self.applications:
            return all(self.is_ready(model) for model in self.applications[name])
        if name in self.fleet.closed:
            return name in self.asleep
        hosts = [g for g in self.fleet.gpulets.values() if name in g.planned.models]
        return name in self.signatures and (any(g.is_up for g in hosts) if hosts else self.serves(name))

    @property
    def is_carved(self) -> bool:
        """Every gpulet is up, or where there is none every model loaded; who is refused by name or shut is not waited for."""
        absent = {*self.refused, *self.fleet.closed}
        wanted = [g for g in self.fleet.gpulets.values() if not set(g.planned.models) <= absent]
        is_loaded = bool(self.fleet.gpulets) or {*self.models} <= {*self.signatures, *absent, *self.applications}
        return self.is_open and is_loaded and all(g.is_up for g in wanted)
