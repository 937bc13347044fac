"""Requests padded to buckets, answers cut back."""

import json
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.api.buckets import Classes
from gpulet.api.forms import Checker
from gpulet.api.infer import Reader
from gpulet.api.regions import Regions
from gpulet.errors import ModelError, RequestError
from gpulet.executors.base import Result, Signature, Tensor
from gpulet.executors.tensors import check_shape, class_lengths, filled
from gpulet.executors.wire import WorkerModel
from gpulet.executors.worker import load
from servers import save_masked

TEXT = Signature(
    tuple(Tensor(name, "INT64", (-1, -1), ("rows", "tokens")) for name in ("ids", "mask", "types")),
    (
        Tensor("embedding", "FP32", (-1, 3), ("rows", "")),
        Tensor("tokens", "FP32", (-1, -1, 2), ("rows", "tokens", "")),
        Tensor("pairs", "FP32", (-1, -1, -1), ("rows", "tokens", "tokens")),
    ),
)
IMAGE = Signature(
    (Tensor("image", "FP32", (-1, 3, -1, -1), ("n", "", "height", "width")),),
    (Tensor("map", "FP32", (-1, 3, -1, -1), ("n", "", "height", "width")),),
)
NAMELESS = Signature((Tensor("x", "FP32", (-1, -1)),), (Tensor("y", "FP32", (-1, -1)),))
BUCKETS = ("64", "16", "32")


def text(*lengths, rows=1):
    return tuple((rows, n) for n in lengths)


def of_text(tokens, rows=1, pads=True):
    return Classes("m", TEXT, BUCKETS, pads=pads).fit(text(tokens, tokens, tokens, rows=rows))


def test_one_size_stands_for_all_dimensions_of_one_name_and_one_for_each_is_right_too():
    assert class_lengths(TEXT.inputs, "16") == class_lengths(TEXT.inputs, "16x16x16") == (16, 16, 16)
    assert class_lengths(TEXT.inputs, "16x16") is None
    assert class_lengths(NAMELESS.inputs, "16") == (16,)
    assert filled(TEXT, 2, "16") == filled(TEXT, 2, "16x16x16") == [(2, 16)] * 3
    with pytest.raises(ModelError, match="3 free dimensions beyond its rows, 1 by name; '16x16' does not fill them"):
        check_shape("m", TEXT.inputs, "16x16")


def test_a_worker_refuses_classes_that_do_not_fill_a_models_free_dimensions(tmp_path):
    path = str(save_masked(tmp_path, "masked"))
    ready, _ = load(WorkerModel("masked", path, 2, ("4", "8x8")), 1)
    assert not ready.error
    assert {t.dims for t in ready.signature.inputs} == {("rows", "tokens")}
    assert [t.dims for t in ready.signature.outputs] == [("rows", ""), ("rows", "tokens")]
    ready, loaded = load(WorkerModel("masked", path, 2, ("4", "8x8x8")), 1)
    assert ready.error == "has 2 free dimensions beyond its rows, 1 by name; '8x8x8' does not fill them"
    assert not loaded


def test_dimensions_without_names_are_never_one_although_they_stand_in_one_place():
    pair = (Tensor("a", "FP32", (-1, -1)), Tensor("b", "FP32", (-1, -1), ("", "")))
    assert class_lengths(pair, "16") is None
    assert class_lengths(pair, "16x8") == (16, 8)


def test_the_smallest_bucket_that_holds_a_request_is_its_class():
    assert [of_text(n).shape for n in (1, 15, 16, 17, 32, 33, 64)] == ["16", "16", "16", "32", "32", "64", "64"]
    assert of_text(5, rows=4).dims == text(16, 16, 16, rows=4)


def test_of_buckets_of_several_dimensions_the_one_with_fewest_elements_is_taken():
    classes = Classes("m", IMAGE, ("64x64", "256x32", "32x128"), pads=True)
    assert classes.fit(((1, 3, 30, 30),)).shape == "64x64"
    assert classes.fit(((1, 3, 10, 100),)).shape == "32x128"
    assert classes.fit(((1, 3, 200, 20),)).shape == "256x32"


