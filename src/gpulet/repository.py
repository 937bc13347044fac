"""A model repository on disk: `<model>/<version>/model.onnx` and its like, the highest whole-number version serves.

Nothing is run here and no model runtime is imported: what a model takes and gives is told by the worker that loads it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpulet.errors import ConfigError, ModelError

CPU_FORMATS = ("model.onnx",)
GPU_FORMATS = ("model.pt2", "model.pt", "model.onnx", "model.plan")
"""The first that a version's folder has is served: torch.export, TorchScript, ONNX; TensorRT plans are refused by name."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One model on disk: `digest` is the SHA-256 of its file, `version` the folder it stands in."""

    name: str
    version: str
    path: Path
    digest: str


def scan(repository: Path, formats: Sequence[str] = CPU_FORMATS) -> dict[str, Artifact]:
    """The models of a repository in one of the `formats`, by name.

    Raises `ConfigError` where there is no folder or no model in it.
    """
    if not repository.is_dir():
        msg = f"model repository {repository} is not a directory"
        raise ConfigError(msg)
    found = [_artifact(folder, formats) for folder in sorted(repository.iterdir()) if folder.is_dir()]
    artifacts = {item.name: item for items in found for item in items}
    if not artifacts:
        msg = f"model repository {repository} holds no <model>/<version>/{' or '.join(formats)}"
        raise ConfigError(msg)
    return artifacts


def _artifact(folder: Path, formats: Sequence[str]) -> list[Artifact]:
    return [Artifact(folder.name, version, path, _digest(path)) for version, path in _latest(folder, formats)]


def _latest(folder: Path, formats: Sequence[str]) -> list[tuple[str, Path]]:
    """Folders that are not a whole number or start with 0 are not versions (Triton's rule)."""
    if not folder.is_dir():
        return []
    versions = [v for v in folder.iterdir() if v.name.isdecimal() and v.name[0] != "0" and _files(v, formats)]
    if not versions:
        return []
    latest = max(versions, key=lambda v: int(v.name))
    return [(latest.name, _files(latest, formats)[0])]


class Finder:
    """One model at a time, as it stands in a repository now; a file is read again only if it is another."""

    def __init__(self, repository: Path, formats: Sequence[str], known: Iterable[Artifact] = ()) -> None:
        self._repository = repository
        self._formats = formats
        self._digests = {(item.path, *_stamp(item.path)): item.digest for item in known}

    def find(self, name: str) -> Artifact:
        """Reads the whole of a file that is new: call it on a thread. Raises `ModelError` where there is no such model."""
        try:
            found = _latest(self._repository / name, self._formats)
            if not found:
                msg = "no version is available"
                raise ModelError(msg)
            version, path = found[0]
            key = (path, *_stamp(path))
            if key not in self._digests:
                self._digests[key] = _digest(path)
        except OSError as error:
            msg = f"it cannot be read: {error.strerror}"
            raise ModelError(msg) from None
        return Artifact(name, version, path, self._digests[key])


def _stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_mtime_ns, told.st_size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(version: Path, formats: Sequence[str]) -> list[Path]:
    return [version / name for name in formats if (version / name).is_file()]
