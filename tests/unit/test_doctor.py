"""What doctor says of machines: one without a GPU, ones with, and what a fleet file asks for."""

import json
import os
import sys
from pathlib import Path

import pytest

from fake_mps import behave, binary, install
from fake_nvml import FakeNvml, below_pynvml
from gpulet import doctor, proofs
from gpulet.cli import examining
from gpulet.cli.examining import usable_cores
from gpulet.device import KINDS, Device, Mechanism, cpu_kind
from gpulet.doctor import Asked, Machine, Verdict, check_cores, cuttable, examine
from gpulet.errors import Unusable
from gpulet.executors.nvml import Code, MigMode
from gpulet.executors.process import Program

KIND = "h200-141gb"
ANY = Asked(any_gpu=True)


def machine(*kinds, mps=None, **state):
    fake = FakeNvml(*kinds, **state)
    return Machine((0,), lambda: fake, mps), fake


def asked(mechanism, kind=KIND, count=1):
    return Asked(tuple(Device(n, KINDS[kind], mechanism) for n in range(count)))


def said(checks):
    return {c.name: (c.verdict, c.says) for c in checks}


def fatal(checks):
    return [c.name for c in checks if c.is_fatal]


@pytest.fixture
def no_gpu(monkeypatch):
    fake = FakeNvml()
    fake.fail("nvmlInit", Code.LIBRARY_NOT_FOUND, times=9)
    with below_pynvml(monkeypatch, fake):
        yield


def test_a_machine_without_a_gpu_says_so_in_one_line_and_exits_3(gpulet, no_gpu):
    code, out, err = gpulet("doctor")
    assert (code, out) == (3, "")
    assert err == "error: no GPU here: no NVIDIA driver is loaded, nvmlInit: library not found (12)\n"


def test_it_says_so_to_machines_too(gpulet, no_gpu):
    code, out, err = gpulet("doctor", "--json")
    doc = json.loads(out)
    assert (code, err, doc["usable"]) == (3, "", False)
    assert doc["checks"][0]["says"] == "no GPU here: no NVIDIA driver is loaded, nvmlInit: library not found (12)"


