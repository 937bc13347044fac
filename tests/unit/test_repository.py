"""Repositories in folders of their own: what is found, what is refused by name, what is only reported."""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.config import parse_fleet_file
from gpulet.errors import ConfigError, ModelError
from gpulet.executors.base import Signature, Tensor
from gpulet.executors.shelf import Shelf
from gpulet.executors.wire import ModelReady
from gpulet.fleetfile import open_site
from gpulet.problems import load_profile, make_problem
from gpulet.repository import GPU_FORMATS, scan
from gpulet.repository.artifact import Batching, Declaration
from gpulet.repository.completing import as_json, check, complete
from gpulet.repository.controlling import Added, Changed, Control, Removed, at_start, changes
from gpulet.repository.pbtxt import parse_pbtxt
from gpulet.repository.taking import Report, report_of, wishes_of
from gpulet.repository.verdicts import VERDICTS, Use
from gpulet.units import MS, US


def put(repository, name, *versions, config=None, file="model.onnx", **files):
    for version in versions or ("1",):
        (repository / name / version).mkdir(parents=True)
        (repository / name / version / file).write_bytes(f"{name} {version}".encode())
    if config is not None:
        (repository / name / "config.pbtxt").write_text(config)
    for other, text in files.items():
        (repository / name / other).write_text(text)


def declared(text):
    return parse_pbtxt(text)[0]


# config.pbtxt --------------------------------------------------------------------------------------------------------


WHOLE = """
# a comment
name: "m"
platform: "onnxruntime_onnx" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] reshape: { shape: [ 4 ] } } ]
output { name: "y", data_type: TYPE_FP32; dims: 4 label_filename: "labels.txt" }
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  default_queue_policy { default_timeout_microseconds: 40000 max_queue_size: 16 }
}
instance_group [ { kind: KIND_CPU count: 2 } ]
parameters { key: "gpulet.slo_ms" value { string_value: "2" '5' } }
parameters: { key: "intra_op_thread_count" value: < string_value: "2" > }
"""


def test_a_whole_configuration_is_taken(tmp_path):
    put(tmp_path, "m", config=WHOLE, **{"labels.txt": "cat\ndog\n"})
    found = scan([tmp_path])
    artifact = found.artifacts["m"]
    assert found.refused == {}
    assert (artifact.wishes.slo, artifact.wishes.max_batch, artifact.wishes.max_queue) == (25 * MS, 8, 16)
    assert artifact.labels["y"] == ("cat", "dog")
    assert found.reports["m"].unknown == ()
    assert set(found.reports["m"].not_used) == {
        "dynamic_batching.preferred_batch_size",
        "instance_group",
        "parameters.intra_op_thread_count",
    }


def test_unknown_fields_are_all_reported_and_the_model_serves(tmp_path):
    text = """
    max_batch_size: 4
    colour: "red" "der"
    speed: -1.5
    input { name: "x" data_type: TYPE_FP32 dims: 4 shade: [ 1, 2 ] }
    input { name: "z" data_type: TYPE_FP32 dims: 4 shade: 3 }
    kitchen { sink < tap: [ { hot: true } ] > list: [] }
    dynamic_batching { default_queue_policy { patience: 1 } }
    parameters { key: "gpulet.slo" value { string_value: "1" mood: GOOD } }
    """
    put(tmp_path, "m", config=text)
    found = scan([tmp_path])
    assert found.reports["m"].unknown == (
        "colour",
        "speed",
        "input.shade",
        "kitchen",
        "dynamic_batching.default_queue_policy.patience",
        "parameters.value.mood",
        "parameters.gpulet.slo",
    )
    assert found.artifacts["m"].wishes.max_batch == 4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_batch_size: many", "config.pbtxt: 1:17 : 'max_batch_size: many': Couldn't parse integer: many"),
        ("input { data_type: TYPE_FP33 }", 'Enum type "DataType" has no value named TYPE_FP33'),
        ("input {", "config.pbtxt: 1:"),
        ("max_batch_size: 1 max_batch_size: 2", "should not have multiple"),
        ("input " + "{ reshape " * 3000, "config.pbtxt: "),
    ],
)
def test_text_that_is_no_configuration_is_refused_with_its_line(text, why):
    with pytest.raises(ModelError) as caught:
        parse_pbtxt(text)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.lists(st.sampled_from([*"{}[]<>:,;\"'#-x1\n", " ", "name", "input", '"a"', "max_batch_size:"])).map("".join))
