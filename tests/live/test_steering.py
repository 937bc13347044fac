"""Live control by command line against running servers: freeze, force, what-if, rollback; who may; and what is lost: nothing."""

import json
import os
import signal
import stat
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from test_serving import get, post, raw

from gpulet.adminclient import AdminClient
from gpulet.api.adminsocket import default_path
from servers import Server, command, fleet, save_model, serve, table
from servers import run as bench

DEVICES = 'executor = "simulated"\ncores = 2\ncount = 3\n'
MODELS = {"a": (100, 60), "b": (100, 30)}
CONTROL = '[control]\nmode = "auto"\nfewest = true\nspare_mib = 0\n'


@pytest.fixture
def run(gpulet):
    """A command, in this process: (exit code, standard output, standard error)."""
    return gpulet


@pytest.fixture
def control(gpulet):
    """A call to a server: (exit code, document or text)."""

    def call(server, *arguments):
        code, said, error = gpulet("control", *arguments, "--server", server.port, "--json")
        return code, json.loads(said) if said.strip() else error

    return call


@pytest.fixture
def path(tmp_path):
    (tmp_path / "p.csv").write_text(table(dict.fromkeys(MODELS, (0.5, 2.0))))
    made = fleet(tmp_path, MODELS, device=DEVICES, journal="journal")
    made.write_text(made.read_text() + CONTROL)
    return made


@pytest.fixture
def server(path):
    with serve(path) as running:
        yield running


def arguments(server, loads, seconds):
    asked = [part for text in loads for part in ("--load", text)]
    return "bench", f"127.0.0.1:{server.port}", *asked, "--duration", seconds, "--json"


@pytest.fixture
def load(gpulet):
    """A client's load, to its end: what it saw."""

    def call(server, *loads, seconds=1.5):
        code, said, error = gpulet(*arguments(server, loads, seconds))
        assert code == 0, error
        return json.loads(said)

    return call


def loaded_until(holds, load, server, *loads):
    """A load again and again, since plans take their time on busy machines; no request is lost."""
    for _ in range(10):
        assert load(server, *loads, seconds=1.2)["total"]["lost"] == 0
        if holds():
            return
    pytest.fail(f"it did not come about: {history(server)}")


@contextmanager
def loaded(server, *loads, seconds):
    """A client's load meanwhile, in a process of its own: every request is answered well, whatever happens."""
    ends = []
    thread = threading.Thread(target=lambda: ends.append(bench(*arguments(server, loads, seconds))))
    thread.start()
    total = {}
    yield total
    thread.join()
    ((code, said, error),) = ends
    assert code == 0, error
    total |= json.loads(said)["total"]
    assert total["lost"] == total["failed"] == total["rejected"] == 0
    assert total["served"] == total["arrived"]


def cut(server):
    """(device, size, models) of the gpulets in force."""
    plan = AdminClient(str(server.port)).call("GET", "/gpulet/plan")
    return [(g["device"], g["size"], sorted(a["model"] for a in g["assignments"])) for g in plan["gpulets"]]


def history(server):
    return AdminClient(str(server.port)).call("GET", "/gpulet/history")


@pytest.fixture
def other(path, run):
    """A plan of two whole devices, each with a model, where the server's own planner takes one."""
    document = json.loads(run("plan", path, "--system", "dedicated", "--json")[1])
    file = path.parent / "other.json"
    file.write_text(json.dumps(document))
    return file


def test_a_plan_is_forced_and_rolled_back_while_requests_are_served(server, control, other):
    first = cut(server)
    with loaded(server, "a:60:100", "b:30:100", seconds=2) as total:
        time.sleep(1.2)
        assert control(server, "freeze")[0] == 0  # our own planner would take the second device away again
        code, told = control(server, "force", other)
        assert (code, told["changed"], told["seen"]) == (0, True, "asked")
        assert cut(server) == [(0, 2, ["a"]), (1, 2, ["b"])]
        code, told = control(server, "rollback")
        assert (code, told["changed"]) == (0, True)
        assert cut(server) == first
    assert total["attainment"] > 0.95
    told = history(server)
    assert [row["number"] for row in told if row["number"] < 0] == [-1, -2]


