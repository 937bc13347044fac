"""Published tables become ours: the numbers, what is told about them, and what is refused."""

import csv
import json
from collections import Counter
from io import StringIO

import pytest

from gpulet.device import find_kind
from gpulet.duty import Share, saturated, saturated_rate
from gpulet.errors import BadInput, ConfigError, ProfileError
from gpulet.importing import import_tables
from gpulet.importing.formats import EVERY
from gpulet.importing.overheads import parse_overhead
from gpulet.importing.table import read_table
from gpulet.profile import Point, Profile
from gpulet.profiletable import format_profile, parse_profile
from gpulet.units import MS, to_ms

GLET = "model,share_pct,batch,latency_ms\n"
MIG = "model,mig_slices,batch,latency_ms\n"
PARVA = "model,mig_slices,batch,processes,latency_ms,throughput_per_process\n"
JOINING = "shape,batch,concat_ms\n3x4,1,0.5\n3x4,2,1\n3x4,3,4\n"
A100, RTX, V100 = "a100-80gb", "rtx2080ti", "v100"


def imported(*texts, kind=RTX, **options):
    tables = [read_table(text, f"t{i}.csv" if i else "t.csv") for i, text in enumerate(texts)]
    return import_tables(tables, find_kind(kind), **options)


def odd(*texts, **options):
    return [(o.kind, o.model, o.where, o.value) for o in imported(*texts, **options)[1]]


def joining(option, text=JOINING):
    return parse_overhead(option, lambda name: read_table(text, name))


def cells(points):
    return {(p.size, p.rows): to_ms(p.mean) for p in points}


@pytest.fixture
def shared_text(shared_data):
    return lambda name: (shared_data / name).read_text()


# Formats


@pytest.mark.parametrize("header", [GLET, "", "model,partition,batch,latency_ms\n", "\ufeff" + GLET])
def test_gpu_lets_tables_are_read_with_and_without_their_header(header):
    points, told = imported(header + "g,20,1,9.5\ng,20,2,10\n\n")
    assert points == (Point("g", 14, 1, 9_500_000, 9_500_000, 9_500_000), Point("g", 14, 2, 10 * MS, 10 * MS, 10 * MS))
    assert told == ()


def test_a_table_keeps_the_utilization_it_was_measured_with():
    solo = "model,share_pct,batch,latency_ms,throughput,l2_pct,dram_pct\na,20,1,2,400,5,10\n"
    edge = "model,share_pct,batch,latency_ms,throughput\na,100,1,1,900\n"
    points, told = imported(solo, edge, kind=V100)
    assert [(p.size, p.l2, p.dram) for p in points] == [(16, 0.05, 0.1), (80, 0, 0)]
    assert [(o.kind, o.where) for o in told] == [("unknown_utilization", "100 %")]


def test_a_number_of_processes_is_chosen_and_its_latency_comes_from_throughput():
    text = PARVA + "b,7,4,1,99,100\nb,7,4,2,99,80\n"
    assert cells(imported(text, kind=A100)[0]) == {(98, 4): 40}
    (point,) = imported(text, kind=A100, processes=2)[0]
    assert (point.size, point.rows, point.mean, point.processes) == (98, 4, 50 * MS, 2)


def test_every_number_of_processes_is_read_except_copied_rows_and_that_is_told():
    text = PARVA + "b,1,8,1,9,50\nb,1,8,2,9,40\nb,1,8,3,9,40\nb,1,4,3,9,20\nb,7,8,3,9,50\n"
    points, told = imported(text, kind=A100, processes=EVERY)
    assert [(p.size, p.processes, p.rows, to_ms(p.mean)) for p in points] == [
        (14, 1, 8, 160),
        (14, 2, 8, 200),
        (14, 3, 4, 200),
        (98, 3, 8, 160),
    ]
    assert ("copied_row", "b", "mig_slices 1, batch 8, processes 2 and 3", "40/s each, the second is left out") in [
        (o.kind, o.model, o.where, o.value) for o in told
    ]
    assert ("missing_cells", "b", "3 processes, 1g.10gb", "1 cells: batch 8") in [
        (o.kind, o.model, o.where, o.value) for o in told
    ]


