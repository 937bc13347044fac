"""Which models are loaded at the start, and what a later scan of the same repositories asks for. Pure: values in, values out."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from gpulet.errors import ConfigError
from gpulet.repository.artifact import Artifact

EVERY = "*"


class Control(StrEnum):
    """Who decides what is loaded: nobody after the start, requests to load and unload, or the repository as it changes."""

    NONE = "none"
    EXPLICIT = "explicit"
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Added:
    """A model that was not there."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Removed:
    """A model that is there no more."""

    artifact: Artifact


@dataclass(frozen=True, slots=True)
class Changed:
    """Another file, version or configuration."""

    before: Artifact
    artifact: Artifact


Change: TypeAlias = Added | Removed | Changed


def at_start(control: Control, there: Collection[str], load_models: Sequence[str]) -> tuple[str, ...]:
    """The models to load at the start; raises `ConfigError` for names that are not there, or where nobody may name any."""
    if control is not Control.EXPLICIT:
        if load_models:
            msg = f'[server] load_models is for model_control = "explicit", which is "{control}"'
            raise ConfigError(msg)
        return tuple(there)
    if EVERY in load_models:
        return tuple(there)
    absent = [name for name in load_models if name not in there]
    if absent:
        msg = f"[server] load_models: no model {absent[0]!r}; the repository is {', '.join(there) or 'empty'}"
        raise ConfigError(msg)
    return tuple(dict.fromkeys(load_models))


def changes(before: Mapping[str, Artifact], after: Mapping[str, Artifact]) -> list[Change]:
    """What a scan found that the one before it had not, in order of names.

    A model file that was only touched is no change: its digest is compared, not its time.
    """
    found: list[Change] = []
    for name in sorted({*before, *after}):
        if name not in before:
            found.append(Added(after[name]))
        elif name not in after:
            found.append(Removed(before[name]))
        elif _differ(before[name], after[name]):
            found.append(Changed(before[name], after[name]))
    return found


def _differ(one: Artifact, other: Artifact) -> bool:
    return _key(one) != _key(other) or one.declaration.config != other.declaration.config


def _key(artifact: Artifact) -> tuple[object, ...]:
    return (
        artifact.path,
        artifact.digest,
        artifact.beside,
        artifact.declaration.batching,
        artifact.labels,
        artifact.idle,
    )
