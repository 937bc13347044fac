"""The client without a server: what it sends, what it reads, when it tries again."""

import importlib
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random

import numpy as np
import orjson
import pytest

from gpulet.client.calls import Answer, Infer, base_url, only_input, results
from gpulet.client.retry import Attempts, Retry, retry_after
from gpulet.errors import (
    BadInput,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerError,
    Unreachable,
    Unusable,
)
from gpulet.units import MS, NEVER, SECOND

TODAY = datetime(2026, 11, 21, 12, tzinfo=UTC)
BUSY = Overloaded(429, "queue full", "1")


def sent(infer, left=NEVER):
    """The JSON of a call and the bytes behind it."""
    call = infer.call(left)
    size = int(call.headers["Inference-Header-Content-Length"])
    return orjson.loads(call.body[:size]), call.body[size:]


def test_an_infer_request_names_its_tensors_and_is_binary_both_ways():
    doc, data = sent(Infer("m", {"a": np.array([[1.5]], np.float32), "b": np.array(["é"])}, request_id="7", priority=1))
    assert doc == {
        "id": "7",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        ],
        "parameters": {"binary_data_output": True, "priority": 1},
    }
    assert data == np.float32(1.5).tobytes() + b"\x02\0\0\0" + "é".encode()


def test_what_is_left_of_the_deadline_is_the_timeout_in_microseconds():
    infer = Infer("a/b", {"x": np.zeros(1)}, outputs=["y"], version="3")
    doc, _ = sent(infer, 2 * MS + 1)
    assert doc["parameters"] == {"timeout": 2001}
    assert doc["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert infer.call().path == "/v2/models/a%2Fb/versions/3/infer"


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array([1, None], object), np.zeros(1, "M8[s]")])
def test_arrays_that_the_protocol_cannot_carry_are_refused_before_anything_is_sent(array):
    with pytest.raises(BadInput):
        Infer("m", {"x": array}).call()


def test_outputs_in_json_are_read_as_their_datatype():
    outputs = [
        {"name": "y", "datatype": "INT8", "shape": [2, 1], "data": [1, -1]},
        {"name": "s", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
    ]
    arrays = results(Answer(200, {}, orjson.dumps({"outputs": outputs})))
    assert arrays["y"].dtype == np.int8
    assert arrays["y"].tolist() == [[1], [-1]]
    assert arrays["s"].tolist() == ["é".encode(), b""]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequest),
        (413, InvalidRequest),
        (404, NotFound),
        (429, Overloaded),
        (503, Overloaded),
        (500, ServerError),
        (302, ServerError),
    ],
)
def test_each_status_is_the_error_that_says_what_to_do(status, error):
    with pytest.raises(ServerError, match="it broke") as caught:
        results(Answer(status, {}, b'{"error": "it broke"}'))
    assert type(caught.value) is error
    assert caught.value.status == status


def test_a_bare_array_needs_a_model_of_one_input():
    assert only_input({"name": "m", "inputs": [{"name": "x"}]}) == "x"
    with pytest.raises(BadInput, match="m has inputs x, y"):
        only_input({"name": "m", "inputs": [{"name": "x"}, {"name": "y"}]})


def test_an_address_needs_no_scheme():
    assert base_url("localhost:8000") == "http://localhost:8000"
    assert base_url("https://host/prefix") == "https://host/prefix"
    for url in ("", "ftp://host", "http://", "host?x"):
        with pytest.raises(BadInput):
            base_url(url)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("2", 2 * SECOND),
        (format_datetime(TODAY + timedelta(seconds=3), usegmt=True), 3 * SECOND),
        (format_datetime(TODAY - timedelta(seconds=3), usegmt=True), 0),
        ("Sat, 21 Nov 2026 12:00:04 -0000", 4 * SECOND),
        ("soon", 0),
        ("", 0),
        ("-1", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value, wait):
    assert retry_after(value, TODAY) == wait


def test_a_retry_waits_what_the_server_asks_and_a_little_more():
    attempts = Attempts(Retry(2, Random(1)), NEVER)
    waits = [attempts.wait(0, TODAY, BUSY) for _ in range(2)]
    assert SECOND + 25 * MS <= waits[0] <= SECOND + 50 * MS
    assert SECOND + 50 * MS <= waits[1] <= SECOND + 100 * MS
    with pytest.raises(Overloaded):
        attempts.wait(0, TODAY, BUSY)


def test_a_retry_that_would_pass_the_deadline_never_starts():
    with pytest.raises(DeadlineExceeded, match="queue full") as caught:
        Attempts(Retry(2, Random(1)), SECOND).wait(0, TODAY, BUSY)
    assert caught.value.status == 429
    assert caught.value.__cause__ is BUSY
    assert Attempts(Retry(2, Random(1)), 2 * SECOND).wait(0, TODAY, BUSY) < 2 * SECOND


def test_the_time_left_shrinks_and_ends():
    attempts = Attempts(Retry(), 10 * MS)
    assert attempts.left(4 * MS) == 6 * MS
    with pytest.raises(DeadlineExceeded):
        attempts.left(10 * MS)


@pytest.mark.parametrize(
    "failure", [InvalidRequest(400, ""), NotFound(404, ""), ServerError(500, ""), ServerError(0, "")]
)
def test_what_would_fail_again_or_may_have_run_is_not_tried_again(failure):
    with pytest.raises(type(failure)):
        Attempts(Retry(2), NEVER).wait(0, TODAY, failure)


def test_no_connection_is_tried_again_soon_and_an_hour_is_not_waited_for():
    assert Attempts(Retry(1), NEVER).wait(0, TODAY, Unreachable(0, "")) <= 50 * MS
    with pytest.raises(Overloaded):
        Attempts(Retry(1), NEVER).wait(0, TODAY, Overloaded(503, "", "3600"))


def test_without_httpx_the_client_names_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gpulet.client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(Unusable, match=r"gpulet\[client\]"):
        importlib.import_module("gpulet.client")


def test_without_ml_dtypes_bf16_is_its_bits(monkeypatch):
    monkeypatch.delitem(sys.modules, "gpulet.client.tensors")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    tensors = importlib.import_module("gpulet.client.tensors")
    bits = np.array([[0x3F80, 0x4000]], np.uint16)
    assert tensors.datatype(bits.view(tensors.BF16)) == "BF16"
    data = memoryview(tensors.to_bytes(bits.view(tensors.BF16)))
    assert (tensors.from_bytes("BF16", (1, 2), data).view(np.uint16) == bits).all()