def test_without_the_package_it_says_how_to_get_it(gpulet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    code, _, err = gpulet("doctor")
    assert (code, err.count("\n")) == (3, 1)
    assert "pip install 'gpulet[nvml]'" in err


def test_cores_alone_need_no_gpu(gpulet, no_gpu):
    code, out, err = gpulet("doctor", "--cpu")
    assert (code, err) == (0, "")
    assert out == f"ok  cores: {len(usable_cores())} usable, pinning verified on each\n"


def test_a_fleet_file_says_what_is_asked_for(gpulet, no_gpu, tmp_path):
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('[[devices]]\nkind = "cpu"\ncores = 1\n')
    assert gpulet("doctor", fleet)[0] == 0
    fleet.write_text(f'[[devices]]\nkind = "{KIND}"\nmechanism = "mig"\n')
    code, out, _ = gpulet("doctor", fleet)
    assert code == 3
    assert "no  driver: no GPU here: no NVIDIA driver is loaded, nvmlInit: library not found (12)\n" in out
    fleet.write_text(f'[[devices]]\nkind = "{KIND}"\ncount = 4\nexecutor = "simulated"\n')
    code, out, _ = gpulet("doctor", fleet)
    assert (code, out) == (0, "ok  devices: 4 emulated: nothing of this machine is asked for\n")


def test_a_fleet_file_and_cpu_contradict(gpulet, tmp_path):
    code, _, err = gpulet("doctor", tmp_path, "--cpu")
    assert code == 2
    assert "give one of the two" in err


def test_gpus_are_told_with_their_numbers():
    it, fake = machine(KIND, "v100", mig=MigMode.ON)
    fake.put(0, "3g.71gb", 4)
    fake.put(0, "1g.18gb", 0)
    fake.put(0, "1g.18gb", 1)
    fake.reasons = ("power cap",)
    checks = examine(it, ANY)
    lines = said(checks)
    assert lines["driver"] == (Verdict.OK, "580.95.05, CUDA 13.0, 2 GPUs")
    assert lines["gpu 0"] == (Verdict.OK, f"NVIDIA {KIND}, 141.0 GiB, 1.0 used, MIG on, slowed by power cap")
    assert lines["gpu 1"][1] == "NVIDIA v100, 16.0 GiB, 1.0 used, no MIG, slowed by power cap"
    assert lines["mig 0"] == (Verdict.OK, "1 x 3g.71gb of 60 SMs, 2 x 1g.18gb of 16 SMs")
    assert "mig 1" not in lines
    assert fatal(checks) == []
    assert fake.calls == [], "doctor changes nothing"


def test_a_mig_mode_that_waits_for_a_reset_is_told():
    it, fake = machine(KIND, mig=MigMode.OFF)
    fake.state[0].pending = MigMode.ON
    assert said(examine(it, ANY))["gpu 0"][1].endswith("MIG off (MIG on after a reset)")


@pytest.mark.parametrize(
    ("mechanism", "count", "missing"),
    [
        (Mechanism.WHOLE, 1, []),
        (Mechanism.WHOLE, 2, ["driver"]),
        (Mechanism.MIG, 1, ["mig 0"]),
        (Mechanism.MPS, 1, ["mps"]),
        (Mechanism.GREEN, 1, ["cuda.bindings"]),
    ],
)
def test_what_a_mechanism_needs_and_is_not_here_is_fatal(mechanism, count, missing, monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    it, _ = machine(KIND, mig=MigMode.OFF)
    assert fatal(examine(it, asked(mechanism, count=count))) == missing


def test_mig_types_that_are_not_as_planned_are_told():
    it, _ = machine("h100-80gb")
    checks = examine(it, asked(Mechanism.MIG))
    assert fatal(checks) == ["mig 0"]
    assert "it has no 1g.18gb of a h200-141gb" in said(checks)["mig 0"][1]
    assert fatal(examine(machine(KIND)[0], asked(Mechanism.MIG))) == []


def test_the_mps_binary_is_probed_and_nothing_is_started(tmp_path):
    install(tmp_path)
    behave(tmp_path, version="13040", usage=" --protocol N")
    it, _ = machine(KIND, mps=binary(tmp_path))
    line = said(examine(it, asked(Mechanism.MPS)))["mps"]
    assert line == (Verdict.OK, "nvidia-cuda-mps-control version 13040, static partitions yes, v3 yes")
    assert not (tmp_path / "told").exists()


def test_a_gpu_fleet_on_a_machine_without_one_is_not_usable():
    def refuse():
        msg = "no driver"
        raise Unusable(msg)

    checks = examine(Machine((0,), refuse, None), asked(Mechanism.GREEN))
    assert fatal(checks)[0] == "driver"
    with pytest.raises(Unusable, match="no GPU here: no driver"):
        examine(Machine((0,), refuse, None), ANY)


def test_pinning_that_does_not_hold_is_told(monkeypatch):
    before = os.sched_getaffinity(0)
    assert check_cores(usable_cores(), is_asked=True).verdict is Verdict.OK
    assert os.sched_getaffinity(0) == before, "our own threads stay where they were"
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)  # as some sandboxes do
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    check = check_cores((0, 1), is_asked=True)
    assert check.is_fatal
    assert check.says == "2 usable, pinning does not hold on 0, 1"
    it = Machine((0, 1), lambda: pytest.fail("not asked for"), None)
    assert fatal(examine(it, Asked((Device(0, cpu_kind(2), Mechanism.CPU),)))) == ["cores"]


# Green contexts, shown by a process of ours.

FAULTY = Program("gpulet.executors.cuda.worker", ("poison:open_faulty",))


@pytest.fixture
def faulty(monkeypatch, gpulet):
    """`gpulet doctor` where workers' GPUs have these faults."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))

    def run(*arguments, **faults):
        monkeypatch.setenv("FAULTS", json.dumps(faults))
        for name in ("REAL", "REHEARSED"):
            monkeypatch.setattr(examining, name, FAULTY)
        return gpulet("doctor", *arguments)

    return run


@pytest.fixture
def an_h200(monkeypatch):
    with below_pynvml(monkeypatch, FakeNvml(KIND, mig=MigMode.OFF)):
        yield


def green_fleet(folder, executor="", mechanism="green"):
    text = f'[[devices]]\nkind = "{KIND}"\nmechanism = "{mechanism}"\n'
    (folder / "fleet.toml").write_text(text + (f'executor = "{executor}"\n' if executor else ""))
    return folder / "fleet.toml"


@pytest.mark.slow
def test_a_rehearsed_fleet_is_shown_on_an_imaginary_gpu_and_every_line_says_so(gpulet, no_gpu, tmp_path):
    code, out, err = gpulet("doctor", green_fleet(tmp_path, "rehearsal"))
    cores, *lines = out.splitlines()
    assert (code, err) == (0, "")
    assert cores.startswith("ok  cores: ")
    assert len(lines) == 18
    assert all(line.startswith("ok  green 0 ") and line.endswith(" (rehearsed)") for line in lines)


def test_a_rehearsed_fleet_that_cuts_nothing_asks_for_no_gpu(gpulet, no_gpu, tmp_path):
    code, out, _ = gpulet("doctor", green_fleet(tmp_path, "rehearsal", "whole"))
    assert (code, out.splitlines()[1]) == (0, "ok  devices: 1 rehearsed: no GPU is asked for")


@pytest.mark.slow
def test_where_green_is_asked_and_not_shown_doctor_ends_with_3(faulty, an_h200, tmp_path):
    code, out, _ = faulty(green_fleet(tmp_path), "--json", missing_sms=2)
    doc = json.loads(out)
    checks = {c["check"]: c for c in doc["checks"]}
    assert (code, doc["usable"]) == (3, False)
    line = checks["green 0 split 8|124"]
    assert (line["verdict"], line["asked"]) == ("no", True)
    assert line["says"] == "share [0, 1) must have 8 SMs, the CUDA driver gave it 6"
    assert checks["green 0 groups"]["groups"] == 16


@pytest.mark.slow
def test_a_remainder_that_idles_does_not_make_a_gpu_unusable(faulty, an_h200, tmp_path):
    code, out, _ = faulty(green_fleet(tmp_path), sets_merge_with_remainder=False)
    assert code == 0
    assert "no  green 0 remainder: the 4 SMs over do not merge: they idle\n" in out


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["whole", ""])
def test_where_green_is_not_asked_it_is_told_and_not_fatal(faulty, an_h200, tmp_path, mechanism):
    code, out, _ = faulty(*([green_fleet(tmp_path, mechanism=mechanism)] if mechanism else []), is_confining=False)
    assert code == 0
    assert "no  green 0 split 8|124: share [0, 1) must have 8 SMs, blocks in its stream ran on 132\n" in out


@pytest.mark.slow
def test_a_process_that_dies_in_the_proof_is_told_with_what_was_shown_last(faulty, an_h200, tmp_path):
    code, out, _ = faulty(green_fleet(tmp_path), dies="replayed_ids")
    assert code == 3
    assert "no  green 0: its process died after sizes\n" in out


@pytest.mark.slow
def test_a_process_that_says_no_more_is_ended(faulty, an_h200, tmp_path, monkeypatch):
    monkeypatch.setattr(proofs, "_PATIENCE_S", 0.0)
    code, out, _ = faulty(green_fleet(tmp_path))
    assert (code, out.splitlines()[-1]) == (3, "no  green 0: nothing more within 0 s")


def test_gpus_that_nobody_asked_for_or_that_mig_cuts_are_left_alone():
    it, _ = machine(KIND, KIND, "v100", mig=MigMode.OFF)
    assert [index for index, _ in cuttable(it, asked(Mechanism.GREEN))] == [0]
    assert [(index, kind.sms) for index, kind in cuttable(it, ANY)] == [(0, 0), (1, 0), (2, 0)]
    assert cuttable(it, Asked()) == ()
    it, _ = machine(KIND, mig=MigMode.ON)
    assert cuttable(it, ANY) == ()


def test_without_the_bindings_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(doctor.util, "find_spec", lambda _: None)
    it, _ = machine(KIND, mig=MigMode.OFF)
    assert cuttable(it, asked(Mechanism.GREEN)) == ()
