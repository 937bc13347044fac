"""Clients that know nothing of gpulet: tritonclient over HTTP and gRPC, blocking and asyncio, unmodified."""

import asyncio
import datetime as dt
import gzip
import ipaddress
import json
import queue
import re
import ssl
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
import tritonclient.utils.shared_memory as shm
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf.json_format import MessageToJson
from onnx import TensorProto
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from gpulet.api.rpc.messages import MESSAGES
from servers import fleet, run, save_copy, save_model, serve

X = np.arange(8, dtype=np.float32).reshape(2, 4)
MODELS = {
    "tiny": (200, 50),
    "words": (200, 20),
    "bits": (200, 20),
    "halves": (200, 20),
    "flags": (200, 20),
    "two": (200, 20),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    save_model(folder / "models", "tiny")
    save_copy(folder / "models", "words", TensorProto.STRING)
    save_copy(folder / "models", "bits", TensorProto.BFLOAT16)
    save_copy(folder / "models", "halves", TensorProto.FLOAT16)
    save_copy(folder / "models", "flags", TensorProto.BOOL)
    save_copy(folder / "models", "two", TensorProto.INT64, inputs=("a", "b"))
    with serve(fleet(folder, MODELS, repository=folder / "models", allow_client_shm=True)) as running:
        running.folder = folder
        yield running


@pytest.fixture(scope="module")
def fallback(server):
    """The same on grpcio."""
    options = {"repository": server.folder / "models", "allow_client_shm": True, "grpc_plane": "grpcio"}
    with serve(fleet(server.folder, MODELS, **options)) as running:
        yield running


@pytest.fixture(params=["own", "grpcio"])
def plane(request):
    """A server of each gRPC plane."""
    return request.getfixturevalue("server" if request.param == "own" else "fallback")


@pytest.fixture(params=["http", "grpc", "grpcio"])
def wire(request):
    """A module of tritonclient and a client of it."""
    server = request.getfixturevalue("fallback" if request.param == "grpcio" else "server")
    module = over_http if request.param == "http" else over_grpc
    address = f"127.0.0.1:{server.port}" if module is over_http else server.grpc
    with closing(module.InferenceServerClient(address)) as client:
        yield module, client


def given(module, array, name="x", datatype="FP32"):
    tensor = module.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def as_dict(document):
    """The JSON of HTTP, or a message of gRPC."""
    if isinstance(document, dict | list):
        return document
    return json.loads(MessageToJson(document, preserving_proto_field_name=True))


def test_our_messages_have_the_clients_names_numbers_and_types():
    def fields(message):
        return {(f.name, f.number, f.type, f.is_repeated) for f in message.fields}

    def check(ours, theirs):
        assert fields(ours) == fields(theirs), ours.name
        assert {o.name for o in ours.oneofs} == {o.name for o in theirs.oneofs}, ours.name
        assert set(ours.nested_types_by_name) == set(theirs.nested_types_by_name), ours.name
        for name, nested in ours.nested_types_by_name.items():
            check(nested, theirs.nested_types_by_name[name])

    theirs = service_pb2.DESCRIPTOR.message_types_by_name
    assert set(theirs) <= {name for name in MESSAGES if "." not in name}
    for name, message in theirs.items():
        check(MESSAGES[name].DESCRIPTOR, message)


def test_health_metadata_config_statistics_and_index(wire):
    _, client = wire
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny", "1")
    assert "system_shared_memory" in list(as_dict(client.get_server_metadata())["extensions"])
    metadata = as_dict(client.get_model_metadata("tiny"))
    assert [t["name"] for t in metadata["inputs"]] == ["x"]
    config = as_dict(client.get_model_config("tiny"))
    config = config.get("config", config)
    assert config["max_batch_size"] >= 2
    assert [t["data_type"] for t in config["input"]] == ["TYPE_FP32"]
    stats = as_dict(client.get_inference_statistics("tiny"))["model_stats"]
    assert stats[0]["name"] == "tiny"
    index = as_dict(client.get_model_repository_index())
    rows = index if isinstance(index, list) else index["models"]
    assert {r["name"]: r["state"] for r in rows} == dict.fromkeys(MODELS, "READY")


def test_statistics_count_what_was_asked(wire):
    module, client = wire

    def count():
        return int(as_dict(client.get_inference_statistics("tiny"))["model_stats"][0].get("inference_count", 0))

    before = count()
    client.infer("tiny", [given(module, X)])
    assert count() == before + 2


def test_results_ids_and_chosen_outputs(wire):
    module, client = wire
    answer = client.infer("tiny", [given(module, X)], request_id="q7", outputs=[module.InferRequestedOutput("y")])
    assert np.array_equal(answer.as_numpy("y"), X)
    response = answer.get_response()
    assert (response["id"] if module is over_http else response.id) == "q7"


@pytest.mark.parametrize(
    ("model", "array", "datatype"),
    [
        ("words", np.array([["ä", "b"], ["", "x" * 300]], object), "BYTES"),
        ("halves", np.array([[0.5, -2.0]], np.float16), "FP16"),
        ("flags", np.array([[True, False], [False, True]]), "BOOL"),
        ("bits", np.array([[0.5, -2.0], [3.0, 1e30]], ml_dtypes.bfloat16), "BF16"),
    ],
)
def test_every_kind_of_tensor_comes_back(wire, model, array, datatype):
    module, client = wire
    result = client.infer(model, [given(module, array, datatype=datatype)]).as_numpy("y")
    if datatype == "BYTES":
        assert [[e.decode() for e in row] for row in result] == array.tolist()
    else:
        assert np.allclose(result.astype(np.float64), array.astype(np.float64), rtol=1e-2)


def test_a_model_of_two_inputs_takes_them_in_any_order(wire):
    module, client = wire
    a, b = np.array([[1, 2]]), np.array([[3, 4]])
    answer = client.infer("two", [given(module, b, "b", "INT64"), given(module, a, "a", "INT64")])
    assert answer.as_numpy("a_out").tolist() == [[1, 2]]
    assert answer.as_numpy("b_out").tolist() == [[3, 4]]


def test_best_classes(wire):
    module, client = wire
    best = client.infer("tiny", [given(module, X)], outputs=[module.InferRequestedOutput("y", class_count=2)])
    assert best.as_numpy("y").tolist() == [[b"3.000000:3", b"2.000000:2"], [b"7.000000:3", b"6.000000:2"]]


def test_json_and_typed_contents_without_raw_tensors(server):
    with closing(over_http.InferenceServerClient(f"127.0.0.1:{server.port}")) as client:
        tensor = over_http.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(X, binary_data=False)
        answer = client.infer("tiny", [tensor], outputs=[over_http.InferRequestedOutput("y", binary_data=False)])
        assert np.array_equal(answer.as_numpy("y"), X)
        words = over_http.InferInput("x", [1, 2], "BYTES")
        words.set_data_from_numpy(np.array([["ä", "b"]], object), binary_data=False)
        answer = client.infer("words", [words], outputs=[over_http.InferRequestedOutput("y", binary_data=False)])
        assert answer.as_numpy("y").tolist() == [["ä", "b"]]
    request = service_pb2.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    tensor.contents.fp32_contents.extend(X.ravel().tolist())
    assert np.array_equal(call(server, request), X.ravel())


def call(server, request):
    with grpc.insecure_channel(server.grpc) as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )
        return np.frombuffer(method(request, timeout=10).raw_output_contents[0], np.float32)


