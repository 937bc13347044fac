"""What a fuzzer and a reading of the code found: each was a hang, a crash, a neighbour's failure or a stalled loop."""

import asyncio
import gzip
import json
import os
import time
from http import HTTPStatus
from types import SimpleNamespace

import numpy as np
import pytest

from gpulet.api.answers import answer_of
from gpulet.api.asking import LARGEST_DESCRIPTION, MOST_ELEMENTS, MOST_STRINGS, Place, Wanted
from gpulet.api.compression import inflated
from gpulet.api.exchange import Exchange
from gpulet.api.forms import Checker
from gpulet.api.front import as_request_error
from gpulet.api.heads import parse_head
from gpulet.api.infer import Reader
from gpulet.api.regions import Regions
from gpulet.api.rpc.calls import Call
from gpulet.api.rpc.infer import RpcReader, parse, split
from gpulet.api.rpc.messages import MESSAGES
from gpulet.core.fleet import CENTRAL, Fleet
from gpulet.core.messages import Reason, Reject
from gpulet.errors import RequestError
from gpulet.executors.base import Result, Signature, Tensor
from gpulet.logs import RefusalLog
from gpulet.model import Model
from gpulet.plan import Plan

NOTHING = Regions(is_allowed=False)
NUMBERS = Signature((Tensor("x", "FP32", (-1, -1)),), (Tensor("y", "FP32", (-1, -1)),))
LOOP_BUDGET_S = 1.0  # a tenth of what the least of these took, ten times what they may; this machine may be busy


def of(datatype, shape=(-1, -1)):
    return Signature((Tensor("x", datatype, shape),), (Tensor("y", datatype, shape),))


def asked(data, datatype="FP32", shape=(1, 4), **more):
    item = {"name": "x", "datatype": datatype, "shape": list(shape), "data": data}
    header = json.dumps({"inputs": [item], **more}).encode()
    return Reader("1", Checker("m", of(datatype), 8)).form(header)


def called(signature, raws=(), **changes):
    message = MESSAGES["ModelInferRequest"](model_name="m")
    message.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [1, 4], **changes})
    message.raw_input_contents.extend(raws)
    description, found = split(message.SerializeToString())
    form = RpcReader("1", Checker("m", signature, 8)).form(parse(description), [len(raw) for raw in found])
    return form.inputs(form.cut(memoryview(b"".join(found))), NOTHING)


@pytest.mark.parametrize("name", ["Content-Length", "Inference-Header-Content-Length", "gpulet-timeout-ms"])
def test_a_header_of_five_thousand_digits_is_refused(name):
    head = f"POST /v2/models/m/infer HTTP/1.1\r\n{name}: {'9' * 5000}\r\n\r\n".encode()
    with pytest.raises(RequestError):
        parse_head(head, 1 << 16)


def test_the_preface_of_http_2_is_refused_and_not_waited_out():
    with pytest.raises(RequestError, match="of HTTP/2"):
        parse_head(b"PRI * HTTP/2.0\r\n\r\n", 1 << 16)


