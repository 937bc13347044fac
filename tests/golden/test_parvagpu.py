"""ParvaGPU's scenarios S1-S3 (SC 2024) on its own profile: the published SLOs and rates on no more GPUs than published.

Checked against the source tables themselves: where an option stands in the profile, what it delivers, what it takes.
"""

import csv
import json
from collections import Counter

import pytest

from gpulet.device import Device, Mechanism, Placement, find_kind, overcut

PUBLISHED = {"S1": 2, "S2": 3, "S3": 5}
A100 = Device(0, find_kind("a100-80gb"), Mechanism.MIG)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def parva(shared_data):
    return shared_data / "a100_parvagpu"


@pytest.fixture(scope="module")
def throughput(parva):
    """Rows/s of each process by (model, slices, batch, processes), less the copied rows."""
    table = {
        (r["model"], int(r["mig_slices"]), int(r["batch"]), int(r["processes"])): float(r["throughput_per_process"])
        for r in rows(parva / "profile.csv")
    }
    copied = {key for key, each in table.items() if table.get((*key[:3], key[3] - 1)) == each}
    assert len(copied) == 9
    return {key: each for key, each in table.items() if key not in copied}


@pytest.fixture
def planned(parva, tmp_path, gpulet):
    def run(scenario):
        kind = ("--kind", "a100-80gb")
        code, _, err = gpulet(
            "import-profile", parva / "profile.csv", *kind, "--processes", "all", "--out", tmp_path / "profile.csv"
        )
        assert code == 0, err
        fleet = tmp_path / "fleet.toml"
        options = ("--scenario", scenario, "--profile", tmp_path / "profile.csv", *kind, "--gpus", 8, "--out", fleet)
        code, _, err = gpulet("import-scenario", parva / "slo.csv", *options)
        assert code == 0, err
        code, out, err = gpulet("plan", fleet, "--json")
        assert code == 0, err
        return fleet, json.loads(out)

    return run


def test_the_published_numbers_of_gpus_are_these(parva):
    used = {name: set() for name in PUBLISHED}
    for row in rows(parva / "deployments.csv"):
        used[row["scenario"]].add((row["node"], row["gpu"]))
    assert {name: len(gpus) for name, gpus in used.items()} == PUBLISHED


@pytest.mark.parametrize("scenario", PUBLISHED)
def test_rates_are_covered_in_time_on_no_more_gpus_than_published(scenario, planned, parva, throughput):
    _, plan = planned(scenario)
    asked = {r["model"]: r for r in rows(parva / "slo.csv") if r["scenario"] == scenario}
    assert plan["devices_used"] <= PUBLISHED[scenario]
    assert not plan["unserved"]
    delivered, planned_rates = Counter(), Counter()
    for gpulet in plan["gpulets"]:
        (turn,) = gpulet["assignments"]
        key = (turn["model"], int(gpulet["label"][0]), turn["batch"], gpulet["processes"])
        latency_ms = 1000 * turn["batch"] / throughput[key]
        assert latency_ms <= turn["latency_ms"] * (1 + 1e-6)
        assert turn["latency_ms"] < 0.45 * float(asked[turn["model"]]["slo_ms"])
        delivered[turn["model"]] += gpulet["processes"] * 1000 * turn["batch"] / turn["latency_ms"]
        planned_rates[turn["model"]] += turn["rate"]
    for name, row in asked.items():
        assert delivered[name] >= float(row["rate"])
        assert planned_rates[name] == pytest.approx(float(row["rate"]))
        assert plan["models"][name]["throughput"] == pytest.approx(delivered[name])
        assert plan["models"][name]["worst_latency_ms"] < 0.9 * float(row["slo_ms"])
    sizes = {size.label: size for size in A100.sizes()}
    for device in {g["device"] for g in plan["gpulets"]}:
        mine = [Placement(sizes[g["label"]], g["offset"]) for g in plan["gpulets"] if g["device"] == device]
        assert overcut(A100, mine) == ()


@pytest.mark.parametrize(("scenario", "headroom"), [("S1", 0.85), ("S2", 0.24), ("S3", 0.1)])
def test_what_is_left_of_the_gpus_is_headroom_for_every_model(scenario, headroom, planned):
    _, plan = planned(scenario)
    assert min(m["headroom"] for m in plan["models"].values()) > headroom


def test_poisson_arrivals_are_served_in_time(planned, gpulet):
    fleet, plan = planned("S1")
    (fleet.parent / "plan.json").write_text(json.dumps(plan))
    code, out, err = gpulet("simulate", fleet, "--plan", fleet.parent / "plan.json", "--duration", 20, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["total"]["lost"] == 0
    assert {name: row["attainment"] for name, row in report["models"].items() if row["attainment"] < 0.999} == {}