def test_raw_contents_need_not_come_last(plane):
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[2, 4])
    rest = service_pb2.ModelInferRequest(id="late").SerializeToString()
    with grpc.insecure_channel(plane.grpc) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        answer = service_pb2.ModelInferResponse.FromString(method(request.SerializeToString() + rest, timeout=10))
    assert answer.id == "late"
    assert answer.raw_output_contents[0] == X.tobytes()


def test_system_shared_memory_carries_inputs_and_outputs(wire):
    module, client = wire
    key = f"/gpulet_{module.__name__.rpartition('.')[2]}"
    region = shm.create_shared_memory_region("both", key, 64)
    try:
        shm.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("both", key, 64)
        assert "both" in json.dumps(as_dict(client.get_system_shared_memory_status()))
        tensor = module.InferInput("x", [2, 4], "FP32")
        tensor.set_shared_memory("both", 32)
        output = module.InferRequestedOutput("y")
        output.set_shared_memory("both", 32, offset=32)
        for _ in range(2):  # the second is read by what the first has left
            answer = client.infer("tiny", [tensor], outputs=[output])
            assert ("shared_memory_region" in str(answer.get_output("y"))) == (module is over_grpc)
            assert np.array_equal(shm.get_contents_as_numpy(region, np.float32, [2, 4], offset=32), X)
        far = module.InferInput("x", [2, 4], "FP32")
        far.set_shared_memory("both", 32, offset=40)
        with pytest.raises(InferenceServerException, match="32 bytes at 40 are not within the 64 of region 'both'"):
            client.infer("tiny", [far])
        client.unregister_system_shared_memory()
        with pytest.raises(InferenceServerException, match="'both' is not registered"):
            client.infer("tiny", [tensor])
    finally:
        shm.destroy_shared_memory_region(region)


