"""`gpulet knee`: knees of a table by every rule, its picture, and what is refused."""

import json

import pytest

from gpulet.errors import ProfileError
from gpulet.profile import Point, Profile
from gpulet.profiletable import format_profile
from gpulet.reports.knees import knees_of

HEADER = "model,size,batch,mean_ms\n"
SHARES = "model,share_pct,batch,latency_ms\n"


def points(name="m", processes=1, batches=(1, 4)):
    """Latency 1 ms + 4 ms / size per row, flat from 4 SMs per row on."""
    return [
        Point(name, size, rows, *[1_000_000 + 4_000_000 * rows // min(size, 4 * rows)] * 3, processes=processes)
        for size in (2, 4, 8, 16, 32)
        for rows in batches
    ]


@pytest.fixture
def table(tmp_path):
    def write(text):
        (tmp_path / "p.csv").write_text(text)
        return tmp_path / "p.csv"

    return write


def test_knees_follow_each_rule():
    small, large = knees_of(Profile(tuple(points())), "m").curves
    assert (small.rows, small.sizes, large.rows) == (1, (2, 4, 8, 16, 32), 4)
    # ms by size: 3, 2, 2, 2, 2 and 9, 5, 3, 2, 2; 1/(L^2 S) in 1/1000: 56, 63, 31, ... and 6, 10, 14, 16, 8.
    assert small.knees == {"efficacy": 4, "latency": 4, "kneedle": 4}
    assert large.knees == {"efficacy": 16, "latency": 16, "kneedle": 16}
    assert small.efficacies[1] == pytest.approx(1 / 0.002**2 / 4)


def test_only_batches_alone_on_a_gpulet_and_measured_at_two_sizes_count():
    several = points(processes=2, batches=(2,))
    lonely = Point("m", 32, 8, 9_000_000, 9_000_000, 9_000_000)
    found = knees_of(Profile((*points(), *several, lonely)), "m")
    assert [c.rows for c in found.curves] == [1, 4]
    with pytest.raises(ProfileError, match=r"model m: 2 points of batches .* a knee needs 3 at least"):
        knees_of(Profile(tuple(points(batches=(1,))[:2])), "m")


def test_the_machine_interface_has_knees_curves_and_the_ramp(gpulet, table):
    text = format_profile([*points(), *points("other")])
    code, out, _ = gpulet("knee", table(text), "--json")
    doc = json.loads(out)
    assert code == 0
    assert doc["device_sms"] is None
    assert list(doc["models"]) == ["m", "other"]
    assert set(doc["models"]["m"]["ramp"]) == {"serial_ms", "parallel_ms", "sms_per_row", "error"}
    first = doc["models"]["m"]["batches"][0]
    assert set(first) == {"batch", "knees", "size", "latency_ms", "efficacy"}
    assert set(first["knees"]) == {"efficacy", "latency", "kneedle", "ramp"}
    assert (first["batch"], first["knees"]["efficacy"], first["latency_ms"]) == (1, 4, [3, 2, 2, 2, 2])
    _, out, _ = gpulet("knee", table(text), "--model", "other", "--json")
    assert list(json.loads(out)["models"]) == ["other"]


def test_people_get_a_row_per_batch_with_parts_of_the_device(gpulet, table):
    code, out, _ = gpulet("knee", table(format_profile(points())), "--kind", "t4")
    assert code == 0
    assert "knees in SMs (% of the device)" in out
    assert "16 (40 %)" in out
    assert "%" not in gpulet("knee", table(format_profile(points())))[1].partition("+10 %")[2]


def test_shares_are_sizes_of_the_kind(gpulet, table):
    text = SHARES + "m,20,1,9\nm,50,1,4\nm,100,1,3\n"
    _, out, _ = gpulet("knee", table(text), "--kind", "rtx2080ti", "--json")
    assert json.loads(out)["models"]["m"]["batches"][0]["size"] == [14, 34, 68]


@pytest.mark.slow
def test_the_picture_is_written_for_many_batches_and_models(gpulet, table, tmp_path):
    text = format_profile([*points(batches=range(1, 12)), *points("other")])
    for name in ("k.png", "k.svg"):
        code, _, _ = gpulet("knee", table(text), "--plot", tmp_path / name)
        assert code == 0
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "k.svg").read_text()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (SHARES + "m,20,1,9\n", (), "gives sizes as share_pct: say of which device with --kind"),
        (HEADER + "m,2,1,9\n", (), "model m: 0 points of batches that were measured at two sizes"),
        (HEADER + "m,90,1,9\n", ("--kind", "t4"), "size 90, but a t4 has 40 SMs"),
        (HEADER + "m,2,1,9\n", ("--kind", "t5"), "unknown device kind 't5'"),
        (HEADER + "m,2,1,9\n", ("--kind", "cpu"), "leave --kind out"),
        (HEADER + "m,2,1,9\n", ("--model", "x"), "--model 'x': "),
        (HEADER + "m,2,1,9\n", ("--plot", "k.pdf"), "must end in .png or .svg"),
        (HEADER + "m,2,1,no\n", (), "line 2: mean_ms must be a number, is 'no'"),
        ("a,b\n", (), "line 1: columns a, b; needed are"),
        (HEADER, (), "no rows"),
        (format_profile(points(processes=2)), (), "profiled with 2 processes sharing a gpulet, not with 1"),
        (format_profile(points()), ("--plot", "nowhere/k.png"), "cannot be written"),
    ],
)
def test_bad_input_is_one_clear_line(gpulet, table, text, options, message):
    code, out, err = gpulet("knee", table(text), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_table_that_is_not_there_is_told(gpulet, tmp_path):
    code, _, err = gpulet("knee", tmp_path / "none.csv")
    assert code == 2
    assert "cannot be read" in err