def test_a_request_too_long_for_every_bucket_is_told_the_lengths():
    with pytest.raises(RequestError, match=r"^model m: its buckets are 16, 32, 64; none holds tokens = 65$") as raised:
        of_text(65)
    assert raised.value.status == 400
    with pytest.raises(RequestError, match=r"buckets are 8x8; none holds height = 3 by width = 9$"):
        Classes("m", IMAGE, ("8x8",), pads=True).fit(((1, 3, 3, 9),))
    with pytest.raises(RequestError, match=r"none holds 9$"):
        Classes("m", NAMELESS, ("8",), pads=True).fit(((1, 9),))


def test_inputs_that_differ_in_a_dimension_of_one_name_are_refused():
    with pytest.raises(RequestError, match="its inputs must agree in 'tokens'; it is 5 and 6"):
        Classes("m", TEXT, BUCKETS, pads=True).fit(text(5, 6, 5))


def test_a_bucket_that_does_not_fill_the_free_dimensions_is_refused():
    with pytest.raises(RequestError, match="model m has 3 free dimensions beyond its rows; bucket '8x8' does not fill"):
        Classes("m", TEXT, ("8x8",), pads=True)


def test_without_padding_only_listed_shapes_are_served():
    assert of_text(16, pads=False).shape == "16"
    assert not of_text(16, pads=False).is_padded
    with pytest.raises(RequestError, match="model m is served with free dimensions 16, 32, 64, not 5x5x5"):
        of_text(5, pads=False)
    assert Classes("m", TEXT).fit(text(5, 5, 5)).shape == "5x5x5"


def test_inputs_that_disagree_in_a_named_dimension_are_refused_without_padding_too():
    with pytest.raises(RequestError, match="its inputs must agree in"):
        Classes("m", TEXT).fit(text(5, 6, 7))


def result(tensor, array):
    return Result(tensor, array.shape, memoryview(np.ascontiguousarray(array)).cast("B"))


def array_of(found):
    return np.frombuffer(found.data, np.float32).reshape(found.shape)


def test_zeros_stand_behind_what_came_in_every_dimension():
    image = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 2, 2)
    fit = Classes("m", IMAGE, ("3x4",), pads=True).fit((image.shape,))
    (padded,) = fit.pad((image.tobytes(),))
    seen = np.frombuffer(padded, np.float32).reshape(1, 3, 3, 4)
    assert len(padded) == 36 * 4  # in bytes: it goes into a slot as it is
    np.testing.assert_array_equal(seen[:, :, :2, :2], image)
    assert seen.sum() == image.sum()


def test_a_request_that_fills_its_bucket_is_not_copied():
    fit, data = of_text(16), tuple(bytes(16 * 8) for _ in range(3))
    assert fit.pad(data) is data


def test_outputs_are_cut_where_their_dimension_has_an_inputs_name():
    random = np.random.default_rng(1)
    embedding, tokens, pairs = (random.random(s).astype(np.float32) for s in ((6, 3), (6, 16, 2), (6, 16, 16)))
    outputs = [result(t, a) for t, a in zip(TEXT.outputs, (embedding, tokens, pairs), strict=True)]
    cut = of_text(5, rows=2).cut(outputs, slice(3, 5))
    assert [r.shape for r in cut] == [(2, 3), (2, 5, 2), (2, 5, 5)]
    np.testing.assert_array_equal(array_of(cut[0]), embedding[3:5])
    np.testing.assert_array_equal(array_of(cut[1]), tokens[3:5, :5])
    np.testing.assert_array_equal(array_of(cut[2]), pairs[3:5, :5, :5])