def test_a_region_that_its_owner_cuts_short_hurts_one_request_only(wire):
    module, client = wire
    key = f"gpulet_cut_{module.__name__.rpartition('.')[2]}"
    with open(f"/dev/shm/{key}", "w+b") as file:  # noqa: PTH123, S108
        file.write(bytes(64))
        file.flush()
        client.register_system_shared_memory("cut", key, 64)
        file.truncate(8)
        tensor = module.InferInput("x", [2, 4], "FP32")
        tensor.set_shared_memory("cut", 32)
        output = module.InferRequestedOutput("y")
        output.set_shared_memory("cut", 32)
        with pytest.raises(InferenceServerException, match="was cut short"):
            client.infer("tiny", [tensor])
        with pytest.raises(InferenceServerException, match="was cut short"):
            client.infer("tiny", [given(module, X)], outputs=[output])
    client.unregister_system_shared_memory("cut")
    assert np.array_equal(client.infer("tiny", [given(module, X)]).as_numpy("y"), X)


@pytest.mark.parametrize("key", ["../../etc/passwd", "a/b", "", "..", "nothing_there"])
def test_only_shared_memory_can_be_registered(wire, key):
    _, client = wire
    with pytest.raises(InferenceServerException, match="shared memory key"):
        client.register_system_shared_memory("bad", key, 64)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_bodies_may_be_packed_both_ways(server, algorithm):
    with closing(over_http.InferenceServerClient(f"127.0.0.1:{server.port}")) as client:
        answer = client.infer(
            "tiny",
            [given(over_http, X)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        assert np.array_equal(answer.as_numpy("y"), X)


def test_a_body_that_unpacks_too_large_is_refused(tmp_path):
    save_model(tmp_path / "models", "tiny")
    path = fleet(tmp_path, {"tiny": (200, 50)}, repository=tmp_path / "models")
    path.write_text(path.read_text() + "[limits]\nmax_body_mib = 1\n")
    with serve(path) as server:
        body = gzip.compress(bytes(2 << 20))
        status, text = post(server, "/v2/models/tiny/infer", body, {"Content-Encoding": "gzip"})
        assert (status, "larger than 1048576 bytes once unpacked" in text) == (413, True)
        status, text = post(server, "/v2/models/tiny/infer", b"no", {"Content-Encoding": "gzip"})
        assert (status, "body is not gzip" in text) == (400, True)
        status, text = post(server, "/v2/models/tiny/infer", body[:-4], {"Content-Encoding": "gzip"})
        assert status in {400, 413}
        status, text = post(server, "/v2/models/tiny/infer", b"{}", {"Content-Encoding": "br"})
        assert status == 415


def post(server, path, body, headers, scheme="http", context=None):
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{server.port}{path}", body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, answer.read().decode("latin-1")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_raw_request_is_the_bytes_of_the_only_input(server):
    url = f"http://127.0.0.1:{server.port}/v2/models/tiny/infer"
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    with urllib.request.urlopen(urllib.request.Request(url, X[:1].tobytes(), headers), timeout=10) as answer:
        length = int(answer.headers["Inference-Header-Content-Length"])
        assert answer.read()[length:] == X[:1].tobytes()
    status, text = post(server, "/v2/models/tiny/infer", b"123", headers)
    assert (status, "binary_data_size is 3" in text) == (400, True)


def test_load_is_told_to_balancers_who_ask(server):
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
    for form, start in (("text", "TEXT application_utilization="), ("json", 'JSON {"application_utilization"')):
        url = f"http://127.0.0.1:{server.port}/v2/models/tiny/infer"
        request = urllib.request.Request(url, body, {"endpoint-load-metrics-format": form})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["endpoint-load-metrics"].startswith(start)


def test_a_stream_answers_in_order_and_outlives_a_bad_request(plane):
    answers = queue.Queue()
    with closing(over_grpc.InferenceServerClient(plane.grpc)) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            client.async_stream_infer(
                "nobody" if number == 7 else "tiny", [given(over_grpc, X)], request_id=str(number)
            )
        for number in range(20):
            result, error = answers.get(timeout=10)
            if number == 7:
                assert "unknown model 'nobody'" in str(error)
            else:
                assert result.get_response().id == str(number)
                assert result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()


def test_asyncio_clients(plane):
    async def ask():
        http = over_http_aio.InferenceServerClient(f"127.0.0.1:{plane.port}")
        rpc = over_grpc_aio.InferenceServerClient(plane.grpc)
        for module, client in ((over_http, http), (over_grpc, rpc)):
            answers = await asyncio.gather(*(client.infer("tiny", [given(module, X + n)]) for n in range(20)))
            for number, answer in enumerate(answers):
                assert np.array_equal(answer.as_numpy("y"), X + number)
            await client.close()

    asyncio.run(ask())


def test_errors_have_the_protocols_codes(plane):
    with closing(over_grpc.InferenceServerClient(plane.grpc)) as client:
        for model, tensor, code in (
            ("nobody", given(over_grpc, X), "NOT_FOUND"),
            ("tiny", given(over_grpc, X[:, :2]), "INVALID_ARGUMENT"),
            ("tiny", given(over_grpc, X, name="z"), "INVALID_ARGUMENT"),
        ):
            with pytest.raises(InferenceServerException) as raised:
                client.infer(model, [tensor])
            assert raised.value.status() == f"StatusCode.{code}"
        with pytest.raises(InferenceServerException) as raised:
            client.load_model("tiny")
        assert "explicit model load / unload is not allowed" in str(raised.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of 127.0.0.1, by itself: (certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    kind = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize("plane", ["own", "grpcio"])
def test_tls_and_tokens_guard_both_ports(tmp_path, certificate, plane):
    cert, key = certificate
    save_model(tmp_path / "models", "tiny")
    (tmp_path / "token").write_text("s3cret\n")
    keys = {"tls_certificate": str(cert), "tls_key": str(key), "token_file": "token", "grpc_plane": plane}
    with serve(fleet(tmp_path, {"tiny": (200, 50)}, repository=tmp_path / "models", **keys)) as server:
        context = ssl.create_default_context(cafile=str(cert))
        body = json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
        ).encode()
        good = {"Authorization": "Bearer s3cret"}
        for headers, status in (({}, 401), ({"Authorization": "Bearer no"}, 401), (good, 200)):
            for path in ("/v2/models/tiny/infer", "/v2/repository/index"):
                assert post(server, path, body, headers, "https", context)[0] == status, (path, headers)
        for path, status in (("/v2/health/ready", 200), ("/v2", 401), ("/metrics", 401)):
            port = server.metrics_port if path == "/metrics" else server.port
            try:
                urllib.request.urlopen(f"https://127.0.0.1:{port}{path}", timeout=10, context=context).close()
                found = 200
            except urllib.error.HTTPError as error:
                found = error.code
            assert found == status, path
        with closing(over_grpc.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(cert))) as client:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException, match="a bearer token is wanted"):
                client.infer("tiny", [given(over_grpc, X)])
            answer = client.infer("tiny", [given(over_grpc, X)], headers={"authorization": "Bearer s3cret"})
            assert np.array_equal(answer.as_numpy("y"), X)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({}, "without a token"),
        ({"token_file": "token", "allow_client_shm": True}, "with shared memory"),
    ],
)
def test_an_address_beyond_loopback_needs_protection_or_a_word(tmp_path, keys, why):
    save_model(tmp_path / "models", "tiny")
    (tmp_path / "token").write_text("s3cret\n")
    path = fleet(tmp_path, {"tiny": (200, 50)}, repository=tmp_path / "models", host="0.0.0.0", **keys)  # noqa: S104
    code, _, errors = run("serve", path)
    assert code == 2
    assert why in errors
    assert "--insecure" in errors
    with serve(path, "--insecure") as server:
        assert server.all("ready")


