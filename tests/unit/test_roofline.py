import json
import math
from pathlib import Path

import numpy as np
import pytest

from gpulet.device import Mechanism, find_kind, sizes
from gpulet.errors import ConfigError, ProfileError
from gpulet.fleetfile import open_site
from gpulet.problems import load_profile, make_problem
from gpulet.profile import Point, Profile
from gpulet.roofline import FORMS, Form, Hardware, Host, Numbers, Roofline, Waves, Work, latencies
from gpulet.roofline.analytic import ROWS, analytic, filled, start
from gpulet.roofline.fit import best_form, errors_pct, fitted
from gpulet.roofline.hardware import HALF, SINGLE
from gpulet.roofline.works import ALIASES, WORKS
from gpulet.units import MS, SECOND

DEVICE = Hardware(100, 1e13, 1e12, 2, "made up")
COMPUTE = Work(1e9, 1, 1, 10, "made up")
MEMORY = Work(1, 1e9, 1e6, 10, "made up")
PLAIN = Numbers(0.001, 0.5, 10, 1, 0.5)

FLEET = """
[[devices]]
kind = "h200-141gb"
mechanism = "green"
executor = "simulated"

[[models]]
name = "resnet50"
slo_ms = 20
rate = 500
"""


@pytest.fixture
def fleet(tmp_path):
    def write(old="", new=""):
        assert old in FLEET
        path = tmp_path / "gpulet.toml"
        path.write_text(FLEET.replace(old, new))
        return path

    return write


def seconds(work, numbers, size, rows, form=FORMS[0]):
    return float(latencies(np.array([size]), np.array([rows]), Roofline(work, DEVICE, numbers, form))[0])


def test_compute_takes_its_flops_by_hand():
    # x = 10 * 20 / 100 = 2, q = sqrt(1.25); 20 GFLOP at half of 10 TFLOP/s take 4 ms
    assert seconds(COMPUTE, PLAIN, 100, 20) == pytest.approx(0.001 + 0.004 * math.sqrt(1.25), rel=1e-6)


def test_memory_takes_its_bytes_by_hand_and_is_slower_below_saturation():
    # 2 bytes x (1e9 + 1e6) at 1 TB/s; 50 of 100 SMs saturate it, 25 reach half
    assert seconds(MEMORY, PLAIN, 50, 1) == pytest.approx(0.001 + 0.002002, rel=1e-6)
    assert seconds(MEMORY, PLAIN, 25, 1) == pytest.approx(0.001 + 0.004004, rel=1e-6)


def test_sms_beyond_the_blocks_of_a_batch_hardly_help():
    one = [seconds(COMPUTE, PLAIN, size, 1) for size in (40, 80, 100)]
    assert one[0] == pytest.approx(one[2], rel=0.03)
    many = [seconds(COMPUTE, PLAIN, size, 64) - 0.001 for size in (40, 80)]
    assert many[0] == pytest.approx(2 * many[1], rel=0.01)


def test_whole_waves_are_a_saw_tooth():
    whole = Form(waves=Waves.WHOLE)
    took = [seconds(COMPUTE, PLAIN, 100, rows, whole) for rows in (10, 11, 20, 21)]
    assert took[1] == pytest.approx(took[2])
    assert took[0] < took[1]
    assert took[2] < took[3]


def test_a_hidden_host_costs_nothing_while_the_device_is_slower():
    form = Form(1.0, Host.HIDDEN)
    assert seconds(COMPUTE, PLAIN, 100, 100, form) == pytest.approx(0.020, rel=0.01)
    assert seconds(COMPUTE, PLAIN, 100, 1, form) == pytest.approx(0.002, rel=0.01)
    slow = Numbers(0.05, 0.5, 10, 1, 0.5)
    assert seconds(COMPUTE, slow, 100, 1, form) == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_more_rows_never_take_less_and_more_sms_never_longer(form):
    for work in WORKS.values():
        model = Roofline(work, HALF["h200-141gb"], start(work), form)
        assert all(model.latency(64, n) <= model.latency(64, n + 1) for n in range(1, 64))
        assert all(model.latency(s, 8) >= model.latency(s + 8, 8) for s in range(8, 128, 8))


def test_resnet50_comes_out_as_specified_on_four_gpus():
    # gpu_mechanisms.md 6.3: 4.9 ms on a V100, 2.1 on an A100, 0.9 on an H200 at batch 32, nothing fitted
    work = WORKS["resnet50"]
    took = {k: Roofline(work, HALF[k], start(work)).latency(HALF[k].sms, 32) / MS for k in HALF}
    assert took["v100"] == pytest.approx(4.9, rel=0.1)
    assert took["a100-40gb"] == pytest.approx(2.1, rel=0.1)
    assert took["h200-141gb"] == pytest.approx(0.9, rel=0.1)


