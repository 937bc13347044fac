"""Published scenarios become fleet files, or one clear line."""

import json

import pytest

from gpulet.config import read_fleet_file

PARVA = "model,mig_slices,batch,processes,latency_ms,throughput_per_process\n"
PARVA += "".join(
    f"{name},{k},{batch},{n},1,{200 * k * (1 if batch == 8 else 0.7) / (0.4 + 0.6 * n)}\n"
    for name in ("a", "b")
    for k in (1, 2, 3, 4, 7)
    for batch in (1, 8)
    for n in (1, 2)
)
TWO = "scenario,model,slo_ms,rate\nS1,a,200,300\nS1,b,250.5,40\nS2,a,200,600\n"
ONE = "model,slo_ms,rate\na,200,300\n"


@pytest.fixture
def folder(tmp_path, gpulet):
    (tmp_path / "parva.csv").write_text(PARVA)
    code, _, err = gpulet(
        "import-profile",
        tmp_path / "parva.csv",
        "--kind",
        "a100-80gb",
        "--processes",
        "all",
        "--out",
        tmp_path / "p.csv",
    )
    assert code == 0, err
    return tmp_path


@pytest.fixture
def imported(folder, gpulet):
    def run(text, *options):
        (folder / "slo.csv").write_text(text)
        return gpulet("import-scenario", folder / "slo.csv", "--profile", folder / "p.csv", *options)

    return run


def test_a_scenario_becomes_a_fleet_file_that_plans_with_processes(folder, imported, gpulet):
    out = folder / "fleets" / "s1.toml"
    out.parent.mkdir()
    code, told, _ = imported(TWO, "--scenario", "S1", "--gpus", 3, "--out", out, "--json")
    assert (code, json.loads(told)) == (0, {"written": str(out), "models": ["a", "b"], "gpus": 3})
    fleet = read_fleet_file(out)
    assert fleet.fleet.system == "segments"
    (device,) = fleet.devices
    assert (device.kind, device.count, device.mechanism, device.executor) == ("a100-80gb", 3, "mig", "simulated")
    assert device.profile == "../p.csv"
    assert [(m.name, m.slo_ms, m.rate, m.max_batch) for m in fleet.models] == [("a", 200, 300, 8), ("b", 250.5, 40, 8)]
    code, told, err = gpulet("plan", out, "--json")
    assert code == 0, err
    plan = json.loads(told)
    assert plan["devices_used"] == 1
    assert {g["processes"] for g in plan["gpulets"]} == {2}
    (folder / "plan.json").write_text(told)
    options = ("--plan", folder / "plan.json", "--duration", 5, "--check", "--json")
    code, told, err = gpulet("simulate", out, *options)
    assert code == 0, err
    report = json.loads(told)
    assert report["models"]["a"]["attainment"] == 1
    assert report["devices"][0]["busy"] <= report["devices"][0]["allocated"] <= 1
    code, table, _ = gpulet("plan", out, "--picture", folder / "plan.png")
    assert code == 0
    assert "2 x 8" in table
    assert (folder / "plan.png").stat().st_size > 1000


def test_without_a_scenario_column_the_file_is_one_and_goes_to_standard_output(imported):
    code, told, _ = imported(ONE)
    assert code == 0
    assert 'name = "a"\nslo_ms = 200.0\nrate = 300.0\nmax_batch = 8\n' in told


def test_a_file_of_one_scenario_needs_no_name(imported):
    assert imported(TWO.replace("S2,a,200,600\n", ""))[0] == 0


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TWO, (), "slo.csv: several scenarios; choose one with --scenario; there are S1, S2"),
        (TWO, ("--scenario", "S9"), "slo.csv: no scenario 'S9'; there are S1, S2"),
        (ONE, ("--scenario", "S1"), "slo.csv: no column scenario: the file is one scenario; leave --scenario out"),
        ("model,slo_ms\na,1\n", (), "line 1: no column rate, which a scenario has; columns are model, slo_ms"),
        ("model,slo_ms,rate\na,nan,3\n", (), "line 2: slo_ms must be a number, is 'nan'"),
        ("model,slo_ms,rate\na,,3\n", (), "line 2: slo_ms must be a number, is ''"),
        ("model,slo_ms,rate\na,20,-3\n", (), "line 2: rate must be above 0, is '-3'"),
        ("model,slo_ms,rate\na,0,3\n", (), "line 2: slo_ms must be above 0, is '0'"),
        ("model,slo_ms,rate\na,20,inf\n", (), "line 2: rate must be a number, is 'inf'"),
        ("model,slo_ms,rate\na,20,3\na,30,3\n", (), "line 3: model a is listed twice, first in"),
        ("model,slo_ms,rate\nc,20,3\n", (), "line 2: model c has no profile; profiled are a, b"),
        ("model,slo_ms,rate\na,20\n", (), "line 2: 2 fields, but 3 columns"),
        ("", (), "line 1: the file is empty"),
        (ONE, ("--kind", "v100"), "device kind v100 has no MIG"),
        (ONE, ("--kind", "a1000"), "unknown device kind 'a1000'"),
        (ONE, ("--system", "best"), "unknown system 'best'"),
        (ONE, ("--json",), "--json needs --out FILE"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_line(imported, text, options, message):
    code, told, err = imported(text, *options)
    assert (code, told) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err


def test_files_that_are_not_there_and_tables_of_another_form_are_said_in_one_line(folder, imported, gpulet):
    code, _, err = gpulet("import-scenario", folder / "no.csv", "--profile", folder / "p.csv")
    assert code == 2
    assert "no.csv cannot be read" in err
    (folder / "slo.csv").write_text(ONE)
    code, _, err = gpulet("import-scenario", folder / "slo.csv", "--profile", folder / "parva.csv")
    assert code == 2
    assert "needed are model, size, batch, mean_ms" in err
    code, _, err = imported(ONE, "--out", folder / "nowhere" / "s.toml")
    assert code == 2
    assert "cannot be written" in err
