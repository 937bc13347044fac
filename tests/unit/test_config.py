"""Every bad fleet file ends in one line that names file, line, key, value and what is allowed."""

from dataclasses import replace

import pytest

from gpulet.config import describe, parse_fleet_file, read_fleet_file
from gpulet.errors import BadInput, ConfigError, ProfileError
from gpulet.fleetfile import open_site, servable
from gpulet.measuring import missing
from gpulet.problems import front_end_share, load_profile, make_problem
from gpulet.store import Machine

GOOD = """
[fleet]
system = "gpulet"

[[devices]]
kind = "rtx2080ti"
count = 2
mechanism = "mps"
executor = "simulated"
profile = "p.csv"

[[models]]
name = "a"
slo_ms = 66
rate = 100

[[models]]
name = "b"
slo_ms = 50.5
"""
PROFILE = "model,share_pct,batch,latency_ms\n" + "".join(
    f"{m},{share},{batch},{(2 + batch) * 100 / share}\n" for m in "ab" for share in (20, 50, 100) for batch in (1, 8)
)


@pytest.fixture
def site_of(tmp_path):
    def make(text=GOOD, profile=PROFILE, **options):
        (tmp_path / "p.csv").write_text(profile)
        (tmp_path / "fleet.toml").write_text(text)
        return open_site(tmp_path / "fleet.toml", **options)

    return make


def test_a_fleet_file_becomes_a_problem(site_of):
    site = site_of()
    problem = make_problem(site, load_profile(site))
    assert [d.kind.sms for d in problem.devices] == [68, 68]
    assert problem.models["a"].slo == 66_000_000
    assert problem.models["a"].max_batch == 8
    assert problem.demand["a"] == 100


@pytest.mark.slow
def test_a_model_without_a_rate_gets_a_share_that_fits(site_of):
    site = site_of()
    problem = make_problem(site, load_profile(site))
    assert problem.demand["b"] > 10
    outcome = site.system.planner(problem)
    assert outcome.violations() == ()


@pytest.mark.slow
def test_margins_are_in_the_problems_latencies(site_of):
    plain = make_problem(site := site_of(), load_profile(site))
    wide = make_problem(site := site_of(GOOD + "[margins]\nlatency_ratio = 1.1\n"), load_profile(site))
    assert wide.profile.latency("a", 68, 1) == round(1.1 * plain.profile.latency("a", 68, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slo_ms = 66", "slo = 66", r"fleet.toml: line 14: unknown key models\[0\].slo; known are name, slo_ms, rate"),
        ("slo_ms = 66", 'slo_ms = "66"', r"line 14: models\[0\].slo_ms = '66': must be a valid number"),
        ("slo_ms = 66", "slo_ms = -1", r"line 14: models\[0\].slo_ms = -1: must be greater than 0"),
        ("slo_ms = 66", "slo_ms = 0", r"models\[0\].slo_ms = 0: must be greater than 0"),
        ("slo_ms = 66", "slo_ms = nan", r"models\[0\].slo_ms = nan: must be a finite number"),
        ("rate = 100", "rate = inf", r"line 15: models\[0\].rate = inf: must be a finite number"),
        ("slo_ms = 50.5", "max_batch = 0", r"line 19: models\[1\].max_batch = 0: must be greater than 0"),
        ("count = 2", "count = 2.5", r"line 7: devices\[0\].count = 2.5: must be a valid integer"),
        ("count = 2", "count = 0", r"line 7: devices\[0\].count = 0: must be greater than 0"),
        ('mechanism = "mps"', 'mechanism = "scissors"', r"line 8: devices\[0\].mechanism = 'scissors': must be"),
        ('mechanism = "mps"', 'mechanism = "cpu"', "a device of kind rtx2080ti cannot be cut by mechanism cpu"),
        (
            'mechanism = "mps"',
            'mechanism = "mig"',
            "device kind rtx2080ti has no MIG; kinds that have: a30, a100-40gb",
        ),
        (
            "count = 2",
            'mig_sms = {"1g.5gb" = 14}',
            "mig_sms: device kind rtx2080ti has no MIG type 1g.5gb; it has none",
        ),
        ("count = 2", 'mig_sms = {"1g.5gb" = 0}', r"line 7: devices\[0\].mig_sms.1g.5gb = 0: must be greater than 0"),
        ('kind = "rtx2080ti"', 'kind = "gtx9"', "unknown device kind 'gtx9'; known are cpu, rtx2080ti"),
        ('kind = "rtx2080ti"\n', "", r"devices\[0\].kind is missing"),
        ('executor = "simulated"', 'executor = "cpu"', "executor cpu cannot run on a device of kind rtx2080ti"),
        (
            'executor = "simulated"',
            'executor = "rehearsal"',
            "executor rehearsal: devices cut by mps; only green and whole can be rehearsed",
        ),
        ('system = "gpulet"', 'system = "magic"', "unknown system 'magic'; known are gpulet, elastic, "),
        ('system = "gpulet"', 'system = "nowhere:X"', "system 'nowhere:X' cannot be imported"),
        ('system = "gpulet"', 'system = "gpulet.units:MS"', "is a int, not a gpulet.systems.System"),
        ("[fleet]", "[flet]", "line 2: unknown key flet; known are fleet, devices, models"),
        ('name = "b"', 'name = "a"', "model a is listed 2 times"),
        ('name = "b"', 'name = "c"', "no profile for c in p.csv"),
        ("slo_ms = 66", "max_batch = 9", "model a: max_batch 9, but it is profiled for 1 to 8 rows"),
        ('profile = "p.csv"', 'profile = "q.csv"', "q.csv cannot be read"),
        ("slo_ms = 66", "pad = true", r"line 14: models\[0\].pad = True: there are no buckets; list them under shapes"),
        (
            "slo_ms = 66",
            'pad = true\nshapes = ["16", "16xN"]',
            r"models\[0\].pad = True: bucket '16xN' is no size, such as 128 or 224x224",
        ),
        ("count = 2", "count = = 2", r"fleet.toml: not TOML: .*line 7"),
    ],
)
def test_a_bad_fleet_file_is_refused_in_one_line(site_of, old, new, message):
    assert old in GOOD
    with pytest.raises(BadInput, match=message) as raised:
        make_problem(site := site_of(GOOD.replace(old, new)), load_profile(site))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("share_pct,batch,latency_ms\na,150,1,2\n", "p.csv: line 2: share_pct must be at most 100, is 150"),
        ("size,batch,mean_ms\na,68,1,2\nb,69,1,2\n", "p.csv: model b was measured on 69 SMs; a rtx2080ti has 68"),
    ],
)
def test_a_table_of_more_than_the_device_has_is_refused(site_of, table, message):
    with pytest.raises(ProfileError, match=message):
        load_profile(site_of(profile="model," + table))


