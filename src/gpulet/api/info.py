"""What is told of server and models, as plain documents in the protocol's words: JSON for HTTP, messages for gRPC."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gpulet import __version__
from gpulet.api.catalog import Catalog
from gpulet.api.control import Control
from gpulet.api.regions import Regions
from gpulet.errors import RequestError
from gpulet.executors.base import Signature, Tensor

Document = dict[str, Any]
_EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
)


@dataclass(frozen=True, slots=True)
class Info:
    """Answers both protocols' questions; refusals are `RequestError`s.

    `statistics` of a model (name, version), or of all; `configs`: what a repository says of its models, as Triton's
    ModelConfig.
    """

    catalog: Catalog
    regions: Regions
    control: Control
    statistics_of: Callable[[str, str], Document]
    config_of: Callable[[str, Signature], Document]

    def server(self) -> Document:
        """Name, version, extensions."""
        left_out = set() if self.regions.is_allowed else {"system_shared_memory"}
        return {
            "name": "gpulet",
            "version": __version__,
            "extensions": [name for name in _EXTENSIONS if name not in left_out],
        }

    def model(self, name: str, version: str) -> Document:
        """What a model takes and gives."""
        served = self.catalog.find(name, version)
        signature = self.catalog.signature(name)
        return {
            "name": name,
            "versions": [served.version],
            "platform": signature.platform,
            "inputs": [_tensor(t) for t in signature.inputs],
            "outputs": [_tensor(t) for t in signature.outputs],
            "parameters": {"gpulet.slo_ms": served.model.slo / 1e6, "gpulet.max_batch": served.model.max_batch},
        }

    def is_ready(self, name: str, version: str) -> bool:
        """Whether a request for this model would be run now."""
        self.catalog.find(name, version)
        return self.catalog.is_ready(name)

    def config(self, name: str, version: str) -> Document:
        """Triton's ModelConfig."""
        self.catalog.find(name, version)
        return self.config_of(name, self.catalog.signature(name))

    def statistics(self, name: str, version: str) -> Document:
        """Triton's `model_stats`, of one model or of all."""
        if name:
            self.catalog.find(name, version)
        return self.statistics_of(name, version)

    def index(self, *, only_ready: bool) -> list[Document]:
        """The repository's models and how they are."""
        rows = self.control.index(ready=only_ready)
        return [{"name": r.name, "version": r.version, "state": r.state, "reason": r.reason} for r in rows]

    async def load(self, name: str, parameters: Document) -> None:
        """Load a model; a configuration or files in the request are refused: the repository says what is served."""
        for key in parameters:
            if key == "config" or key.startswith("file:"):
                msg = f"failed to load {name[:256]!r}: parameter {key[:80]!r} is not supported, change the repository"
                raise RequestError(msg)
        await self.control.load(name)

    async def unload(self, name: str) -> None:
        """Unload a model."""
        await self.control.unload(name)


def _tensor(tensor: Tensor) -> Document:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