def test_more_processes_that_are_faster_are_told():
    text = PARVA + "b,1,8,1,9,50\nb,1,8,2,9,80\n"
    assert odd(text, kind=A100, processes=EVERY) == [
        ("faster_with_processes", "b", "1g.10gb, batch 8, processes 1 to 2", "-37.5%")
    ]


def test_sequence_lengths_become_shape_classes():
    text = "model,mig_slices,batch,seq_length,latency_ms\nb,1,1,64,7.5\nb,1,1,128,9\n"
    points, _ = imported(text, kind=A100)
    profile = Profile(points)
    assert {p.shape for p in points} == {"64", "128"}
    assert profile.latency("b", 14, 1, "64") == 7_500_000
    assert profile.latency("b", 14, 1) == 9 * MS


def test_the_table_that_is_written_is_read_as_it_is():
    points, _ = imported(GLET + "g,20,1,9.79102\ng,100,1,9.5\n", overheads=[joining("j:3x4:1.9:g")])
    assert parse_profile(format_profile(points), lambda share: 0, "t").points == points


# What is told


def test_a_tidy_table_has_nothing_to_tell():
    assert odd(GLET + "g,20,1,9\ng,20,2,12\ng,40,1,8.9\ng,40,2,11\n") == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("g,20,1,9\ng,30,1,8\n", ("share_not_offered", "g", "rtx2080ti offers 20, 40, 50, 60, 80, 100 %", "30 %")),
        ("g,20,1,9\ng,40,1,8\nh,20,1,9\n", ("sizes_differ", "h", "measured at 20 %", "40 %")),
        ("g,20,1,9\ng,20,2,9\ng,20,4,9\ng,40,1,8\n", ("missing_cells", "g", "40 %", "2 cells: batch 2 to 4")),
        ("g,20,1,9\ng,20,2,8\n", ("faster_with_batch", "g", "20 %, batch 1 to 2", "-11.1%")),
        ("g,20,4,9\ng,40,4,9.9\n", ("slower_with_size", "g", "batch 4, 20 % to 40 %", "+10.0%")),
        ("g,20,1,9\ng,20,1,9.0\n", ("equal_duplicate", "g", "t.csv: line 3", "same as t.csv: line 2")),
    ],
)
def test_what_is_odd_is_told_and_kept(rows, told):
    points, _ = imported(GLET + rows)
    assert odd(GLET + rows) == [told]
    raw = {(r[1], r[2]): float(r[3]) for r in csv.reader(StringIO(rows)) if r[0] == "g"}
    assert sorted(to_ms(p.mean) for p in points if p.model == "g") == sorted(raw.values())


def test_steps_the_wrong_way_of_two_percent_are_not_told():
    assert odd(GLET + "g,20,1,100\ng,20,2,98.1\ng,40,1,101.9\ng,40,2,101.9\n") == [
        ("slower_with_size", "g", "batch 2, 20 % to 40 %", "+3.9%")
    ]


def test_missing_cells_of_a_shape_class_name_it():
    text = "model,mig_slices,batch,seq_length,latency_ms\nb,1,1,64,7\nb,1,2,64,8\nb,1,2,128,9\n"
    assert odd(text, kind=A100) == [("missing_cells", "b", "shape 128, 1g.10gb", "1 cells: batch 1")]


def test_a_row_copied_to_the_next_number_of_processes_is_told():
    told = odd(PARVA + "b,1,8,3,1,50\nb,1,8,4,1,40\nb,1,8,5,1,40\n", kind=A100, processes=3)
    assert told == [("copied_row", "b", "mig_slices 1, batch 8, processes 4 and 5", "40/s each")]


