"""Requests that bring rows of their own, from a drawn workload or a trace to a live server."""

import asyncio
import json
import math

import numpy as np
import pytest
from test_serving import get, post

from gpulet.loadgen import Stream, drive
from gpulet.model import Model
from gpulet.units import MS, SECOND
from gpulet.workload import Arrivals
from servers import fleet, run, serve
from undisturbed import undisturbed

ROWS = "lognormal:ln4,0.9"
RATE, SECONDS, SEEDS = 300, 3, (1, 2, 3)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def counter(server, name):
    text = get(server.metrics_port, "/metrics")[1].decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def rows_run(server, model):
    return counter(server, f'nv_inference_count{{model="{model}"')


def bench(server, *arguments):
    code, out, err = run("bench", f"127.0.0.1:{server.port}", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_each_request_brings_the_rows_of_its_trace_or_of_the_command_line(tmp_path):
    path = fleet(tmp_path, {"m": (500, 20)}, device='executor = "simulated"')
    (tmp_path / "listed.csv").write_text("arrival_s,rows\n0.1,1\n0.1,7\n0.2,3\n")
    (tmp_path / "counted.csv").write_text("second,m\n0,4\n")
    (tmp_path / "large.csv").write_text("arrival_s,rows\n0.1,33\n0.1,2\n")
    with serve(path) as server:

        def trace(name, *rows):
            report = bench(server, "--load", "m:1", "--duration", 1, "--workload", f"trace:{tmp_path / name}", *rows)
            return report["total"]["served"], report["errors"], rows_run(server, "m")

        assert trace("listed.csv", "--rows", 5) == (3, {}, 11)
        assert trace("counted.csv", "--rows", 5) == (4, {}, 11 + 20)
        served, errors, rows = trace("large.csv")
    assert (served, rows) == (1, 11 + 20 + 2)
    (error,) = errors
    assert error.startswith("400 ")


class Echo(asyncio.Protocol):
    """Answers every request at once and remembers its body, which is one letter."""

    def __init__(self, bodies):
        self.bodies = bodies

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.bodies.append(data[-1:].decode())
        self.transport.write(ANSWER)


async def sent(streams, arrivals):
    bodies = []
    server = await asyncio.get_running_loop().create_server(lambda: Echo(bodies), "127.0.0.1", 0)
    async with server:
        outcome = await drive("127.0.0.1", server.sockets[0].getsockname()[1], streams, arrivals, connections=1)
    return bodies, outcome


def test_requests_of_as_many_rows_take_turns_and_are_judged_by_their_turn():
    asked = []
    requests = {1: [post("/", b"a"), post("/", b"b")], 4: [post("/", b"c")]}
    stream = Stream("m", SECOND, requests, lambda index, body, json_bytes: asked.append(index) or True)
    rows = np.array([1, 4, 1, 1, 4])
    arrivals = Arrivals((Model("m", SECOND),), np.arange(5) * MS, np.zeros(5, np.int64), rows, 5 * MS)
    bodies, outcome = asyncio.run(sent([stream], arrivals))
    assert "".join(bodies) == "acbac"
    assert asked == [0, 0, 1, 0, 0]
    assert outcome.wrong == {"m": 0}


@pytest.fixture
def mobilenet(shared_data, tmp_path):
    """MobileNet-V2 on four A100-80GB of which 24 slices may be used, by PARIS and ELSA: requests of 1 to 32 rows, all in
    time within 1.5 times what 32 rows take on a whole one.
    """
    table = shared_data / "a100_parvagpu" / "profile.csv"
    assert run("import-profile", table, "--kind", "a100-80gb", "--out", tmp_path / "profile.csv")[0] == 0
    (tmp_path / "fleet.toml").write_text(
        '[fleet]\nsystem = "paris-elsa"\n[mig]\nslices = 24\n'
        '[[devices]]\nkind = "a100-80gb"\ncount = 4\nmechanism = "mig"\nexecutor = "simulated"\nprofile = "profile.csv"\n'
        f'[batch_distribution]\nrows = "{ROWS}"\n[[models]]\nname = "mobilenetv2"\nslo_ms = 11.9\nrate = {RATE}\n'
        '[server]\nhttp_port = 0\ngrpc_port = 0\nmetrics_port = 0\nlog_format = "json"\n'
    )
    return tmp_path / "fleet.toml"


def test_paris_and_elsa_attain_live_what_their_simulation_says(mobilenet):
    """ELSA sends requests to where they end just in time, so what HTTP adds makes a few late: the tolerance is 3 points.

    Whatever else this machine does only adds to that: of the client's three runs the best one counts, of the server's own
    clock, which does not see the client's half of the way, all of them.
    """
    options = [("--duration", SECONDS, "--seed", seed) for seed in SEEDS]
    simulated = [json.loads(run("simulate", mobilenet, *o, "--json")[1])["total"] for o in options]
    load = ("--load", f"mobilenetv2:{RATE}:11.9", "--rows", ROWS)
    comparison = undisturbed()
    with serve(mobilenet) as server:
        served = [bench(server, *load, *o)["total"] for o in options]
        rows = rows_run(server, "mobilenetv2")
        late = counter(server, 'gpulet_requests_total{model="mobilenetv2",outcome="late"}')
    assert [row["arrived"] for row in served] == [row["arrived"] for row in simulated]
    assert all(row["lost"] == row["failed"] == 0 for row in served)
    assert math.isclose(rows, sum(row["mean_batch"] * row["arrived"] for row in simulated))
    off = [abs(s["attainment"] - t["attainment"]) for s, t in zip(simulated, served, strict=True)]
    with comparison:
        assert min(off) < 0.03, off
        assert abs(late - sum(row["late"] for row in simulated)) < 0.03 * sum(row["arrived"] for row in simulated)