def test_a_frozen_plan_stays_and_a_thawed_one_follows_the_load(server, control, run, load):
    first = cut(server)
    assert control(server, "freeze")[1] == {"frozen": True}
    load(server, "a:1500:100", seconds=1)
    assert control(server, "status")[1]["frozen"]
    assert cut(server) == first
    assert control(server, "thaw")[1] == {"frozen": False}
    loaded_until(lambda: cut(server) != first, load, server, "a:1500:100")
    told = history(server)
    changed = [row for row in told if "in force" in row["chosen"] and "stays" not in row["chosen"]]
    assert changed, told
    assert {"seen", "considered", "chosen"} <= changed[0].keys()
    text = get(server.metrics_port, "/metrics")[1].decode()
    assert "gpulet_plan_changes_total 0" not in text
    assert run("history", "--server", server.port)[1].count(": ") >= len(told)


def test_what_if_says_what_another_plan_would_have_made_of_what_came(server, control, other, load):
    code, told = control(server, "what-if", "--minutes", "1")
    assert (code, "nothing came" in told) == (2, True)
    load(server, "a:120:100", "b:60:100", seconds=1)
    before = cut(server)
    code, told = control(server, "what-if", "--system", "dedicated", "--minutes", "1")
    assert code == 0
    assert told["in_force"]["models"]["total"]["arrived"] == told["candidate"]["models"]["total"]["arrived"] > 100
    assert told["candidate"]["devices_used"] == 2
    assert told["candidate"]["models"]["total"]["attainment"] > 0.9
    code, same = control(server, "what-if", "--plan", other, "--minutes", "1")
    assert same["candidate"]["devices_used"] == 2
    assert cut(server) == before, "nothing was changed"
    assert control(server, "what-if", "--minutes", "11")[0] == 2
    assert "unknown system 'nobody'" in control(server, "what-if", "--system", "nobody")[1]


def is_for_us_alone(server):
    socket = default_path(server.port)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) & 0o077 == 0
    for request in (post("/gpulet/freeze", b"{}"), b"GET /gpulet/status HTTP/1.1\r\nHost: x\r\n\r\n"):
        answer = raw(server.port, request)
        assert answer.startswith(b"HTTP/1.1 403"), answer
        assert b"token" in answer


def test_what_may_not_be_is_refused_and_the_old_plan_stays(server, control, other):
    before = cut(server)
    is_for_us_alone(server)
    assert not control(server, "status")[1]["frozen"]
    document = json.loads(other.read_text())
    document["gpulets"] *= 2
    other.write_text(json.dumps(document))
    code, told = control(server, "force", other)
    assert (code, "overlaps" in told) == (2, True), told
    other.write_text("{}")
    assert "not a plan" in control(server, "force", other)[1]
    assert "there was no other plan" in control(server, "rollback")[1]
    assert cut(server) == before


def test_a_device_is_drained_and_comes_back(server, control):
    used = {device for device, _, _ in cut(server)}
    (device,) = used
    code, told = control(server, "drain", device)
    assert (code, told["changed"]) == (0, True), told
    assert device not in {d for d, _, _ in cut(server)}
    status = control(server, "status")[1]
    assert [d["device"] for d in status["devices"] if d["out"]] == [device]
    assert control(server, "restore", device)[0] == 0
    assert not [d for d in control(server, "status")[1]["devices"] if d["out"]]
    assert "not one of 0 to 2" in control(server, "drain", 7)[1]


def test_an_objective_changes_and_models_leave_and_come_back(server, control, load):
    assert control(server, "slo", "a", "80")[0] == 0
    assert control(server, "status")[1]["models"]["a"]["slo_ms"] == 80
    document = json.loads(get(server.port, "/v2/models/a")[1])
    assert document["parameters"]["gpulet.slo_ms"] == 80
    assert "slo_ms must be a number above 0" in control(server, "slo", "a", "0")[1]
    assert "unknown model 'nobody'" in control(server, "slo", "nobody", "5")[1]
    assert control(server, "remove", "b")[1] == {"model": "b", "ready": False}
    assert load(server, "a:20:100", seconds=0.5)["total"]["attainment"] == 1
    assert control(server, "add", "b")[1] == {"model": "b", "ready": True}
    assert control(server, "rate", "b", "500")[0] == 0
    assert control(server, "status")[1]["models"]["b"]["rate"] == pytest.approx(500, rel=0.2)


