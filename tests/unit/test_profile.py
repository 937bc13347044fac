import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.device import find_kind, mps_size
from gpulet.errors import ProfileError
from gpulet.profile import Point, Profile, Statistic
from gpulet.profiletable import format_profile, parse_profile
from gpulet.units import MS

KIND = find_kind("rtx2080ti")


def sms_of(share):
    return mps_size(KIND, share).sms


def points(rows):
    return tuple(Point("m", size, batch, mean, mean, mean) for size, batch, mean in rows)


raw = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 50)),
    min_size=1,
    unique_by=lambda row: row[:2],
)


@given(raw)
def test_latency_never_falls_with_rows_nor_rises_with_size(rows):
    profile = Profile(points(rows))
    sizes = profile.sizes("m")
    curves = [profile.curve("m", size) for size in range(sizes[0], sizes[-1] + 2)]
    for curve in curves:
        assert list(curve) == sorted(curve)
    for small, large in zip(curves, curves[1:], strict=False):
        assert all(a >= b for a, b in zip(small, large, strict=False))


@given(st.lists(st.tuples(*[st.integers(1, 3)] * 3, st.integers(1, 50)), min_size=1, unique_by=lambda row: row[:3]))
def test_latency_never_falls_with_processes_nor_runs_the_wrong_way_among_them(rows):
    profile = Profile(tuple(Point("m", size, batch, *[mean] * 3, processes=n) for size, n, batch, mean in rows))
    assert all(profile.latency("m", size, batch, processes=n) >= mean for size, n, batch, mean in rows)
    curves = {(size, n): profile.curve("m", size, processes=n) for size, n, _, _ in rows}
    assert all(list(curve) == sorted(curve) for curve in curves.values())
    steps = [*_steps(curves, 0), *_steps(curves, 1)]
    assert all(mine >= least for over, under in steps for mine, least in zip(over, under, strict=False))


def _steps(curves, axis):
    """Neighbours at one number of processes (axis 0: the smaller size is above), or at one size (axis 1)."""
    for one, two in itertools.combinations(sorted(curves), 2):
        between = [k for k in curves if k[1 - axis] == one[1 - axis] and one[axis] < k[axis] < two[axis]]
        if one[1 - axis] == two[1 - axis] and not between:
            yield (curves[one], curves[two]) if axis == 0 else (curves[two], curves[one])


@given(raw)
def test_no_measured_point_is_slower_than_the_profile_says(rows):
    profile = Profile(points(rows))
    for size, batch, mean in rows:
        assert profile.latency("m", size, batch) >= mean


@given(raw, st.integers(0, 60))
def test_the_largest_batch_is_the_largest_within_the_budget(rows, budget):
    profile = Profile(points(rows))
    for size in profile.sizes("m"):
        best = profile.largest_batch("m", size, budget)
        within = [n for n, t in enumerate(profile.curve("m", size), start=1) if t <= budget]
        assert best == max(within, default=0)


def test_latency_between_measured_rows_and_sizes_is_linear():
    profile = Profile(points([(2, 1, 100), (2, 5, 300), (4, 1, 50), (4, 5, 150)]))
    assert profile.latency("m", 2, 3) == 200
    assert profile.latency("m", 3, 1) == 75
    assert profile.latency("m", 9, 5) == 150


@given(raw, st.permutations(range(1, 6)))
def test_what_a_profile_says_does_not_depend_on_what_it_was_asked_before(rows, order):
    fresh, warmed = Profile(points(rows)), Profile(points(rows))
    smallest = fresh.sizes("m")[0]
    for size in order:
        warmed.curve("m", max(size, smallest))
    assert warmed.sizes("m") == fresh.sizes("m")
    for size in range(smallest, 7):
        assert warmed.curve("m", size) == Profile(points(rows)).curve("m", size)


def test_what_was_not_measured_is_refused_with_its_numbers():
    profile = Profile(points([(2, 1, 100), (2, 5, 300)]))
    with pytest.raises(ProfileError, match="profiled for 1 to 5 rows at size 2, not for 6"):
        profile.latency("m", 2, 6)
    with pytest.raises(ProfileError, match="profiled from 2 SMs up, not at 1"):
        profile.latency("m", 1, 1)
    with pytest.raises(ProfileError, match="model x has no profile; profiled are m"):
        profile.latency("x", 2, 1)


def test_a_shape_class_without_measurements_counts_as_the_plain_one():
    profile = Profile((*points([(2, 1, 100)]), Point("m", 2, 1, 900, 900, 900, 0, "7")))
    assert profile.latency("m", 2, 1, "7") == 900
    assert profile.latency("m", 2, 1, "8") == 100


SHARED = Profile(
    (
        *points([(2, 1, 100), (2, 4, 160), (4, 1, 50), (4, 4, 80)]),
        *(
            Point("m", size, rows, *[mean] * 3, processes=3)
            for size, rows, mean in [(2, 1, 240), (4, 1, 45), (4, 2, 90)]
        ),
    )
)


def test_processes_that_share_a_size_have_curves_of_their_own():
    assert SHARED.curve("m", 2) == (100, 120, 140, 160)
    assert SHARED.curve("m", 2, processes=3) == (240,)
    assert SHARED.latency("m", 3, 1, processes=3) == (240 + 50) // 2
    assert SHARED.max_batch("m", 4, processes=3) == 2
    assert SHARED.largest_batch("m", 4, 89, processes=3) == 1
    assert (SHARED.sizes("m", processes=3), SHARED.processes("m", 2), SHARED.processes("m", 1)) == ((2, 4), (1, 3), ())


