"""An imaginary model runtime on an imaginary GPU: models that are only numbers, memory that is only counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gpulet.device import Kind
from gpulet.errors import DeviceFull, ModelError
from gpulet.executors.base import Signature
from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.fake import FakeCudaDriver, topology_of
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ports import Mark, Stream
from gpulet.executors.cuda.runtime import Answered, GraphKey, Need, Tensors
from gpulet.executors.simulated import EMULATED
from gpulet.executors.wire import WorkerModel
from gpulet.units import MIB, MS, Duration


@dataclass(frozen=True, slots=True)
class ImaginaryModel:
    """What a model costs; `latency` on one group, `error` is how far its replays are from the whole GPU's."""

    weights: int = 100 * MIB
    staging: int = MIB
    pool: int = 50 * MIB
    latency: Duration = MS
    error: float = 0.0


class ImaginaryGraph:
    """Answers each row by a zero, after the model's latency."""

    def __init__(self, runtime: "ImaginaryRuntime", key: GraphKey, stream: Stream, latency: Duration) -> None:
        self.key = key
        self._runtime = runtime
        self._stream = stream
        self._latency = latency
        self.mark = runtime.driver.make_mark()
        self._is_open = True

    def replay(self, rows: int, inputs: Tensors) -> Mark:
        """Rows that are not whole numbers of float32 are refused, as a runtime refuses a shape."""
        assert self._is_open, f"{self.key} is replayed after it was given back"
        assert rows <= self.key.bucket, f"{self.key} is replayed with {rows} rows"
        size = sum(len(part) for tensor in inputs for part in tensor)
        if size % (4 * rows):
            msg = f"{size} bytes are not {rows} rows of FP32"
            raise ModelError(msg)
        self._runtime.driver.spin(self._stream, self._latency)
        self._runtime.driver.put(self.mark, self._stream)
        return self.mark

    def outputs(self, rows: int) -> Sequence[Answered]:
        """A float32 zero for each row."""
        return (Answered((rows, 1), memoryview(bytes(4 * rows))),)

    def close(self) -> None:
        """Give its memory back."""
        assert self._is_open, f"{self.key} is given back twice"
        self._is_open = False
        self._runtime.driver.destroy_mark(self.mark)
        self._runtime.forget(self.key)


class ImaginaryRuntime:
    """On a `FakeCudaDriver`'s memory. As in PyTorch, a share's pool is as large as its largest graph ever asked."""

    graph = ImaginaryGraph

    def __init__(self, driver: FakeCudaDriver, models: Mapping[str, ImaginaryModel]) -> None:
        self.driver = driver
        self.calls: Counter[str] = Counter()
        self._models = models
        self._loaded: set[str] = set()
        self._captured: set[GraphKey] = set()
        self._pools: dict[Interval, int] = {}

    def need(self, key: GraphKey) -> Need:
        """Exactly what it will take; buffers go with the batch."""
        known = self._known(key.model)
        return Need(known.weights, known.staging * key.bucket, known.pool * key.bucket)

    def load(self, model: str) -> Signature:
        """Take the memory of its weights."""
        self.calls["load"] += 1
        assert model not in self._loaded, f"{model} is loaded twice"
        self._take(self._known(model).weights)
        self._loaded.add(model)
        return EMULATED

    def unload(self, model: str) -> None:
        """No graph may refer to it."""
        assert all(key.model != model for key in self._captured), f"{model} is unloaded below its graphs"
        self._loaded.remove(model)
        self.driver.used -= self._models[model].weights

    def capture(self, key: GraphKey, share: Share) -> ImaginaryGraph:
        """Take its buffers, and what its share's pool lacks."""
        self.calls["capture"] += 1
        assert key.model in self._loaded, f"{key.model} is captured but not loaded"
        assert key not in self._captured, f"{key} is captured twice"
        need, pool = self.need(key), self._pools.get(key.interval, 0)
        latency = self._models[key.model].latency * 8 // share.sms
        graph = self.graph(self, key, share.stream, latency)
        try:
            self._take(need.staging + max(0, need.pool - pool))
        except DeviceFull:
            self.driver.destroy_mark(graph.mark)
            raise
        self._pools[key.interval] = max(pool, need.pool)
        self._captured.add(key)
        return graph

    def error(self, key: GraphKey, graph: ImaginaryGraph) -> float:
        """What the model was made with."""
        self.calls["error"] += 1
        return self._models[key.model].error

    def forget(self, key: GraphKey) -> None:
        """A graph is gone; the pool goes with its last."""
        self._captured.remove(key)
        self.driver.used -= self.need(key).staging
        if all(other.interval != key.interval for other in self._captured):
            self.driver.used -= self._pools.pop(key.interval)

    def _known(self, model: str) -> ImaginaryModel:
        if model not in self._models:
            msg = f"model {model} is not one of the imaginary ones"
            raise ModelError(msg)
        return self._models[model]

    def _take(self, size: int) -> None:
        memory = self.driver.memory()
        if size > memory.free:
            msg = f"imaginary runtime: {size} bytes asked, {memory.free} of {memory.total} free"
            raise DeviceFull(msg)
        self.driver.used += size


def open_imaginary(
    models: Sequence[WorkerModel], kind: Kind, make: type[ImaginaryRuntime] = ImaginaryRuntime
) -> Callable[[], tuple[FakeCudaDriver, ImaginaryRuntime]]:
    """A worker's GPU of that kind, with imaginary models of those names."""
    known = {model.name: ImaginaryModel() for model in models}
    topology = topology_of(kind.sms)

    def opened() -> tuple[FakeCudaDriver, ImaginaryRuntime]:
        driver = FakeCudaDriver(topology)
        return driver, make(driver, known)

    return opened
