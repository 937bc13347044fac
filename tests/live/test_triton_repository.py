"""A repository made for Triton, files and all, behind a real server that a real client speaks to."""

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper
from tritonclient.utils import InferenceServerException

from gpulet.fleetfile import usable_cores
from servers import serve, table

BATCHING = """
name: "doubles"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "a" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "sum" data_type: TYPE_FP32 dims: [ 3 ] } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "gpulet.slo_ms" value { string_value: "321.5" } }
new_in_triton: 1
"""
UNBATCHED = """
backend: "onnxruntime"
max_batch_size: 0
default_model_filename: "net.onnx"
version_policy { specific { versions: [ 2 ] } }
input { name: "a" data_type: TYPE_FP32 dims: [ 2, 3 ] }
output { name: "sum" data_type: TYPE_FP32 dims: [ 2, 3 ] }
dynamic_batching { default_queue_policy { default_timeout_microseconds: 654000 } }
"""
MISMATCH = 'max_batch_size: 4 input { name: "a" data_type: TYPE_FP32 dims: 5 }'
ALONE = 'max_batch_size: 0 input { name: "a" data_type: TYPE_FP32 dims: [ -1, 3 ] }'
NAMES = ("doubles", "fixed", "adds", "unlike", "alone")


def save_sum(path, inputs, shape):
    """sum = a + a, or a + b."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [helper.make_node("Add", [inputs[0], inputs[-1]], ["sum"])],
        "adds",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    models = folder / "models"
    save_sum(models / "doubles" / "1" / "model.onnx", "a", ["N", 3])
    (models / "doubles" / "config.pbtxt").write_text(BATCHING)
    save_sum(models / "fixed" / "2" / "net.onnx", "a", [2, 3])
    save_sum(models / "fixed" / "3" / "net.onnx", "a", [9, 9])
    (models / "fixed" / "config.pbtxt").write_text(UNBATCHED)
    save_sum(models / "adds" / "1" / "model.onnx", "ab", ["N", 3])
    save_sum(models / "unlike" / "1" / "model.onnx", "a", ["N", 3])
    (models / "unlike" / "config.pbtxt").write_text(MISMATCH)
    save_sum(models / "alone" / "1" / "model.onnx", "a", ["N", 3])
    (models / "alone" / "config.pbtxt").write_text(ALONE)
    (models / "python" / "1").mkdir(parents=True)
    (models / "python" / "1" / "model.py").write_text("")
    (models / "python" / "config.pbtxt").write_text('backend: "python"')
    (folder / "p.csv").write_text(table(NAMES, cores=len(usable_cores())))
    text = '[[devices]]\nkind = "cpu"\nprofile = "p.csv"\n'
    text += "".join(f'[[models]]\nname = "{name}"\nrate = 20\n' for name in (*NAMES, "python"))
    text += '[server]\nrepository = "models"\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\n'
    (folder / "fleet.toml").write_text(text)
    with serve(folder / "fleet.toml") as running:
        yield running


@pytest.fixture
def client(server):
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def infer(client, model, **tensors):
    inputs = [triton.InferInput(name, list(data.shape), "FP32") for name, data in tensors.items()]
    for given, data in zip(inputs, tensors.values(), strict=True):
        given.set_data_from_numpy(data)
    return client.infer(model, inputs).as_numpy("sum")


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_three_models_answer_as_they_did_behind_triton(client):
    for rows in (1, 8):
        assert (infer(client, "doubles", a=numbers(rows, 3)) == 2 * numbers(rows, 3)).all()
        added = infer(client, "adds", a=numbers(rows, 3), b=np.ones((rows, 3), np.float32))
        assert (added == numbers(rows, 3) + 1).all()
    assert (infer(client, "fixed", a=numbers(2, 3)) == 2 * numbers(2, 3)).all()
    with pytest.raises(InferenceServerException, match="takes 1 to 8 rows, not 9"):
        infer(client, "doubles", a=numbers(9, 3))


def test_objectives_come_from_parameters_then_from_the_queue_policy(client):
    said = {name: client.get_model_metadata(name)["parameters"] for name in ("doubles", "fixed", "adds")}
    assert {name: parameters["gpulet.slo_ms"] for name, parameters in said.items()} == {
        "doubles": 321.5,
        "fixed": 654,
        "adds": 25,
    }
    assert said["doubles"]["gpulet.max_batch"] == 8
    assert client.get_model_metadata("fixed")["versions"] == ["2"]


def test_what_cannot_be_served_is_refused_by_name_with_its_reason(server, client):
    assert client.is_server_ready()
    with pytest.raises(InferenceServerException, match="backend 'python' is not served"):
        infer(client, "python", a=numbers(1, 3))
    with pytest.raises(InferenceServerException, match=r"input a: expected shape \[-1, 5\], the model has \[-1, 3\]"):
        infer(client, "unlike", a=numbers(1, 3))
    assert {event["model"] for event in server.all("model_refused")} == {"python", "unlike"}


def test_what_has_no_effect_is_told_once(server):
    (unknown,) = server.all("config_unknown")
    assert (unknown["model"], unknown["fields"], unknown["level"]) == ("doubles", ["new_in_triton"], "WARNING")
    (ignored,) = server.all("config_not_used")
    assert ignored["fields"] == [
        "instance_group",
        "dynamic_batching.preferred_batch_size",
    ]


def test_a_model_that_does_no_batching_takes_any_first_dimension_and_runs_alone(client):
    for rows in (1, 5):
        assert (infer(client, "alone", a=numbers(rows, 3)) == 2 * numbers(rows, 3)).all()
    config = client.get_model_config("alone")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [-1, 3])
