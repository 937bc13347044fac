"""Both gRPC planes under grpcio's own clients: what a user of one may rely on holds on the other."""

import asyncio
import threading
import time
import urllib.request
from contextlib import closing

import grpc
import numpy as np
import pytest
import tritonclient.grpc as over_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from servers import fleet, save_model, serve

WIDE = 1 << 22  # floats in a row: 16 MiB
SERVICE = "/inference.GRPCInferenceService/"
UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
PLANES = ["own", "grpcio"]


def row_at_most(path, model):
    """One row a batch: slots are made for the largest."""
    path.write_text(path.read_text().replace(f'name = "{model}"\n', f'name = "{model}"\nmax_batch = 1\n'))
    return path


@pytest.fixture(scope="module", params=PLANES)
def server(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planes")
    save_model(folder / "models", "tiny")
    save_model(folder / "models", "wide", width=WIDE)
    models = {"tiny": (20000, 50), "wide": (20000, 2)}
    path = row_at_most(fleet(folder, models, repository=folder / "models", grpc_plane=request.param), "wide")
    path.write_text(path.read_text() + "[limits]\nmax_body_mib = 17\n")
    with serve(path) as running:
        running.plane = request.param
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.grpc, UNBOUNDED) as opened:
        yield opened


def infer(channel, name="ModelInfer"):
    return channel.unary_unary(
        SERVICE + name,
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelInferResponse.FromString,
    )


def asked(model, array, number=""):
    request = service_pb2.ModelInferRequest(model_name=model, id=str(number), raw_input_contents=[array.tobytes()])
    name = "input" if model == "slow" else "x"
    request.inputs.add(name=name, datatype="FP32", shape=array.shape)
    return request


def given(array, name="x"):
    tensor = over_grpc.InferInput(name, list(array.shape), "FP32")
    tensor.set_data_from_numpy(array)
    return tensor


def tiny(number):
    return np.full((1, 4), number, np.float32)


def test_messages_far_above_the_windows_travel_both_ways(channel):
    rows = np.random.default_rng(1).random((1, WIDE), np.float32)
    for _ in range(2):
        answer = infer(channel)(asked("wide", rows), timeout=30)
        assert answer.raw_output_contents[0] == rows.tobytes()


def test_five_hundred_calls_at_once_on_a_connection_get_their_own_answers(server):
    async def ask():
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            calls = [infer(channel)(asked("tiny", tiny(n), n), timeout=30) for n in range(500)]
            return await asyncio.gather(*calls)

    for number, answer in enumerate(asyncio.run(ask())):
        assert answer.id == str(number)
        assert answer.raw_output_contents[0] == tiny(number).tobytes()


