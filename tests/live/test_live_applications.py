"""Applications on a live server with the simulated executor, spoken to as clients do."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_serving import get, post, raw

from servers import fleet, run, serve, table

PROFILE = {"detect": (100.0, 0.5), "classify": (10.0, 10.0), "read": (10.0, 1.0)}
SHOP = """
[[applications]]
name = "shop"
slo_ms = 800
rate = 5
split = "fixed"
[[applications.stages]]
model = "detect"
budget_ms = 400
[[applications.stages]]
name = "things"
model = "classify"
after = ["detect"]
fan_out = 2.0
budget_ms = 400
[[applications.stages]]
model = "read"
after = ["detect"]
fan_out = 0.5
budget_ms = 400
"""


def body(rows=1, **parameters):
    tensor = {"name": "input", "shape": [rows, 1], "datatype": "FP32", "data": [0] * rows}
    return json.dumps({"id": "x", "inputs": [tensor], "parameters": parameters}).encode()


def ask(port, model, rows=1, **parameters):
    """(status, document)"""
    answer = raw(port, post(f"/v2/models/{model}/infer", body(rows, **parameters)))
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def counts(server, model):
    text = get(server.metrics_port, "/metrics")[1].decode()
    wanted = f'gpulet_requests_total{{model="{model}",outcome="'
    lines = [line.removeprefix(wanted).split('"} ') for line in text.splitlines() if line.startswith(wanted)]
    return {outcome: int(float(value)) for outcome, value in lines}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "p.csv").write_text(table(PROFILE))
    made = fleet(tmp_path, {}, device='executor = "simulated"\ncores = 2\n', journal="journal")
    made.write_text(made.read_text().replace('system = "gpulet"', 'system = "gpulet"\nplanner = "elastic"'))
    made.write_text(made.read_text() + SHOP)
    return made


def test_an_application_is_served_counted_and_replayed(path, tmp_path):
    with serve(path) as server:
        port = server.port
        assert json.loads(get(port, "/v2/models")[1])["models"] == ["detect", "classify", "read", "shop"]
        outputs = json.loads(get(port, "/v2/models/shop")[1])["outputs"]
        assert [t["name"] for t in outputs] == ["things.output", "read.output"]
        assert get(port, "/v2/models/shop/ready")[0] == 200

        answers = [ask(port, "shop", 2) for _ in range(4)]
        assert {status for status, _ in answers} == {200}
        shapes = [{t["name"]: t["shape"] for t in doc["outputs"]} for _, doc in answers]
        assert [s["things.output"] for s in shapes] == [[4, 1]] * 4
        assert [s["read.output"] for s in shapes] == [[2, 1], [0, 1]] * 2
        assert (answers[0][1]["model_name"], answers[0][1]["id"]) == ("shop", "x")
        assert counts(server, "shop")["served"] == 4
        assert [counts(server, m)["served"] for m in PROFILE] == [4, 8, 2]

        # Its first stage alone would be in time, the others behind it would not.
        status, doc = ask(port, "shop", timeout=105_000)
        assert (status, doc) == (429, {"error": "request was not served: predicted late"})
        # The first stage is in time; then the next one would wait too long for somebody else's 32 rows.
        with ThreadPoolExecutor(1) as pool:
            before = counts(server, "classify")["arrived"]
            other = pool.submit(ask, port, "classify", 32)
            while counts(server, "classify")["arrived"] == before:
                assert not other.done()
            status, doc = ask(port, "shop", timeout=200_000)
            assert (status, doc) == (429, {"error": "request was not served: predicted late"})
            assert other.result()[0] == 200
        assert ask(port, "shop", 64)[0] == 400  # more rows than its models take
        for model in ("shop", *PROFILE):
            found = counts(server, model)
            found.pop("late")  # part of served
            assert found.pop("arrived") == sum(found.values())
        shop = counts(server, "shop")
        assert (shop["arrived"], shop["served"]) == (6, 4)
        last = ask_and_stop(server)
    assert last[0] == 200
    code, out, _ = run("replay", tmp_path / "journal")
    assert code == 0
    assert ", 0 differ" in out
    report = json.loads(run("replay", tmp_path / "journal", "--json")[1])
    assert report["models"]["shop"]["gpu_s"] == 0 < report["models"]["read"]["gpu_s"]
    assert report["total"]["gpu_s"] == pytest.approx(sum(report["models"][m]["gpu_s"] for m in PROFILE))
    assert b'"Gather"' in (tmp_path / "journal").read_bytes()


def ask_and_stop(server):
    """A request whose later stages start only after the server was told to stop."""
    before = counts(server, "detect")["arrived"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server.port, "shop")
        while counts(server, "detect")["arrived"] < before + 1:
            time.sleep(0.01)
        server.stop()
        return answer.result()