BLACKWELL = GOOD.replace('kind = "rtx2080ti"', 'kind = "b200"')
READING = 'mig_sms = {"2g.45gb" = 36, "3g.90gb" = 66, "4g.90gb" = 72, "7g.180gb" = 148}'


def test_what_a_device_says_of_its_mig_types_is_read_from_the_file(site_of):
    text = BLACKWELL.replace('mechanism = "mps"', 'mechanism = "mig"')
    with pytest.raises(ConfigError, match=r"device kind b200: nobody has read the SMs of MIG types 2g.45gb"):
        site_of(text)
    site = site_of(text.replace("count = 2", f"count = 2\n{READING}"))
    assert [s.sms for s in site.devices[1].sizes()] == [18, 36, 66, 72, 148]
    with pytest.raises(ConfigError, match="mig_sms are for devices that mechanism mig cuts, not mps"):
        site_of(BLACKWELL.replace("count = 2", READING))


ONE, OTHER = (f"GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed{n}" for n in (65, 66))


def test_gpus_that_may_be_cut_are_named_by_uuid_and_none_is_by_default():
    assert parse_fleet_file(GOOD, "f").server.carve_mig == []
    text = f'{GOOD}[server]\ncarve_mig = ["{ONE}", "{OTHER}"]\n'
    assert parse_fleet_file(text, "f").server.carve_mig == [ONE, OTHER]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f'["{ONE}", "{ONE}"]', rf"f: line 21: server.carve_mig = .*: {ONE} is named 2 times"),
        ('["0"]', r"line 21: server.carve_mig = \['0'\]: '0' is not the UUID of a GPU, GPU-xxxxxxxx-"),
        (f'["{ONE.upper()}"]', "is not the UUID of a GPU"),
        (f'["MIG-{ONE}"]', "is not the UUID of a GPU"),
        (f'"{ONE}"', "must be a valid list"),
        ("[0]", r"line 21: server.carve_mig\[0\] = 0: must be a valid string"),
    ],
)
def test_gpus_that_cannot_be_named_so_are_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_fleet_file(f"{GOOD}[server]\ncarve_mig = {value}\n", "f")


