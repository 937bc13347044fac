"""Triton's load generator, the C++ client of both protocols, unmodified: it drives our server and finds no fault."""

import json
import subprocess
import sys

import pytest
from onnx import TensorProto

from servers import REPOSITORY, fleet, save_copy, save_model, serve

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import perf_analyzer

pytestmark = pytest.mark.skipif(bool(perf_analyzer.lacking()), reason=perf_analyzer.lacking())

SHORT = ("--max-trials", "3", "--stability-percentage", "100000", "--max-threads", "2", "-v")
INTERVALS_MS = (120, 1000)  # on a busy machine a short window may see no request: that says nothing of the server
SHARED = ("--shared-memory", "system", "--output-shared-memory-size", "64")
MODELS = ("tiny", "two", "words", "free")
RUNS = {
    "blocking, 1 and 2 at a time": ("tiny", "--sync", "--concurrency-range", "1:2:1"),
    "asynchronous, batches": ("tiny", "--async", "--concurrency-range", "4", "-b", "4"),
    "asynchronous, shared memory": ("tiny", "--async", "--concurrency-range", "4", *SHARED),
    "blocking, two inputs in shared memory": ("two", "--sync", "--concurrency-range", "2", "-b", "2", *SHARED),
    "at a rate": ("tiny", "--request-rate-range", "100", "--request-distribution", "poisson"),
    "strings": ("words", "--concurrency-range", "2", "--string-length", "8", "-b", "2"),
    "a free dimension": ("free", "--concurrency-range", "2", "--shape", "x:8"),
}
HTTP_RUNS = {"tensors in JSON": ("tiny", "--input-tensor-format", "json", "--output-tensor-format", "json")}
GRPC_RUNS = {
    "streams": ("tiny", "--streaming", "--async", "--concurrency-range", "4"),
    "packed messages": ("tiny", "--async", "--grpc-compression-algorithm", "gzip", "--concurrency-range", "2"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perf")
    save_model(folder / "models", "tiny")
    save_model(folder / "models", "free", width="width")
    save_copy(folder / "models", "words", TensorProto.STRING)
    save_copy(folder / "models", "two", TensorProto.INT64, inputs=("a", "b"))
    models = dict.fromkeys(MODELS, (5000, 50))
    with serve(fleet(folder, models, repository=folder / "models", allow_client_shm=True)) as running:
        yield running


def analyze(protocol, url, run, report):
    """Its exit code and output, and what it measured."""
    command = [perf_analyzer.binary(), "-i", protocol, "-u", url, *SHORT, "-m", *run, "--profile-export-file", report]
    for interval in INTERVALS_MS:
        whole = [*command, "--measurement-interval", str(interval)]
        done = subprocess.run(
            whole, env=perf_analyzer.environment(), capture_output=True, text=True, timeout=60, check=False
        )
        if "No valid requests recorded" not in done.stdout + done.stderr:
            break
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(report.read_text())["experiments"]


@pytest.mark.parametrize(
    ("protocol", "name"),
    [*(("http", name) for name in RUNS | HTTP_RUNS), *(("grpc", name) for name in RUNS | GRPC_RUNS)],
)
def test_perf_analyzer_measures_without_an_error(server, tmp_path, protocol, name):
    run = {**RUNS, **HTTP_RUNS, **GRPC_RUNS}[name]
    url = f"127.0.0.1:{server.port}" if protocol == "http" else server.grpc
    experiments = analyze(protocol, url, run, tmp_path / "profile.json")
    answered = [len(e["requests"]) for e in experiments]
    assert len(answered) == (2 if "1:2:1" in run else 1)
    assert min(answered) >= 5, answered


def test_perf_analyzer_reads_our_metrics_while_it_measures(server, tmp_path):
    report = tmp_path / "profile.json"
    metrics = f"localhost:{server.metrics_port}/metrics"
    run = (
        "tiny",
        "--concurrency-range",
        "2",
        "--collect-metrics",
        "--metrics-url",
        metrics,
        "--metrics-interval",
        "50",
    )
    (experiment,) = analyze("http", f"127.0.0.1:{server.port}", run, report)
    assert len(experiment["requests"]) >= 5
