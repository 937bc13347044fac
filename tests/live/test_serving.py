"""A real server on real workers, spoken to as clients do."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

from gpulet.fleetfile import usable_cores
from servers import DIGITS, Server, command, fleet, run, save_model, serve, table

MODELS = {"digits-small": (500, 50), "digits-large": (2000, 5)}
PROFILE = {"digits-small": (0.1, 0.02), "digits-large": (1.0, 16.0)}

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
]
"""Shared memory is listed only where it is allowed."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    (folder / "p.csv").write_text(table(PROFILE, cores=len(usable_cores())))
    path = fleet(folder, MODELS, repository=DIGITS / "models", journal="journal")
    with serve(path) as server:
        yield server


@pytest.fixture(scope="module")
def held_out():
    with np.load(DIGITS / "heldout.npz") as data:
        return data["images"], data["labels"]


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def raw(port, data, *, timeout=10):
    """Everything the server says to these bytes until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", port), timeout) as peer:
        peer.sendall(data)
        answer = b""
        try:
            while part := peer.recv(65536):
                answer += part
                peer.settimeout(0.3)
        except TimeoutError:
            pass
        return answer


def one_answer(peer):
    """One whole answer, however many pieces it comes in."""
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer) < whole(answer):
        part = peer.recv(65536)
        assert part, answer
        answer += part
    return answer


def whole(answer):
    """How long an answer is, by its head."""
    head = answer.partition(b"\r\n\r\n")[0]
    return len(head) + 4 + int(re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)[1])


def post(path, body, *headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def infer_body(image):
    return json.dumps(
        {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": image.ravel().tolist()}]}
    ).encode()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_infers_in_this_process(digits, held_out, model, is_binary):
    images, labels = held_out
    client = triton.InferenceServerClient(f"127.0.0.1:{digits.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    right = 0
    for start in range(0, 40, 4):
        tensor = triton.InferInput("image", [4, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(images[start : start + 4], binary_data=is_binary)
        wanted = triton.InferRequestedOutput("logits", binary_data=is_binary)
        answer = client.infer(model, [tensor], outputs=[wanted], request_id=str(start), timeout=1_900_000, priority=1)
        assert answer.get_response()["id"] == str(start)
        right += (answer.as_numpy("logits").reshape(4, 10).argmax(1) == labels[start : start + 4]).sum()
    assert right >= 38
    client.close()


def test_metadata_says_what_a_model_takes(digits):
    client = triton.InferenceServerClient(f"127.0.0.1:{digits.port}")
    assert client.get_server_metadata()["extensions"] == EXTENSIONS
    metadata = client.get_model_metadata("digits-small", "1")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    client.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2", 200),
        ("/v2/models/digits-small/ready", 200),
        ("/v2/models/digits-small/versions/1/ready", 200),
        ("/v2/models/nobody", 404),
        ("/v2/models/digits-small/versions/2", 404),
        ("/v2/models/digits-small/versions/one", 400),
        ("/v3", 404),
        ("/v2/models/digits-small/infer", 405),
    ],
)
def test_pages_that_are_not_infer(digits, path, status):
    found, body = get(digits.port, path)
    assert found == status
    if status >= 400:
        assert json.loads(body)["error"]


def test_many_requests_on_one_connection_are_answered_in_order(digits, held_out):
    images, labels = held_out
    requests = b"".join(post("/v2/models/digits-small/infer", infer_body(image)) for image in images[:20])
    mixed = requests + b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" + requests
    answers = raw(digits.port, mixed).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(answers) == 41
    assert json.loads(answers[20].partition(b"\r\n\r\n")[2]) == {"live": True}
    logits = [json.loads(a.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] for a in answers[:20] + answers[21:]]
    guesses = np.array(logits).argmax(1)
    assert (guesses[:20] == guesses[20:]).all()
    assert (guesses[:20] == labels[:20]).sum() >= 19


def test_a_refusal_waits_for_the_answers_before_it(digits, held_out):
    good = post("/v2/models/digits-large/infer", infer_body(held_out[0][0]))
    answer = raw(digits.port, good + b"POST /v2/models/digits-large/infer HTTP/1.1\r\nContent-Length: x\r\n\r\n")
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"400"]


def test_blank_lines_leave_a_connection_usable_and_a_chunked_request_ends_it(digits, held_out):
    get_live = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    good = post("/v2/models/digits-small/infer", infer_body(held_out[0][0]))
    answer = raw(digits.port, b"\r\n\r\n" + get_live + b"\r\n" + good)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]
    chunked = b"POST /v2/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    answer = raw(digits.port, chunked + get_live)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"405", b"200"]
    assert b"connection: close" in answer.rpartition(b"HTTP/1.1 ")[2]


def test_an_infer_request_may_come_in_chunks_and_the_connection_goes_on(digits, held_out):
    body, head = (
        infer_body(held_out[0][0]),
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    )
    pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
    sent = head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    plain = post(GOOD_PATH, body)
    expected = raw(digits.port, plain)
    assert expected.startswith(b"HTTP/1.1 200 OK")
    with socket.create_connection(("127.0.0.1", digits.port)) as peer:
        for data in (sent, plain, sent):
            peer.sendall(data[:70])
            peer.sendall(data[70:])
            assert one_answer(peer) == expected


def test_a_chunked_request_without_an_end_is_refused_when_it_is_too_large(digits):
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        peer.sendall(b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            for _ in range(100):
                peer.sendall(b"20000\r\n" + bytes(0x20000) + b"\r\n")
        assert peer.recv(100).startswith(b"HTTP/1.1 413")


def test_a_refusal_reaches_a_client_that_is_still_sending(digits):
    body = bytes(70 << 20)
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        peer.sendall(post("/v2/models/digits-small/infer", body))  # without an error
        assert one_answer(peer).startswith(b"HTTP/1.1 413")


def test_a_control_request_is_told_to_send_its_body(digits):
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        peer.sendall(
            b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"{}")
        assert one_answer(peer).startswith(b"HTTP/1.1 200")


def test_a_scrape_is_a_head_and_no_more(digits):
    with socket.create_connection(("127.0.0.1", digits.metrics_port), 10) as peer, suppress(ConnectionError):
        for _ in range(100):
            peer.sendall(b"GET /metrics HTTP/1.1\r\nX: " + bytes(1 << 16))
        assert peer.recv(100) == b""


def test_an_offer_to_upgrade_and_an_expectation_are_met(digits, held_out):
    body = infer_body(held_out[0][0])
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    assert raw(digits.port, post("/v2/models/digits-small/infer", body, *upgrade)).startswith(b"HTTP/1.1 200")
    head, _, _ = post("/v2/models/digits-small/infer", body, "Expect: 100-continue").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        peer.sendall(head + b"\r\n\r\n")
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(body)
        assert peer.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_a_connection_that_asked_for_health_stays_open_for_infer(digits, held_out):
    data = post("/v2/models/digits-small/infer", infer_body(held_out[0][0]))
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        peer.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert one_answer(peer).startswith(b"HTTP/1.1 200")
        for _ in range(3):  # uvicorn closes what has been idle for 5 s; this connection is ours
            time.sleep(2)
            peer.sendall(data)
            assert one_answer(peer).startswith(b"HTTP/1.1 200")


def test_a_request_in_many_pieces_is_read_whole(digits, held_out):
    data = post("/v2/models/digits-small/infer", infer_body(held_out[0][0]))
    with socket.create_connection(("127.0.0.1", digits.port), 10) as peer:
        for start in range(0, len(data), 50):
            peer.sendall(data[start : start + 50])
        assert peer.recv(100).startswith(b"HTTP/1.1 200 OK")


BINARY = json.dumps(
    {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": 256}}]}
).encode()
GOOD_PATH = "/v2/models/digits-small/infer"
BAD = {
    "garbage": (b"\x16\x03\x01\x02garbage\r\n\r\n", b"400", "not an HTTP request"),
    "head too large": (b"POST " + GOOD_PATH.encode() + b" HTTP/1.1\r\nX: " + b"a" * 40_000, b"431", "head is larger"),
    "2 GiB declared": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {2**31}\r\n\r\n".encode(),
        b"413",
        "body of 2147483648 bytes is larger than",
    ),
    "bad length": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n".encode(),
        b"400",
        "",
    ),
    "no length": (f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), b"411", "needs a Content-Length"),
    "empty chunks": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        b"400",
        "is 256 bytes, binary_data_size is 0",
    ),
    "bad chunk": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n".encode(),
        b"400",
        "a chunk's size must be a hexadecimal number, is b'no'",
    ),
    "chunks of gzip": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".encode(),
        b"400",
        "Transfer-Encoding must be chunked, is b'gzip, chunked'",
    ),
    "two lengths": (
        f"POST {GOOD_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(),
        b"400",
        "not an HTTP request",
    ),
    "truncated tensor": (
        post(GOOD_PATH, BINARY + bytes(200), f"Inference-Header-Content-Length: {len(BINARY)}"),
        b"400",
        "binary data is 200 bytes, the inputs name 256",
    ),
    "JSON longer than the body": (
        post(GOOD_PATH, BINARY, f"Inference-Header-Content-Length: {len(BINARY) + 9}"),
        b"400",
        f"Inference-Header-Content-Length is {len(BINARY) + 9}, the body has {len(BINARY)} bytes",
    ),
    "deep JSON": (post(GOOD_PATH, b"[" * 200_000 + b"]" * 200_000), b"400", "request is not valid"),
    "unknown model": (post("/v2/models/nobody/infer", b"{}"), b"404", "unknown model 'nobody'"),
    "wrong version": (post("/v2/models/digits-small/versions/7/infer", b"{}"), b"404", "has version 1, not 7"),
    "wrong dtype": (post(GOOD_PATH, BINARY.replace(b"FP32", b"FP64")), b"400", "input 'image' is FP32, not FP64"),
    "wrong shape": (post(GOOD_PATH, BINARY.replace(b"8, 8", b"9, 8")), b"400", r"not [1, 1, 9, 8]"),
    "2 GiB tensor": (post(GOOD_PATH, BINARY.replace(b"256", b"2147483648")), b"400", "binary_data_size is 2147483648"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_one_clear_error_and_hurts_nobody(digits, held_out, name):
    data, status, message = BAD[name]
    answer = raw(digits.port, data)
    assert answer[9:12] == status, answer
    assert message in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    good = raw(digits.port, post(GOOD_PATH, infer_body(held_out[0][0])))
    assert good.startswith(b"HTTP/1.1 200 OK")


def threads(pid):
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


def test_every_thread_of_a_worker_may_run_on_its_own_cores_only(digits):
    assert len(digits.workers) == len({w["pid"] for w in digits.workers.values()})
    for worker in digits.workers.values():
        for thread in threads(worker["pid"]):
            assert os.sched_getaffinity(thread) <= set(worker["cores"])


def test_metrics_carry_tritons_names_and_ours(digits):
    status, body = get(digits.metrics_port, "/metrics")
    assert status == 200
    text = body.decode()
    for name in ("nv_inference_request_success", "nv_inference_count", "nv_inference_exec_count"):
        assert f'{name}{{model="digits-small",version="1"}}' in text
    parts = {
        part: float(re.search(rf'^nv_{part}{{model="digits-small",version="1"}} (\S+)$', text, re.MULTILINE)[1])
        for part in (
            *(f"inference_compute_{p}_duration_us" for p in ("input", "infer", "output")),
            "model_load_duration_secs",
        )
    }
    assert min(parts.values()) > 0, "a worker measures its runs and its loads"
    assert 'gpulet_run_seconds_bucket{gpulet="0",le="0.01"}' in text
    assert 'gpulet_latency_seconds_count{model="digits-small"}' in text
    assert 'gpulet_up{gpulet="0"} 1.0' in text
    assert 'gpulet_estimate_error_mean_seconds{model="digits-small"}' in text
    assert 'gpulet_estimate_error_p95_seconds{model="digits-small"}' in text
    assert 'gpulet_violations_total{model="digits-small"}' in text
    assert 'gpulet_gpu_seconds_total{model="digits-small"}' in text
    assert 'gpulet_gpu_area_seconds_total{model="digits-small"}' in text
    for name in ("busy_sm_seconds", "useful_sm_seconds", "carved_sm_seconds", "switches", "resizes"):
        assert f'gpulet_device_{name}_total{{device="0"}}' in text
    assert 'gpulet_device_sms{device="0"}' in text
    assert 'gpulet_device_gpulet_sms{device="0"}' in text
    for of in ("runtime", "area", "goodput"):
        assert f'gpulet_fairness{{of="{of}"}}' in text


def test_a_client_that_goes_away_takes_its_waiting_request_with_it(digits):
    image = np.zeros((32, 1, 8, 8), np.float32)
    body = json.dumps(
        {"inputs": [{"name": "image", "shape": [32, 1, 8, 8], "datatype": "FP32", "data": image.ravel().tolist()}]}
    ).encode()
    peers = [socket.create_connection(("127.0.0.1", digits.port), 10) for _ in range(3)]
    for peer in peers:
        peer.sendall(post("/v2/models/digits-large/infer", body))
    time.sleep(0.1)
    for peer in peers:
        peer.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        text = get(digits.metrics_port, "/metrics")[1].decode()
        line = next(x for x in text.splitlines() if 'model="digits-large",outcome="cancelled"' in x)
        if float(line.split()[-1]) >= 1:
            return
        time.sleep(0.1)
    pytest.fail(f"nothing was cancelled: {line}")


def call(port, model, image, timeout=20):
    """(status, logits or error)"""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v2/models/{model}/infer", infer_body(image), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]


def test_a_killed_worker_loses_nothing_and_is_back_within_three_seconds(digits, held_out):
    images, labels = held_out
    hosts = [g for g, w in digits.workers.items() if "digits-small" in w["models"]]
    expected = [call(digits.port, "digits-small", image)[1] for image in images[:10]]
    ups = len(digits.all("gpulet_up"))
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(call, digits.port, "digits-small", images[n % 10]) for n in range(300)]
        for gpulet in hosts:
            os.kill(digits.workers[gpulet]["pid"], signal.SIGKILL)
        killed = time.monotonic()
        digits.wait_for("gpulet_up", ups + len(hosts))
        assert time.monotonic() - killed < 3
        results = [answer.result() for answer in answers]
    assert {status for status, _ in results} <= {200, 503}
    for n, (status, logits) in enumerate(results):
        if status == 200:
            assert logits == expected[n % 10]
    assert call(digits.port, "digits-small", images[0])[0] == 200


def test_the_live_journal_replays_command_for_command(tmp_path):
    save_model(tmp_path / "models", "tiny")
    path = fleet(tmp_path, {"tiny": (200, 50)}, repository=tmp_path / "models", journal="journal")
    with serve(path) as server:
        for _ in range(20):
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]})
            assert raw(server.port, post("/v2/models/tiny/infer", body.encode())).startswith(b"HTTP/1.1 200")
        os.kill(server.workers[0]["pid"], signal.SIGKILL)
        server.wait_for("gpulet_up", 2)
    code, out, _ = run("replay", tmp_path / "journal")
    assert code == 0
    assert ", 0 differ" in out
    assert "violations/s" in out
    report = json.loads(run("replay", tmp_path / "journal", "--json")[1])
    assert report["total"]["served"] == 20
    assert report["total"]["gpu_s"] > 0
    assert 0 < report["devices"][0]["busy"] < report["devices"][0]["allocated"]
    assert report["fairness"] == {"runtime": 1, "area": 1, "goodput": 1}
    text = (tmp_path / "journal").read_bytes()
    at = text.index(b'"Start"')
    (tmp_path / "forged").write_bytes(text[:at] + text[at:].replace(b'"tiny"', b'"tinz"', 1))
    code, out, _ = run("replay", tmp_path / "forged")
    assert code == 1
    assert ", 1 differ" in out


def test_a_corrupt_model_is_refused_by_name_and_the_others_serve(tmp_path):
    save_model(tmp_path / "models", "fine")
    (tmp_path / "models" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    path = fleet(tmp_path, {"fine": (200, 20), "broken": (200, 20)}, repository=tmp_path / "models")
    with serve(path) as server:
        assert server.all("model_refused")[0]["model"] == "broken"
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        ).encode()
        assert raw(server.port, post("/v2/models/fine/infer", body)).startswith(b"HTTP/1.1 200")
        answer = raw(server.port, post("/v2/models/broken/infer", body))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"model broken could not be loaded" in answer
        assert get(server.port, "/v2/models/broken/ready")[0] >= 400
        assert get(server.port, "/v2/health/ready")[0] == 200


def test_a_port_in_use_is_told_in_one_line(tmp_path):
    save_model(tmp_path / "models", "tiny")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = fleet(tmp_path, {"tiny": (200, 20)}, repository=tmp_path / "models", http_port=port)
        code, _, err = run("serve", path)
    assert code == 3
    (line,) = [x for x in err.splitlines() if x.startswith("error:")]
    assert f"cannot listen on 127.0.0.1:{port} (http_port)" in line


def test_unpinned_workers_share_all_cores_and_the_laxer_objective_gives_way(tmp_path):
    for name in ("tiny", "lax"):
        save_model(tmp_path / "models", name)
    device = 'mechanism = "whole"'
    path = fleet(tmp_path, {"tiny": (200, 20), "lax": (400, 20)}, device=device, repository=tmp_path / "models")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    with serve(path) as server:
        workers = {worker["models"][0]: worker for worker in server.workers.values()}
        assert {tuple(worker["cores"]) for worker in workers.values()} == {tuple(usable_cores())}
        nice = {name: {os.getpriority(os.PRIO_PROCESS, t) for t in threads(w["pid"])} for name, w in workers.items()}
        assert nice == {"tiny": {mine}, "lax": {max(mine, 10)}}
        sessions = {os.getsid(worker["pid"]) for worker in workers.values()}
        assert sessions == {os.getsid(server.process.pid)}, (
            "in sessions of their own niceness would not count between them"
        )
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        ).encode()
        answer = raw(server.port, post("/v2/models/tiny/infer", body))
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"] == [1, 2, 3, 4]


def test_a_model_with_free_dimensions_is_profiled_and_served_by_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(tmp_path / "models", "free", width="W")
    text = '[[devices]]\nkind = "cpu"\n[[models]]\nname = "free"\nslo_ms = 200\nrate = 20\nshapes = ["3", "5"]\nmax_batch = 2\n'
    text += '[server]\nrepository = "models"\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\n'
    (tmp_path / "fleet.toml").write_text(text)
    code, out, _ = run("profile", tmp_path / "fleet.toml", "--budget", "0.01", "--json")
    profile = json.loads(out)
    assert code == 0
    assert {(p["shape"], p["batch"]) for p in profile["points"]} == {(s, b) for s in ("3", "5") for b in (1, 2)}
    assert profile["machine"]["front_end_us"] > 0
    (table_file,) = (tmp_path / "cache" / "gpulet" / "profiles").glob("*.csv")
    kept, lost = table_file.read_text().splitlines()[:-1], table_file.read_text().splitlines()[-1]
    table_file.write_text("\n".join(kept) + "\n")
    assert run("profile", tmp_path / "fleet.toml", "--budget", "0.01")[0] == 0
    resumed = table_file.read_text().splitlines()
    assert resumed[:-1] == kept  # what was measured stands; the point that was missing is measured
    assert resumed[-1].split(",")[:4] == lost.split(",")[:4]
    with serve(tmp_path / "fleet.toml") as server:
        for width, status in ((3, b"200"), (5, b"200"), (4, b"400")):
            tensor = {"name": "x", "shape": [1, width], "datatype": "FP32", "data": [7] * width}
            answer = raw(server.port, post("/v2/models/free/infer", json.dumps({"inputs": [tensor]}).encode()))
            assert answer[9:12] == status
        assert b"served with free dimensions 3, 5, not 4" in answer


BAD_SYSTEM = """
from gpulet.core.fleet import CENTRAL
from gpulet.planners.elastic import elastic
from gpulet.systems import System