def test_any_text_is_a_configuration_or_a_model_error(text):
    with suppress(ModelError):
        parse_pbtxt(text)


REFUSED = {
    'name: "other"': "config.pbtxt names it 'other', its folder 'm'",
    'platform: "tensorrt_plan"': "platform 'tensorrt_plan' is not served",
    'backend: "python"': "backend 'python' is not served",
    'platform: "onnxruntime_onnx" backend: "pytorch"': "platform 'onnxruntime_onnx' is not of backend 'pytorch'",
    'platform: "ensemble"': "ensemble_scheduling: write the stages",
    "max_batch_size: -1": "max_batch_size is -1",
    'input { name: "x" dims: 4 reshape { shape: [ 2, 2 ] } }': "input x: reshape [2, 2] of dims [4]",
    'input { name: "x" dims: 4 reshape { } }': "input x: reshape [] of dims [4]",
    'input { name: "x" dims: 0 }': "input x: dims must be above 0",
    "input { dims: 1 }": "input: one has no name",
    'output { name: "y" dims: 1 label_filename: "../secrets" }': "label_filename '../secrets' is outside",
    'output { name: "y" dims: 1 label_filename: "none.txt" }': "output y: label_filename 'none.txt' is not there",
    'default_model_filename: "/etc/model.onnx"': "'/etc/model.onnx' is outside the model's folder",
    'default_model_filename: "other.onnx"': "no version of it holds other.onnx",
    'default_model_filename: "model.bin"': "default_model_filename 'model.bin': served on these devices are .onnx",
    'platform: "pytorch_libtorch"': "pytorch_libtorch: these devices serve model.onnx",
    "version_policy { specific { versions: [ 7, 8 ] } }": "version_policy asks for 7, 8; there is 1",
    'parameters { key: "gpulet.slo_ms" value { string_value: "soon" } }': "'soon' is not a number of milliseconds",
    'parameters { key: "gpulet.slo_ms" value { string_value: "" } }': "'' is not a number of milliseconds",
    'parameters { key: "gpulet.slo_ms" value { string_value: "1e300" } }': "an objective of 1e+297 s is longer than a day",
    "dynamic_batching { default_queue_policy { default_timeout_microseconds: 18446744073709551615 } }": "than a day",
    'parameters { key: "gpulet.slo_ms" value { string_value: "nan" } }': "'nan' is not a number of milliseconds",
    'parameters { key: "gpulet.shapes" value { string_value: "16,ax2" } }': "'ax2' is no shape",
    'input { name: "x" dims: 4 allow_ragged_batch: true }': "input.allow_ragged_batch: ragged",
    "model_transaction_policy { decoupled: true }": "model_transaction_policy.decoupled: every request",
    "response_cache { enable: true }": "response_cache.enable: answers",
    "sequence_batching { }": "sequence_batching: no state",
    'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }': "execution_accelerators",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_done_is_refused_by_name_and_neighbours_are_not_touched(tmp_path, text):
    put(tmp_path, "m", config=text)
    put(tmp_path, "n")
    found = scan([tmp_path])
    assert list(found.artifacts) == ["n"]
    assert REFUSED[text] in found.refused["m"]
    assert "\n" not in found.refused["m"]


@pytest.mark.parametrize(
    "text",
    [
        "model_transaction_policy { decoupled: false }",
        "response_cache { enable: false }",
        "dynamic_batching { }",
        'backend: "onnxruntime"',
        'name: "m"',
        "",
    ],
)
def test_what_changes_nothing_is_neither_refused_nor_reported(tmp_path, text):
    put(tmp_path, "m", config=text)
    found = scan([tmp_path])
    assert (list(found.artifacts), found.refused, found.reports) == (["m"], {}, {})


def test_every_field_that_is_not_used_is_reported_when_it_is_set():
    text = """
    runtime: "x" metric_tags { key: "a" value: "b" } model_metrics { metric_control { } } model_warmup { name: "w" }
    instance_group { count: 2 } input { name: "x" format: FORMAT_NHWC }
    optimization { graph { level: 1 } priority: PRIORITY_MAX cuda { graphs: true } input_pinned_memory { enable: true }
      output_pinned_memory { enable: true } gather_kernel_buffer_threshold: 1 eager_batching: true }
    dynamic_batching { preferred_batch_size: 4 preserve_ordering: true
      priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 1 value { max_queue_size: 1 } }
      default_queue_policy { timeout_action: DELAY allow_timeout_override: true } }
    """
    report = report_of(declared(text).config, ())
    assert sorted(report.not_used) == sorted(path for path, v in VERDICTS.items() if v.use is Use.NOT_USED)


def test_the_objective_is_the_parameters_before_the_queues():
    policy = "dynamic_batching { default_queue_policy { default_timeout_microseconds: 40000 } }"
    parameter = 'parameters { key: "gpulet.slo_ms" value { string_value: "2.5" } }'
    assert wishes_of(declared(policy)).slo == 40 * MS
    assert wishes_of(declared(policy + parameter)).slo == 2_500_000
    assert wishes_of(declared("")).slo == 0


def test_a_batch_size_is_as_written_only_where_something_is_written():
    assert wishes_of(declared("")).max_batch == 0
    assert wishes_of(declared("max_batch_size: 0")).max_batch == 1
    assert wishes_of(declared('input { name: "x" dims: 1 }')).max_batch == 1
    assert wishes_of(declared("max_batch_size: 64")).max_batch == 64


# versions and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "serves", "idle"),
    [
        ("", "10", ()),
        ("version_policy { latest { } }", "10", ()),
        ("version_policy { latest { num_versions: 2 } }", "10", ("3",)),
        ("version_policy: { all { }}", "10", ("3", "1")),
        ("version_policy { specific { versions: [ 1, 3, 9 ] } }", "3", ("1",)),
    ],
)
def test_a_version_policy_says_which_versions_there_are(tmp_path, policy, serves, idle):
    put(tmp_path, "m", "1", "3", "10", "007", "latest", config=policy)
    artifact = scan([tmp_path]).artifacts["m"]
    assert (artifact.version, artifact.idle) == (serves, idle)
    assert artifact.path.parent.name == serves


