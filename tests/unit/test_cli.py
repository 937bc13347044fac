"""The commands and their machine interfaces, in this process."""

import json

import pytest

from servers import REPOSITORY

FLEET = str(REPOSITORY / "examples" / "emulated")
COUNTS = {"arrived", "served", "late", "rejected", "expired", "cancelled", "failed", "lost"}


def test_plan_prints_the_machine_interface(gpulet):
    code, out, _ = gpulet("plan", FLEET, "--json")
    doc = json.loads(out)
    assert code == 0
    assert doc["feasible"] is True
    assert doc["unserved"] == {}
    assert set(doc["models"]["ranker"]) == {"demand", "throughput", "worst_latency_ms", "slo_ms", "headroom"}
    gpulet_keys = {"device", "size", "share_pct", "offset", "duty_cycle_ms", "assignments"}
    assert gpulet_keys <= set(doc["gpulets"][0])
    assert set(doc["gpulets"][0]["assignments"][0]) == {"model", "batch", "rate", "latency_ms"}
    assert doc["planning_ms"] > 0


def test_a_plan_file_serves_the_simulator(gpulet, tmp_path):
    _, out, _ = gpulet("plan", FLEET, "--json")
    (tmp_path / "plan.json").write_text(out)
    code, fresh, _ = gpulet("simulate", FLEET, "--duration", 5, "--seed", 3, "--json")
    code, again, _ = gpulet("simulate", FLEET, "--duration", 5, "--seed", 3, "--plan", tmp_path / "plan.json", "--json")
    assert code == 0
    one, two = json.loads(fresh), json.loads(again)
    assert one["models"] == two["models"]
    assert set(one["models"]["ranker"]) >= COUNTS | {
        "attainment",
        "goodput",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "mean_batch",
    }
    assert one["total"]["arrived"] == sum(m["arrived"] for m in one["models"].values())
    assert set(one["devices"][0]) == {"busy", "allocated"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda doc: doc["gpulets"][0].update(share_pct=200.0), "is cut into"),
        (lambda doc: doc["devices"].pop(), "made for 3 x a100-40gb, the fleet has 4 x a100-40gb"),
        (lambda doc: doc["gpulets"][0]["assignments"][0].update(model="nobody"), "model nobody is planned but not in"),
        (lambda doc: doc.update(feasible=False), "the plan was refused when it was made"),
        (lambda doc: doc.pop("gpulets"), "not a plan"),
        (lambda doc: doc["gpulets"][0].update(device=9), "device 9 is not one of the 4 devices"),
    ],
)
def test_a_bad_plan_file_is_refused(gpulet, tmp_path, change, message):
    _, out, _ = gpulet("plan", FLEET, "--json")
    doc = json.loads(out)
    change(doc)
    (tmp_path / "plan.json").write_text(json.dumps(doc))
    code, _, err = gpulet("simulate", FLEET, "--plan", tmp_path / "plan.json")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_infeasible_fleet_ends_with_1_and_says_why(gpulet, tmp_path):
    text = (REPOSITORY / "examples" / "emulated" / "gpulet.toml").read_text()
    profile = json.dumps(str(REPOSITORY / "examples" / "emulated" / "profile.csv"))
    text = text.replace("rate = 900", "rate = 9000").replace('"profile.csv"', profile)
    (tmp_path / "f.toml").write_text(text)
    code, out, _ = gpulet("plan", tmp_path / "f.toml", "--system", "nexus", "--json")
    doc = json.loads(out)
    assert code == 1
    assert doc["feasible"] is False
    assert doc["unserved"]["detector"] > 1_000
    assert doc["remedies"]["devices"] > 1
    assert 1_000 < doc["remedies"]["rate"] < 9_000
    code, _, err = gpulet("simulate", tmp_path / "f.toml")
    assert code == 1
    assert "no plan: model detector" in err


