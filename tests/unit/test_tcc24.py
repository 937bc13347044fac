"""What the reproduction of D-STACK is made of: random mixes, and systems on the same arrivals."""

import pytest

from gpulet.reproduce.tcc24.comparing import FEWEST, MOST, Stream, compare, random_mix
from gpulet.reproduce.tcc24.data import MEASURED_BATCHES, TABLE, profile
from gpulet.units import MS, SECOND


def test_random_mixes_ask_for_one_gpu_at_the_knees():
    counts = set()
    for seed in range(20):
        problem = random_mix(seed)
        counts.add(len(problem.models))
        rows = {name: TABLE[name] for name in problem.models}
        area = sum(problem.demand[n] / r.batch * r.runtime_ms * MS / SECOND * r.knee_pct / 100 for n, r in rows.items())
        assert area == pytest.approx(1)
    assert counts <= {*range(FEWEST, MOST + 1)}
    assert len(counts) > 3
    assert random_mix(7).demand == random_mix(7).demand


def test_smaller_batches_have_their_knee_in_proportion():
    every = profile(["mobilenet"], MEASURED_BATCHES)
    assert every.latency("mobilenet", 20, 16) == 10 * MS
    assert every.latency("mobilenet", 10, 8) == 10 * MS
    assert every.latency("mobilenet", 20, 8) == pytest.approx(10 * MS * 5 / 6)
    assert profile(["mobilenet"]).latency("mobilenet", 20, 8) == 10 * MS


def test_systems_are_compared_on_the_same_arrivals_and_a_refusal_is_a_reason():
    problem = random_mix(4)
    stream = Stream(seconds=2.0, load=0.2)
    found = compare(problem, ["dstack", "max-min", "segments"], stream)
    assert list(found) == ["dstack", "max-min", "segments"]
    assert found["dstack"].goodput > 0
    assert found["dstack"].attainment.keys() == problem.models.keys()
    assert "MIG" in found["segments"].refusal
    assert found["segments"].starved == tuple(problem.models)
    assert found == compare(problem, ["dstack", "max-min", "segments"], stream)