def test_a_version_without_a_file_is_none(tmp_path):
    put(tmp_path, "m", "1")
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "3").write_text("a file")
    (tmp_path / "docs").mkdir()
    put(tmp_path, "only-a-note", file="README")
    found = scan([tmp_path])
    assert {name: a.version for name, a in found.artifacts.items()} == {"m": "1"}
    assert found.refused == {"only-a-note": "no version of it holds model.onnx"}


def test_a_model_may_be_a_folder_with_its_weights(tmp_path):
    (tmp_path / "m" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx" / "model.onnx").write_bytes(b"x")
    assert scan([tmp_path]).artifacts["m"].version == "1"


def test_a_platform_chooses_among_files_and_a_name_of_its_own_is_found(tmp_path):
    for file in ("model.onnx", "model.pt2", "net.onnx"):
        (tmp_path / "m" / "1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / "1" / file).write_bytes(b"x")
    config = tmp_path / "m" / "config.pbtxt"
    for text, file in (
        ("", "model.pt2"),
        ('platform: "onnxruntime_onnx"', "model.onnx"),
        ('backend: "pytorch"', "model.pt2"),
        ('default_model_filename: "net.onnx"', "net.onnx"),
    ):
        config.write_text(text)
        assert scan([tmp_path], GPU_FORMATS).artifacts["m"].path.name == file


def test_a_model_in_two_repositories_is_refused_with_both_places(tmp_path, monkeypatch):
    put(tmp_path / "a", "m")
    put(tmp_path / "b", "m")
    put(tmp_path / "b", "n")
    found = scan([tmp_path / "a", tmp_path / "b"])
    assert list(found.artifacts) == ["n"]
    assert found.refused == {"m": "found twice: a/m, b/m"}
    monkeypatch.chdir(tmp_path)
    assert scan([Path("a"), tmp_path / "b"]).refused == found.refused


def test_files_that_cannot_be_read_are_a_reason_without_their_folders(tmp_path):
    put(tmp_path, "m", config="")
    (tmp_path / "m" / "config.pbtxt").write_bytes(b"\xff")
    put(tmp_path, "n", config="#" * 2_000_000)
    assert scan([tmp_path]).refused == {
        "m": "config.pbtxt is not UTF-8: byte 0 invalid start byte",
        "n": "config.pbtxt is larger than 1048576 bytes",
    }


def test_named_configurations_are_not_read(tmp_path):
    put(tmp_path, "m")
    (tmp_path / "m" / "configs").mkdir()
    (tmp_path / "m" / "configs" / "h100.pbtxt").write_text("max_batch_size: -1")
    assert scan([tmp_path]).artifacts["m"].wishes.max_batch == 0


def test_labels_are_read_when_they_are_wanted(tmp_path):
    put(tmp_path, "m", config='output { name: "y" dims: 2 label_filename: "l.txt" }', **{"l.txt": "a\nb"})
    labels = scan([tmp_path]).artifacts["m"].labels
    (tmp_path / "m" / "l.txt").write_text("c\nd")
    assert dict(labels) == {"y": ("c", "d")}
    (tmp_path / "m" / "l.txt").unlink()
    assert labels["y"] == ("c", "d")
    (tmp_path / "m" / "l.txt").write_bytes(b"\xff")
    labels = scan([tmp_path]).artifacts["m"].labels
    with pytest.raises(ModelError, match=r"^l.txt is not UTF-8: byte 0 invalid start byte$"):
        labels["y"]


# MLServer ------------------------------------------------------------------------------------------------------------


def settings(repository, folder, **said):
    document = {"name": folder, "implementation": "mlserver_onnx.OnnxModel", **said}
    (repository / folder).mkdir()
    (repository / folder / "net.onnx").write_bytes(b"x")
    (repository / folder / "model-settings.json").write_text(json.dumps(document))


def tensor(name, *shape):
    return {"name": name, "datatype": "FP32", "shape": list(shape)}


def test_settings_of_mlserver_are_read_as_the_same_configuration(tmp_path):
    settings(
        tmp_path,
        "folder",
        name="net",
        parameters={"uri": "./net.onnx", "version": "3", "content_type": "np"},
        max_batch_size=16,
        max_batch_time=0.1,
        parallel_workers=2,
        colour="red",
        inputs=[tensor("x", -1, 4)],
        outputs=[tensor("y", -1, 2)],
    )
    found = scan([tmp_path])
    artifact = found.artifacts["net"]
    assert (artifact.version, artifact.path.name, artifact.wishes.max_batch) == ("3", "net.onnx", 16)
    expected = 'name: "net" platform: "onnxruntime_onnx" max_batch_size: 16 '
    expected += 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 2 }'
    assert artifact.declaration == declared(expected)
    assert found.reports["net"] == Report(
        ("colour",), ("max_batch_time", "parallel_workers", "parameters.content_type")
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"implementation": "mlserver_sklearn.SKLearnModel"}, "implementation 'mlserver_sklearn.SKLearnModel' is not"),
        ({"parameters": {"uri": "s3://bucket/net.onnx"}}, "is not a file; nothing is fetched"),
        ({"parameters": {"uri": "../net.onnx"}}, "parameters.uri '../net.onnx' is outside the model's folder"),
        ({"parameters": {"uri": "none.onnx"}}, "parameters.uri 'none.onnx' is no file of a model"),
        ({"parameters": {"uri": "model-settings.json"}}, "'model-settings.json' is no file of a model"),
        ({"max_batch_size": "many"}, "model-settings.json: Expected `int`, got `str`"),
        ({"max_batch_size": 2**31}, "model-settings.json: Expected `int` <= 2147483647"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**63]}]}, "model-settings.json: "),
        ({"parameters": 5}, "model-settings.json: "),
        ({"inputs": [{"name": "x", "datatype": "FP33", "shape": [1]}]}, "tensor x is a 'FP33'"),
    ],
)
def test_settings_that_cannot_be_served_are_refused_by_their_models_name(tmp_path, said, why):
    settings(tmp_path, "folder", **{"name": "net", "parameters": {"uri": "net.onnx"}, **said})
    found = scan([tmp_path])
    assert list(found.refused) == ["net"]
    assert why in found.refused["net"]