def test_capacity_by_plan_and_by_simulation(gpulet):
    code, out, _ = gpulet("capacity", FLEET, "--system", "nexus", "--json")
    by_plan = json.loads(out)
    assert code == 0
    assert by_plan["factor"] > 1
    assert by_plan["limiting_model"] in by_plan["rates"]
    code, out, _ = gpulet("capacity", FLEET, "--system", "nexus", "--by", "simulation", "--duration", 2, "--json")
    by_simulation = json.loads(out)
    assert 0.5 < by_simulation["factor"] <= by_plan["factor"] * 1.001


def test_the_fewest_devices_that_hold_the_rates(gpulet):
    code, out, _ = gpulet("capacity", FLEET, "--devices", "--json")
    assert code == 0
    fewest = json.loads(out)["devices"]
    assert 1 < fewest <= 4


def test_pictures_are_drawn_as_png_and_svg(gpulet, tmp_path):
    for name, magic in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        code, _, _ = gpulet("plan", FLEET, "--picture", tmp_path / name)
        assert code == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    code, _, err = gpulet("plan", FLEET, "--picture", tmp_path / "p.jpg")
    assert (code, "must end in .png or .svg" in err) == (2, True)


def test_systems_are_compared_on_the_same_arrivals(gpulet):
    code, out, _ = gpulet("simulate", FLEET, "--compare", "gpulet,elastic", "--duration", 4, "--json")
    reports = json.loads(out)
    assert code == 0
    assert {r["total"]["arrived"] for r in reports.values()} == {reports["gpulet"]["total"]["arrived"]}


def test_check_turns_a_missed_slo_into_exit_code_1(gpulet, tmp_path):
    (tmp_path / "burst.csv").write_text("arrival_s\n" + "0.5\n" * 500)
    trace = f"trace:{tmp_path / 'burst.csv'}"
    assert gpulet("simulate", FLEET, "--workload", trace)[0] == 0
    assert gpulet("simulate", FLEET, "--workload", trace, "--check")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "/nowhere.toml"), "cannot be read"),
        (("simulate", FLEET, "--workload", "trace:/nowhere.csv"), "trace /nowhere.csv cannot be read"),
        (("simulate", FLEET, "--plan", "/nowhere.json"), "plan /nowhere.json cannot be read"),
        (("simulate", FLEET, "--system", "magic"), "unknown system 'magic'"),
        (("capacity", FLEET, "--by", "guess"), "known are plan, simulation"),
        (("replay", "/nowhere"), "journal /nowhere cannot be read"),
        (("replay", f"{FLEET}/gpulet.toml"), "not a gpulet journal"),
        (("profile", FLEET), "nothing to measure"),
        (("bench", "here", "--load", "a:1"), "give HOST:PORT"),
        (("bench", "127.0.0.1:1", "--load", "a:0"), "give MODEL:RATE"),
        (("bench", "127.0.0.1:1", "--load", "a:1", "--rows", "0"), "rows of a request: must be 1 to 4096, is 0"),
        (("bench", "127.0.0.1:1", "--load", "a:1", "--rows", "many"), "give N, lognormal:MU,SIGMA"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(gpulet, arguments, message):
    code, _, err = gpulet(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")


def test_a_server_that_is_not_there_ends_with_3(gpulet):
    code, _, err = gpulet("bench", "127.0.0.1:1", "--load", "a:5")
    assert (code, "no server at 127.0.0.1:1" in err) == (3, True)


def test_config_show_and_systems_list_what_there_is(gpulet):
    code, out, _ = gpulet("config", "show", "--json")
    assert code == 0
    assert {("models", "name", "(required)"), ("models", "max_batch", 0)} <= {
        (row["section"], row["key"], str(row["default"]) if row["key"] == "name" else row["default"])
        for row in json.loads(out)
        if not isinstance(row["default"], list | dict)
    }
    assert "elastic" in gpulet("systems")[1]
    assert gpulet("version")[1].strip()