def test_the_standard_health_service_answers(plane):
    with grpc.insecure_channel(plane.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10) == b"\x08\x01"
        assert check(b"\x0a\x04tiny", timeout=10) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as raised:
            check(b"\x0a\x06nobody", timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=10)
        assert next(iter(watch)) == b"\x08\x01"
        watch.cancel()


def slow_request(parameters=""):
    return b'{"inputs": [{"name": "input", "shape": [1, 1], "datatype": "FP32", "data": [0]}]%s}' % parameters.encode()


def test_every_way_to_say_how_long_one_waits_binds_in_the_queue_and_is_counted_apart(tmp_path):
    """A run takes 300 ms: whoever waits less behind it is given up in the queue, none of them runs."""
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\nslow,1,1,300\nslow,1,2,600\n")
    path = fleet(tmp_path, {"slow": (20000, 1)}, device='executor = "simulated"\ncount = 1\ncores = 1')
    short = [
        ({}, ', "parameters": {"timeout": 100000}'),
        ({"gpulet-timeout-ms": "100"}, ""),
        ({"x-envoy-expected-rq-timeout-ms": "100"}, ""),
    ]
    with serve(path) as server, ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, server, "/v2/models/slow/infer", slow_request(), {})
        wait_until(lambda: outcomes(server)["arrived"] == 1)
        waits = [pool.submit(post, server, "/v2/models/slow/infer", slow_request(p), h) for h, p in short]
        for wait in waits:
            status, text = wait.result()
            assert status in {429, 503}, text
        assert first.result()[0] == 200
        counts = outcomes(server)
    assert counts["expired"] + counts["rejected"] == 3
    assert (counts["served"], counts["cancelled"], counts["failed"]) == (1, 0, 0)


def wait_until(is_so):
    for _ in range(1000):
        if is_so():
            return
    raise AssertionError


def outcomes(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = re.findall(
        r'^gpulet_requests_total\{model="slow",outcome="(\w+)"\} ([\d.]+)$', "\n".join(lines), re.MULTILINE
    )
    return {outcome: int(float(count)) for outcome, count in found}
