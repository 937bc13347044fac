"""The graphs of one GPU, built when a plan wants them, kept until their memory is wanted. The builder's thread only."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gpulet.errors import Unproven
from gpulet.executors.base import Signature
from gpulet.executors.cuda.contexts import ContextPool, Share
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ledger import MemoryLedger
from gpulet.executors.cuda.runtime import Graph, GraphKey, ModelRuntime, Need

TOLERANCE = 0.02
"""Of a replay on a share from the whole GPU: kernels may differ, so low-precision sums do (to be measured, E13)."""


@dataclass(slots=True)
class GraphCache:
    """Graphs by key, the least recently wanted first. Every graph holds its share; every model's weights are there once."""

    pool: ContextPool
    runtime: ModelRuntime
    ledger: MemoryLedger
    signatures: dict[str, Signature] = field(default_factory=dict)
    _graphs: dict[GraphKey, Graph] = field(default_factory=dict)

    def __contains__(self, key: GraphKey) -> bool:
        return key in self._graphs

    @property
    def keys(self) -> tuple[GraphKey, ...]:
        """What is built."""
        return tuple(self._graphs)

    def graph(self, key: GraphKey) -> Graph:
        """One that was built."""
        return self._graphs[key]

    def bytes_of(self, model: str) -> int:
        """By the ledger: its weights and what its graphs have for themselves."""
        return self.ledger.alone(self._needs([key for key in self._graphs if key.model == model]))

    def make_room(self, wanted: Collection[GraphKey], kept: Collection[GraphKey]) -> None:
        """Give up what is neither wanted nor kept until the rest fits; raises `PlanError` where that is not enough.

        Nothing is given up for what does not fit anyway.
        """
        needed = {*wanted, *kept}
        self.ledger.fit(self._needs(needed))
        for key in tuple(self._graphs):
            if self.ledger.can_fit(self._needs(needed | self._graphs.keys())):
                return
            if key not in needed:
                self.drop(key)

    def build(self, key: GraphKey) -> Graph:
        """Load, capture and check one graph, or find it; raises `ModelError`, `DeviceError`, `Unproven`."""
        if key in self._graphs:
            self._graphs[key] = self._graphs.pop(key)  # wanted again, so given up last
            return self._graphs[key]
        share = self.pool.share(key.interval)
        try:
            graph = self._capture(key, share)
        except Exception:
            self._drop_unused(key.interval)
            raise
        self.pool.hold(key.interval)
        self._graphs[key] = graph
        return graph

    def error(self, key: GraphKey) -> float:
        """How far a graph's results are from the whole GPU's."""
        return self.runtime.error(key, self._graphs[key])

    def check(self, key: GraphKey) -> None:
        """Show that a graph computes what the whole GPU does; raises `Unproven`."""
        error = self.error(key)
        if not error <= TOLERANCE:  # a NaN is no proof either
            msg = f"graph {key} is {error:g} off the whole GPU's result; {TOLERANCE:g} is allowed"
            raise Unproven(msg)

    def drop(self, key: GraphKey) -> None:
        """Give a graph back; a model that no graph needs any more is unloaded, a share that nobody holds is dropped."""
        self._graphs.pop(key).close()
        self.pool.release(key.interval)
        self._unload_unused(key.model)
        self._drop_unused(key.interval)

    def close(self) -> None:
        """Give everything back."""
        for key in self.keys:
            self.drop(key)

    def _capture(self, key: GraphKey, share: Share) -> Graph:
        if key.model not in self.signatures:
            self.signatures[key.model] = self.runtime.load(key.model)
        try:
            return self.runtime.capture(key, share)
        except Exception:
            self._unload_unused(key.model)
            raise

    def _drop_unused(self, interval: Interval) -> None:
        if interval in self.pool.idle():
            self.pool.drop(interval)

    def _unload_unused(self, model: str) -> None:
        if all(key.model != model for key in self._graphs):
            self.runtime.unload(model)
            del self.signatures[model]

    def _needs(self, keys: Collection[GraphKey]) -> Mapping[GraphKey, Need]:
        return {key: self.runtime.need(key) for key in keys}