def test_a_throughput_that_contradicts_its_latency_is_told_once_for_each_model():
    text = "model,mig_slices,batch,latency_ms,throughput\nb,1,1,10,300\nb,1,2,15,200\nb,1,4,20,200\n"
    points, told = imported(text, kind=A100)
    assert [(o.kind, o.where, o.value) for o in told] == [
        ("wrong_throughput", "t.csv: line 2", "in 2 rows; latency is used")
    ]
    assert cells(points)[14, 1] == 10


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: line 1: the file is empty"),
        ("\n \n", "t.csv: line 1: the file is empty"),
        (GLET, "t.csv: line 1: a header and no rows"),
        ("model,share_pct,batch\ng,20,1\n", "t.csv: line 1: no column latency_ms, which glet has; columns are model,"),
        ("a,b\n1,2\n", "t.csv: line 1: unknown format: columns a, b; known are parvagpu, migprofiler, igniter, glet"),
        (GLET + "g,20,1\n", "t.csv: line 2: 3 fields, but 4 columns: model, share_pct, batch, latency_ms"),
        (GLET + "g,20,1,9\n\n,20,2,9\n", "t.csv: line 4: model must be given, is ''"),
        (GLET + "g,20,1,nan\n", "t.csv: line 2: latency_ms must be a number, is 'nan'"),
        ("g,20,1,nan\n", "t.csv: line 1: latency_ms must be a number, is 'nan'"),
        (GLET + "g,20,1,\n", "t.csv: line 2: latency_ms must be a number, is ''"),
        (GLET + "g,20,1,inf\n", "t.csv: line 2: latency_ms must be a number, is 'inf'"),
        (GLET + "g,20,1,-9\n", "t.csv: line 2: latency_ms must be above 0, is '-9'"),
        (GLET + "g,20,0,9\n", "t.csv: line 2: batch must be a whole number from 1 to 1000000, is '0'"),
        (GLET + "g,20,1.5,9\n", "t.csv: line 2: batch must be a whole number from 1 to 1000000, is '1.5'"),
        (GLET + "g,20,1e9,9\n", "t.csv: line 2: batch must be a whole number from 1 to 1000000, is '1e9'"),
        (GLET + "g,20,1,1e305\n", "t.csv: line 2: a latency of 1e+305 ms; at most 1e+09 ms are believed"),
        (GLET + "g,0,1,9\n", "t.csv: line 2: share_pct must be above 0 and at most 100, is '0'"),
        (GLET + "g,120,1,9\n", "t.csv: line 2: share_pct must be above 0 and at most 100, is '120'"),
        (GLET + "g,20,1,9\ng,20,1,9.1\n", "t.csv: line 3: model g, 14 SMs, batch 1: 9.1 ms, but 9 ms in t.csv: line 2"),
        ("model,share_pct,batch,latency_ms,l2_pct\ng,20,1,9,101\n", "l2_pct must be between 0 and 100, is '101'"),
        ("model,share_pct,batch,latency_ms\n" + "g" * 200_000, "t.csv: line 2: field larger than field limit"),
    ],
)
def test_an_impossible_table_is_refused_with_file_line_and_value(text, message):
    with pytest.raises(ProfileError) as refused:
        imported(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MIG + "g,5,1,9\n", "t.csv: line 2: mig_slices must be one of 1, 2, 3, 4, 7, is '5'"),
        (MIG + "g,2.5,1,9\n", "t.csv: line 2: mig_slices must be a whole number from 1 to 1000000, is '2.5'"),
        (PARVA + "g,1,1,1,9,0\n", "t.csv: line 2: throughput_per_process must be above 0, is '0'"),
        (PARVA + "g,1,1,1,9,9\ng,1,1,3,9,9\n", "t.csv: no row has processes 2; there are 1, 3"),
    ],
)
def test_an_impossible_table_of_mig_sizes_is_refused(text, message):
    with pytest.raises(ProfileError) as refused:
        imported(text, kind=A100, processes=2 if "there are" in message else 1)
    assert message in str(refused.value)


def test_an_unknown_format_and_a_device_without_mig_are_refused():
    with pytest.raises(ProfileError, match="unknown format 'csv'; known are auto, parvagpu"):
        imported(GLET + "g,20,1,9\n", form="csv")
    with pytest.raises(
        ProfileError, match="no column mig_slices, processes, throughput_per_process, which parvagpu has"
    ):
        imported(GLET + "g,20,1,9\n", form="parvagpu")
    with pytest.raises(ConfigError, match="device kind rtx2080ti has no MIG;"):
        imported(MIG + "g,1,1,9\n")


# Overheads