def test_a_reader_that_lags_holds_its_stream_up_and_nobody_else(channel):
    rows, took = np.zeros((1, WIDE), np.float32), []

    def requests():
        for number in range(5):
            took.append(number)
            yield asked("wide", rows, number)

    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelStreamInferResponse.FromString,
    )(requests(), timeout=60)
    for number in range(20):
        infer(channel)(asked("tiny", tiny(number)), timeout=30)
    answers = [answer.infer_response for answer in stream]
    assert [a.id for a in answers] == ["0", "1", "2", "3", "4"]
    assert all(len(a.raw_output_contents[0]) == 4 * WIDE for a in answers)
    assert stream.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_packed_messages_are_unpacked(server, packing):
    with grpc.insecure_channel(server.grpc, UNBOUNDED, packing) as channel:
        for model, rows in (("tiny", tiny(1)), ("wide", np.tile(np.arange(4096, dtype=np.float32), (1, WIDE // 4096)))):
            assert infer(channel)(asked(model, rows), timeout=30).raw_output_contents[0] == rows.tobytes()


def test_a_message_that_is_or_unpacks_too_large_is_refused_and_the_connection_goes_on(server):
    with grpc.insecure_channel(server.grpc, UNBOUNDED) as channel:
        for packing in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            with pytest.raises(grpc.RpcError) as raised:
                infer(channel)(asked("wide", np.zeros((1, 3 * WIDE // 2), np.float32)), timeout=30, compression=packing)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert infer(channel)(asked("tiny", tiny(5)), timeout=30).raw_output_contents[0] == tiny(5).tobytes()


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        (SERVICE + "Nothing", b"", "UNIMPLEMENTED"),
        ("/no.Service/ModelInfer", b"", "UNIMPLEMENTED"),
        (SERVICE + "ModelInfer", b"\xff\xff\xff", "INVALID_ARGUMENT"),
        (SERVICE + "ModelMetadata", b"\xff\xff\xff", "INVALID_ARGUMENT"),
        (SERVICE + "ModelMetadata", b"\x0a\x05\xc3\xa4 %\n", "NOT_FOUND"),
        ("/grpc.health.v1.Health/Watch", b"\xff\xff\xff", "INVALID_ARGUMENT"),
    ],
)
def test_errors_have_codes_and_whole_messages(channel, path, message, code):
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(path)(message, timeout=10)
    assert raised.value.code().name == code
    if code == "NOT_FOUND":
        assert "'ä %\\n'" in raised.value.details()


def test_a_stream_that_is_cancelled_leaves_the_connection_usable(channel):
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelStreamInferResponse.FromString,
    )
    stop = threading.Event()

    def endless():
        while not stop.is_set():
            yield asked("tiny", tiny(1))

    calls = [stream(endless(), timeout=30) for _ in range(3)]
    for each in calls:
        next(each)
        each.cancel()
    stop.set()
    assert infer(channel)(asked("tiny", tiny(7)), timeout=30).raw_output_contents[0] == tiny(7).tobytes()


def test_an_endless_stream_of_small_requests_is_answered_in_order(channel):
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        service_pb2.ModelInferRequest.SerializeToString,
        service_pb2.ModelStreamInferResponse.FromString,
    )
    answers = [a.infer_response for a in stream((asked("tiny", tiny(n), n) for n in range(1000)), timeout=60)]
    assert [int(a.id) for a in answers] == list(range(1000))


def wait_until_there(server, count):
    """So many requests wait or run."""
    told, give_up = "", time.monotonic() + 20
    while f'gpulet_unanswered{{model="slow"}} {count}.0' not in told:
        assert time.monotonic() < give_up, told
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
            told = page.read().decode()


@pytest.mark.parametrize("plane", PLANES)
def test_calls_under_way_outlive_a_stop_and_their_channel_finds_the_next_server(tmp_path, plane):
    """With a client that asks every 100 ms whether the server is there, while its calls take longer."""
    (tmp_path / "p.csv").write_text(
        "model,size,batch,mean_ms\n" + "".join(f"slow,{s},{b},700\n" for s in (1, 2) for b in (1, 2))
    )
    path = fleet(tmp_path, {"slow": (20000, 1)}, device='executor = "simulated"\ncount = 1', grpc_plane=plane)
    alive = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 2000),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    with serve(path) as server:
        port = server.grpc.rpartition(":")[2]
        channel = grpc.insecure_channel(server.grpc, [*alive, ("grpc.max_reconnect_backoff_ms", 200)])
        calls = [infer(channel).future(asked("slow", np.zeros((1, 1), np.float32)), timeout=30) for _ in range(4)]
        wait_until_there(server, 4)
        server.stop()
        assert [call.result().model_name for call in calls] == ["slow"] * 4
    path.write_text(path.read_text().replace("grpc_port = 0", f"grpc_port = {port}"))
    with serve(path), closing(channel):
        again = infer(channel)(asked("slow", np.zeros((1, 1), np.float32)), timeout=30, wait_for_ready=True)
        assert again.model_name == "slow"


@pytest.mark.parametrize("plane", PLANES)
def test_a_deadline_and_a_cancelled_call_end_in_the_queue(tmp_path, plane):
    (tmp_path / "p.csv").write_text(
        "model,size,batch,mean_ms\n" + "".join(f"slow,{s},{b},100\n" for s in (1, 2) for b in (1, 2))
    )
    path = fleet(tmp_path, {"slow": (20000, 1)}, device='executor = "simulated"\ncount = 1', grpc_plane=plane)
    x = np.zeros((1, 1), np.float32)
    with serve(path) as server, closing(over_grpc.InferenceServerClient(server.grpc)) as client:
        with pytest.raises(InferenceServerException) as raised:
            client.infer("slow", [given(x, "input")], client_timeout=0.05)
        assert raised.value.status() in {"StatusCode.DEADLINE_EXCEEDED", "StatusCode.UNAVAILABLE"}
        calls = [client.async_infer("slow", [given(x, "input")], lambda **_: None) for _ in range(30)]
        for each in calls[10:]:
            each.cancel()
        for _ in range(2):  # answered after those before it, which are fewer than were sent
            client.infer("slow", [given(x, "input")])
    assert server.all("stopped")[0]["served"]["slow"] < 32
