"""Nexus' split of an objective over the stages of an application."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.application import Application, Stage
from gpulet.errors import ConfigError
from gpulet.split import best_throughput, devices_per_rate, split
from gpulet.units import MS

# The example of Nexus (SOSP'19, section 6.2): rows/s on one GPU at 40, 50 and 60 ms.
NEXUS = {"x": {40: 200, 50: 250, 60: 300}, "y": {40: 300, 50: 400, 60: 500}}
AVERAGES = {0.1: (192, 235, 273), 1: (143, 154, 150), 10: (40, 34.5, 27.3)}


def nexus_throughput(stage, time):
    return NEXUS[stage.model].get(time // MS, 0)


def pipeline(fan_out, x=0, y=0):
    stages = (Stage("x", "x", budget=x * MS), Stage("y", "y", ("x",), fan_out, y * MS))
    return Application("example", 100 * MS, stages)


@pytest.mark.parametrize("fan_out", AVERAGES)
def test_the_published_example_has_the_published_throughputs(fan_out):
    for x, published in zip((40, 50, 60), AVERAGES[fan_out], strict=True):
        devices = devices_per_rate(pipeline(fan_out, x, 100 - x), nexus_throughput)
        assert 1 / devices == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("fan_out", AVERAGES)
def test_the_published_example_gets_the_best_of_its_splits(fan_out):
    done = split(pipeline(fan_out), nexus_throughput, steps=10)
    best = (40, 50, 60)[AVERAGES[fan_out].index(max(AVERAGES[fan_out]))]
    assert [stage.budget for stage in done.stages] == [best * MS, (100 - best) * MS]
    assert 1 / devices_per_rate(done, nexus_throughput) == pytest.approx(max(AVERAGES[fan_out]), rel=0.005)


def test_a_batch_takes_at_most_half_of_the_time():
    curve = (4 * MS, 5 * MS, 20 * MS)
    assert best_throughput(curve, 3, 8 * MS - 1) == 0
    assert best_throughput(curve, 3, 8 * MS) == 250
    assert best_throughput(curve, 3, 10 * MS) == 400
    assert best_throughput(curve, 1, 10 * MS) == 250
    assert best_throughput(curve, 3, 40 * MS) == 400  # three rows in 20 ms are slower than two in 5


STEPS = 6
trees = st.lists(
    st.tuples(st.integers(-1, 3), st.sampled_from([0.25, 1.0, 3.0]), st.lists(st.integers(0, 9), min_size=STEPS)),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@given(trees)
def test_no_split_on_the_grid_needs_fewer_devices(drawn):
    stages = tuple(
        Stage(f"s{n}", f"s{n}", (f"s{parent}",) if 0 <= parent < n else (), fan_out)
        for n, (parent, fan_out, _) in enumerate(drawn)
    )
    application = Application("tree", STEPS * MS, stages)
    rates = {f"s{n}": [0, *sorted(gains[:STEPS])] for n, (_, _, gains) in enumerate(drawn)}

    def throughput(stage, time):
        return rates[stage.name][time // MS]

    needs = []
    for budgets in product(range(STEPS + 1), repeat=len(stages)):
        try:
            tried = replace(
                application, stages=tuple(replace(s, budget=b * MS) for s, b in zip(stages, budgets, strict=True))
            )
        except ConfigError:  # longer than the objective
            continue
        needs.append(devices_per_rate(tried, throughput))
    if min(needs) == float("inf"):
        with pytest.raises(ConfigError, match=r"no split of its SLO of 6 ms into 6 steps"):
            split(application, throughput, STEPS)
    else:
        assert devices_per_rate(split(application, throughput, STEPS), throughput) == pytest.approx(min(needs))


def test_only_trees_are_split():
    join = Application("j", 9 * MS, (Stage("a", "a"), Stage("b", "b"), Stage("c", "c", ("a", "b"))))
    with pytest.raises(ConfigError, match=r'application j: stage c waits for 2 stages \(a, b\); split = "nexus" takes'):
        split(join, nexus_throughput)