def test_settings_that_are_no_json_are_refused_by_their_folder(tmp_path):
    settings(tmp_path, "folder")
    (tmp_path / "folder" / "model-settings.json").write_text("{")
    assert list(scan([tmp_path]).refused) == ["folder"]


def test_settings_without_a_batch_leave_it_to_the_model_where_shapes_have_rows(tmp_path):
    parameters = {"uri": "net.onnx", "version": "v0.1"}
    settings(tmp_path, "rows", parameters=parameters, inputs=[tensor("x", -1, 4)])
    settings(tmp_path, "fixed", parameters=parameters, inputs=[tensor("x", 1, 4)])
    found = scan([tmp_path])
    assert found.artifacts["rows"].declaration.batching is Batching.BY_MODEL
    assert found.artifacts["rows"].wishes.max_batch == 0
    assert found.artifacts["fixed"].wishes.max_batch == 1
    assert list(found.artifacts["fixed"].declaration.config.input[0].dims) == [1, 4]
    assert found.artifacts["rows"].version == "1"
    assert found.reports["rows"].not_used == ("parameters.version",)


# what the model itself says ------------------------------------------------------------------------------------------

SIGNATURE = Signature(
    (Tensor("x", "FP32", (-1, 4)), Tensor("z", "INT64", (-1, -1))),
    (Tensor("y", "FP32", (-1, 2)),),
    True,
    "onnxruntime_onnx",
)
FIXED = Signature((Tensor("x", "FP32", (1, 4)),), (Tensor("y", "FP32", (1, 2)),), False, "onnxruntime_onnx")


