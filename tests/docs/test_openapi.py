"""docs/openapi.json: valid, complete, and true of what tritonclient and our server say to each other."""

import copy
import http.client
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter

import jsonschema_rs
import numpy as np
import pytest
import requests
import schemathesis
import tritonclient.http as triton
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from tritonclient.utils import InferenceServerException

from gpulet.api.admin import admin_routes
from gpulet.api.app import make_app
from gpulet.api.catalog import Catalog
from gpulet.api.info import Info
from servers import REPOSITORY, fleet, save_model, serve

DOCUMENT = json.loads((REPOSITORY / "docs" / "openapi.json").read_text())
OPERATIONS = [
    (path, method, {"parameters": item.get("parameters", []), **operation})
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
]
PATIENCE_S = 5
ADMINISTRATION = [
    ("get_model_config", "echo"),
    ("get_inference_statistics",),
    ("get_inference_statistics", "echo", "1"),
    ("get_model_repository_index",),
    ("load_model", "echo", None, None, "{}"),
    ("unload_model", "nobody"),
    ("register_system_shared_memory", "r", "/r", 64),
    ("get_system_shared_memory_status",),
    ("get_system_shared_memory_status", "r"),
    ("unregister_system_shared_memory", "r"),
    ("unregister_system_shared_memory",),
]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    save_model(folder / "models", "echo")
    with serve(fleet(folder, {"echo": (2000, 10)}, repository=folder / "models")) as server:
        yield server.port


def resolved(node):
    """What a reference points to, or the node itself."""
    while "$ref" in node:
        found = DOCUMENT
        for key in node["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        node = found
    return node


def check_json(schema, data):
    """The bytes are JSON of this schema."""
    jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(json.loads(data))


@contextmanager
def recorder(port):
    """A proxy before our server; yields its port and the exchanges: method, path, (headers, body), status, (headers, body)."""
    exchanges = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            server.request(self.command, self.path, body, dict(self.headers))
            answer = server.getresponse()
            data = answer.read()
            server.close()
            exchanges.append((self.command, self.path, (self.headers, body), answer.status, (answer.headers, data)))
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 (http.server looks for that name)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield proxy.server_port, exchanges
        finally:
            proxy.shutdown()
            thread.join()


def operation_of(method, path):
    """The operation that the file has for a request; of several the one with the fewest placeholders."""
    fitting = [
        (template.count("{"), template, operation)
        for template, verb, operation in OPERATIONS
        if verb == method.lower() and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
    ]
    assert fitting, f"{method} {path} is not in the file"
    return min(fitting, key=itemgetter(0))[2]


def check_message(content, headers, body):
    """A body is what the file allows for its kind; the JSON before binary tensors is as it is without them."""
    json_bytes = int(headers.get("Inference-Header-Content-Length") or len(body))
    assert json_bytes == len(body) or "application/octet-stream" in content
    check_json(content["application/json"]["schema"], body[:json_bytes])


def check_exchange(method, path, asked, status, answered):
    operation = operation_of(method, path)
    if asked[1]:
        check_message(operation["requestBody"]["content"], *asked)
    else:
        assert not operation.get("requestBody", {}).get("required")
    check_answer(operation, status, answered)


def check_answer(operation, status, answered):
    """The status or the file's default allows this answer."""
    response = resolved(operation["responses"].get(str(status)) or operation["responses"]["default"])
    if "content" in response:
        check_message(response["content"], *answered)
    else:
        assert answered[1] in {b"", b"{}"}


def test_the_file_is_valid_and_nothing_in_it_points_nowhere():
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    text = json.dumps(DOCUMENT)
    for kind in ("schemas", "responses", "parameters"):
        assert set(re.findall(rf"#/components/{kind}/(\w+)", text)) == set(DOCUMENT["components"][kind])
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator({**schema, "components": DOCUMENT["components"]})
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(names) == len(set(names))


def test_every_route_of_the_app_is_in_the_file():
    info = Info(Catalog({}, {}, {}, None), None, None, None, None)  # routes are made before anything is served
    app = make_app(info, "token", admin_routes(None))
    listed = {(re.sub(r"\{\w+\}", "{}", path), method) for path, method, _ in OPERATIONS}
    routes = {
        (re.sub(r"\{\w+(:\w+)?\}", "{}", route.path).rstrip("/"), method.lower())
        for route in app.routes
        for method in route.methods - {"HEAD"}
    }
    assert routes <= listed


def test_what_tritonclient_sends_and_gets_is_as_the_file_has_it(port):
    image = np.ones((2, 4), np.float32)
    with recorder(port) as (proxy, exchanges):
        client = triton.InferenceServerClient(f"127.0.0.1:{proxy}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("echo", "1")
        client.get_server_metadata()
        client.get_model_metadata("echo")
        for is_binary in (True, False):
            tensor = triton.InferInput("x", [2, 4], "FP32")
            tensor.set_data_from_numpy(image, binary_data=is_binary)
            wanted = triton.InferRequestedOutput("y", binary_data=is_binary)
            answer = client.infer("echo", [tensor], outputs=[wanted], request_id="1", timeout=1_000_000, priority=1)
            assert (answer.as_numpy("y") == image).all()
            with pytest.raises(InferenceServerException):
                client.infer("nobody", [tensor], model_version="1")
        answered = len(exchanges)
        for name, *arguments in ADMINISTRATION:
            with suppress(InferenceServerException):
                getattr(client, name)(*arguments)
        client.close()
    assert [status for _, _, _, status, _ in exchanges[:answered]] == [200] * 6 + [404, 200, 404]
    assert len(exchanges) == answered + len(ADMINISTRATION)
    for exchange in exchanges:
        check_exchange(*exchange)


def narrowed():
    """The file with names that our server knows, so that what is generated gets beyond 404."""
    document = copy.deepcopy(DOCUMENT)
    components = document["components"]
    components["parameters"]["Model"]["schema"] = {"const": "echo"}
    components["parameters"]["Version"]["schema"] = {"const": "1"}
    good = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    properties = components["schemas"]["InferRequest"]["properties"]
    properties["inputs"] = {"anyOf": [{"const": [good]}, properties["inputs"]]}
    components["schemas"]["RequestOutput"]["properties"]["name"] = {"enum": ["y", "z"]}
    return document


@pytest.mark.slow
@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_the_file_allows_or_forbids_is_answered(port, mode):
    asked = Counter()
    session = requests.Session()
    for found in schemathesis.openapi.from_dict(narrowed()).get_all_operations():
        operation = found.ok()

        @seed(7)
        @settings(
            max_examples=30 if operation.path.endswith("/infer") else 6,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(mode))
        def ask(case):
            answer = case.call(f"http://127.0.0.1:{port}", session=session, timeout=PATIENCE_S)
            asked[case.path.rpartition("/")[2], answer.status_code] += 1
            assert answer.status_code < 500 or answer.status_code in {501, 503}, (case, answer.content)
            described = DOCUMENT["paths"][case.path][case.method.lower()]
            check_answer(described, answer.status_code, (answer.headers, answer.content))

        with suppress(Unsatisfiable):  # a question without parameters has no wrong form
            ask()
    session.close()
    assert asked.total() > 100
    assert asked["infer", 400] > 10
    assert asked["infer", 200] > 0 or mode is GenerationMode.NEGATIVE, asked
