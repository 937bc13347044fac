"""The commands and their machine interfaces, in this process."""

import json

import pytest

from servers import REPOSITORY

FLEET = str(REPOSITORY / "examples" / "emulated")
BOUNDED = ("capacity", FLEET, "--by", "simulation", "--percentile")
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


@pytest.mark.slow
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
        "violations_per_s",
        "gpu_s",
        "gpu_area_s",
    }
    assert one["total"]["arrived"] == sum(m["arrived"] for m in one["models"].values())
    assert set(one["devices"][0]) == {"busy", "allocated", "useful", "in_use", "switches", "resizes"}
    assert 0 < one["devices"][0]["useful"] <= one["devices"][0]["busy"] <= one["devices"][0]["allocated"] <= 1
    assert set(one["fairness"]) == {"runtime", "area", "goodput"}


@pytest.mark.slow
def test_a_fleet_file_that_lets_batches_fill_gets_larger_ones_in_time(gpulet, tmp_path):
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\nm,1,1,0.1\nm,1,32,1.5\nm,2,1,0.1\nm,2,32,0.9\n")

    def simulated(delay_us):
        (tmp_path / "f.toml").write_text(
            '[[devices]]\nkind = "cpu"\ncores = 2\nexecutor = "simulated"\nprofile = "p.csv"\n'
            f'[[models]]\nname = "m"\nslo_ms = 25\nrate = 2000\nmax_queue_delay_us = {delay_us}\n'
        )
        _, out, _ = gpulet("simulate", tmp_path / "f.toml", "--duration", 1, "--json")
        return json.loads(out)["models"]["m"]

    at_once, filled = simulated(0), simulated(2000)
    assert filled["mean_batch"] > 3 * at_once["mean_batch"]
    assert filled["attainment"] == at_once["attainment"] == 1
    assert at_once["p50_ms"] < filled["p50_ms"] < at_once["p50_ms"] + 2


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


@pytest.mark.slow
def test_capacity_by_plan_and_by_simulation(gpulet):
    code, out, _ = gpulet("capacity", FLEET, "--system", "nexus", "--json")
    by_plan = json.loads(out)
    assert code == 0
    assert by_plan["factor"] > 1
    assert by_plan["limiting_model"] in by_plan["rates"]
    code, out, _ = gpulet("capacity", FLEET, "--system", "nexus", "--by", "simulation", "--duration", 2, "--json")
    by_simulation = json.loads(out)
    assert 0.5 < by_simulation["factor"] <= by_plan["factor"] * 1.001


@pytest.mark.slow
def test_capacity_by_percentile_is_the_mean_over_replications_whoever_searches(gpulet):
    asked = ("capacity", FLEET, "--system", "nexus", "--by", "simulation", "--percentile", 95, "--requests", 1000)
    code, out, _ = gpulet(*asked, "--replications", 2, "--workers", 2, "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {"factor", "rates", "limiting_model", "percentile", "replications"}
    assert found["limiting_model"] in found["rates"]
    assert found["percentile"] == 95
    assert found["factor"] == pytest.approx(sum(found["replications"]) / 2)
    assert found["rates"]["ranker"] == pytest.approx(300 * found["factor"])
    again = [json.loads(gpulet(*asked, "--seed", seed, "--json")[1])["replications"] for seed in (1, 2)]
    assert [factor for (factor,) in again] == found["replications"]
    assert len(set(found["replications"])) == 2
    _, out, _ = gpulet(*asked)
    assert out.startswith(f"factor {again[0][0]:.3f} with 95 % in time, limited by ")


def test_capacity_by_percentile_is_of_what_there_is_of_a_plan(gpulet, tmp_path):
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\nm,14,1,10\nm,98,1,5\n")
    asked = ("--by", "simulation", "--percentile", 95, "--requests", 500, "--json")

    def held(rate, slo_ms, system):
        (tmp_path / "f.toml").write_text(
            '[[devices]]\nkind = "a100-40gb"\nmechanism = "mig"\nexecutor = "simulated"\nprofile = "p.csv"\n'
            f'[[models]]\nname = "m"\nslo_ms = {slo_ms}\nrate = {rate}\n'
        )
        code, out, _ = gpulet("capacity", tmp_path / "f.toml", "--system", system, *asked)
        assert code == 0
        return json.loads(out)

    accepted, refused = (held(rate, 50, "paris-elsa") for rate in (100, 2000))
    assert accepted["factor"] > 1 > refused["factor"] > 0
    assert accepted["rates"]["m"] == pytest.approx(refused["rates"]["m"], rel=0.01)
    assert held(100, 4, "paris-elsa")["factor"] == 0
    nowhere = held(100, 4, "dedicated")  # no gpulet at all
    assert (nowhere["factor"], nowhere["limiting_model"]) == (0, "m")


@pytest.mark.slow
def test_the_fewest_devices_that_hold_the_rates(gpulet):
    code, out, _ = gpulet("capacity", FLEET, "--devices", "--json")
    assert code == 0
    fewest = json.loads(out)["devices"]
    assert 1 < fewest <= 4


@pytest.mark.slow
def test_pictures_are_drawn_as_png_and_svg(gpulet, tmp_path):
    for name, magic in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml")):
        code, _, _ = gpulet("plan", FLEET, "--picture", tmp_path / name)
        assert code == 0
        assert (tmp_path / name).read_bytes().startswith(magic)
    code, _, err = gpulet("plan", FLEET, "--picture", tmp_path / "p.jpg")
    assert (code, "must end in .png or .svg" in err) == (2, True)


@pytest.mark.slow
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
        (("capacity", FLEET, "--percentile", "95"), "--percentile 95: goes with --by simulation"),
        ((*BOUNDED, "95", "--devices"), "--percentile 95: goes with --by simulation, and without --devices"),
        ((*BOUNDED, "0"), "--percentile 0: must be above 0 and at most 100"),
        ((*BOUNDED, "nan"), "--percentile nan: must be above 0 and at most 100"),
        ((*BOUNDED, "95", "--requests", "99"), "--requests 99: must be 100 to 10000000"),
        ((*BOUNDED, "95", "--replications", "0"), "--replications 0: must be 1 to 1000"),
        ((*BOUNDED, "95", "--workers", "-1"), "--workers -1: must be 0 or more"),
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
