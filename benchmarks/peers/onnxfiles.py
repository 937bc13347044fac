"""The models that all servers run, by their published layer shapes, with random weights: what they cost is what counts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Network:
    """A model of one input `x` and one output `y`, FP32, rows first. `slo_ms` is what W2 and W4 ask of it."""

    name: str
    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    slo_ms: float
    is_heavy: bool = False

    def rows(self, count: int) -> list[Floats]:
        """Inputs to ask with."""
        random = np.random.default_rng(7)
        return [random.random((1, *self.shape), np.float32) for _ in range(count)]

    def save(self, repository: Path) -> Path:
        """As Triton and gpulet look for it, `NAME/1/model.onnx`."""
        path = repository / self.name / "1" / "model.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True)
            onnx.save(_BUILT[self.name](self), path)
        return path


class _Graph:
    """A network as it grows: one line of nodes with branches, weights by He's rule."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(1)

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def conv(self, x: str, inside: int, out: int, width: int, stride: int = 1, pad: int = -1, gain: float = 1.0) -> str:
        """With a bias, in which a batch norm would be folded."""
        pad = width // 2 if pad < 0 else pad
        weight = self._weight((out, inside, width, width), gain * (2 / (inside * width**2)) ** 0.5)
        return self.add(
            "Conv",
            x,
            weight,
            self._weight((out,), 0.01),
            pads=[pad] * 4,
            strides=[stride] * 2,
            kernel_shape=[width] * 2,
        )

    def dense(self, x: str, inside: int, out: int) -> str:
        return self.add("Gemm", x, self._weight((inside, out), inside**-0.5), self._weight((out,), 0.01))

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def _weight(self, shape: tuple[int, ...], scale: float) -> str:
        name = f"w{len(self.weights)}"
        values = self._random.standard_normal(shape, np.float32) * np.float32(scale)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def model(self, network: Network, last: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [last], ["y"]))
        graph = helper.make_graph(
            self.nodes,
            network.name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *network.shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *network.outputs])],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _identity(network: Network) -> onnx.ModelProto:
    return _Graph().model(network, "x")


def _lenet(network: Network) -> onnx.ModelProto:
    """LeCun et al. 1998 as everybody writes it: 61,706 parameters."""
    graph = _Graph()
    x = graph.relu(graph.conv("x", 1, 6, 5))
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.relu(graph.conv(x, 6, 16, 5, pad=0))
    x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = graph.add("Flatten", x)
    x = graph.relu(graph.dense(x, 400, 120))
    x = graph.relu(graph.dense(x, 120, 84))
    return graph.model(network, graph.dense(x, 84, 10))


def _resnet50(network: Network) -> onnx.ModelProto:
    """He et al. 2016, bottlenecks, the stride in the 3 x 3 convolution: 25.5 million parameters."""
    graph = _Graph()
    x = graph.relu(graph.conv("x", 3, 64, 7, 2))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    inside = 64
    for stage, count in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            side = x if block else graph.conv(x, inside, 4 * width, 1, stride)
            x = graph.relu(graph.conv(x, inside, width, 1))
            x = graph.relu(graph.conv(x, width, width, 3, stride))
            # A small last layer of each block keeps sixteen residual sums of random weights finite.
            x = graph.relu(graph.add("Add", graph.conv(x, width, 4 * width, 1, gain=0.2), side))
            inside = 4 * width
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return graph.model(network, graph.dense(x, 2048, 1000))


IDENTITY = Network("identity", (16,), (16,), 1000)
LENET = Network("lenet", (1, 28, 28), (10,), 25)
RESNET50 = Network("resnet50", (3, 224, 224), (1000,), 400, is_heavy=True)
_BUILT = {"identity": _identity, "lenet": _lenet, "resnet50": _resnet50}
