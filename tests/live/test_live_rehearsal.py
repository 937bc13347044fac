"""A fleet of real GPUs rehearsed: profile and serve models of PyTorch in a GPU worker whose GPU is imaginary."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gpulet.fleetfile import open_site
from gpulet.profile import Point
from gpulet.profiletable import format_profile
from gpulet.units import MS
from servers import Server, run

FLEET = """
[fleet]
system = "elastic"
[[devices]]
kind = "h200-141gb"
mechanism = "green"
executor = "rehearsal"
[[models]]
name = "dense"
slo_ms = 20000
rate = 20
max_batch = 2
[[models]]
name = "conv"
slo_ms = 20000
rate = 20
max_batch = 2
[[models]]
name = "engine"
slo_ms = 20000
rate = 20
[server]
repository = "models"
http_port = 0
grpc_port = 0
metrics_port = 0
log_format = "json"
journal = "journal"
"""
SERVE = """
import json, sys
from gpulet import cli
sys.argv = ["gpulet", "serve", sys.argv[1]]
try:
    cli.main()
except SystemExit as stopped:
    assert not stopped.code, stopped
foreign = {"torch", "cuda", "pynvml", "onnxruntime"}
print(json.dumps(sorted(name for name in sys.modules if name.partition(".")[0] in foreign)))
"""
"""Of all that the front-end has imported at its end, what it must not have."""
SIZES = (8, 16, 24, 32, 48, 64, 96, 128)
KEPT = 777
SHAPES = {"dense": (1, 4), "conv": (1, 3, 8, 8)}


@pytest.fixture(scope="module")
def torch_models():
    import torch_models  # noqa: PLC0415 (only where it is used)

    return torch_models


@pytest.fixture(scope="module")
def site(torch_models, tmp_path_factory):
    """The fleet file beside its repository; its profiles are kept beside it too."""
    folder = tmp_path_factory.mktemp("rehearsal")
    import torch  # noqa: PLC0415

    makers = {"dense": torch_models.Dense, "conv": torch_models.Conv}
    for name, shape in SHAPES.items():
        version = folder / "models" / name / "1"
        version.mkdir(parents=True)
        example = (torch.ones(2, *shape[1:]),)
        torch_models.export(version, "model", torch_models.seeded(makers[name]), example, ({0: torch_models.ROWS},))
    (folder / "models" / "engine" / "1").mkdir(parents=True)
    (folder / "models" / "engine" / "1" / "model.plan").write_bytes(b"an engine")
    (folder / "fleet.toml").write_text(FLEET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        keep_profile(open_site(folder / "fleet.toml"), "conv")
        yield folder


def keep_profile(site, model):
    """As an earlier run left it: a worker less to wait for, whose imports alone take eight seconds of a CPU."""
    points = [Point(model, size, rows, MS, MS, MS, KEPT) for size in SIZES for rows in (1, 2)]
    site.store.write(site.artifacts[model].digest, format_profile(points))


@pytest.fixture(scope="module")
def profiled(site):
    return run("profile", site / "fleet.toml", "--budget", "0.01", "--json")


@pytest.fixture(scope="module")
def rehearsed(site, profiled):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, site / "fleet.toml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    server = Server(process)
    server.wait_for("ready")
    yield server
    process.stdout.close()
    server.close()


def ask(server, model, x):
    """The status and the answer's document."""
    tensor = {
        "name": "image" if model == "conv" else "x",
        "shape": list(x.shape),
        "datatype": "FP32",
        "data": x.ravel().tolist(),
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v2/models/{model}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def drawn(model, seed):
    return np.random.default_rng(seed).random(SHAPES[model], np.float32)


def expected(torch_models, model, x):
    import torch  # noqa: PLC0415

    make = {"dense": torch_models.Dense, "conv": torch_models.Conv}[model]
    return torch_models.seeded(make)(torch.from_numpy(x)).detach().numpy()


def is_right(torch_models, model, x, doc):
    (output,) = doc["outputs"]
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    return np.allclose(found, expected(torch_models, model, x), rtol=1e-5, atol=1e-6)


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def maps(pid):
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_profile_has_every_size_of_every_model_that_can_be_loaded_and_names_the_other(profiled):
    code, out, err = profiled
    assert code == 2
    assert "model engine: model.plan is not served: a TensorRT plan" in err
    points = json.loads(out)["points"]
    assert {p["model"] for p in points} == {"dense", "conv"}
    for model in SHAPES:
        mine = [p for p in points if p["model"] == model]
        assert [(p["size"], p["batch"]) for p in mine] == [(size, rows) for size in SIZES for rows in (1, 2)]
        assert all((p["samples"] == KEPT) == (model == "conv") for p in mine), "what was measured before stands"


@pytest.mark.parametrize("model", SHAPES)
def test_answers_are_those_of_pytorch(rehearsed, torch_models, model):
    for seed in range(5):
        x = drawn(model, seed)
        status, doc = ask(rehearsed, model, x)
        assert status == 200
        assert is_right(torch_models, model, x, doc)


def test_a_tensorrt_plan_is_refused_by_name_and_its_neighbours_serve(rehearsed):
    assert "a TensorRT plan chose its kernels" in rehearsed.wait_for("model_refused")["error"]
    status, doc = ask(rehearsed, "engine", np.zeros((1, 4), np.float32))
    assert status == 503
    assert "engine" in doc["error"]
    assert "TensorRT" in doc["error"]
    assert ask(rehearsed, "dense", drawn("dense", 1))[0] == 200


def test_who_stands_by_has_imported_pytorch_and_the_front_end_has_not(rehearsed):
    until = time.monotonic() + 20
    pids = children(rehearsed.process.pid)
    while not all("libtorch" in maps(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(pids) == 2
    assert all("libtorch" in maps(pid) for pid in pids)
    assert "libtorch" not in maps(rehearsed.process.pid)


def test_a_worker_that_is_killed_under_load_costs_no_request_its_answer(rehearsed, torch_models):
    (pid,) = {worker["pid"] for worker in rehearsed.workers.values()}
    count = len(rehearsed.all("gpulet_up"))

    inputs = [("dense", "conv")[seed % 2] for seed in range(120)]

    def one(seed):
        if seed == 40:
            os.kill(pid, signal.SIGKILL)
        return ask(rehearsed, inputs[seed], drawn(inputs[seed], seed))

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(120)))
    assert [doc for status, doc in answers if status != 200] == []
    for seed, (_, doc) in enumerate(answers):
        assert is_right(torch_models, inputs[seed], drawn(inputs[seed], seed), doc), seed
    gpulets = len(rehearsed.workers)
    rehearsed.wait_for("gpulet_up", count + gpulets)
    assert rehearsed.wait_for("worker_died")["pid"] == pid
    assert pid not in {worker["pid"] for worker in rehearsed.workers.values()}
    for model in SHAPES:
        assert ask(rehearsed, model, drawn(model, 3))[0] == 200


def test_at_its_end_the_front_end_has_imported_nothing_of_a_gpu_and_its_journal_replays(rehearsed, site):
    rehearsed.stop()
    foreign = rehearsed.process.stdout.read()
    assert rehearsed.process.wait(20) == 0
    assert json.loads(foreign) == []
    code, out, err = run("replay", site / "journal")
    assert code == 0, err
    assert re.search(r"^\d{3,} steps, 0 differ$", out, re.MULTILINE), out
