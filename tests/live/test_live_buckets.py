"""Requests of many lengths, padded to few, live: they share batches, and each is answered as if it were alone."""

import json
import socket

import numpy as np
import onnxruntime as ort
from test_serving import get, post, raw

from gpulet.httpwire import binary_request
from servers import fleet, save_masked, serve

PATH = "/v2/models/masked/infer"
LENGTHS = tuple(range(1, 17))
COUNT = 96


def described(rows, tokens):
    return [
        {"name": name, "shape": [rows, tokens], "datatype": datatype}
        for name, datatype in (("x", "FP32"), ("mask", "INT64"))
    ]


def drawn(random, rows, tokens):
    """The last number of each row is masked by the client, where there is more than one."""
    mask = np.ones((rows, tokens), np.int64)
    mask[:, 1:][:, -1:] = 0
    return random.random((rows, tokens), np.float32) + 1, mask


def read_answers(stream, count):
    """The outputs of pipelined answers, in the order of the requests."""
    for _ in range(count):
        assert stream.readline().startswith(b"HTTP/1.1 200"), stream.readline()
        fields = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = int(value) if value.strip().isdecimal() else value.strip()
        document = json.loads(stream.read(fields["inference-header-content-length"]))
        yield {
            o["name"]: np.frombuffer(stream.read(o["parameters"]["binary_data_size"]), np.float32).reshape(o["shape"])
            for o in document["outputs"]
        }


def counter(server, name):
    text = get(server.metrics_port, "/metrics")[1].decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'{name}{{model="masked"'))


def test_mixed_lengths_share_batches_and_are_answered_as_if_alone(tmp_path):
    path = save_masked(tmp_path / "models", "masked")
    fleet_file = fleet(tmp_path, {"masked": (2000, 50)}, repository="models")
    buckets = 'name = "masked"\nshapes = ["4", "16", "8"]\npad = true\n'
    fleet_file.write_text(fleet_file.read_text().replace('name = "masked"\n', buckets))
    random = np.random.default_rng(8)
    inputs = [drawn(random, 1 + n % 2, LENGTHS[n % len(LENGTHS)]) for n in range(COUNT)]
    requests = [binary_request("x", "masked", described(*x.shape), [x.tobytes(), m.tobytes()]) for x, m in inputs]
    with serve(fleet_file) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as peer, peer.makefile("rb") as stream:
            peer.sendall(b"".join(requests))
            answers = list(read_answers(stream, COUNT))
        batches, rows = counter(server, "nv_inference_exec_count"), counter(server, "nv_inference_count")
        refused = []
        for shapes in ((17, 17), (3, 4)):
            tensors = [{**described(1, n)[i], "data": [1] * n} for i, n in enumerate(shapes)]
            answer = raw(server.port, post(PATH, json.dumps({"inputs": tensors}).encode()))
            refused.append((answer[9:12], json.loads(answer.partition(b"\r\n\r\n")[2])["error"]))
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for (x, mask), answer in zip(inputs, answers, strict=True):
        alone = [session.run(None, {"x": x[i : i + 1], "mask": mask[i : i + 1]}) for i in range(len(x))]
        for place, name in enumerate(("mean", "parts")):
            np.testing.assert_allclose(answer[name], np.concatenate([a[place] for a in alone]), rtol=1e-6)
    assert rows == sum(len(x) for x, _ in inputs)
    assert batches < COUNT / 2, "requests of 16 lengths are of 3 classes"
    assert refused == [
        (b"400", "model masked: its buckets are 4, 8, 16; none holds tokens = 17"),
        (b"400", "model masked: its inputs must agree in 'tokens'; it is 3 and 4"),
    ]
