"""benchmarks/gpu rehearsed on the CPU: it comes to its end, goes on where it stopped, and outlives what fails."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.fitting import read_pairs
from gpulet.importing.table import read_table
from gpulet.profiletable import parse_profile
from gpulet.roofline import Roofline
from gpulet.roofline.analytic import start
from gpulet.roofline.hardware import HALF
from gpulet.roofline.works import WORKS
from gpulet.units import MS
from servers import REPOSITORY

torch = pytest.importorskip("torch")
GPU = REPOSITORY / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import devices
    import e01_sets
    import e02_graphs
    import e05_latency
    import e06_interference
    import kit
    import models
    import profiling
    import runs

torch.set_num_threads(1)  # small models on two threads wait for each other
PUBLISHED = {
    "lenet": 61_706,
    "googlenet": 6_624_904,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "ssd-mobilenetv1": 6_819_839,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "densenet121": 7_978_856,
    "bert-base": 109_482_240,
    "vit_b_16": 86_567_656,
    "conformer": 8_541_376,
}


def measured(run, out, *more, folder=GPU, models=None):
    """One rehearsal: its lines by experiment."""
    command = [sys.executable, folder / "run.py", run, "--device", "cpu", "--tiny", "--out", out, *more]
    command += ["--models", models] if models else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line.partition(" ")[2] for line in done.stdout.splitlines()}


def test_every_model_has_as_many_parameters_as_published():
    with torch.device("meta"):
        counted = {
            name: sum(p.numel() for p in known.build(models.FULL).parameters()) for name, known in models.MODELS.items()
        }
    assert counted == PUBLISHED


def test_every_small_model_answers_each_row_alone():
    for name in models.MODELS:
        model = models.build(name, tiny=True, dtype=torch.float32)
        given = models.example(name, 3, tiny=True, dtype=torch.float32)
        found, alone = model(given), model(given[:1])
        for many, one in zip(*((y if isinstance(y, tuple) else (y,)) for y in (found, alone)), strict=True):
            assert many.shape[0] == 3
            torch.testing.assert_close(many[:1], one, atol=1e-3, rtol=1e-3)
            assert many.std() > 0.01, f"{name} answers nothing"


def test_an_exported_model_takes_any_number_of_rows_and_keeps_its_weights(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = models.export("ssd-mobilenetv1", tmp_path, tiny=True, dtype=torch.float32)
        assert path == tmp_path / "ssd-mobilenetv1" / "1" / "model.pt2"
        run = torch.export.load(path).module()
        for rows in (1, 5):
            given = models.example("ssd-mobilenetv1", rows, tiny=True, dtype=torch.float32)
            wanted = models.build("ssd-mobilenetv1", tiny=True, dtype=torch.float32)(given)
            torch.testing.assert_close(run(given), wanted)


def test_bfloat16_stays_inside():
    model = models.build("bert-base", tiny=True, dtype=torch.bfloat16)
    assert model(models.example("bert-base", 2, tiny=True, dtype=torch.bfloat16)).dtype is torch.float32


def test_a_run_gives_verdicts_and_a_second_one_measures_nothing(tmp_path):
    first = measured("A", tmp_path / "out", "--only", "E0,E1")
    assert [line.split()[0] for line in first.values()] == ["GOOD"] * 2
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    assert set(written) == {"E0.json", "E1.json"}
    assert all(json.loads(text)["rehearsal"] for text in written.values())
    second = measured("A", tmp_path / "out", "--only", "E0,E1")
    assert all(line.startswith("skipped: GOOD before") for line in second.values())
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}


BROKEN = "def run(context):\n    raise ValueError('a bad day')\n"
ENDLESS = """
import subprocess, sys, time
from kit import keep
def run(context):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    (context.out / "pid").write_text(str(other.pid))
    keep(context, "E1", {"half": 1})
    time.sleep(100)
