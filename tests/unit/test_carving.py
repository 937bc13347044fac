"""`plan --emit`: what the tools that carve are given. No YAML reader is installed here, so text is read line by line."""

import json
import re
import subprocess
from dataclasses import replace

import pytest
from test_plan import MIG, MIG_LAYOUT, RESIDENT, TURNS

from gpulet.device import Device, Mechanism, cpu_kind, find_kind
from gpulet.errors import BadInput, PlanError
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.reports.carving import FORMS, emitted
from gpulet.units import MS


def gpulet_of(place, device, label, offset):
    return Gpulet(place, device, MIG[label], offset, 10 * MS, (Turn("m", 1, 1.0, MS),))


TWO_OF_THREE = Plan(
    tuple(Device(index, find_kind("a100-40gb"), Mechanism.MIG) for index in range(3)),
    (
        *(gpulet_of(place, 0, "1g.5gb", place) for place in range(4)),
        gpulet_of(4, 0, "3g.20gb", 4),
        gpulet_of(5, 2, "3g.20gb", 0),
        gpulet_of(6, 2, "2g.10gb", 4),
    ),
)


def rules(text):
    """mig-parted's rules as {device index: counts by label}."""
    found = {}
    for line in text.splitlines():
        if device := re.fullmatch(r"  - devices: \[(\d+)\]", line):
            found[int(device[1])] = counts = {}
        elif entry := re.fullmatch(r'      "([\w.+]+)": (\d+)', line):
            counts[entry[1]] = int(entry[2])
    return found


def test_the_script_creates_larger_instances_first_at_their_planned_slots():
    text = emitted(TWO_OF_THREE, "nvidia-smi")
    commands = [line for line in text.splitlines() if line.startswith("sudo")]
    assert commands == [
        "sudo nvidia-smi -i 0 -mig 1",
        "sudo nvidia-smi mig -i 0 -dci || true",
        "sudo nvidia-smi mig -i 0 -dgi || true",
        "sudo nvidia-smi mig -i 0 -cgi 3g.20gb:4,1g.5gb:0,1g.5gb:1,1g.5gb:2,1g.5gb:3 -C",
        "sudo nvidia-smi -i 2 -mig 1",
        "sudo nvidia-smi mig -i 2 -dci || true",
        "sudo nvidia-smi mig -i 2 -dgi || true",
        "sudo nvidia-smi mig -i 2 -cgi 3g.20gb:0,2g.10gb:4 -C",
    ]
    assert "# Not used, left as they are: GPU 1." in text