def test_more_processes_are_never_faster():
    assert SHARED.latency("m", 4, 1, processes=3) == SHARED.latency("m", 4, 1) == 50


def test_a_number_of_processes_that_nobody_measured_is_refused_by_name():
    with pytest.raises(ProfileError, match="model m is profiled with 1, 3 processes sharing a gpulet, not with 2"):
        SHARED.curve("m", 2, processes=2)


def test_a_shape_class_counts_as_the_plain_one_for_processes_it_was_not_measured_with():
    profile = Profile((*SHARED.points, Point("m", 2, 1, 900, 900, 900, 0, "7")))
    assert profile.latency("m", 2, 1, "7") == 900
    assert profile.latency("m", 2, 1, "7", processes=3) == 240


def test_a_statistic_and_a_stretch_change_every_latency():
    profile = Profile((Point("m", 1, 1, 100, 200, 300),))
    assert profile.of(Statistic.P99).latency("m", 1, 1) == 300
    assert profile.of(Statistic.P95).stretched(1.5).latency("m", 1, 1) == 300


def test_a_stretch_slows_the_host_as_well():
    (point,) = Profile((Point("m", 1, 1, 100, 200, 300, host=40),)).stretched(1.5).points
    assert (point.mean, point.p95, point.p99, point.host) == (150, 300, 450, 60)


def test_a_table_of_nine_columns_is_still_read():
    header = "model,shape,size,batch,mean_ms,p95_ms,p99_ms,samples,last\n"
    (point,) = parse_profile(header + "m,4x4,3,2,1.5,2,3,40,1\n", sms_of, "t").points
    assert point == Point("m", 3, 2, 1_500_000, 2 * MS, 3 * MS, 40, "4x4", is_last=True)


def test_empty_cells_are_unknown_and_the_tails_default_to_the_mean():
    text = "model,size,batch,mean_ms,p95_ms,host_ms,l2_pct,dram_pct\nm,3,2,1.5,,,,\n"
    assert parse_profile(text, sms_of, "t").points == (Point("m", 3, 2, 1_500_000, 1_500_000, 1_500_000),)


def test_our_own_table_comes_back_as_it_was():
    shaped = Point("m", 3, 1, MS, 2 * MS, 3 * MS, 300, "4x4")
    used = Point("m", 3, 4, MS + 1, MS + 2, MS + 3, 9, host=MS // 3, l2=17.4321 / 100, dram=0.5)
    shared = Point("m", 3, 4, MS, MS, MS, processes=4)
    profile = Profile((shaped, Point("m", 3, 2, MS + 1, MS + 2, MS + 3, 9, is_last=True), used, shared))
    assert parse_profile(format_profile(profile.points), sms_of, "t").points == profile.points


def test_a_published_table_is_read_with_shares_as_sms():
    profile = parse_profile("model,share_pct,batch,latency_ms\ng,20,1,9.79102\ng,100,1,9.5\n", sms_of, "t")
    assert profile.sizes("g") == (14, 68)
    assert profile.latency("g", 14, 1) == 9_791_020


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: columns \\(none\\)"),
        ("model,batch\n", "line 1: columns model, batch; needed are"),
        ("model,share_pct,batch,latency_ms\n", "no rows"),
        ("model,share_pct,batch,latency_ms\ng,20,1,fast\n", "line 2: latency_ms must be a number, is 'fast'"),
        ("model,share_pct,batch,latency_ms\ng,20,1,-3\n", "line 2: latency_ms must be above 0, is -3"),
        ("model,share_pct,batch,latency_ms\ng,20,1,nan\n", "line 2: latency_ms must be above 0, is nan"),
        ("model,share_pct,batch,latency_ms\ng,20,1,3\ng,150,1,3\n", "line 3: share_pct must be at most 100, is 150"),
        ("model,share_pct,batch,latency_ms\ng,20,0,1\n", "line 2: batch must be above 0, is 0"),
        ("model,size,batch,mean_ms,host_ms\ng,20,1,2,nan\n", "line 2: host_ms must be between 0 and 2, is nan"),
        ("model,size,batch,mean_ms,host_ms\ng,20,1,2,2.5\n", "line 2: host_ms must be between 0 and 2, is 2.5"),
        ("model,size,batch,mean_ms,l2_pct\ng,20,1,2,-1\n", "line 2: l2_pct must be between 0 and 100, is -1"),
        ("model,size,batch,mean_ms,dram_pct\ng,20,1,2,inf\n", "line 2: dram_pct must be between 0 and 100, is inf"),
        ("model,size,batch,mean_ms,dram_pct\ng,20,1,2,much\n", "line 2: dram_pct must be a number, is 'much'"),
        ("model,share_pct,batch,latency_ms\ng,20\n", "line 2: latency_ms must be a number, is None"),
        ("model,size,batch,mean_ms,processes\ng,2,1,2,0\n", "line 2: processes must be a whole number from 1, is '0'"),
        (
            "model,size,batch,mean_ms,processes\ng,2,1,2,2.5\n",
            "line 2: processes must be a whole number from 1, is '2.5'",
        ),
    ],
)
def test_a_bad_table_is_refused_with_its_line(text, message):
    with pytest.raises(ProfileError, match=message):
        parse_profile(text, sms_of, "t.csv")