def test_a_request_for_an_absolute_address_is_an_infer_request():
    assert parse_head(b"POST http://h:8000/v2/models/m/infer HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 999).model == "m"


def test_an_expectation_is_seen_on_every_path():
    assert parse_head(b"POST /v2/repository/index HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 999).expects_continue


def test_what_a_client_is_told_has_an_end():
    assert len(str(RequestError("x" * 10**6))) < 1100


def test_unsigned_integers_on_both_sides_of_two_to_the_63_are_read():
    form = asked([1, 2**63 + 1, 2**64 - 1, 0], "UINT64")
    assert form.inputs([], NOTHING)[0] == np.array([1, 2**63 + 1, 2**64 - 1, 0], np.uint64).tobytes()


@pytest.mark.parametrize(
    ("data", "datatype", "message"),
    [
        ([2**64, 0, 0, 0], "UINT64", "found other values"),
        ([True, 0, 0, 0], "INT64", "found booleans"),
        ([True, 1.0, 0, 0], "FP32", "found booleans"),
        ([1e300, 0, 0, 0], "FP32", "a number is out of range"),
        ([0] * 9, "FP32", "found more than 4 values"),
    ],
)
def test_numbers_that_numpy_would_bend_are_refused(data, datatype, message):
    with pytest.raises(RequestError, match=message):
        asked(data, datatype)


@pytest.mark.parametrize("priority", [2**32, 10**30])
def test_a_priority_that_no_journal_can_hold_is_refused(priority):
    with pytest.raises(RequestError, match="priority must be 0 to 4294967295"):
        asked([0] * 4, parameters={"priority": priority})


def test_an_output_is_wanted_once():
    with pytest.raises(RequestError, match="an output is wanted twice"):
        asked([0] * 4, outputs=[{"name": "y"}] * 2)


def test_typed_strings_that_are_not_utf8_do_not_reach_a_worker():
    with pytest.raises(RequestError, match="not UTF-8"):
        called(of("BYTES"), datatype="BYTES", shape=[1, 2], contents={"bytes_contents": [b"\xff", b"a"]})
    assert called(of("BYTES"), datatype="BYTES", shape=[1, 1], contents={"bytes_contents": ["ä".encode()]})


def large():
    """Requests that held the loop for seconds, and what refuses them."""
    strings = {
        "name": "x",
        "datatype": "BYTES",
        "shape": [1, 4_000_000],
        "parameters": {"binary_data_size": 16_000_000},
    }
    reader = Reader("1", Checker("m", of("BYTES"), 8))

    def read_strings():
        form = reader.form(json.dumps({"inputs": [strings]}).encode())
        form.inputs(form.cut(memoryview(bytes(16_000_000))), NOTHING)

    numbers = Reader("1", Checker("m", NUMBERS, 8))
    dimensions = b'{"inputs":[{"name":"x","datatype":"FP32","data":[1],"shape":[' + b"1," * 1_000_000 + b"1]}]}"
    return {
        "strings": (read_strings, f"{MOST_STRINGS} elements at most"),
        "JSON": (lambda: numbers.form(b" " * 60_000_000), f"larger than {LARGEST_DESCRIPTION}"),
        "numbers in JSON": (
            lambda: asked([1] * (MOST_ELEMENTS + 1), shape=(1, MOST_ELEMENTS + 1)),
            "too many for JSON",
        ),
        "dimensions in JSON": (lambda: numbers.form(dimensions), "length <= 32"),
        "dimensions": (lambda: called(NUMBERS, [bytes(16)], shape=[1] * 1_000_000), "dimensions, 32 at most"),
        "empty fields": (lambda: split(b"\x1a\x00" * 20_000_000), "1024 fields at most"),
        "empty tensors": (lambda: split(b"\x3a\x00" * 20_000_000), "1024 raw contents at most"),
        "a description": (lambda: split(b"\x0a\x80\x80\x80\x10" + bytes(1 << 25)), "without its raw contents"),
    }


@pytest.mark.parametrize("name", large())
def test_what_would_hold_the_loop_is_refused_before_it_does(name):
    call, message = large()[name]
    began = time.process_time()
    with pytest.raises(RequestError, match=message):
        call()
    assert time.process_time() - began < LOOP_BUDGET_S


def result(count, signature=NUMBERS):
    return [Result(signature.outputs[0], (1, count), memoryview(bytes(4 * count)))]


def test_answers_too_large_to_be_spelled_on_the_loop_are_refused():
    form = asked([0] * 4)
    count = MOST_ELEMENTS + 1
    with pytest.raises(RequestError, match="ask for binary data"):
        Reader("1", Checker("m", NUMBERS, 8)).answer(form, result(count), 0, NOTHING)
    form = asked([0] * 4, outputs=[{"name": "y", "parameters": {"classification": 3}}])
    with pytest.raises(RequestError, match="too many"):
        answer_of(form, NUMBERS, result(count), 0, NOTHING, {})


def test_descriptions_of_answers_that_differ_each_time_are_not_kept_without_end():
    reader = Reader("1", Checker("m", NUMBERS, 8))
    form = asked([0] * 4, parameters={"binary_data_output": True})
    for count in range(1, 300):
        reader.answer(form, result(count), 0, NOTHING)
    assert len(form.answers) <= 64


def test_shape_classes_that_nobody_waits_for_are_forgotten():
    fleet = Fleet({"m": Model("m", 1)}, Plan((), ()))
    kept = fleet.queue("m", "7")
    kept.append(SimpleNamespace(rows=1, priority=0))
    for n in range(1000):
        fleet.queue("m", f"{n}x1")
    assert len(fleet.queues["m"]) <= 64
    assert fleet.queue("m", "7") is kept
    assert kept.owner is CENTRAL


@pytest.fixture
def region(monkeypatch, tmp_path):
    monkeypatch.setattr("gpulet.api.regions._FOLDER", str(tmp_path))
    (tmp_path / "key").write_bytes(bytes(64))
    regions = Regions(is_allowed=True)
    regions.register("r", "key", 0, 64)
    yield regions
    regions.forget()


def test_shared_memory_whose_file_system_is_full_costs_one_request(region, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(RequestError, match="cannot be written: No space left on device"):
        region.write(Place("r", 0, 16), bytes(16))
    monkeypatch.setattr(os, "pwrite", lambda *_: 7)
    with pytest.raises(RequestError, match="took 7 of 16 bytes"):
        region.write(Place("r", 0, 16), bytes(16))


def test_a_fault_of_ours_is_one_requests_answer():
    assert as_request_error(ZeroDivisionError()).status == HTTPStatus.INTERNAL_SERVER_ERROR
    refused = RequestError("no", 413)
    assert as_request_error(refused) is refused


class _Broken:
    """A connection to a front whose readers fail in a way that nobody foresaw."""

    def __init__(self):
        self.front = SimpleNamespace(readers=self._fail, is_leaving=False)

    def _fail(self, *_):
        raise ZeroDivisionError

    def flush_soon(self):
        pass


def test_an_exchange_that_fails_in_an_unforeseen_way_is_answered():
    exchange = Exchange(_Broken(), keep_alive=True)
    exchange.read(b"{}")
    assert exchange.response.startswith(b"HTTP/1.1 500")
    exchange.answer([], 0)
    assert exchange.response.startswith(b"HTTP/1.1 500")


def test_a_refused_body_is_not_kept_by_its_error():
    packed = gzip.compress(bytes(1000))
    with pytest.raises(RequestError, match="larger than 10 bytes") as raised:
        inflated(packed, "gzip", 10)
    frame = raised.value.__traceback__.tb_next.tb_frame
    assert "data" not in frame.f_locals


def test_a_refused_call_keeps_no_traceback():
    call = Call(SimpleNamespace(), "", lambda _: None)
    with pytest.raises(RequestError) as raised:
        parse_head(b"\r\n\r\n", 99)
    call.fail(raised.value)
    assert call.error.__traceback__ is None


def test_a_wanted_output_in_shared_memory_has_no_parameters_over_http(region):
    form = asked([0] * 4)
    form.wanted = (Wanted("y", is_binary=False, place=Place("r", 0, 64)),)
    header, _, _ = Reader("1", Checker("m", NUMBERS, 8)).answer(form, result(4), 0, region)
    assert json.loads(header)["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4]}]


def test_a_name_that_a_client_chose_does_not_fill_the_log(monkeypatch):
    told = []
    monkeypatch.setattr("gpulet.logs._FOLD_S", 0)
    monkeypatch.setattr("gpulet.logs.tell", lambda _, **fields: told.append(fields))

    async def main():
        log = RefusalLog(lambda _: "x" * 10**6)
        log.observe(0, [], [Reject(1, Reason.LATE)])
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(told[0]["client_request_id"]) == 256
