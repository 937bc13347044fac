"""The parts of benchmarks/peers.py that need no peer."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gpulet.config import parse_fleet_file
from servers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from peers.grpcload import Kind, frame, headers
from peers.ledger import SKIPPED, Ledger
from peers.onnxfiles import LENET, RESNET50
from peers.ours import fleet_text
from peers.processes import Unavailable
from peers.report import Claim, Report, claims, show, spread, summary
from peers.search import highest_level, largest_rate, settled_level
from peers.table import WAIT_US
from peers.wire import Wire, numbers, request
from peers.workloads import OURS, SHAPES

BENCHMARKS = REPOSITORY / "benchmarks"
NAMES, SINGLES = [OURS, "mosec"], [shape.name for shape in SHAPES]


def ledger(path, pieces=()):
    made = Ledger(path / "run.jsonl", 100.0, lambda: 0.0)
    for key, piece in pieces:
        made.once(key, 1.0, lambda piece=piece: dict(piece))
    return made


@pytest.mark.parametrize("limit", [40.0, 700.0, 9_000.0])
def test_a_search_ends_just_below_the_largest_rate_that_holds(limit):
    assert limit / 1.05 <= largest_rate(lambda rate: rate <= limit, 600.0, 0.05) <= limit


def test_a_search_where_nothing_holds_finds_none():
    assert largest_rate(lambda rate: False, 600.0, 0.05) == 0


@pytest.mark.parametrize("limit", range(9))
@pytest.mark.parametrize("guess", [1, 3, 8])
def test_levels_are_found_by_halves_and_one_by_one(limit, guess):
    assert highest_level(lambda level: level <= limit, guess, 8) == limit
    assert settled_level(lambda level: level <= limit, guess, 8) == limit


def test_only_a_model_that_batches_waits_and_as_long_as_with_the_peers():
    text = fleet_text([LENET, RESNET50], {LENET.name: 1000.0, RESNET50.name: 5.0}, "cut")
    delays = {model.name: model.max_queue_delay_us for model in parse_fleet_file(text, "fleet").models}
    assert delays == {LENET.name: WAIT_US, RESNET50.name: 0}


def test_a_resumed_run_measures_only_what_is_missing_or_failed(tmp_path):
    def fails():
        raise Unavailable

    first = ledger(tmp_path, [("W1/mosec/0", {"x": 1.0, "failed": 0})])
    first.once("W1/ray/0", 1.0, fails)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"key": "W1/cut')
    again = ledger(tmp_path)
    assert again.once("W1/mosec/0", 1.0, fails)["x"] == 1.0
    assert list(again.failures()) == ["W1/ray/0"]
    assert again.once("W1/ray/0", 1.0, lambda: {"x": 2.0})["x"] == 2.0
    assert not again.failures()


def test_nothing_is_begun_that_would_not_end_in_time(tmp_path):
    assert ledger(tmp_path).once("W4/ray/1x1/L1/0", 101.0, lambda: pytest.fail("begun")) == SKIPPED


def test_ratios_are_of_medians(tmp_path):
    runs = [
        (f"W1/{name}/{run}", {"cpu": cpu * (1, 1.1, 9)[run]})
        for name, cpu in (("gpulet", 20), ("mosec", 100))
        for run in range(3)
    ]
    report = Report(ledger(tmp_path, runs))
    assert report.ratio("cpu", ("W1", "gpulet"), ("W1", "mosec")) == pytest.approx(0.2)
    assert report.ratio("cpu", ("W1", "gpulet"), ("W1", "ray")) is None
    assert str(spread([20.0, 22.0, 180.0])) == "22 (20-180, 3 runs)"


def level(light, heavy, of):
    return {"light": light, "heavy": heavy, "level": of, "heavy_goodput": 30.0 * heavy}


def test_whole_runs_say_more_than_probes_and_a_run_beyond_capacity_says_nothing_of_lower_levels(tmp_path):
    probed = [("W4/mosec/1x1/probe2", level(1, 1, 2)), ("W4/mosec/1x1/L8/0", level(1, 0, 8))]
    assert Report(ledger(tmp_path, probed)).level("mosec", "1x1") == (2, "probe")
    whole = [("W4/mosec/1x1/L2/0", level(1, 0.98, 2)), ("W4/mosec/1x1/L1/0", level(1, 0.99, 1))]
    assert Report(ledger(tmp_path, [*probed, *whole])).level("mosec", "1x1") == (1, "L")
    assert Report(ledger(tmp_path)).level("ray", "1x1") is None


def test_claims_hold_fail_or_were_not_measured(tmp_path):
    pieces = [
        ("W2/gpulet/0", {"rate": 9.0, "server_cpu_us": 10.0}),
        ("W2/mosec/0", {"rate": 10.0, "server_cpu_us": 20.0}),
        ("W4/gpulet/whole/L4/0", level(1, 1, 4)),
        ("W4/gpulet/cut/L3/0", level(1, 1, 3)),
        ("W4/mosec/1x1/L2/0", level(1, 1, 2)),
        ("W4/mosec/1x2/L5/0", level(1, 1, 5)),
    ]
    report = Report(ledger(tmp_path, pieces))
    found = {claim.text: claim.verdict for claim in claims(report, ["mosec", "ray"], SINGLES)}
    assert found["W2: largest rate / mosec's"] == "FAILS"
    assert found["W2: CPU per request / mosec's"] == "holds"
    assert found["W4: level - the best peer's in its best shape"] == "FAILS"
    assert found["W4: level - twice mosec's, one instance of one thread"] == "holds"
    assert found["W1 HTTP: CPU per request / mosec's"] == "not measured"
    assert Claim("x", 0.9, 0.9, is_least=True).verdict == Claim("x", 0.9, 0.9).verdict == "holds"


def test_a_report_shows_what_was_measured_and_nothing_else(tmp_path):
    report = Report(ledger(tmp_path, [("W1/mosec/0", {"http_server_cpu_us": 100.0})]))
    said = []
    show(report, NAMES, SINGLES, claims(report, ["mosec"], SINGLES), said.append)
    assert sum("mosec " in line for line in "\n".join(said).splitlines() if "100 (100-100, 1 runs)" in line) == 1
    assert json.loads(json.dumps(summary(report, NAMES, SINGLES, [])))["W1"] == {
        "mosec": {"http_server_cpu_us": [100.0, 100.0, 100.0, 1]}
    }


@pytest.mark.parametrize("wire", Wire)
def test_every_wire_carries_one_row(wire):
    row = LENET.rows(1)[0]
    head, _, body = request(wire, LENET, row).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    carried = (
        json.loads(body)["inputs"][0]["data"] if wire is Wire.JSON else np.frombuffer(body[-row.nbytes :], np.float32)
    )
    assert np.allclose(carried, row.ravel(), atol=1e-6)


def test_numbers_are_read_from_every_form_of_answer():
    values = np.arange(3, dtype=np.float32)
    text = json.dumps({"outputs": [{"data": values.tolist()}]}).encode()
    ok = b"HTTP/1.1 200 OK\r\n"
    assert numbers(Wire.RAW, ok + b"\r\n" + values.tobytes()).tolist() == [0, 1, 2]
    assert numbers(Wire.JSON, ok + b"\r\n" + text).tolist() == [0, 1, 2]
    assert numbers(Wire.BINARY, ok + b"inference-header-content-length: 2\r\n\r\n{}" + values.tobytes()).tolist() == [
        0,
        1,
        2,
    ]
    assert not numbers(Wire.RAW, b"HTTP/1.1 429 Too Many Requests\r\n\r\nno").size


def test_a_frame_has_length_kind_flags_and_stream():
    assert frame(Kind.DATA, 1, 5, b"abc") == b"\0\0\3\0\1\0\0\0\5abc"
    assert headers(b"h:1").startswith(b"\x83\x86\x04")


@pytest.mark.slow
@pytest.mark.parametrize(("network", "parameters"), [(LENET, 61_706), (RESNET50, 25_530_472)])
def test_models_have_the_size_of_their_namesakes(network, parameters, tmp_path):
    import onnx  # noqa: PLC0415

    weights = onnx.load(network.save(tmp_path)).graph.initializer
    assert sum(int(np.prod(weight.dims)) for weight in weights) == parameters


LEAVES_A_DAEMON = """
import os, time
if os.fork():
    time.sleep(60)
os.setsid()
middle = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == middle:
    pass
print("orphaned", flush=True)
time.sleep(60)
"""
STOPS_IT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from peers.processes import Running, adopt_orphans
adopt_orphans()
log = Path(sys.argv[2])
running = Running([sys.executable, "-c", sys.argv[3]], {}, log)
while "orphaned" not in log.read_text():
    running.check()
found = running.pids()
running.stop()
print(len(found), len(running.pids()), any(Path(f"/proc/{pid}").exists() for pid in found))
"""


def test_a_daemon_that_a_server_left_behind_ends_with_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STOPS_IT, BENCHMARKS, tmp_path / "log", LEAVES_A_DAEMON],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["2", "0", "False"], done.stderr


def test_the_command_explains_itself_and_refuses_unknown_peers():
    command = [sys.executable, BENCHMARKS / "peers.py"]
    assert "setup" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([*command, "run", "W1", "--peers", "nobody"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no peer nobody; there are mosec" in done.stderr