class Bad:
    def __init__(self, problem, plan):
        pass

    def bind(self, now, request, fleet):
        raise RuntimeError("this dispatcher is broken")

    def decide(self, now, changed, fleet):
        from gpulet.core.ports import Decision
        return Decision()

SYSTEM = System(elastic, Bad)
"""


def test_a_broken_dispatcher_ends_the_server_and_leaves_nobody_waiting(tmp_path, monkeypatch):
    (tmp_path / "bad_system.py").write_text(BAD_SYSTEM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = fleet(tmp_path, {"m": (200, 20)}, device='executor = "simulated"', system="bad_system:SYSTEM")
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}).encode()
    server = Server(subprocess.Popen(command("serve", path), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        assert raw(server.port, post("/v2/models/m/infer", body)).startswith(b"HTTP/1.1 503")
        assert server.process.wait(20) == 1
        assert "this dispatcher is broken" in server.all("core_failed")[0]["error"]
    finally:
        server.close()


def test_overload_is_refused_at_once_with_a_time_to_come_back(tmp_path):
    (tmp_path / "p.csv").write_text(table({"slow": (50.0, 0.1)}))
    device = 'executor = "simulated"'
    path = fleet(tmp_path, {"slow": (110, 5)}, device=device, overload_status=503)
    body = json.dumps({"inputs": [{"name": "input", "shape": [32, 1], "datatype": "FP32", "data": [0] * 32}]}).encode()
    with serve(path) as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: raw(server.port, post("/v2/models/slow/infer", body)), range(16)))
    refused = [a for a in answers if a.startswith(b"HTTP/1.1 503")]
    assert refused
    assert all(b"\r\nretry-after: 1\r\n" in a and b"predicted late" in a for a in refused)
    assert any(a.startswith(b"HTTP/1.1 200") for a in answers)


def test_a_stopping_server_answers_what_it_has(tmp_path):
    (tmp_path / "p.csv").write_text(table({"slow": (300.0, 0.1)}))
    path = fleet(tmp_path, {"slow": (2000, 1)}, device='executor = "simulated"')
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}).encode()
    with serve(path) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(raw, server.port, post("/v2/models/slow/infer", body))
        time.sleep(0.1)
        server.stop()
        assert answer.result().startswith(b"HTTP/1.1 200")


def test_a_connection_of_a_stopping_server_ends_with_the_answer_to_its_next_request(tmp_path):
    (tmp_path / "p.csv").write_text(table({"slow": (1000.0, 0.1)}))
    path = fleet(tmp_path, {"slow": (5000, 0.5)}, device='executor = "simulated"')
    body = json.dumps({"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}]}).encode()
    request = post("/v2/models/slow/infer", body)
    with serve(path) as server, ThreadPoolExecutor(1) as pool:
        peer = socket.create_connection(("127.0.0.1", server.port), 10)
        with peer:
            slow = pool.submit(raw, server.port, request)
            time.sleep(0.1)
            server.stop()
            time.sleep(0.2)
            peer.sendall(request)
            answer = one_answer(peer)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"\r\nconnection: close\r\n" in answer
            assert peer.recv(1) == b""
        assert slow.result().startswith(b"HTTP/1.1 200")
