"""A server as those see it who watch it: a real Prometheus, its promtool, an OpenTelemetry collector."""

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from test_serving import get, post, raw

from servers import REPOSITORY, fleet, serve, table

DASHBOARD = REPOSITORY / "docs" / "grafana" / "gpulet.json"
ANSWERED, REFUSED = 6, 4
TRITONS_OWN = (
    "metric names should not contain abbreviated units",
    "metric name should not include type 'histogram'",
    'non-histogram and non-summary metrics should not have "_count" suffix',
)
"""Hints that are about names which are Triton's, and so stay."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (Debian: apt-get install prometheus)",
)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as an OpenTelemetry collector does."""

    def __init__(self):
        self.spans = []
        self._came = threading.Condition()

    def Export(self, request, context):  # noqa: N802 (the service's name for it)
        with self._came:
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            self._came.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, name, count):
        def found():
            return [s for s in self.spans if s.name == name]

        with self._came:
            assert self._came.wait_for(lambda: len(found()) >= count, 10), self.spans
            return found()


@pytest.fixture(scope="module")
def collector():
    service = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(service, server)
    service.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service
    server.stop(None).wait()


def body(rows):
    tensor = {"name": "input", "shape": [rows, 1], "datatype": "FP32", "data": [0] * rows}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def observed(tmp_path_factory, collector):
    """A server that has answered some requests of two rows, and refused as late some whose time is up at once."""
    folder = tmp_path_factory.mktemp("observed")
    (folder / "p.csv").write_text(table({"m": (3.0, 0.1)}))
    path = fleet(folder, {"m": (200, 20)}, device='executor = "simulated"')
    with path.open("a") as file:
        file.write(f'[tracing]\nendpoint = "http://127.0.0.1:{collector.port}"\nsample = 1.0\n')
    hurried = json.dumps({**json.loads(body(1)), "parameters": {"timeout": 1000}}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with serve(path) as server:
            for data, count in ((body(2), ANSWERED), (hurried, REFUSED)):
                requests = [post("/v2/models/m/infer", data)] * count
                assert raw(server.port, b"".join(requests)).count(b"HTTP/1.1 ") == count
            yield server


@contextmanager
def prometheus(folder, target):
    """A real one that scrapes the target every second; its own port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "gpulet", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    options = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    options += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(["prometheus", *options], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def query(port, expression):
    """What the query gives: a value for each series."""
    status, answer = get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    if status == 503:  # it listens before it is ready
        return []
    assert status == 200, (expression, answer)
    return [float(series["value"][1]) for series in json.loads(answer)["data"]["result"]]


def query_when_scraped(port, expression):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            if found := query(port, expression):
                return found
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.1)
    pytest.fail("prometheus has scraped nothing in 10 s")


@needs_prometheus
def test_promtool_finds_nothing_wrong_but_tritons_names(observed):
    text = get(observed.metrics_port, "/metrics")[1]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=30, check=False)
    hints = (checked.stdout + checked.stderr).decode().splitlines()
    assert checked.returncode in {0, 3}, hints  # 3: there are hints
    assert [hint for hint in hints if not (hint.startswith("nv_") and hint.partition(" ")[2] in TRITONS_OWN)] == []


@needs_prometheus
def test_a_real_prometheus_scrapes_our_counts_and_understands_every_query_of_the_dashboard(observed, tmp_path):
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    with prometheus(tmp_path, observed.metrics_port) as port:
        assert query_when_scraped(port, 'nv_inference_request_success{model="m"}') == [ANSWERED]
        assert query(port, 'nv_inference_count{model="m"}') == [2 * ANSWERED]
        assert query(port, 'gpulet_requests_total{outcome="rejected"}') == [REFUSED]
        assert query(port, 'gpulet_refusals_total{reason="late"}') == [REFUSED]
        assert query(port, 'nv_inference_request_failure{reason="REJECTED"}') == [REFUSED]
        assert query(port, 'gpulet_latency_seconds_bucket{model="m",le="+Inf"}') == [ANSWERED]
        assert query(port, "up") == [1]
        for expression in queries:
            query(port, expression.replace("$__rate_interval", "5s").replace("$model", ".*"))


def test_openmetrics_is_valid_and_says_the_same(observed):
    request = urllib.request.Request(
        f"http://127.0.0.1:{observed.metrics_port}/metrics", headers={"Accept": OPENMETRICS}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        families = {m.name: m for m in text_string_to_metric_families(answer.read().decode())}
    counted = {s.labels["outcome"]: s.value for s in families["gpulet_requests"].samples if s.name.endswith("_total")}
    assert (counted["served"], counted["rejected"]) == (ANSWERED, REFUSED)
    assert families["nv_inference_count"].type == "unknown"


def test_a_collector_gets_a_span_of_each_request_with_its_wait_and_run(observed, collector):
    requests = collector.wait_for("infer m", ANSWERED + REFUSED)
    runs = {s.parent_span_id: s for s in collector.wait_for("compute", ANSWERED)}
    outcomes = {"served": 0, "rejected": 0}
    now = time.time_ns()
    for span in requests:
        attributes = {a.key: a.value for a in span.attributes}
        outcomes[attributes["gpulet.outcome"].string_value] += 1
        assert attributes["gpulet.protocol"].string_value == "http"
        assert now - 60 * 10**9 < span.start_time_unix_nano <= span.end_time_unix_nano <= now
        if attributes["gpulet.outcome"].string_value == "served":
            assert runs[span.span_id].end_time_unix_nano == span.end_time_unix_nano
    assert outcomes == {"served": ANSWERED, "rejected": REFUSED}
