"""Bytes to checked tensors and back."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.api.forms import Checker
from gpulet.api.infer import Reader
from gpulet.api.regions import Regions
from gpulet.errors import RequestError
from gpulet.executors.base import Result, Signature, Tensor

SIGNATURE = Signature(
    (Tensor("x", "FP32", (-1, 2)), Tensor("n", "INT32", (-1, -1))),
    (Tensor("y", "FP32", (-1, 2)), Tensor("k", "INT64", (-1,))),
)


def reader():
    return Reader("3", Checker("m", SIGNATURE, 8))


NOTHING = Regions(is_allowed=False)


def inputs(form, body=b""):
    return form.inputs(form.cut(memoryview(body)), NOTHING)


def x(**changes):
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3.5, 4], **changes}


def n(**changes):
    return {"name": "n", "shape": [2, 1], "datatype": "INT32", "data": [[7], [8]], **changes}


def header(*inputs, **more):
    return json.dumps({"inputs": list(inputs), **more}).encode()


def test_json_tensors_flat_or_nested_become_bytes_in_the_signatures_order():
    form = reader().form(header(n(), x(), id="q"))
    assert form.rows == 2
    assert inputs(form) == (
        np.array([1, 2, 3.5, 4], np.float32).tobytes(),
        np.array([7, 8], np.int32).tobytes(),
    )
    assert form.request_id == "q"


def test_binary_tensors_are_views_in_the_order_they_were_sent():
    first, second = n(parameters={"binary_data_size": 8}), x(parameters={"binary_data_size": 16})
    del first["data"], second["data"]
    form = reader().form(header(first, second))
    assert [bytes(part) for part in inputs(form, bytes(range(24)))] == [bytes(range(8, 24)), bytes(range(8))]


def test_free_dimensions_make_the_shape_class():
    wide = n(shape=[2, 3], data=[1, 2, 3, 4, 5, 6])
    assert reader().form(header(x(), n())).shape == "1"
    assert reader().form(header(x(), wide)).shape == "3"


def test_timeout_and_priority_are_read():
    form = reader().form(header(x(), n(), parameters={"timeout": 2500, "priority": 1}))
    assert (form.timeout, form.priority) == (2_500_000, 1)


BAD = {
    "not JSON": (b"{", "request is not valid"),
    "not UTF-8": (b'{"inputs": [], "id": "\xff"}', "request is not valid"),
    "deep JSON": (b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "request is not valid"),
    "deep data": (header(x(), n()).replace(b"[1, 2, 3.5, 4]", b"[" * 5000 + b"1" + b"]" * 5000), "is not"),
    "no inputs": (b"{}", "inputs"),
    "unknown input": (header(x(), n(), x(name="z")), "model m has no input 'z'; it takes x, n"),
    "missing input": (header(x()), "input 'n' is missing"),
    "input twice": (header(x(), x(), n()), "an input is given twice"),
    "wrong dtype": (header(x(datatype="FP64"), n()), "input 'x' is FP32, not FP64"),
    "wrong shape": (header(x(shape=[2, 3]), n()), r"input 'x' has shape \[-1, 2\], not \[2, 3\]"),
    "wrong rank": (header(x(shape=[4]), n()), r"not \[4\]"),
    "negative size": (header(x(shape=[-1, 2]), n()), r"not \[-1, 2\]"),
    "no rows": (header(x(shape=[0, 2], data=[]), n(shape=[0, 1], data=[])), r"not \[0, 2\]"),
    "rows differ": (header(x(), n(shape=[1, 1], data=[1])), "inputs have 1, 2 rows"),
    "too many rows": (
        header(x(shape=[9, 2], data=[0] * 18), n(shape=[9, 1], data=[0] * 9)),
        "takes 1 to 8 rows, not 9",
    ),
    "huge rows": (header(x(shape=[2**40, 2]), n(shape=[2**40, 1])), "takes 1 to 8 rows"),
    "too little data": (header(x(data=[1, 2, 3]), n()), r"data has shape \[3\], shape says \[2, 2\]"),
    "text": (header(x(data=["1", "2", "3", "4"]), n()), "data is not FP32"),
    "ragged": (header(x(data=[[1, 2], [3]]), n()), "data is not FP32"),
    "fraction in an integer": (header(x(), n(data=[[1.5], [2]])), "data is not INT32"),
    "out of range": (header(x(), n(data=[[2**31], [2]])), "is out of range"),
    "no data": (header({k: v for k, v in x().items() if k != "data"}, n()), "neither data nor binary_data_size"),
    "binary size": (
        header({k: v for k, v in x(parameters={"binary_data_size": 15}).items() if k != "data"}, n()),
        "is 16 bytes, binary_data_size is 15",
    ),
    "mixed": (
        header({k: v for k, v in x(parameters={"binary_data_size": 16}).items() if k != "data"}, n()),
        "binary data is 0 bytes, the inputs name 16",
    ),
    "unknown output": (header(x(), n(), outputs=[{"name": "z"}]), "no output 'z'; it gives y, k"),
    "timeout": (header(x(), n(), parameters={"timeout": -5}), "timeout must be above 0 microseconds, is -5"),
    "priority": (header(x(), n(), parameters={"priority": -1}), "priority must be 0 to 4294967295, is -1"),
    "timeout type": (header(x(), n(), parameters={"timeout": "soon"}), "request is not valid"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_one_line(name):
    body, message = BAD[name]
    with pytest.raises(RequestError, match=message) as raised:
        inputs(reader().form(body))
    assert raised.value.status == 400
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_a_truncated_binary_body_is_refused_with_both_numbers():
    first, second = x(parameters={"binary_data_size": 16}), n(parameters={"binary_data_size": 8})
    del first["data"], second["data"]
    form = reader().form(header(first, second))
    with pytest.raises(RequestError, match="binary data is 20 bytes, the inputs name 24"):
        inputs(form, bytes(20))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(data):
    try:
        reader().form(data)
    except RequestError:
        pass
    else:
        pytest.fail("nothing that random is a request")


def outputs(rows):
    y = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    k = np.arange(rows, dtype=np.int64)
    return tuple(Result(t, a.shape, memoryview(a.tobytes())) for t, a in zip(SIGNATURE.outputs, (y, k), strict=True))


def test_an_answer_holds_the_requests_rows_only():
    r = reader()
    form = r.form(header(x(), n(), id="q"))
    body, json_bytes, binary = r.answer(form, outputs(5), 2, NOTHING)
    assert (json_bytes, binary) == (0, [])
    assert json.loads(body) == {
        "model_name": "m",
        "model_version": "3",
        "id": "q",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [4, 5, 6, 7]},
            {"name": "k", "datatype": "INT64", "shape": [2], "data": [2, 3]},
        ],
    }


def test_a_binary_answer_names_the_sizes_of_what_follows():
    r = reader()
    wanted = [{"name": "k", "parameters": {"binary_data": True}}]
    form = r.form(header(x(), n(), outputs=wanted))
    for _ in range(2):
        body, json_bytes, binary = r.answer(form, outputs(5), 3, NOTHING)
        assert json_bytes == len(body)
        (output,) = json.loads(body)["outputs"]
        assert output["parameters"] == {"binary_data_size": 16}
        assert np.frombuffer(binary[0], np.int64).tolist() == [3, 4]