def with_newcomer(path, slo_ms=100, rate=40):
    """The fleet file, and its profile, list a third model from now on."""
    (path.parent / "p.csv").write_text(table(dict.fromkeys((*MODELS, "c"), (0.5, 2.0))))
    entry = f'[[models]]\nname = "c"\nslo_ms = {slo_ms}\nrate = {rate}\n'
    path.write_text(path.read_text() + entry)


def test_a_model_that_is_new_in_the_fleet_file_is_served_without_a_restart(path, tmp_path, control, run, load):
    with serve(path) as server:
        code, error = control(server, "add", "c")
        assert (code, "unknown model 'c': fleet.toml does not have it" in error) == (2, True), error
        with_newcomer(path)
        with loaded(server, "a:150:100", "b:100:100", seconds=3):
            time.sleep(1)
            code, told = control(server, "add", "c")
            assert (code, told["ready"], told["changed"]) == (0, True, True), told
            assert told["seen"].startswith("model c is new")
            assert "c" in {model for _, _, models in cut(server) for model in models}
            assert control(server, "status")[1]["models"]["c"]["target"] == pytest.approx(40, rel=0.2)
            assert load(server, "c:40:100", seconds=1)["total"]["attainment"] == 1
        assert control(server, "what-if")[1]["rates"]["c"] > 0
        assert 'nv_inference_request_success{model="c"' in get(server.metrics_port, "/metrics")[1].decode()
        assert control(server, "add", "c")[1] == {"model": "c", "ready": True}
        assert control(server, "remove", "c")[1] == {"model": "c", "ready": False}
    code, said, error = run("replay", tmp_path / "journal", "--json")
    assert (code, json.loads(said)["differences"]) == (0, []), error
    assert json.loads(said)["total"]["lost"] == 0


def test_a_new_model_for_which_there_is_no_place_is_refused_and_the_others_serve_on(server, path, control, load):
    control(server, "freeze")
    with_newcomer(path, slo_ms=1)
    assert "the plan is frozen" in control(server, "add", "c")[1]
    control(server, "thaw")
    code, error = control(server, "add", "c")
    assert (code, "model c" in error) == (2, True), error
    assert not control(server, "status")[1]["models"].get("c", {}).get("ready")
    assert load(server, "a:60:100", "b:30:100", seconds=1)["total"]["attainment"] == 1
    path.write_text(path.read_text() + "[[models]]\nname = 7\n")
    code, error = control(server, "add", "d")
    assert (code, "fleet.toml" in error) == (2, True), error


def test_with_a_token_admin_may_come_by_the_port(path, tmp_path, run, control):
    (tmp_path / "token").write_text("s3cret")
    path.write_text(path.read_text().replace("[server]\n", '[server]\ntoken_file = "token"\n'))
    with serve(path) as server:
        url = f"http://127.0.0.1:{server.port}"
        assert run("control", "status", "--server", url)[0] == 2
        code, said, _ = run("control", "freeze", "--server", url, "--token-file", tmp_path / "token", "--json")
        assert (code, json.loads(said)) == (0, {"frozen": True})
        assert control(server, "status")[1]["frozen"], "the socket needs none"


def test_a_server_without_live_control_is_not_found_and_says_why(tmp_path, run):
    code, _, error = run("control", "status", "--server", str(tmp_path / "nobody.sock"))
    assert code == 3
    assert "no server with live control answers" in error


@pytest.fixture
def workers(tmp_path):
    """Real workers of two models on two cores, cut as a plan file says at first."""
    for name in MODELS:
        save_model(tmp_path / "models", name, width=64, layers=4)
    made = fleet(tmp_path, MODELS, device="cores = 2\n", repository=tmp_path / "models")
    made.write_text(made.read_text() + '[control]\nmode = "auto"\nspare_mib = 0\n')
    return made


