"""One model on disk, and what its own configuration asks for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from gpulet.modelconfig import ModelConfig
from gpulet.repository.files import Stamp, read_text
from gpulet.units import Duration

CPU_FORMATS = ("model.onnx",)
GPU_FORMATS = ("model.pt2", "model.pt", "model.onnx", "model.plan")
"""The first that a version's folder has is served: torch.export, TorchScript, ONNX; TensorRT plans are refused by name."""


class Batching(StrEnum):
    """Whose word `max_batch_size` is: the file's, 0 meaning that the model does no batching; or the model's own."""

    AS_WRITTEN = "as written"
    BY_MODEL = "by model"


@dataclass(frozen=True, slots=True)
class Declaration:
    """A `ModelConfig` and how its `max_batch_size` is to be read. The message is never changed once it is here."""

    config: Any = field(default_factory=ModelConfig)
    batching: Batching = Batching.BY_MODEL

    @property
    def batches(self) -> bool:
        """Whether requests may share a run."""
        return self.batching is Batching.BY_MODEL or self.config.max_batch_size > 0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a configuration asks of the server, 0 where it says nothing: objective, most rows of a batch, most that may wait.

    `max_queue_delay` is how long they may wait for a fuller batch. `shapes` are the free dimensions that are served, as in a fleet file.
    """

    slo: Duration = 0
    max_batch: int = 0
    max_queue: int = 0
    shapes: tuple[str, ...] = ()
    max_queue_delay: Duration = 0


NO_WISHES = Wishes()


class Labels(Mapping[str, tuple[str, ...]]):
    """Labels by output, one for each index; a file is read when its output is first asked for."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        self._read: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, output: str) -> tuple[str, ...]:
        """One for each line; raises `ModelError` where the file cannot be read."""
        if output not in self._read:
            self._read[output] = tuple(read_text(self._files[output]).splitlines())
        return self._read[output]

    @property
    def files(self) -> tuple[Path, ...]:
        """Where they are."""
        return tuple(self._files.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self._files == other._files

    def __hash__(self) -> int:
        return hash(tuple(self._files.items()))


@dataclass(frozen=True, slots=True)
class Artifact:
    """One model on disk: `digest` is the SHA-256 of its file, `version` the folder it stands in.

    `idle` are other versions that its policy makes available and nobody serves. `stamp` tells cheaply whether the file
    changed, `beside` whether any did that belongs to it: weights kept apart, a signature, labels.
    """

    name: str
    version: str
    path: Path
    digest: str
    declaration: Declaration = field(default_factory=Declaration)
    wishes: Wishes = NO_WISHES
    labels: Labels = field(default_factory=lambda: Labels({}))
    idle: tuple[str, ...] = ()
    stamp: Stamp = ("", 0, 0)
    beside: tuple[Stamp, ...] = ()