def test_hardware_has_the_sms_of_its_kind():
    for table in (HALF, SINGLE):
        assert {name: device.sms for name, device in table.items()} == {name: find_kind(name).sms for name in table}


def test_every_work_says_where_it_comes_from():
    assert all(work.source and work.kernels > 0 and work.flops > 0 for work in WORKS.values())
    assert set(ALIASES.values()) <= set(WORKS)


# fitting --------------------------------------------------------------------------------------------------------------

EIGHT = [(100, 1), (100, 8), (100, 32), (20, 1), (20, 8), (50, 16), (20, 32), (60, 4)]
OTHERS = [(size, rows) for size in (20, 40, 60, 80, 100) for rows in (1, 2, 4, 8, 16, 32) if (size, rows) not in EIGHT]
TRUE = Numbers(0.002, 0.4, 12, 3, 0.4)
WORK = Work(8e9, 25e6, 28e6, 56, "made up")


def samples(form, cells, noise=lambda i: 1.0):
    model = Roofline(WORK, DEVICE, TRUE, form)
    return [(s, n, round(model.latency(s, n) * noise(i))) for i, (s, n) in enumerate(cells)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_eight_points_give_back_the_model_that_made_them(form):
    fit = fitted(samples(form, EIGHT), samples(form, OTHERS), WORK, DEVICE, form)
    assert fit.is_accepted
    assert fit.held_out_pct < 3


def test_noise_of_two_percent_stays_within_ten():
    noisy = samples(FORMS[0], EIGHT, lambda i: 1.02 if i % 2 else 0.98)
    fit = fitted(noisy, samples(FORMS[0], OTHERS), WORK, DEVICE)
    assert max(errors_pct(fit.model, samples(FORMS[0], OTHERS))) < 10


def test_a_table_that_is_no_roofline_is_refused():
    steps = [(s, n, (1 + 5 * (n == 4)) * MS) for s, n in EIGHT]
    fit = fitted(steps, [(40, 4, 6 * MS), (80, 16, MS)], WORK, DEVICE)
    assert not fit.is_accepted


@pytest.mark.slow
def test_the_form_that_made_the_points_is_chosen():
    for true in FORMS:
        points, held = samples(true, EIGHT), samples(true, OTHERS[:3])
        assert best_form({f: [fitted(points, held, WORK, DEVICE, f)] for f in FORMS}) == true


@pytest.mark.parametrize(("points", "held"), [(4, 1), (8, 0)])
def test_too_few_points_are_refused(points, held):
    every = samples(FORMS[0], EIGHT)
    with pytest.raises(ProfileError, match="five numbers need 5 points and a check"):
        fitted(every[:points], every[:held], WORK, DEVICE)


# profiles -------------------------------------------------------------------------------------------------------------


def test_a_profile_has_every_size_and_batch_and_says_that_it_is_analytic():
    kind = find_kind("h200-141gb")
    profile = analytic(kind, sizes(kind, Mechanism.GREEN), ["resnet50", "bert-base"])
    assert profile.models == ("resnet50", "bert-base")
    assert profile.sizes("resnet50") == tuple(range(8, 129, 8))
    assert profile.max_batch("resnet50", 8) == ROWS[-1]
    assert "resnet50, bert-base on h200-141gb are analytic, not measured" in profile.analytic
    assert all(p.p99 == round(1.15 * p.mean) and p.samples == 0 for p in profile.points)
    for derived in (profile.stretched(1.1), profile.of(profile.statistic), profile.as_measured()):
        assert derived.analytic == profile.analytic


def table_of(name, samples):
    return tuple(Point(name, s, n, took, took, took) for s, n, took in samples)


def test_refused_models_stay_as_the_table_has_them_and_are_named():
    made, steps = samples(FORMS[0], EIGHT + OTHERS), [(s, n, (1 + 5 * (n == 4)) * MS) for s, n in EIGHT]
    table = Profile((*table_of("good", made), *table_of("bad", steps)))
    fits = {
        "good": fitted(samples(FORMS[0], EIGHT), samples(FORMS[0], OTHERS), WORK, DEVICE),
        "bad": fitted(steps, [(40, 4, 6 * MS)], WORK, DEVICE),
    }
    kind = find_kind("a100-40gb")
    mixed = filled(table, sizes(kind, Mechanism.MPS), fits)
    assert mixed.analytic == "latencies of good are analytic, fitted to few points; measured: bad"
    assert [p for p in mixed.points if p.model == "bad"] == [p for p in table.points if p.model == "bad"]
    assert mixed.sizes("good") == (22, 32, 43, 54, 65, 76, 86, 97, 108)
    assert mixed.max_batch("good", 22) == 32
    assert mixed.latency("good", 54, 16) == pytest.approx(table.latency("good", 54, 16), rel=0.1)
    assert filled(table, (), {"bad": fits["bad"]}) == table


def test_an_emulated_gpu_without_a_table_is_computed(fleet):
    site = open_site(fleet())
    profile = load_profile(site)
    assert make_problem(site, profile).profile.analytic == profile.analytic
    assert 0.5 * MS < profile.latency("resnet50", 128, 32) < 2 * MS < SECOND


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("resnet50", "mine", "model mine has no profile and its work is not on record.*h200.*import-profile"),
        ("h200-141gb", "a30", "peak and bandwidth of device kind a30 are not on record.*import-profile"),
    ],
)
def test_what_is_not_on_record_is_refused_by_name(fleet, gpulet, old, new, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_profile(open_site(fleet(old, new)))
    assert "\n" not in str(raised.value)
    code, out, err = gpulet("plan", fleet(old, new))
    assert (code, out) == (2, "")
    assert new in err


def test_emulated_cores_are_never_computed(fleet):
    site = open_site(fleet('kind = "h200-141gb"\nmechanism = "green"', 'kind = "cpu"\ncores = 2'))
    with pytest.raises(ProfileError, match="no profile for resnet50"):
        load_profile(site)


@pytest.mark.parametrize(
    "command",
    [
        ("plan",),
        ("simulate", "--duration", 0.1),
        ("simulate", "--duration", 0.1, "--compare", "elastic"),
        ("capacity", "--system", "elastic"),
        ("capacity", "--devices", "--system", "elastic"),
    ],
    ids=str,
)
def test_commands_say_once_that_latencies_are_analytic(fleet, gpulet, command):
    name, *options = command
    code, out, err = gpulet(name, fleet(), *options, "--json")
    assert code == 0
    assert err.count("analytic: latencies of resnet50 on h200-141gb are analytic, not measured") == 1
    document = json.loads(out)
    assert "not measured" in document.get("elastic", document)["analytic"]
    code, out, err = gpulet(name, fleet(), *options)
    assert (code, err.count("analytic: ")) == (0, 1)


def test_a_table_is_never_called_analytic(fleet, gpulet, tmp_path):
    rows = "".join(f"resnet50,{size},{n},{n}\n" for size in (64, 128) for n in (1, 8))
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\n" + rows)
    path = fleet('executor = "simulated"', 'executor = "simulated"\nprofile = "p.csv"')
    code, out, err = gpulet("plan", path, "--json", "--system", "elastic")
    assert (code, err) == (0, "")
    assert "analytic" not in json.loads(out)


@pytest.mark.slow
def test_a_table_of_few_points_is_filled_where_its_fit_is_accepted(fleet, gpulet, tmp_path):
    """Points of the form itself for a model on record; one that is not, and one whose points are no curve, stay."""
    kind = find_kind("h200-141gb")
    true = analytic(kind, sizes(kind, Mechanism.GREEN), ["resnet50"])
    spots = [(s, n) for s in (8, 32, 64, 128) for n in (1, 8, 32)]
    rows = [f"resnet50,{s},{n},{true.latency('resnet50', s, n) / MS}" for s, n in spots]
    rows += [f"mine,{s},{n},{n}" for s, n in spots]
    rows += [f"vgg16,{s},{n},{1 + 7 * (i % 2)}" for i, (s, n) in enumerate(spots)]
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\n" + "\n".join(rows) + "\n")
    others = '\n[[models]]\nname = "mine"\nslo_ms = 200\nrate = 1\n[[models]]\nname = "vgg16"\nslo_ms = 200\nrate = 1\n'
    path = fleet('executor = "simulated"', 'executor = "simulated"\nprofile = "p.csv"\nfit = "half"')
    Path(path).write_text(Path(path).read_text() + others)
    profile = load_profile(open_site(Path(path)))
    assert profile.analytic == "latencies of resnet50 are analytic, fitted to few points; measured: mine, vgg16"
    assert profile.sizes("resnet50") == tuple(range(8, 129, 8))
    assert profile.latency("resnet50", 48, 16) == pytest.approx(true.latency("resnet50", 48, 16), rel=0.05)
    assert profile.sizes("mine") == profile.sizes("vgg16") == (8, 32, 64, 128)
    code, out, err = gpulet("plan", path, "--json", "--system", "elastic")
    assert (code, err.count("analytic: latencies of resnet50")) == (0, 1)


def test_a_fit_is_refused_for_cores_and_for_kinds_that_are_not_on_record(fleet, tmp_path):
    with pytest.raises(ConfigError, match="fit: the analytic model is of GPUs"):
        open_site(fleet('kind = "h200-141gb"\nmechanism = "green"', 'kind = "cpu"\ncores = 2\nfit = "half"'))
    (tmp_path / "p.csv").write_text("model,size,batch,mean_ms\nresnet50,56,1,1\n")
    fit = 'kind = "a30"\nmechanism = "green"\nprofile = "p.csv"\nfit = "single"'
    with pytest.raises(ConfigError, match="device kind a30 are not on record"):
        load_profile(open_site(fleet('kind = "h200-141gb"\nmechanism = "green"', fit)))