"""
BAD = "from kit import judged\ndef run(context):\n    return judged(['too slow'], 'as it is', {})\n"


def test_what_fails_or_hangs_leaves_the_others_alone(tmp_path):
    folder = tmp_path / "benchmarks" / "gpu"
    shutil.copytree(GPU, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in {"e00_machine": BROKEN, "e01_sets": ENDLESS, "e02_graphs": BAD}.items():
        (folder / f"{name}.py").write_text(code)
    out = tmp_path / "out"
    lines = measured("A", out, "--only", "E0,E1,E2", "--limit", "2", "--grace", "1", folder=folder)
    assert lines["E0"].startswith("FAILED ValueError: a bad day")
    assert re.match(r"FAILED killed after \d+ s", lines["E1"])
    assert lines["E2"].startswith("BAD too slow; as it is")
    assert "a bad day" in json.loads((out / "E0.json").read_text())["numbers"]["traceback"]
    assert json.loads((out / "E1.json").read_text())["numbers"] == {"half": 1}
    assert is_gone(int((out / "pid").read_text()))
    (folder / "e00_machine.py").write_text(BAD)
    again = measured("A", out, "--only", "E0,E2", folder=folder)
    assert again["E0"].startswith("BAD too slow")
    assert again["E2"].startswith("skipped: BAD before")


def is_gone(pid):
    """Ended; its entry may wait for a parent that reads it."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_rehearsal_is_not_written_among_results(tmp_path):
    command = [sys.executable, GPU / "run.py", "A", "--device", "cpu", "--out", kit.RESULTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "not written among results" in done.stderr


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Small models, once for all tests."""
    folder = tmp_path_factory.mktemp("models")
    command = [sys.executable, GPU / "models.py", folder, "--tiny", "--dtype", "float32", "--workers", "1"]
    command += ["--models", "resnet50,bert-base"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for name in models.MODELS:
        models.place(name, folder).parent.mkdir(parents=True, exist_ok=True)
        models.place(name, folder).touch()  # the others are not asked for
    return folder


def test_models_are_served_re_cut_and_compared(tmp_path, exported):
    lines = measured("B", tmp_path / "out", "--only", "E8", models=exported)
    assert lines["E8"].startswith("GOOD")
    found = json.loads((tmp_path / "out" / "E8.json").read_text())["numbers"]
    assert found["lost"] == found["wrong"] == 0
    assert found["recuts"] >= 4
    assert found["ended"] > 10


def test_pairs_are_a_table_that_interference_models_are_fitted_to(tmp_path):
    lines = measured("A", tmp_path / "out", "--only", "E6")
    assert lines["E6"].startswith("GOOD")
    pairs, solo = (read_table((tmp_path / "out" / f"{n}.csv").read_text(), n) for n in ("interference", "solo"))
    seen = read_pairs(pairs, solo)
    assert len(seen) == 28
    assert {s.victim.model for s in seen} == {"resnet50", "bert-base", "dram", "l2"}
    assert all(s.slowdown > 0 for s in seen)


def test_the_profile_is_our_table_and_goes_on_where_it_stopped(tmp_path, exported):
    out = tmp_path / "out"
    assert measured("C", out, "--only", "profile", models=exported)["profile"].startswith("GOOD 8 points of 2 models")
    profile = parse_profile((out / "profile.csv").read_text(), lambda _: 0, "profile.csv")
    assert set(profile.models) == {"resnet50", "bert-base"}
    assert all(p.samples >= 30 for p in profile.points)
    lines = (out / "latency.csv").read_text().splitlines(keepends=True)
    (out / "latency.csv").write_text("".join(lines[:-1]) + lines[-1][:20])  # as a killed process leaves it
    (out / "profile.json").unlink()
    assert measured("C", out, "--only", "profile", models=exported)["profile"].startswith("GOOD 8 points")
    with (out / "latency.csv").open() as file:
        assert sum(None not in line.values() for line in csv.DictReader(file)) == 8


def test_the_coarse_grid_of_all_models_comes_first():
    order = profiling.spots(kit.SIZES, list(models.MODELS))
    assert len(order) == len(set(order)) == 660
    assert {(size, batch) for _, size, batch in order[:99]} == {(s, b) for s in (132, 64, 32) for b in (1, 8, 32)}
    assert {model for model, _, _ in order[:33]} == set(models.MODELS)


@pytest.mark.parametrize(
    ("experiment", "fault", "said"),
    [
        (e01_sets, {"is_confining": False}, "must have"),
        (e01_sets, {"missing_sms": 2}, "the CUDA driver gave it"),
        (e02_graphs, {"graphs_stay": False}, "SMs outside"),
    ],
)
def test_a_gpu_that_does_not_confine_is_called_bad(tmp_path, monkeypatch, experiment, fault, said):
    driver = FakeCudaDriver()
    for name, value in fault.items():
        setattr(driver.faults, name, value)
    monkeypatch.setattr(devices, "opened_driver", lambda _: driver)
    result = experiment.run(kit.Context(tmp_path, tmp_path, time.monotonic() + 60, is_real=False, tiny=True))
    assert result.verdict is kit.Verdict.BAD
    assert said in result.line


def measured_by_the_model():
    """Points as the analytic model has them, for what E5 makes of points."""
    points = {}
    for name in ("resnet50", "bert-base", "mobilenet_v2"):
        roof = Roofline(WORKS[name], HALF["h200-141gb"], start(WORKS[name]))
        points |= {f"{name} {n} {s}": roof.latency(s, n) / MS for n in (1, 8, 32) for s in kit.SIZES}
    points |= {f"{kind} 8192 {s}": 1.4 * 132 / s for kind in ("product", "tuned") for s in kit.SIZES}
    return points | {f"copy {1 << 28} {s}": 0.5 * max(1, 60 / s) for s in kit.SIZES}


def test_what_is_measured_is_fitted_and_found_good_or_bad():
    points = measured_by_the_model()
    fits = e05_latency.fits(points)
    assert all(fits[name] < 5 for name in ("resnet50", "bert-base", "mobilenet_v2"))
    context = kit.Context(Path(), Path(), 0.0, is_real=True, tiny=False)
    rates = e05_latency.derived(points, 132, context)
    assert rates["saturating_sms"] == 64
    assert rates["tflop_s"] == pytest.approx(2 * 8192**3 / 1.4e-3 / 1e12, rel=1e-3)
    assert rates["gb_s"] == pytest.approx(8 * (1 << 28) / 0.5e-3 / 1e9, rel=1e-3)
    numbers = {"points": points, "errors": {}, "refused": {}}
    assert e05_latency.complaints(numbers, 132) == []
    points |= {"product 8192 128": 2.8, "resnet50 8 80": 10.0}
    numbers |= {"errors": {"resnet50 1 8": 0.5}, "refused": {"16": "no proof"}}
    said = e05_latency.complaints(numbers, 132)
    assert [line.split(":")[0] for line in said] == [
        "product 8192",
        "product",
        "resnet50 8",
        "16 SMs",
        "resnet50 1 8 is 0.5 off the whole GPU",
    ]


def test_saturation_is_what_two_stressors_reach_together():
    solo = {f"dram {side} at 64": {"model": "dram", "bytes_per_s": rate} for side, rate in enumerate((70.0, 80.0))}
    pairs = {"p": {"models": ["dram", "dram"], "cut": 64, "slowdowns": [1.75, 2.0]}}
    fit = e06_interference.fitted({"solo": solo, "pairs": pairs, "footprints": {"10": 1.1, "40": 1.65, "80": 2.2}})
    assert fit["saturation"] == 1.0
    assert fit["kappa"] == 0.75


def test_every_experiment_is_in_a_run_and_has_its_module():
    listed = [name for names in runs.RUNS.values() for name in names]
    assert set(listed) == set(runs.EXPERIMENTS)
    assert all((GPU / f"{e.module}.py").exists() for e in runs.EXPERIMENTS.values())