def plan_file(folder, name, *gpulets, mechanism="cpu"):
    """`gpulets` are (offset, size, models)."""
    turns = {model: {"model": model, "batch": 4, "rate": 50.0, "latency_ms": 1.0} for model in MODELS}
    document = {
        "system": "gpulet",
        "feasible": True,
        "devices_used": 1,
        "unserved": {},
        "models": {},
        "gpulets": [
            {
                "device": 0,
                "size": size,
                "share_pct": 50.0 * size,
                "offset": offset,
                "duty_cycle_ms": 20.0,
                "assignments": [turns[m] for m in models],
            }
            for offset, size, models in gpulets
        ],
        "devices": [{"kind": "cpu", "mechanism": mechanism}],
        "planning_ms": 0.0,
    }
    path = folder / name
    path.write_text(json.dumps(document))
    return path


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_real_workers_are_cut_anew_while_they_serve_and_nothing_is_lost(workers, tmp_path, control):
    own = plan_file(tmp_path, "own.json", (0, 1, "a"), (1, 1, "b"))
    both = plan_file(tmp_path, "both.json", (0, 2, "ab"))
    mixed = plan_file(tmp_path, "mixed.json", (0, 1, "ab"), (1, 1, "b"))
    uncut = plan_file(tmp_path, "uncut.json", (0, 1, "a"), (0, 1, "b"), mechanism="whole")
    with serve(workers, "--plan", own) as server:
        assert control(server, "freeze")[0] == 0
        first = {gpulet: w["pid"] for gpulet, w in server.workers.items()}
        with loaded(server, "a:40:1000", "b:40:1000", seconds=4):
            time.sleep(1.2)
            for wanted in (both, mixed, own):
                code, told = control(server, "force", wanted)
                assert (code, told["changed"]) == (0, True), told
            ups = len(server.all("gpulet_up"))
            assert control(server, "force", uncut)[0] == 0
            server.wait_for("gpulet_up", ups + 2)
        before, after = server.all("gpulet_up")[:ups], server.all("gpulet_up")[ups:]
        assert {len(w["cores"]) for w in after} == {2}
        assert {w["pid"] for w in after} < {w["pid"] for w in before}, "they moved"
        assert cut(server) == [(0, 1, ["a"]), (0, 1, ["b"])]
        for pid in first.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        pids = [w["pid"] for w in server.workers.values()]
        server.stop()
        server.process.wait(30)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_real_workers_load_a_new_model_beside_those_that_serve(workers, tmp_path, control, load):
    with serve(workers) as server:
        save_model(tmp_path / "models", "c", width=64, layers=2)
        with_newcomer(workers, slo_ms=1000, rate=20)
        with loaded(server, "a:40:1000", "b:20:1000", seconds=3):
            time.sleep(1.2)
            code, told = control(server, "add", "c")
            assert (code, told["ready"]) == (0, True), told
            assert load(server, "c:20:1000", seconds=1)["total"]["attainment"] == 1


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_plan_whose_workers_cannot_be_built_leaves_the_old_one_serving(workers, tmp_path, control, load):
    own = plan_file(tmp_path, "own.json", (0, 1, "a"), (1, 1, "b"))
    both = plan_file(tmp_path, "both.json", (0, 2, "ab"))
    with serve(workers, "--plan", own) as server:
        pids = {w["pid"] for w in server.workers.values()}
        (tmp_path / "models" / "a" / "1" / "model.onnx").write_bytes(b"no model")
        code, told = control(server, "force", both)
        assert (code, "given up" in told) == (2, True), told
        assert cut(server) == [(0, 1, ["a"]), (0, 1, ["b"])]
        assert load(server, "a:20:1000", "b:20:1000", seconds=1)["total"]["attainment"] == 1
        assert {w["pid"] for w in server.workers.values()} == pids
        assert not np.any([os.kill(pid, 0) for pid in pids])


def children_of(pid):
    told = ((thread / "children").read_text() for thread in Path(f"/proc/{pid}/task").glob("*"))
    return [int(child) for line in told for child in line.split()]


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_nothing_of_a_server_that_is_killed_stays(workers):
    server = Server(subprocess.Popen(command("serve", workers), stderr=subprocess.PIPE, text=True))
    try:
        server.wait_for("ready")
        children = children_of(server.process.pid)
        assert {w["pid"] for w in server.workers.values()} < {*children}, "and a planner, and who stands by"
    finally:
        server.close()
    give_up = time.monotonic() + 10
    while alive := [pid for pid in children if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < give_up, [command_of(pid) for pid in alive]
        time.sleep(0.05)


def test_a_planner_that_is_killed_is_replaced_and_nobody_notices(server, load):
    load(server, "a:1500:100", seconds=1)
    planners = [pid for pid in children_of(server.process.pid) if b"spawn_main" in command_of(pid)]
    assert planners
    for pid in planners:
        os.kill(pid, signal.SIGKILL)
    last = max((row["number"] for row in history(server)), default=0)

    def is_planned():
        return any(row["number"] > last and "in time" in row["considered"] for row in history(server))

    loaded_until(is_planned, load, server, "b:1200:100")
