"""A model repository on disk: `<model>/<version>/model.onnx`, the highest whole-number version serves.

Nothing is run here and no model runtime is imported: what a model takes and gives is told by the worker that loads it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gpulet.errors import ConfigError

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One model on disk: `digest` is the SHA-256 of its file, `version` the folder it stands in."""

    name: str
    version: str
    path: Path
    digest: str


def scan(repository: Path) -> dict[str, Artifact]:
    """The models of a repository, by name; raises `ConfigError` where there is no folder or no model in it."""
    if not repository.is_dir():
        msg = f"model repository {repository} is not a directory"
        raise ConfigError(msg)
    found = [_artifact(folder) for folder in sorted(repository.iterdir()) if folder.is_dir()]
    artifacts = {item.name: item for items in found for item in items}
    if not artifacts:
        msg = f"model repository {repository} holds no <model>/<version>/{MODEL_FILE}"
        raise ConfigError(msg)
    return artifacts


def _artifact(folder: Path) -> list[Artifact]:
    """Folders that are not a whole number or start with 0 are not versions (Triton's rule)."""
    versions = [v for v in folder.iterdir() if v.name.isdecimal() and v.name[0] != "0" and (v / MODEL_FILE).is_file()]
    if not versions:
        return []
    latest = max(versions, key=lambda v: int(v.name))
    path = latest / MODEL_FILE
    return [Artifact(folder.name, latest.name, path, hashlib.sha256(path.read_bytes()).hexdigest())]
