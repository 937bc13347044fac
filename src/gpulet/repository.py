"""A model repository on disk: `<model>/<version>/model.onnx` and its like, the highest whole-number version serves.

Nothing is run here and no model runtime is imported: what a model takes and gives is told by the worker that loads it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpulet.errors import ConfigError

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
    """Folders that are not a whole number or start with 0 are not versions (Triton's rule)."""
    versions = [v for v in folder.iterdir() if v.name.isdecimal() and v.name[0] != "0" and _files(v, formats)]
    if not versions:
        return []
    latest = max(versions, key=lambda v: int(v.name))
    path = _files(latest, formats)[0]
    return [Artifact(folder.name, latest.name, path, hashlib.sha256(path.read_bytes()).hexdigest())]


def _files(version: Path, formats: Sequence[str]) -> list[Path]:
    return [version / name for name in formats if (version / name).is_file()]
