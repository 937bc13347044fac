"""Scanning repositories: `<model>/<version>/model.onnx` and its like, with Triton's or MLServer's configuration beside them.

A model that cannot be served is refused by name, with a reason of one line; its neighbours are not touched.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from gpulet.errors import ConfigError, ModelError
from gpulet.repository.artifact import CPU_FORMATS, Artifact, Declaration
from gpulet.repository.files import digest_of, stamp_of
from gpulet.repository.mlserver import SETTINGS, name_of, read_settings
from gpulet.repository.pbtxt import CONFIG, read_pbtxt
from gpulet.repository.taking import NO_REPORT, Report, file_names, labels_of, refuse, report_of, wishes_of
from gpulet.repository.versions import available, version_folders


@dataclass(frozen=True, slots=True)
class Scan:
    """What is there: models that can be served, those that cannot and why, and what of their configurations has no effect."""

    artifacts: Mapping[str, Artifact]
    refused: Mapping[str, str]
    reports: Mapping[str, Report]


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    place: Path
    artifact: Artifact | None
    reason: str = ""
    report: Report = NO_REPORT


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model's file is and what is said of it; `folder` is the model's, where its labels are."""

    folder: Path
    name: str
    version: str
    path: Path
    declaration: Declaration
    idle: tuple[str, ...] = ()


NOTHING: Mapping[str, Artifact] = MappingProxyType({})


def scan(
    repositories: Sequence[Path], formats: Sequence[str] = CPU_FORMATS, known: Mapping[str, Artifact] = NOTHING
) -> Scan:
    """The models of all `repositories` in one of the `formats`, by name.

    Files that have not changed since `known` keep its digests, unread. Raises `ConfigError` where a repository is no folder.
    """
    found: dict[str, list[_Found]] = {}
    for repository in repositories:
        for model in _models(repository, formats, known):
            found.setdefault(model.name, []).append(model)
    single = {name: models[0] for name, models in found.items() if len(models) == 1}
    twins = {name: _twice([m.place for m in models]) for name, models in found.items() if len(models) > 1}
    return Scan(
        {name: m.artifact for name, m in single.items() if m.artifact},
        {**{name: m.reason for name, m in single.items() if m.reason}, **twins},
        {name: m.report for name, m in single.items() if m.report != NO_REPORT},
    )


def _twice(places: Sequence[Path]) -> str:
    whole = [place.absolute() for place in places]
    base = os.path.commonpath([place.parent for place in whole])
    return f"found twice: {', '.join(os.path.relpath(place, base) for place in whole)}"


def _models(repository: Path, formats: Sequence[str], known: Mapping[str, Artifact]) -> Iterator[_Found]:
    if not repository.is_dir():
        msg = f"model repository {repository} is not a directory"
        raise ConfigError(msg)
    for folder in sorted(repository.iterdir()):
        if folder.is_dir():
            yield from _model(folder, formats, known)


def _model(folder: Path, formats: Sequence[str], known: Mapping[str, Artifact]) -> Iterator[_Found]:
    """Nothing where a folder is not of a model: without a configuration, a version and a file."""
    name = folder.name
    try:
        if (folder / CONFIG).is_file():
            declaration, unknown = read_pbtxt(folder / CONFIG)
            refuse(name, declaration.config)
            artifact = _versioned(folder, declaration, formats, known)
            yield _Found(name, folder, artifact, report=report_of(declaration.config, unknown))
        elif (folder / SETTINGS).is_file():
            name = name_of(folder / SETTINGS, name)
            yield _settled(folder, formats, known)
        elif version_folders(folder):
            yield _Found(name, folder, _versioned(folder, Declaration(), formats, known))
    except ModelError as error:
        yield _Found(name, folder, None, str(error))
    except OSError as error:  # of the folder itself, or of what was taken away while we looked
        yield _Found(name, folder, None, f"its folder cannot be read: {error.strerror}")


def _versioned(
    folder: Path, declaration: Declaration, formats: Sequence[str], known: Mapping[str, Artifact]
) -> Artifact:
    """The highest version that has a file and that its policy makes available."""
    names = file_names(declaration.config, formats)
    files = {int(v.name): path for v in version_folders(folder) for path in [_first(v, names)] if path}
    if not files:
        msg = f"no version of it holds {' or '.join(names)}"
        raise ModelError(msg)
    serves, *idle = available(tuple(files), declaration.config.version_policy)
    source = _Source(folder, folder.name, str(serves), files[serves], declaration, tuple(map(str, idle)))
    return _artifact(source, known)


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """A model may also be a folder that has the file and its weights (Triton's way with large ONNX models)."""
    paths = [path for name in names for path in (folder / name, folder / name / name)]
    return next((path for path in paths if path.is_file()), None)


def _settled(folder: Path, formats: Sequence[str], known: Mapping[str, Artifact]) -> _Found:
    settings = read_settings(folder / SETTINGS)
    path = folder / settings.uri
    if path.suffix not in {Path(name).suffix for name in formats} or not path.is_file():
        msg = f"parameters.uri {settings.uri!r} is no file of a model that these devices serve"
        raise ModelError(msg)
    source = _Source(folder, settings.name, settings.version, path, settings.declaration)
    return _Found(settings.name, folder, _artifact(source, known), report=settings.report)


def _artifact(source: _Source, known: Mapping[str, Artifact]) -> Artifact:
    """With its digest, computed only where the file has changed."""
    path, declaration = source.path, source.declaration
    stamp, before = stamp_of(path), known.get(source.name)
    labels = labels_of(source.folder, declaration.config)
    others = {p for p in path.parent.iterdir() if p.is_file() and p.name != SETTINGS} - {path} | {*labels.files}
    return Artifact(
        source.name,
        source.version,
        path,
        before.digest if before and before.stamp == stamp else digest_of(path),
        declaration,
        wishes_of(declaration),
        labels,
        source.idle,
        stamp,
        tuple(stamp_of(p) for p in sorted(others)),
    )