def test_an_output_is_left_alone_where_its_dimension_is_not_as_long_as_the_bucket_or_has_no_name():
    shorter = np.ones((1, 8, 2), np.float32)  # named as the input's, but pooled to half of it
    assert [r.shape for r in of_text(5).cut([result(TEXT.outputs[1], shorter)], slice(0, 1))] == [(1, 8, 2)]
    fit = Classes("m", NAMELESS, ("8",), pads=True).fit(((1, 3),))
    ones = np.ones((1, 8), np.float32)
    assert [r.shape for r in fit.cut([result(NAMELESS.outputs[0], ones)], slice(0, 1))] == [(1, 8)]


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 4))
def test_padded_and_cut_an_elementwise_model_gives_what_it_gives_without(rows, height, width, before):
    fit = Classes("m", IMAGE, ("4x4", "4x9", "9x9"), pads=True).fit(((rows, 3, height, width),))
    image = np.random.default_rng(height * width).random((rows, 3, height, width), np.float32)
    (padded,) = fit.pad((image.tobytes(),))
    runs = np.frombuffer(padded, np.float32).reshape(fit.dims[0])
    batch = np.concatenate([np.full((before, *runs.shape[1:]), 7, np.float32), runs, runs]) * 2
    (cut,) = fit.cut([result(IMAGE.outputs[0], batch)], slice(before, before + rows))
    np.testing.assert_array_equal(array_of(cut), image * 2)
    assert len(cut.data) == prod(cut.shape) * 4


NOTHING = Regions(is_allowed=False)


def header(tokens, rows, **more):
    size = {"parameters": {"binary_data_size": rows * tokens * 8}}
    inputs = [{"name": t.name, "shape": [rows, tokens], "datatype": t.datatype, **size} for t in TEXT.inputs]
    return json.dumps({"inputs": inputs, **more}).encode()


@pytest.mark.parametrize("is_binary", [True, False])
def test_a_reader_pads_a_request_and_answers_with_its_own_lengths(is_binary):
    reader = Reader("1", Checker("m", TEXT, 8, BUCKETS, pads=True))
    wanted = [{"name": "tokens", "parameters": {"binary_data": is_binary}}]
    form = reader.form(header(5, 2, outputs=wanted))
    assert (form.rows, form.shape, form.dims) == (2, "16", text(16, 16, 16, rows=2))
    ids = np.arange(1, 11).reshape(2, 5)
    inputs = form.inputs(form.cut(memoryview(ids.tobytes() * 3)), NOTHING)
    for data in inputs:
        np.testing.assert_array_equal(np.frombuffer(data, np.int64).reshape(2, 16), np.pad(ids, ((0, 0), (0, 11))))
    tokens = np.arange(4 * 16 * 2, dtype=np.float32).reshape(4, 16, 2)
    for first_row in (1, 2):
        body, json_bytes, binary = reader.answer(form, [result(TEXT.outputs[1], tokens)], first_row, NOTHING)
        (output,) = json.loads(body)["outputs"]
        mine = tokens[first_row : first_row + 2, :5]
        assert output["shape"] == [2, 5, 2]
        assert output.get("data", mine.ravel().tolist()) == mine.ravel().tolist()
        assert b"".join(binary) == (mine.tobytes() if is_binary else b"")
        assert json_bytes == (len(body) if is_binary else 0)


def test_a_model_without_rows_is_padded_and_cut_too():
    whole = Signature(
        (Tensor("x", "FP32", (2, -1), ("", "n")),), (Tensor("y", "FP32", (2, -1), ("", "n")),), is_batched=False
    )
    reader = Reader("1", Checker("m", whole, 1, ("4",), pads=True))
    request = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}
    form = reader.form(json.dumps({"inputs": [request]}).encode())
    (padded,) = form.inputs([], NOTHING)
    assert np.frombuffer(padded, np.float32).tolist() == [1, 2, 3, 0, 4, 5, 6, 0]
    body, _, _ = reader.answer(form, [Result(whole.outputs[0], (2, 4), memoryview(padded))], 0, NOTHING)
    assert json.loads(body)["outputs"][0] == {
        "name": "y",
        "datatype": "FP32",
        "shape": [2, 3],
        "data": [1, 2, 3, 4, 5, 6],
    }