def test_an_overhead_is_exact_at_every_batch_and_the_device_linear_between_the_measured():
    points, _ = imported(GLET + "g,20,1,9\ng,20,3,11\nh,20,3,5\n", overheads=[joining("j:3x4:2:g")])
    assert [(p.model, p.rows, p.mean / MS, p.host / MS, p.samples) for p in points] == [
        ("g", 1, 10, 1, 0),
        ("g", 2, 12, 2, 0),
        ("g", 3, 19, 8, 0),
        ("h", 3, 5, 0, 0),
    ]
    assert all(p.mean == p.p95 == p.p99 for p in points)


def test_overheads_add_up_and_a_constant_is_the_same_for_every_batch():
    both = [joining("const:0.5:g,h"), joining("C:/data/j.csv:3x4:1:g")]
    points, _ = imported(GLET + "g,20,2,9\nh,20,1,5\n", overheads=both)
    assert [(p.model, p.rows, p.mean / MS, p.host / MS) for p in points] == [
        ("g", 1, 10, 1),
        ("g", 2, 10.5, 1.5),
        ("h", 1, 5.5, 0.5),
    ]


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("j:3x4:2", BadInput, "--overhead 'j:3x4:2': give FILE:SHAPE:FACTOR:MODEL,... or const:MS:MODEL,..."),
        ("const:2:", BadInput, "--overhead 'const:2:': give FILE"),
        ("const:2:g,", BadInput, "--overhead 'const:2:g,': give FILE"),
        ("const:nan:g", BadInput, "'nan' must be a number, 0 or more"),
        ("j:3x4:-1:g", BadInput, "'-1' must be a number, 0 or more"),
        ("j:3x4:much:g", BadInput, "'much' must be a number, 0 or more"),
        ("const:2:nobody", BadInput, "--overhead: model nobody is not in the tables; there are g"),
        ("j:9x9:2:g", ProfileError, "j: no shape 9x9; there are 3x4"),
        ("j:3x4:2:g", ProfileError, "j: no concat_ms for batch 4; the table ends at 3"),
    ],
)
def test_an_overhead_that_cannot_be_is_refused(option, error, message):
    with pytest.raises(error) as refused:
        imported(GLET + "g,20,4,9\n", overheads=[joining(option)])
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shape,batch\n3x4,1\n", "j: line 1: no column concat_ms, which a table of overheads has"),
        ("shape,batch,concat_ms\n3x4,1,-1\n", "j: line 2: concat_ms must be 0 or more, is '-1'"),
        ("shape,batch,concat_ms\n3x4,1,1\n3x4,1,2\n", "j: line 3: shape 3x4, batch 1 has two different concat_ms"),
    ],
)
def test_an_impossible_table_of_overheads_is_refused(text, message):
    with pytest.raises(ProfileError) as refused:
        joining("j:3x4:1:g", text)
    assert message in str(refused.value)


# Utilization


def used(text):
    return read_table("model,batch,l2_pct,dram_pct\n" + text, "u.csv")


def test_utilization_is_linear_between_batches_and_times_the_share():
    table = used("g,1,10,20\ng,3,30,60\n")
    points, told = imported(GLET + "g,50,1,9\ng,50,2,9\ng,50,4,9\ng,100,1,9\n", utilization=table)
    assert [(p.size, p.rows, p.l2, p.dram) for p in points] == [
        (34, 1, 0.05, 0.1),
        (34, 2, 0.1, 0.2),
        (34, 4, 0.15, 0.3),
        (68, 1, 0.1, 0.2),
    ]
    assert ("held_utilization", "g", "batch 4 to 4", "as at batch 3") in [
        (o.kind, o.model, o.where, o.value) for o in told
    ]


def test_utilization_fills_the_batches_that_an_overhead_adds():
    points, _ = imported(
        GLET + "g,100,3,9\n", overheads=[joining("const:1:g")], utilization=used("g,1,10,20\ng,3,30,60\n")
    )
    assert [(p.rows, p.l2) for p in points] == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_model_whose_utilization_nobody_knows_is_told():
    told = odd(GLET + "g,20,1,9\n", utilization=used("h,1,10,20\n"))
    assert told == [("unknown_utilization", "g", "20 %", "0 % of L2 and DRAM")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g,1,nan,20\n", "u.csv: line 2: l2_pct must be a number, is 'nan'"),
        ("g,1,10,120\n", "u.csv: line 2: dram_pct must be between 0 and 100, is '120'"),
        ("g,1,10,20\ng,1,10,21\n", "u.csv: line 3: model g, batch 1 has two different utilizations"),
    ],
)
def test_an_impossible_utilization_is_refused(text, message):
    with pytest.raises(ProfileError) as refused:
        imported(GLET + "g,20,1,9\n", utilization=used(text))
    assert message in str(refused.value)