def test_what_is_left_out_is_told_by_the_model():
    config = complete(Declaration(), "m", SIGNATURE, 32)
    expected = 'name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 32 '
    expected += 'input { name: "x" data_type: TYPE_FP32 dims: 4 } input { name: "z" data_type: TYPE_INT64 dims: -1 } '
    expected += 'output { name: "y" data_type: TYPE_FP32 dims: 2 }'
    assert config == declared(expected).config


def test_without_batching_dims_are_whole_shapes():
    assert list(complete(declared("max_batch_size: 0"), "m", SIGNATURE, 32).input[0].dims) == [-1, 4]
    config = complete(Declaration(), "m", FIXED, 32)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [1, 4])


def test_what_is_written_stays_and_the_declaration_is_not_changed():
    said = declared('max_batch_size: 8 output { name: "y" data_type: TYPE_FP32 dims: 2 }')
    config = complete(said, "m", SIGNATURE, 4)
    assert (config.max_batch_size, len(config.input), len(config.output)) == (8, 2, 1)
    assert not said.config.input


X = 'input { name: "x" data_type: TYPE_FP32 dims: 4 }'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_batch_size: 8",
        'max_batch_size: 8 input { name: "z" data_type: TYPE_INT64 dims: 7 }' + X,
        'max_batch_size: 8 input { name: "z" data_type: TYPE_INT64 dims: -1 }' + X,
        'max_batch_size: 0 output { name: "y" data_type: TYPE_FP32 dims: [ -1, 2 ] }',
    ],
)
def test_a_model_is_as_its_file_says(text):
    check(declared(text), SIGNATURE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("max_batch_size: 8 " + X, "input z of the model is not in its configuration"),
        ('max_batch_size: 8 input { name: "w" dims: 1 }', "input w: the model has x, z"),
        (X, "input x: expected shape [4], the model has [-1, 4]"),
        (
            'max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: -1 }',
            "expected shape [-1, -1], the model has",
        ),
        (
            'max_batch_size: 8 input { name: "x" data_type: TYPE_FP16 dims: 4 }',
            "input x: expected TYPE_FP16, the model has",
        ),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: [ 6, 2 ] }',
            "y: the model's first dimension counts rows, dims has 6",
        ),
        ('max_batch_size: 8 output { name: "y" data_type: TYPE_FP32 dims: 3 }', "output y: expected shape [-1, 3]"),
    ],
)
def test_a_mismatch_names_tensor_and_what_was_expected_and_found(text, why):
    with pytest.raises(ModelError) as caught:
        check(declared(text), SIGNATURE)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_batch_cannot_have_a_batch_size():
    with pytest.raises(ModelError, match="max_batch_size is 8, but the model does not batch"):
        check(declared("max_batch_size: 8"), FIXED)
    check(declared("max_batch_size: 0"), FIXED)


def test_a_model_unlike_its_file_is_as_if_it_could_not_be_loaded():
    shelf = Shelf({}, lambda *_, **__: None)
    shelf.check = lambda name, signature: check(declared(X if name == "m" else ""), signature)
    unlike, alike = shelf.checked((ModelReady("m", SIGNATURE), ModelReady("n", SIGNATURE)))
    assert unlike.error == "input x: expected shape [4], the model has [-1, 4]"
    assert alike == ModelReady("n", SIGNATURE)


