import numpy as np
import pytest

from gpulet.errors import ConfigError
from gpulet.model import Model
from gpulet.rows import RowDistribution
from gpulet.units import MS, SECOND
from gpulet.workload import drawn, gamma, mmpp, parse_process, parse_trace, poisson

A, B = Model("a", 10 * MS), Model("b", 20 * MS)


def test_the_same_seed_gives_the_same_arrivals_and_another_does_not():
    one, two, other = (drawn((A, B), {"a": 50, "b": 20}, 10 * SECOND, s, poisson) for s in (1, 1, 2))
    assert list(one.requests()) == list(two.requests())
    assert list(one.requests()) != list(other.requests())


def test_a_models_arrivals_do_not_depend_on_its_neighbours():
    both = drawn((A, B), {"a": 50, "b": 20}, 10 * SECOND, 1, poisson)
    alone = drawn((A, B), {"a": 50}, 10 * SECOND, 1, poisson)
    assert [r.arrival for r in both.requests() if r.model == "a"] == [r.arrival for r in alone.requests()]


def test_requests_come_in_order_with_their_deadlines():
    requests = list(drawn((A, B), {"a": 500, "b": 200}, 5 * SECOND, 3, poisson).requests())
    assert [r.id for r in requests] == list(range(1, len(requests) + 1))
    assert all(r.arrival <= s.arrival for r, s in zip(requests, requests[1:], strict=False))
    assert all(r.deadline - r.arrival == {"a": 10, "b": 20}[r.model] * MS for r in requests)


@pytest.mark.parametrize(("cv", "process"), [(1.0, poisson), (2.0, gamma(2.0)), (0.5, gamma(0.5))])
def test_gaps_have_the_rate_and_the_variation_that_were_asked(cv, process):
    times = process(np.random.default_rng(1), 1000, 60 * SECOND)
    gaps = np.diff(times)
    assert times.size == pytest.approx(60_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_mmpp_alternates_between_its_rates():
    times = mmpp(1000, 1, 0, 1)(np.random.default_rng(1), 7, 100 * SECOND)
    seconds = np.histogram(times, bins=100, range=(0, 100 * SECOND))[0]
    assert times.size == pytest.approx(50_000, rel=0.3)
    assert (seconds == 0).sum() > 10
    assert (seconds > 800).sum() > 10


def test_a_trace_of_arrivals_with_models_and_rows():
    text = "arrival_s,model,rows\n0.5,b,2\n0.25,a,1\n9,a,1\n"
    requests = list(parse_trace(text, (A, B), 5 * SECOND, 1, "t").requests())
    assert [(r.arrival, r.model, r.rows) for r in requests] == [(SECOND // 4, "a", 1), (SECOND // 2, "b", 2)]


@pytest.mark.parametrize("text", ["arrival_s\n" + "0.5\n" * 9, "second,a\n0,9\n", "second,model,rate\n0,a,9\n"])
def test_a_trace_that_says_nothing_of_rows_has_them_drawn(text):
    rows = {"a": RowDistribution((0.5, 0.0, 0.5))}
    single, several = (parse_trace(text, (A, B), 5 * SECOND, 1, "t", r) for r in ({}, rows))
    assert np.array_equal(single.times, several.times)
    assert set(single.rows) == {1}
    assert several.rows_of("a") == [1, 3]
    assert several.rows_of("b") == []
    listed = parse_trace("arrival_s,rows\n1,2\n2,7\n", (A, B), 5 * SECOND, 1, "t", rows)
    assert listed.rows.tolist() == [2, 7]


def test_a_trace_of_counts_is_spread_within_each_second():
    text = "second,b,a,other\n0,3,0,9\n1,0,2,9\n"
    requests = list(parse_trace(text, (A, B), 5 * SECOND, 1, "t").requests())
    assert [r.model for r in requests] == ["b"] * 3 + ["a"] * 2
    assert all(r.arrival // SECOND == (0 if r.model == "b" else 1) for r in requests)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when\n1\n", "a trace starts with arrival_s or second"),
        ("arrival_s,model\n1,c\n", "line 2: model 'c' is not in the fleet"),
        ("arrival_s\n1\nsoon\n", "line 3: arrival_s must be a number, is 'soon'"),
        ("arrival_s\n-1\n", "line 2: arrival_s must not be below 0, is -1"),
        ("second,c\n0,1\n", "no column is one of the fleet's models"),
        ("second,a\n0,nan\n", "line 2: a must not be below 0, is nan"),
        ("arrival_s,rows\n1,2\n2,0\n", "line 3: rows must be 1 to 4096, is 0"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_trace(text, (A, B), 5 * SECOND, 1, "t")


@pytest.mark.parametrize("text", ["poison", "gamma", "gamma:x", "gamma:1,2", "mmpp:1,2", "poisson:3"])
def test_an_unknown_process_is_refused_with_the_known_ones(text):
    with pytest.raises(ConfigError, match="known are poisson, gamma:CV, mmpp:"):
        parse_process(text)


@pytest.mark.parametrize("text", ["gamma:0", "gamma:-1", "gamma:nan", "mmpp:-1,1,1,1", "mmpp:0,1,0,1", "mmpp:1,0,1,1"])
def test_impossible_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="must be above 0"):
        parse_process(text)


def test_a_trace_of_rates_is_poisson_until_the_next_rate():
    text = "second,model,rate\n0,a,100\n0,b,10\n20,a,400\n20,b,10\n"
    arrivals = parse_trace(text, [Model("a", MS), Model("b", MS)], 60 * SECOND, 1, "t.csv")
    mine = arrivals.times[arrivals.which == 0]
    early, late = (mine < 20 * SECOND).sum(), (mine >= 20 * SECOND).sum()
    assert 1800 < early < 2200
    assert 7600 < late < 8400
    assert mine.max() < 40 * SECOND
    with pytest.raises(ConfigError, match=r"t.csv: line 2: model 'z' is not in the fleet"):
        parse_trace("second,model,rate\n0,z,1\n", [Model("a", MS)], SECOND, 1, "t.csv")


def test_a_trace_of_rates_may_leave_out_models_of_the_fleet():
    arrivals = parse_trace("second,model,rate\n0,b,100\n5,b,0\n", (A, B), 10 * SECOND, 1, "t.csv")
    assert {r.model for r in arrivals.requests()} == {"b"}
    assert 400 < len(arrivals) < 600
    assert len(parse_trace("second,model,rate\n", (A, B), 10 * SECOND, 1, "t.csv")) == 0
