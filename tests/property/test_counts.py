"""Segments against all that can be cut from one or two A30s: nothing needs fewer of them, grows further or is smaller."""

from itertools import product
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind
from gpulet.mig import fits
from gpulet.model import Model
from gpulet.planners.segments import MOST_FACTOR, segments
from gpulet.profile import Point, Profile
from gpulet.units import MS

A30 = find_kind("a30")
TYPES = A30.geometry.plain
NAMES = ("a", "b")
GAP = 5e-3


def every_count(gpus):
    """How many instances of each type each model gets, whatever fits on so many GPUs."""
    spans = [range(4 * gpus // t.slices + 1) for t in TYPES]
    for one, other in product(product(*spans), repeat=2):
        if fits(A30.geometry, {t.label: x + y for t, x, y in zip(TYPES, one, other, strict=True)}, gpus):
            yield one, other


COUNTS = {gpus: list(every_count(gpus)) for gpus in (1, 2)}


def judged(counts, rates, demand):
    """The least throughput over demand, and the compute slices."""
    parts = [sum(n * r for n, r in zip(mine, rates[m], strict=True)) / demand[m] for m, mine in enumerate(counts)]
    return min(parts), sum(n * t.slices for mine in counts for n, t in zip(mine, TYPES, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    latencies=st.tuples(*[st.tuples(*[st.integers(1, 60)] * 3)] * 2),
    demand=st.tuples(*[st.integers(20, 1200)] * 2),
)
def test_segments_are_as_good_as_any_counts(latencies, demand):
    points = tuple(
        Point(name, t.sms, 4, *[mine[place] * MS] * 3)
        for name, mine in zip(NAMES, latencies, strict=True)
        for place, t in enumerate(TYPES)
    )
    profile = Profile(points)
    rates = [[4e9 / profile.latency(name, t.sms, 4) for t in TYPES] for name in NAMES]
    models = {name: Model(name, 1000 * MS, 4) for name in NAMES}
    fleet = tuple(Device(i, A30, Mechanism.MIG) for i in range(2))
    asked = dict(zip(NAMES, map(float, demand), strict=True))
    outcome = segments(Problem(models, asked, fleet, profile))
    best = {gpus: max(judged(c, rates, demand)[0] for c in counts) for gpus, counts in COUNTS.items()}
    if isinstance(outcome, Infeasible):
        assert best[2] < 1
        return
    assert outcome.violations() == ()
    fewest = min(gpus for gpus in COUNTS if best[gpus] >= 1)
    assert outcome.devices_used <= fewest
    least = min(p.throughput / p.demand for p in outcome.promises.values())
    most = min(best[fewest], MOST_FACTOR)
    assert least >= most * (1 - GAP) - 1e-9
    slices = sum(A30.geometry.find(g.size.label).slices for g in outcome.gpulets)
    factor = min(least, MOST_FACTOR) * (1 - 1e-9)
    enough = [judged(c, rates, demand) for c in COUNTS[fewest]]
    assert slices <= min((n for part, n in enough if part >= factor), default=inf)