# The command


def test_the_command_writes_a_table_that_a_fleet_file_takes(gpulet, tmp_path):
    (tmp_path / "t.csv").write_text(GLET + "g,20,1,9\ng,20,2,12\ng,100,1,9.5\ng,100,2,10\n")
    (tmp_path / "j.csv").write_text(JOINING)
    overhead = f"{tmp_path / 'j.csv'}:3x4:1:g"
    arguments = (
        "import-profile",
        tmp_path / "t.csv",
        "--kind",
        RTX,
        "--overhead",
        overhead,
        "--out",
        tmp_path / "p.csv",
    )
    code, out, err = gpulet(*arguments, "--json")
    assert (code, err) == (0, "slower with size: g: batch 1, 20 % to 100 %: +5.6%\n")
    told = {"kind": "slower_with_size", "model": "g", "where": "batch 1, 20 % to 100 %", "value": "+5.6%"}
    assert json.loads(out) == {"written": 4, "models": ["g"], "warnings": [told]}
    devices = '[[devices]]\nkind = "rtx2080ti"\nexecutor = "simulated"\nprofile = "p.csv"\n'
    (tmp_path / "f.toml").write_text(devices + '[[models]]\nname = "g"\nslo_ms = 50\nrate = 20\n')
    assert gpulet("plan", tmp_path / "f.toml", "--json")[0] == 0
    assert "4 points of 1 models in" in gpulet(*arguments)[1]


