"""Two models that cost the same per row, however many are in a batch, and arrivals whose rates change step by step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from gpulet.httpwire import binary_request
from gpulet.loadgen import Check, Stream
from gpulet.model import Model
from gpulet.units import SECOND
from gpulet.workload import Arrivals, parse_trace

NAMES = ("ada", "bob")
DEADLY = -3
WIDTH, OUTPUTS = 32, 4
_ROWS, _INNER = 64, 256
_SAMPLES = 32


def save(folder: Path, name: str, layers: int, seed: int) -> None:
    """x, 32 numbers a row, to 4: each row is 64 rows of 256 through `layers` square products, so batches save nothing."""
    random = np.random.default_rng(seed)
    shapes = [(WIDTH, _ROWS * _INNER), *[(_INNER, _INNER)] * layers, (_ROWS * _INNER, OUTPUTS)]
    weights = [
        numpy_helper.from_array((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), f"w{place}")
        for place, shape in enumerate(shapes)
    ]
    apart, together = (
        numpy_helper.from_array(np.array([-1, width]), f"to{width}") for width in (_INNER, _ROWS * _INNER)
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["wide"]),
        helper.make_node("Reshape", ["wide", apart.name], ["h0"]),
    ]
    nodes += [helper.make_node("MatMul", [f"h{n}", f"w{n + 1}"], [f"h{n + 1}"]) for n in range(layers)]
    nodes += [
        helper.make_node("Reshape", [f"h{layers}", together.name], ["last"]),
        helper.make_node("MatMul", ["last", f"w{layers + 1}"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value("x", TensorProto.FLOAT, ["N", WIDTH])],
        [value("y", TensorProto.FLOAT, ["N", OUTPUTS])],
        [*weights, apart, together],
    )
    write(folder, name, graph)


def save_deadly(folder: Path, name: str) -> None:
    """x, 32 numbers a row, to the least integer modulo x + 2: on x86, where x is `DEADLY`, SIGFPE kills whoever computes it."""
    value = helper.make_tensor_value_info
    least, two = (
        numpy_helper.from_array(np.array(n), key) for n, key in ((np.iinfo(np.int64).min, "least"), (2, "two"))
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", two.name], ["divisor"]),
            helper.make_node("Mod", [least.name, "divisor"], ["y"]),
        ],
        name,
        [value("x", TensorProto.FLOAT, ["N", WIDTH])],
        [value("y", TensorProto.INT64, ["N", WIDTH])],
        [least, two],
    )
    write(folder, name, graph)


def write(folder: Path, name: str, graph: onnx.GraphProto) -> None:
    """As a model of that repository."""
    path = folder / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def prepare(folder: Path, layers: int) -> None:
    """A repository of both."""
    for seed, name in enumerate(NAMES):
        save(folder / "models", name, layers, seed)


def fleet_file(folder: Path, name: str, rates: Mapping[str, float], slo_ms: float, control: Mapping[str, Any]) -> Path:
    """A fleet of this machine's cores, planned for these rates."""
    text = '[[devices]]\nkind = "cpu"\ncores = 2\n'
    for model, rate in rates.items():
        text += f'[[models]]\nname = "{model}"\nslo_ms = {slo_ms}\nrate = {rate}\nmax_batch = 8\n'
    text += '[server]\nrepository = "models"\nhttp_port = 0\ngrpc = false\nmetrics_port = 0\nlog_format = "json"\n'
    text += "[control]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in control.items())
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def stream(model: Model, seed: int) -> Stream:
    """Requests of a row each, every answer checked against what the model computes."""
    inputs = np.random.default_rng(seed).standard_normal((_SAMPLES, 1, WIDTH)).astype(np.float32)
    described = [{"name": "x", "datatype": "FP32", "shape": [1, WIDTH]}]
    requests = [binary_request("localhost", model.name, described, [row.tobytes()]) for row in inputs]
    return Stream(model.name, model.slo, {1: requests}, _same_answer())


def _same_answer() -> Check:
    """Within rounding, which depends on a batch's size, an input always gives the same output."""
    known: dict[int, np.ndarray[Any, Any]] = {}

    def check(index: int, body: bytes, json_bytes: int) -> bool:
        output = np.frombuffer(body, np.float32, OUTPUTS, json_bytes)
        return bool(np.allclose(known.setdefault(index, output.copy()), output, rtol=1e-3, atol=1e-3))

    return check


def stepped(models: Sequence[Model], steps: Sequence[tuple[float, Mapping[str, float]]], seed: int) -> Arrivals:
    """Poisson arrivals; each step is seconds and the rates by model."""
    lines, now = ["second,model,rate"], 0.0
    for seconds, rates in steps:
        lines += [f"{now},{name},{rate}" for name, rate in rates.items()]
        now += seconds
    lines += [f"{now},{model.name},0" for model in models]
    return parse_trace("\n".join(lines) + "\n", tuple(models), round(now * SECOND), seed, "steps")
