"""How much of an exported program's results is alive at once, from its own shapes: an estimate until a capture is measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.fx import Graph, Node

Dimension: TypeAlias = Any
"""A number, or PyTorch's symbolic expression of one."""


@dataclass(frozen=True, slots=True)
class _Value:
    """Tensors that a node makes, as (bytes of an element, dimensions), and the last step that reads them."""

    tensors: tuple[tuple[int, tuple[Dimension, ...]], ...]
    born: int
    dies: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The values of a program, and its inputs' dimensions. Views are counted as if they were copies."""

    inputs: tuple[tuple[Dimension, ...], ...]
    values: tuple[_Value, ...]

    def peak(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """Bytes of all values that are alive at once, at most, for inputs of these shapes."""
        symbols = {
            symbol: size
            for dims, shape in zip(self.inputs, shapes, strict=True)
            for symbol, size in zip(dims, shape, strict=True)
            if not isinstance(symbol, int)
        }
        known: dict[Dimension, int] = {}
        changes: dict[int, int] = {}
        for value in self.values:
            size = sum(_size(tensor, symbols, known) for tensor in value.tensors)
            changes[value.born] = changes.get(value.born, 0) + size
            changes[value.dies + 1] = changes.get(value.dies + 1, 0) - size
        alive = peak = 0
        for step in sorted(changes):
            alive += changes[step]
            peak = max(peak, alive)
        return peak


def sizes_of(graph: Graph, inputs: Sequence[str]) -> Sizes:
    """Weights are not counted: they are there once, whatever runs."""
    steps = {node: step for step, node in enumerate(graph.nodes)}
    by_name = {node.name: node for node in steps}
    made = [node for node in steps if node.op == "call_function" or node.name in inputs]
    values = (
        _Value(tuple(_tensors(node)), steps[node], max((steps[u] for u in node.users), default=steps[node]))
        for node in made
    )
    dims = (tuple(_plain(n) for n in by_name[name].meta["val"].shape) for name in inputs)
    return Sizes(tuple(dims), tuple(values))


def _tensors(node: Node) -> Iterator[tuple[int, tuple[Dimension, ...]]]:
    found = node.meta.get("val")
    for value in found if isinstance(found, (tuple, list)) else (found,):
        if isinstance(value, torch.Tensor):
            yield value.element_size(), tuple(_plain(n) for n in value.shape)


def _plain(size: int | torch.SymInt) -> Dimension:
    return size if isinstance(size, int) else size.node.expr


def _size(
    tensor: tuple[int, tuple[Dimension, ...]], symbols: Mapping[Dimension, int], known: dict[Dimension, int]
) -> int:
    size, dims = tensor
    for n in dims:
        if n not in known:
            known[n] = n if isinstance(n, int) else _value(n, symbols)
        size *= known[n]
    return size


def _value(expression: Dimension, symbols: Mapping[Dimension, int]) -> int:
    """Sizes that depend on the data count as one: such a program cannot be captured anyway."""
    filled = expression.subs(symbols)
    return int(filled.subs(dict.fromkeys(filled.free_symbols, 1)))