def test_no_models_and_no_file_are_refused(site_of, tmp_path):
    with pytest.raises(ConfigError, match="no models: write"):
        site_of(GOOD.partition("[[models]]")[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fleet_file(tmp_path / "absent.toml")


def test_an_empty_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="devices is missing"):
        parse_fleet_file("", "f")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fleet_file(tmp_path / "binary")


def test_the_front_ends_own_cpu_slows_what_shares_its_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for version in ("m/1", "n/1"):
        (tmp_path / "models" / version).mkdir(parents=True)
        (tmp_path / "models" / version / "model.onnx").write_bytes(version.encode())
    (tmp_path / "p.csv").write_text(
        "model,size,batch,mean_ms\n" + "".join(f"{m},1,{n},{n}\n" for m in "mn" for n in (1, 8))
    )
    text = '[[devices]]\nkind = "cpu"\ncores = 1\nprofile = "p.csv"\n[server]\nrepository = "models"\n'
    text += "".join(f'[[models]]\nname = "{m}"\nslo_ms = 100\nrate = 100\n' for m in "mn")
    (tmp_path / "fleet.toml").write_text(text)
    site = open_site(tmp_path / "fleet.toml")
    alone = make_problem(site, load_profile(site))
    site.store.write_machine(Machine(front_end_us=1000, contention=0.25))
    shared = make_problem(site, load_profile(site))
    # 200 requests/s at 1 ms each take a fifth of the only core.
    assert front_end_share(site, shared) == pytest.approx(0.2)
    assert shared.profile.latency("m", 1, 1) == alone.profile.latency("m", 1, 1) / 0.8
    assert shared.devices[0].contention == 0.25
    site.store.write_machine(Machine(front_end_us=6000))
    with pytest.raises(ConfigError, match="the front-end alone would take 120% of the cores"):
        make_problem(site, load_profile(site))


@pytest.mark.slow
def test_a_bare_repository_gets_rates_that_its_front_end_can_carry(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "1" / "model.onnx").write_bytes(b"fast")
    site = open_site(tmp_path / "models")
    site.store.write(site.artifacts["m"].digest, "model,size,batch,mean_ms\nm,1,1,0.05\nm,1,32,0.2\n")
    site.store.write_machine(Machine(front_end_us=170))
    problem = make_problem(site, load_profile(site))
    assert 0 < front_end_share(site, problem) < 1
    assert site.system.planner(problem).violations() == ()


def test_every_key_has_a_meaning():
    rows = list(describe())
    assert len(rows) > 25
    assert all(meaning for _, _, _, meaning in rows)


def test_a_cpu_device_cannot_have_cores_that_are_not_there(tmp_path):
    text = '[[devices]]\nkind = "cpu"\ncores = 1000\n[[models]]\nname = "a"\n'
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(ConfigError, match="1000 cores asked of the"):
        open_site(tmp_path / "f.toml")


def test_a_model_that_is_not_in_the_repository_is_refused(tmp_path):
    (tmp_path / "models" / "x" / "1").mkdir(parents=True)
    (tmp_path / "models" / "x" / "1" / "model.onnx").write_bytes(b"anything")
    text = '[[devices]]\nkind = "cpu"\n[[models]]\nname = "a"\n[server]\nrepository = "models"\n'
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(ConfigError, match="unknown model 'a'; the repository is x"):
        open_site(tmp_path / "f.toml")
    with pytest.raises(ConfigError, match=r"holds no <model>/<version>/model.onnx"):
        open_site(tmp_path / "models" / "x")


def test_the_highest_whole_number_version_serves(tmp_path):
    for version in ("2", "10", "03", "x"):
        (tmp_path / "m" / version).mkdir(parents=True)
        (tmp_path / "m" / version / "model.onnx").write_bytes(b"anything")
    site = open_site(tmp_path)
    assert site.artifacts["m"].version == "10"


def test_a_system_that_chooses_sizes_per_run_does_not_serve_on_cpu_workers(site_of):
    site = site_of(system="gslice")
    assert servable(site) is site
    with pytest.raises(ConfigError, match="system gslice changes shares from run to run, and cpu workers keep their"):
        servable(replace(site, executor="cpu"))


def test_gpus_of_this_machine_without_a_repository_are_planned_but_neither_measured_nor_served(tmp_path):
    path = tmp_path / "fleet.toml"
    devices = '[[devices]]\nkind = "h200-141gb"\nmechanism = "green"\n'
    path.write_text(devices + '[[models]]\nname = "resnet50"\nslo_ms = 20\nrate = 100\n')
    site = open_site(path)
    assert "analytic" in load_profile(site).analytic
    with pytest.raises(BadInput, match="nothing to measure: name a model repository"):
        missing(site, 1)
    with pytest.raises(ConfigError, match="nothing to serve: name a model repository"):
        servable(site)


@pytest.mark.parametrize(
    ("mechanism", "system", "message"),
    [
        ("mps", "dstack", "system dstack changes shares from run to run, and shares by mps stand as they are cut"),
        ("green", "clockwork", "system clockwork loads and evicts models while it serves"),
    ],
)
def test_systems_that_workers_cannot_serve_are_refused_before_anything_starts(tmp_path, mechanism, system, message):
    model = tmp_path / "models" / "resnet50" / "1" / "model.pt2"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    path = tmp_path / "fleet.toml"
    devices = f'[[devices]]\nkind = "h200-141gb"\nmechanism = "{mechanism}"\n'
    path.write_text(f'[fleet]\nsystem = "{system}"\n{devices}[server]\nrepository = "models"\n')
    with pytest.raises(ConfigError, match=message):
        servable(open_site(path))