def test_json_has_the_shape_of_tritons_with_numbers_as_numbers():
    document = as_json(complete(declared(WHOLE), "m", FIXED, 8))
    assert json.loads(json.dumps(document)) == document
    assert document["input"][0]["dims"] == [4]
    assert document["input"][0]["data_type"] == "TYPE_FP32"
    assert document["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == 40000
    assert document["parameters"]["gpulet.slo_ms"] == {"string_value": "25"}
    assert document["instance_group"][0]["kind"] == "KIND_CPU"
    assert document["cc_model_filenames"] == {}
    assert "ensemble_scheduling" not in document


# control -------------------------------------------------------------------------------------------------------------


def test_what_changed_between_two_looks(tmp_path):
    for name in ("gone", "same", "touched", "file", "config", "version", "weights"):
        put(tmp_path, name, config="max_batch_size: 1")
    before = scan([tmp_path]).artifacts
    (tmp_path / "gone" / "1" / "model.onnx").unlink()
    put(tmp_path, "new")
    os.utime(tmp_path / "touched" / "1" / "model.onnx", (1, 1))
    (tmp_path / "file" / "1" / "model.onnx").write_bytes(b"other")
    (tmp_path / "weights" / "1" / "model.onnx.data").write_bytes(b"kept apart")
    (tmp_path / "config" / "config.pbtxt").write_text("max_batch_size: 2")
    (tmp_path / "version" / "2").mkdir()
    (tmp_path / "version" / "2" / "model.onnx").write_bytes(b"version 1")
    after = scan([tmp_path], known=before).artifacts
    found = {change.artifact.name: type(change) for change in changes(before, after)}
    changed = dict.fromkeys(("file", "config", "version", "weights"), Changed)
    assert found == {"gone": Removed, "new": Added, **changed}


def test_a_file_that_did_not_change_is_not_read_again(tmp_path):
    put(tmp_path, "m")
    before = scan([tmp_path]).artifacts
    path = before["m"].path
    status = path.stat()
    path.write_bytes(b"X" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changes(before, scan([tmp_path], known=before).artifacts) == []
    assert changes(before, scan([tmp_path]).artifacts) != []


def test_who_decides_what_is_loaded_at_the_start():
    assert at_start(Control.NONE, ["a", "b"], []) == ("a", "b")
    assert at_start(Control.POLL, ["a", "b"], []) == ("a", "b")
    assert at_start(Control.EXPLICIT, ["a", "b"], []) == ()
    assert at_start(Control.EXPLICIT, ["a", "b"], ["b", "b"]) == ("b",)
    assert at_start(Control.EXPLICIT, ["a", "b"], ["*"]) == ("a", "b")
    with pytest.raises(ConfigError, match="no model 'c'; the repository is a, b"):
        at_start(Control.EXPLICIT, ["a", "b"], ["c"])
    with pytest.raises(ConfigError, match='load_models is for model_control = "explicit", which is "none"'):
        at_start(Control.NONE, ["a", "b"], ["a"])


# a site --------------------------------------------------------------------------------------------------------------

FLEET = '[[devices]]\nkind = "cpu"\ncores = 1\nprofile = "p.csv"\n[server]\nrepository = {}\n'


@pytest.fixture
def site_of(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(more="", repository='"models"'):
        lines = "".join(f"{m},1,{n},{1 + n / 10}\n" for m in "mnop" for n in (1, 32))
        (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\n" + lines)
        (tmp_path / "fleet.toml").write_text(FLEET.format(repository) + more)
        return open_site(tmp_path / "fleet.toml")

    return make


def problem_of(site):
    return make_problem(site, load_profile(site))


def test_objective_batch_and_queue_of_a_configuration_reach_the_plan(tmp_path, site_of):
    put(tmp_path / "models", "m", config=WHOLE, **{"labels.txt": ""})
    put(tmp_path / "models", "n")
    put(tmp_path / "models", "o", config="max_batch_size: 64")
    rates = "".join(f'[[models]]\nname = "{name}"\nrate = 10\n' for name in "mno")
    models = problem_of(site_of(f"[limits]\nmax_queue = 12\n{rates}")).models
    assert (models["m"].slo, models["m"].max_batch, models["m"].max_queue) == (25 * MS, 8, 12)
    assert (models["n"].max_batch, models["n"].max_queue) == (32, 0)
    assert models["o"].max_batch == 32  # no more is profiled


def test_a_fleet_file_is_heard_before_a_configuration_about_how_long_a_batch_may_fill(tmp_path, site_of):
    for name in "mn":
        put(tmp_path / "models", name, config="dynamic_batching { max_queue_delay_microseconds: 100 }")
    put(tmp_path / "models", "o")
    put(tmp_path / "models", "p", config="dynamic_batching { max_queue_delay_microseconds: 100 }")
    said = {"m": "max_queue_delay_us = 70", "n": "max_queue_delay_us = 0", "o": "", "p": ""}
    fleet = "".join(f'[[models]]\nname = "{name}"\nrate = 10\n{line}\n' for name, line in said.items())
    models = problem_of(site_of(fleet)).models
    assert {name: model.max_queue_delay for name, model in models.items()} == {
        "m": 70 * US,
        "n": 0,
        "o": 0,
        "p": 100 * US,
    }


def test_a_configuration_is_heard_before_the_fleet_file_and_the_smaller_batch_counts(tmp_path, site_of):
    put(tmp_path / "models", "m", config=WHOLE, **{"labels.txt": ""})
    put(tmp_path / "models", "n")
    said = "rate = 10\nslo_ms = 90\nmax_batch ="
    fleet = f'[[models]]\nname = "m"\n{said} 32\n[[models]]\nname = "n"\n{said} 2\n'
    models = problem_of(site_of(fleet)).models
    assert (models["m"].slo, models["m"].max_batch) == (25 * MS, 8)
    assert (models["n"].slo, models["n"].max_batch) == (90 * MS, 2)


def test_shapes_of_a_configuration_are_served_unless_the_fleet_file_has_others(tmp_path, site_of):
    text = 'parameters { key: "gpulet.shapes" value { string_value: "16, 32" } }'
    put(tmp_path / "models", "m", config=text)
    put(tmp_path / "models", "n", config=text)
    site = site_of('[[models]]\nname = "m"\n[[models]]\nname = "n"\nshapes = ["8"]\n')
    assert [s.shapes for s in site.sections] == [["16", "32"], ["8"]]


def test_a_refused_model_leaves_the_others_and_says_why(tmp_path, site_of):
    put(tmp_path / "models", "m", config='backend: "python"')
    put(tmp_path / "models", "n")
    assert [s.name for s in site_of().sections] == ["n"]
    site = site_of('[[models]]\nname = "m"\n[[models]]\nname = "n"\n')
    assert [s.name for s in site.sections] == ["n"]
    assert "backend 'python' is not served" in site.refused["m"]
    with pytest.raises(ConfigError, match="no model is left to serve; refused were m: backend 'python' is not served"):
        site_of('[[models]]\nname = "m"\n')


def test_a_plan_without_a_refused_model_says_so(tmp_path, site_of, gpulet):
    put(tmp_path / "models", "m", config='backend: "python"')
    put(tmp_path / "models", "n")
    site_of('[[models]]\nname = "n"\nrate = 10\n[[models]]\nname = "m"\n')
    code, out, err = gpulet("plan", tmp_path / "fleet.toml", "--json")
    assert (code, list(json.loads(out)["models"])) == (0, ["n"])
    assert "model m refused: backend 'python' is not served" in err


def test_several_repositories_are_one(tmp_path, site_of):
    put(tmp_path / "a", "m")
    put(tmp_path / "b", "n")
    assert list(site_of(repository='["a", "b"]').artifacts) == ["m", "n"]


def test_explicit_control_plans_for_all_and_loads_what_is_named(tmp_path, site_of):
    for name in "mno":
        put(tmp_path / "models", name)
    site = site_of('model_control = "explicit"\nload_models = ["n"]\n[[models]]\nname = "m"\n[[models]]\nname = "n"\n')
    assert [s.name for s in site.sections] == ["m", "n"]
    assert [site.offer.is_later(name) for name in "mn"] == [True, False]
    assert list(site.offer.found.artifacts) == ["m", "n", "o"]
    put(tmp_path / "models", "p")
    (change,) = changes(site.offer.found.artifacts, site.offer.again(site.offer.found.artifacts).artifacts)
    assert isinstance(change, Added)
    assert change.artifact.name == "p"
    assert [s.name for s in site_of('model_control = "explicit"\n').sections] == ["m", "n", "o", "p"]


def test_control_is_one_of_three():
    with pytest.raises(ConfigError, match=r"server.model_control = 'often'"):
        parse_fleet_file('[[devices]]\nkind = "cpu"\n[server]\nmodel_control = "often"\n', "f")