def test_the_script_runs(tmp_path):
    """With a `sudo` that only writes down what it is asked, and fails where there is nothing to destroy."""
    (tmp_path / "sudo").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncase "$*" in *-d?i*) exit 6;; esac\n')
    (tmp_path / "sudo").chmod(0o755)
    script = emitted(TWO_OF_THREE, "nvidia-smi")
    subprocess.run(["sh"], input=script, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 8
    assert asked[-1] == "nvidia-smi mig -i 2 -cgi 3g.20gb:0,2g.10gb:4 -C"


def test_mig_parted_gets_counts_by_gpu_and_the_commands_in_comments():
    text = emitted(TWO_OF_THREE, "mig")
    assert rules(text) == {0: {"3g.20gb": 1, "1g.5gb": 4}, 2: {"3g.20gb": 1, "2g.10gb": 1}}
    body = [line for line in text.splitlines() if not line.startswith("#")]
    assert body[:6] == [
        "version: v1",
        "mig-configs:",
        "  gpulet:",
        "  - devices: [0]",
        "    mig-enabled: true",
        "    mig-devices:",
    ]
    comments = text[: text.index("version: v1")]
    assert all(line.startswith("#") for line in comments.splitlines())
    script = emitted(TWO_OF_THREE, "nvidia-smi").splitlines()
    assert [c.strip("# ") for c in comments.splitlines() if "sudo" in c] == [s for s in script if "sudo" in s]


def test_kubernetes_gets_one_claim_for_each_gpu_and_a_request_for_each_instance():
    claims = emitted(TWO_OF_THREE, "dra").split("---\n")[1:]
    assert len(claims) == 2
    for claim, name in zip(claims, ("gpulet-gpu-0", "gpulet-gpu-2"), strict=True):
        assert claim.startswith(
            f"apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata:\n  name: {name}\nspec:\n  devices:\n"
        )
        assert claim.endswith("    constraints:\n    - matchAttribute: gpu.nvidia.com/parentUUID\n")
        assert claim.count("deviceClassName: mig.nvidia.com") == claim.count("      exactly:")
    profiles = [re.findall(r"profile == '([\w.]+)'\"", claim) for claim in claims]
    assert profiles == [["1g.5gb"] * 4 + ["3g.20gb"], ["3g.20gb", "2g.10gb"]]
    assert re.findall(r"- name: gpulet-(\d)", claims[1]) == ["5", "6"]


def lines(plan):
    return [line for line in emitted(plan, "env").splitlines() if not line.startswith("#")]


def test_workers_find_their_mig_instance_and_its_mps_daemon_in_the_environment():
    first, second, *others = lines(MIG_LAYOUT)
    shared = (
        "CUDA_VISIBLE_DEVICES=MIG-<UUID:GPU-0:4g.20gb:slot-0> CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps/gpulet-0 "
        "CUDA_MPS_LOG_DIRECTORY=/run/nvidia-mps/gpulet-0/log"
    )
    assert first == f"GPULET_ID=0 GPULET_PROCESS=0 {shared}"
    assert second == f"GPULET_ID=0 GPULET_PROCESS=1 {shared}"
    assert others == [
        "GPULET_ID=1 CUDA_VISIBLE_DEVICES=MIG-<UUID:GPU-0:2g.10gb:slot-4>",
        "GPULET_ID=2 CUDA_VISIBLE_DEVICES=MIG-<UUID:GPU-0:1g.5gb:slot-6>",
    ]


def test_workers_find_their_share_or_device_in_the_environment():
    assert lines(TURNS) == [
        "GPULET_ID=0 CUDA_VISIBLE_DEVICES=0 CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=40",
        "GPULET_ID=1 CUDA_VISIBLE_DEVICES=0 CUDA_MPS_ACTIVE_THREAD_PERCENTAGE=60",
    ]
    whole = Device(4, find_kind("t4"), Mechanism.WHOLE)
    gpulet = replace(TURNS.gpulets[0], device=4, size=whole.sizes()[0])
    assert lines(Plan((whole,), (gpulet,))) == ["GPULET_ID=0 CUDA_VISIBLE_DEVICES=4"]


@pytest.mark.parametrize("form", ["mig", "nvidia-smi", "dra"])
def test_what_only_mig_can_be_given_is_refused_for_other_devices(form):
    with pytest.raises(
        PlanError, match=rf"--emit {form} is for devices that MIG cuts; device 0 \(rtx2080ti\) is cut by"
    ):
        emitted(TURNS, form)


def test_plans_with_nothing_to_carve_are_refused():
    for form in FORMS:
        with pytest.raises(PlanError, match="the plan has no gpulets to carve"):
            emitted(RESIDENT, form)
    cores = Device(0, cpu_kind(4), Mechanism.CPU)
    gpulet = replace(TURNS.gpulets[0], size=cores.sizes()[1])
    with pytest.raises(PlanError, match="device 0 is a CPU"):
        emitted(Plan((cores,), (gpulet,)), "env")
    with pytest.raises(BadInput, match="--emit 'yaml': known are mig, nvidia-smi, dra, env"):
        emitted(TURNS, "yaml")


@pytest.fixture
def fleet(tmp_path):
    table = "model,size,batch,mean_ms\n" + "".join(
        f"{m},{sms},{n},{n * 100 / sms}\n" for m in "ab" for sms in (14, 98) for n in (1, 8)
    )
    (tmp_path / "p.csv").write_text(table)
    text = '[[devices]]\nkind = "a100-40gb"\ncount = 2\nmechanism = "mig"\nexecutor = "simulated"\nprofile = "p.csv"\n'
    models = "".join(f'[[models]]\nname = "{m}"\nslo_ms = 50\nrate = RATE\n' for m in "ab")

    def make(rate=20, old="", new=""):
        (tmp_path / "fleet.toml").write_text(text.replace(old, new) + models.replace("RATE", str(rate)))
        return tmp_path / "fleet.toml"

    return make


def test_only_what_is_emitted_goes_to_standard_output(gpulet, fleet):
    code, out, err = gpulet("plan", fleet(), "--system", "dedicated", "--emit", "mig")
    assert (code, err) == (0, "")
    assert out.startswith("# mig-parted:")
    assert rules(out) == {0: {"7g.40gb": 1}, 1: {"7g.40gb": 1}}


@pytest.mark.parametrize("form", ["mig", "dra"])
def test_a_plan_for_other_devices_is_one_line_and_exit_code_2(gpulet, fleet, form):
    path = fleet(old='mechanism = "mig"', new='mechanism = "whole"')
    code, out, err = gpulet("plan", path, "--system", "dedicated", "--emit", form)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--emit {form} is for devices that MIG cuts" in err


def test_bad_options_are_refused_and_so_is_a_plan_that_does_not_hold(gpulet, fleet):
    code, out, err = gpulet("plan", fleet(), "--emit", "mig", "--json")
    assert (code, out, "both want standard output" in err) == (2, "", True)
    code, out, err = gpulet("plan", fleet(), "--emit", "yaml")
    assert (code, out, "known are mig, nvidia-smi, dra, env" in err) == (2, "", True)
    code, out, err = gpulet("plan", fleet(rate=1_000_000), "--system", "dedicated", "--emit", "mig")
    assert (code, out) == (1, "")
    assert err.startswith("no plan: ")
    code, out, _ = gpulet("plan", fleet(rate=20), "--system", "dedicated", "--json")
    assert (code, json.loads(out)["gpulets"][0]["label"]) == (0, "7g.40gb")