def test_without_out_the_table_is_the_only_output(gpulet, tmp_path):
    (tmp_path / "t.csv").write_text("g,30,1,9\n")
    code, out, err = gpulet("import-profile", tmp_path / "t.csv", "--kind", RTX, "--format", "glet")
    assert code == 0
    assert out.splitlines()[1] == "g,,20,1,9.000000,9.000000,9.000000,0,0,0.000000,0,0,1,0"
    assert err == "share not offered: g: rtx2080ti offers 20, 40, 50, 60, 80, 100 %: 30 %\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t.csv", "--kind", "abacus"), "unknown device kind 'abacus'"),
        (("t.csv", "--kind", "cpu"), "measure a CPU with `gpulet profile`"),
        (("t.csv", "--kind", RTX, "--format", "csv"), "unknown format 'csv'"),
        (("t.csv", "--kind", RTX, "--json"), "--json needs --out FILE"),
        (("t.csv", "--kind", RTX, "--out", "no/where.csv"), "table no/where.csv cannot be written"),
        (("nowhere.csv", "--kind", RTX), "table nowhere.csv cannot be read"),
        (("t.csv", "--kind", RTX, "--overhead", "const:1"), "give FILE:SHAPE:FACTOR:MODEL"),
        (("t.csv", "--kind", RTX, "--utilization", "t.csv"), "no column l2_pct, dram_pct"),
        (("bad.csv", "--kind", RTX), "bad.csv: line 2: share_pct must be above 0 and at most 100, is '101'"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(gpulet, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(GLET + "g,20,1,9\n")
    (tmp_path / "bad.csv").write_text(GLET + "g,101,1,9\n")
    code, out, err = gpulet("import-profile", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


# The published tables


def test_figure_3_is_read_and_its_five_odd_points_are_told(shared_text):
    points, told = imported(shared_text("rtx2080ti_latency.csv"))
    assert len(points) == 144
    assert Counter(o.kind for o in told) == {"slower_with_size": 5}
    assert ("batch 4, 50 % to 60 %", "+3.0%") in [(o.where, o.value) for o in told if o.model == "googlenet"]


@pytest.mark.parametrize(
    ("model", "slo_ms", "size", "batch", "rate"),
    [("googlenet", 66, 14, 13, 400.5), ("resnet50", 108, 27, 17, 318.7), ("resnet50", 108, 68, 24, 454.7)],
)
def test_figure_3_with_its_overhead_saturates_as_the_artifact_does(shared_data, model, slo_ms, size, batch, rate):
    latency = read_table((shared_data / "rtx2080ti_latency.csv").read_text(), "t")
    option = f"{shared_data / 'concat_overhead.csv'}:3x224x224:1.9:googlenet,resnet50,vgg16"
    overhead = parse_overhead(option, lambda name: read_table((shared_data / name).read_text(), name))
    points, _ = import_tables([latency], find_kind(RTX), overheads=[overhead])
    profile = parse_profile(format_profile(points), lambda share: 0, "t").stretched(1.1)
    share = Share(profile.curve(model, size), slo_ms * MS, 1.0, 31)
    assert saturated(share).batches == (batch,)
    assert saturated_rate(share) == pytest.approx(rate, abs=0.05)


def test_the_published_utilization_covers_every_point_of_figure_3(shared_text):
    table = read_table(shared_text("rtx2080ti_utilization.csv"), "u")
    points, told = imported(shared_text("rtx2080ti_latency.csv"), utilization=table)
    assert all(0 < p.l2 < p.dram < 0.63 for p in points if p.model == "vgg16")
    assert not {o.kind for o in told} & {"unknown_utilization", "held_utilization"}
    known = {
        (r["model"], r["batch"]): float(r["l2_pct"])
        for r in csv.DictReader(StringIO(shared_text("rtx2080ti_utilization.csv")))
    }
    half = next(p for p in points if (p.model, p.size, p.rows) == ("vgg16", 34, 8))
    assert half.l2 == pytest.approx(known["vgg16", "8"] / 200)


def test_igniters_two_tables_are_one_profile_with_holes_at_its_edges(shared_text):
    points, told = imported(
        shared_text("v100_igniter/solo.csv"), shared_text("v100_igniter/solo_batch1_edge_shares.csv"), kind=V100
    )
    assert len(points) == 648
    assert Counter(o.kind for o in told) == {"missing_cells": 8, "unknown_utilization": 4}
    assert {(o.where, o.value) for o in told if o.kind == "missing_cells"} == {
        ("10 %", "31 cells: batch 2 to 32"),
        ("100 %", "31 cells: batch 2 to 32"),
    }


def test_parvagpus_holes_odd_steps_and_copies_are_all_told(shared_text):
    text = shared_text("a100_parvagpu/profile.csv")
    runs = [imported(text, kind=A100, processes=n) for n in range(1, 6)]
    told = Counter(o.kind for _, odd in runs for o in odd)
    missing = sum(int(o.value.split()[0]) for _, odd in runs for o in odd if o.kind == "missing_cells")
    assert sum(len(points) for points, _ in runs) == 2475 - 728
    assert missing + 9 * told["sizes_differ"] == 728
    assert (told["faster_with_batch"], told["slower_with_size"]) == (52, 58)
    assert told["copied_row"] == 5 * 9
    assert {p.size for p in runs[0][0]} == {14, 28, 42, 56, 98}


def test_parvagpus_latency_agrees_with_its_exact_column(shared_text):
    text = shared_text("a100_parvagpu/profile.csv")
    exact = {
        (r["model"], int(r["mig_slices"]), int(r["batch"])): float(r["latency_ms"])
        for r in csv.DictReader(StringIO(text))
        if r["processes"] == "1"
    }
    points, _ = imported(text, kind=A100)
    assert {(p.model, p.size // 14, p.rows): pytest.approx(to_ms(p.mean), rel=1e-5) for p in points} == exact


def test_migprofilers_tables_are_read_and_the_published_throughput_of_text_is_told(shared_text):
    vision, text = shared_text("a100_migprofiler/vision.csv"), shared_text("a100_migprofiler/text.csv")
    points, told = imported(vision, text, kind=A100)
    assert len(points) == 124
    assert {p.shape for p in points if p.model == "bert-base"} == {"32", "64", "128", "256", "512"}
    assert {o.kind for o in told} == {"missing_cells"}
    rows = list(csv.DictReader(StringIO(text)))
    out = StringIO()
    writer = csv.DictWriter(out, rows[0])
    writer.writeheader()
    writer.writerows({**row, "throughput": 3000 / float(row["latency_ms"])} for row in rows)
    assert "wrong_throughput" in {o.kind for o in imported(out.getvalue(), kind=A100)[1]}
