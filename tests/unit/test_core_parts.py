"""Histogram, metrics, journal, timers' arithmetic: what both drivers lean on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.core.histogram import Histogram
from gpulet.core.journal import Header, encode_header, encode_step, read_header, replay, span
from gpulet.core.messages import Reason
from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits
from gpulet.errors import BadInput
from gpulet.systems import SYSTEMS, make_scheduler
from gpulet.units import MS
from support import SHAPES, MortalExecutor, World, models_of, problem_of, requests_of, tiny_plan, tiny_profile

NAMES = ["m0", "m1"]


@given(st.lists(st.integers(0, 10**12), min_size=1), st.integers(1, 100))
def test_a_percentile_is_within_one_percent_of_the_exact_one(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.008, abs=1)


@given(st.lists(st.integers(0, 10**10)), st.lists(st.integers(0, 10**10)))
def test_merged_histograms_count_as_one(left, right):
    both, one, other = Histogram(), Histogram(), Histogram()
    for value in left + right:
        both.add(value)
    for value in left:
        one.add(value)
    for value in right:
        other.add(value)
    one.merge(other)
    assert list(one.cumulative()) == list(both.cumulative())
    assert (one.count, one.total) == (both.count, both.total)
    assert one.within([10**11]) == [one.count]


@given(st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 5))), st.lists(st.integers(0, 10**10)))
def test_what_is_within_each_limit_is_in_the_buckets_that_end_there_or_below(values, limits):
    histogram, one_by_one = Histogram(), Histogram()
    for value, times in values:
        histogram.add(value, times)
        for _ in range(times):
            one_by_one.add(value)
    assert list(histogram.cumulative()) == list(one_by_one.cumulative())
    assert (histogram.count, histogram.total) == (one_by_one.count, one_by_one.total)
    wanted = [
        max((seen for _, end, seen in histogram.cumulative() if end <= limit), default=0) for limit in sorted(limits)
    ]
    assert histogram.within(sorted(limits)) == wanted


def world(limits=None):
    models = models_of(2)
    return World(models, tiny_plan([[(4, NAMES), (4, ["m0"])]], NAMES), SYSTEMS["gpulet"].dispatcher, limits), models


def test_counters_add_up_and_reasons_are_kept():
    w, models = world(Limits(max_queue=3))
    metrics = w.run(requests_of([(n, n % 2, 1, "", 0, False) for n in range(60)], models))
    report = metrics.report(100 * MS)
    total = report["total"]
    assert total["arrived"] == 60
    outcomes = ("served", "rejected", "expired", "cancelled", "failed", "lost")
    assert total["arrived"] == sum(total[name] for name in outcomes)
    assert total["lost"] == 0
    assert metrics.reasons["m0", Reason.QUEUE_FULL] > 0
    assert total["attainment"] == (total["served"] - total["late"]) / 60
    assert 0 < report["devices"][0]["busy"] <= 1
    assert report["devices"][0]["allocated"] == 1


@pytest.mark.parametrize(("speed", "mean", "p95"), [(1.0, 0, 0), (2.0, 6, 6), (0.5, -3, 0)])
def test_the_error_of_estimates_is_measured_minus_estimated_time(speed, mean, p95):
    models = models_of(2, slo=1000 * MS)
    w = World(models, tiny_plan([[(4, NAMES)]], NAMES), SYSTEMS["dedicated"].dispatcher)
    w.simulation.attach(MortalExecutor(tiny_profile(NAMES).stretched(speed), w.plan, w.timer, w.simulation.feed))
    metrics = w.run(requests_of([(n * 20 * MS, n % 2, 1, "", 0, False) for n in range(20)], models))
    report = metrics.report(400 * MS)["estimates"]
    assert (report["batches"], report["mean_error_ms"]) == (20, mean)  # 6 ms are estimated
    assert report["p95_error_ms"] == pytest.approx(p95, rel=0.008)


def test_batches_without_an_estimate_have_no_error():
    models = models_of(1)
    w = World(models, tiny_plan([[(4, ["m0"])]], NAMES), SHAPES["bound on arrival"])
    metrics = w.run(requests_of([(0, 0, 1, "", 0, False)], models))
    assert metrics.report(MS)["estimates"] == {"batches": 0, "mean_error_ms": 0.0, "p95_error_ms": 0.0}


def journal_of(w, models):
    problem = problem_of(models, w.plan)
    header = encode_header(Header.of("gpulet", problem, w.plan, Limits()))
    return [header, *(encode_step(*step) for step in w.steps)]


def test_a_journal_replayed_into_a_fresh_core_gives_the_same_commands():
    w, models = world()
    w.kill(3 * MS, 0, 5 * MS)
    w.run(requests_of([(n * MS // 3, n % 2, 1 + n % 3, "", n % 2, False) for n in range(60)], models))
    header, *lines = journal_of(w, models)
    parsed = read_header(header)
    assert parsed.plan == w.plan
    fresh = make_scheduler(SYSTEMS["gpulet"], parsed.problem(), parsed.plan, parsed.limits)
    assert list(replay(fresh, lines)) == []


def test_a_replay_is_worth_what_the_run_was():
    w, models = world()
    w.kill(3 * MS, 0, 5 * MS)
    lived = w.run(requests_of([(n * MS // 3, n % 2, 1 + n % 3, "", n % 2, False) for n in range(60)], models))
    header, *lines = journal_of(w, models)
    assert span([*lines, lines[-1][:-1]]) == (w.steps[0][0], w.steps[-1][0])
    assert span([]) == span([b"cut o"]) == (0, 0)
    parsed = read_header(header)
    fresh = make_scheduler(SYSTEMS["gpulet"], parsed.problem(), parsed.plan, parsed.limits)
    again = Metrics(NAMES, parsed.plan)
    assert list(replay(fresh, lines, again.record)) == []
    report = lived.report(20 * MS)
    assert report["total"]["violations_per_s"] > 0
    assert again.report(20 * MS) == report


def test_a_journal_with_another_command_is_found_out():
    w, models = world()
    w.run(requests_of([(n * MS, 0, 1, "", 0, False) for n in range(5)], models))
    header, *lines = journal_of(w, models)
    at = next(i for i, line in enumerate(lines) if b'"Start"' in line)
    lines[at] = lines[at].replace(b'["Start",1,1', b'["Start",1,0').replace(b'["Start",1,0', b'["Start",1,9')
    parsed = read_header(header)
    fresh = make_scheduler(SYSTEMS["gpulet"], parsed.problem(), parsed.plan, parsed.limits)
    (difference,) = replay(fresh, lines)
    assert difference.line == at + 2


def test_a_last_line_that_a_crash_cut_off_is_left_out():
    w, models = world()
    w.run(requests_of([(n * MS, 0, 1, "", 0, False) for n in range(5)], models))
    header, *lines = journal_of(w, models)
    lines[-1] = lines[-1][:-5]
    parsed = read_header(header)
    fresh = make_scheduler(SYSTEMS["gpulet"], parsed.problem(), parsed.plan, parsed.limits)
    assert list(replay(fresh, lines)) == []


@pytest.mark.parametrize("line", [b"", b"hello", b'{"format": 1}'])
def test_what_is_no_journal_is_refused(line):
    with pytest.raises(BadInput, match="not a gpulet journal"):
        read_header(line)
