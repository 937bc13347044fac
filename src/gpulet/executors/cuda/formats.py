"""Which runtime runs which model file, as one runtime. A format's runtime is made when its first model is asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from gpulet.errors import ModelError
from gpulet.executors.base import Signature
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.runtime import Graph, GraphKey, ModelRuntime, Need
from gpulet.executors.cuda.sources import ModelSource

_REFUSED = (
    "a TensorRT plan chose its kernels for the whole GPU when it was built and may start streams of its own, "
    "so it is not shown to stay on a share; export the model to .pt2 or .onnx"
)
REFUSED: Mapping[str, str] = {".plan": _REFUSED, ".engine": _REFUSED}
"""Formats that are known and not served, and why."""


class Runtimes:
    """Models of several formats; `makers` by the ending of their files' names."""

    def __init__(self, models: Mapping[str, ModelSource], makers: Mapping[str, Callable[[], ModelRuntime]]) -> None:
        self._models = models
        self._makers = makers
        self._made: dict[str, ModelRuntime] = {}

    def need(self, key: GraphKey) -> Need:
        """What it takes."""
        return self._of(key.model).need(key)

    def load(self, model: str) -> Signature:
        """Put the weights on the GPU."""
        return self._of(model).load(model)

    def unload(self, model: str) -> None:
        """Take them off."""
        self._of(model).unload(model)

    def capture(self, key: GraphKey, share: Share) -> Graph:
        """Make its graph."""
        return self._of(key.model).capture(key, share)

    def error(self, key: GraphKey, graph: Graph) -> float:
        """How far a replay is from the whole GPU."""
        return self._of(key.model).error(key, graph)

    def _of(self, model: str) -> ModelRuntime:
        ending = self._ending(model)
        if ending not in self._made:
            try:
                self._made[ending] = self._makers[ending]()
            except ImportError as error:
                msg = f"model {model}: {ending} files need the package {error.name}, which is not installed"
                raise ModelError(msg) from None
        return self._made[ending]

    def _ending(self, model: str) -> str:
        if model not in self._models:
            msg = f"model {model} has no file here"
            raise ModelError(msg)
        path = Path(self._models[model].path)
        if path.suffix not in self._makers:
            reason = REFUSED.get(path.suffix, f"served are {', '.join(self._makers)}")
            msg = f"model {model}: {path.name} is not served: {reason}"
            raise ModelError(msg)
        return path.suffix
