from dataclasses import replace
from itertools import product

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.cutting import Cutter
from gpulet.device import Device, Mechanism, cpu_kind, find_kind
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.homogeneous import homogeneous, largest_homogeneous
from gpulet.planners.paris import Rounding, groups_of, paris, partition
from gpulet.planners.pooled import pooled
from gpulet.planners.random_mig import random_mig
from gpulet.pools import carried, group, groups_in
from gpulet.profile import Point, Profile
from gpulet.rows import RowDistribution, fixed
from gpulet.units import MS, SECOND

A100 = find_kind("a100-80gb")
SIZES = {size.sms: size for size in Device(0, A100, Mechanism.MIG).sizes()}


def points(name, latency, sizes=tuple(SIZES), batches=(1, 2, 4, 8)):
    """`latency(sms, rows)` in milliseconds."""
    return [Point(name, sms, b, *[round(latency(sms, b) * MS)] * 3) for sms in sizes for b in batches]


def flat_then_linear(sms, rows):
    """Launches take 4 ms; rows beyond what the size runs at once take 10 ms for 14 SMs each."""
    return max(4.0, 10.0 * rows * 14 / sms)


def by_slices(_profile, _model, sms):
    """The knee is at one row for each 14 SMs."""
    return [float(b * 14 >= sms) for b in range(1, 9)]


def problem(weights, slo=40, gpus=2, rate=1.0, names=("a",), profile=None, slices=0):
    rows = {name: RowDistribution(tuple(weights)) for name in names}
    table = profile or Profile(tuple(p for name in names for p in points(name, flat_then_linear)))
    return Problem(
        {name: Model(name, slo * MS, 8) for name in names},
        {name: rate * rows[name].mean for name in names},
        tuple(Device(d, A100, Mechanism.MIG) for d in range(gpus)),
        table,
        rows=rows,
        slices=slices,
    )


def test_the_papers_worked_example_gives_one_and_a_half_to_two_and_a_third():
    """Batches of 1 to 4 at 20/20/40/20 %; 40 and 20 queries/s on the small size, 30 and 20 on the large one."""
    seconds = {(14, 1): 1 / 40, (14, 2): 1 / 20, (14, 3): 1 / 10, (14, 4): 1 / 5}
    seconds |= {(98, 1): 1 / 90, (98, 2): 1 / 60, (98, 3): 1 / 30, (98, 4): 1 / 20}
    table = Profile(tuple(Point("a", sms, b, *[round(s * SECOND)] * 3) for (sms, b), s in seconds.items()))
    asked = problem((0.2, 0.2, 0.4, 0.2), slo=1000, profile=table)
    knees = {14: 2, 98: 4}
    found = partition(
        asked, Cutter(asked.devices), utilization=lambda _p, _m, sms: [float(b >= knees[sms]) for b in range(1, 5)]
    )
    small, large = found.segments["a"]
    assert [(s.low, s.high, s.knee) for s in (small, large)] == [(0, 2, 2), (2, 4, 4)]
    assert (small.demand, large.demand) == pytest.approx((0.015, 0.4 / 30 + 0.2 / 20), rel=1e-6)
    assert small.demand / large.demand == pytest.approx(1.5 / 2.3333, rel=1e-4)


def test_knees_that_run_backwards_leave_a_size_without_a_segment():
    asked = problem((1, 1, 1, 1, 1, 1, 1, 1))
    knees = {14: 2, 28: 5, 42: 3, 56: 6, 98: 8}
    found = partition(
        asked, Cutter(asked.devices), utilization=lambda _p, _m, sms: [float(b >= knees[sms]) for b in range(1, 9)]
    )
    assert [(s.low, s.high) for s in found.segments["a"]] == [(0, 2), (2, 5), (5, 5), (5, 6), (6, 8)]
    assert found.counts["a", SIZES[42]] == 0


@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize("gpus", [1, 2, 5])
def test_counts_fit_the_budget_the_geometry_and_every_request(rounding, gpus):
    asked = problem((1, 2, 3, 2, 1, 1, 1, 1), gpus=gpus, slices=6 * gpus)
    cutter = Cutter(asked.devices, asked.slices)
    found = partition(asked, cutter, rounding=rounding)
    counts = {size: n for (_, size), n in found.counts.items()}
    assert cutter.fits(counts)
    assert all(not cutter.fits({**counts, size: n + 1}) for size, n in counts.items() if found.tops["a", size])
    outcome = paris(asked, rounding=rounding)
    assert isinstance(outcome, Plan)
    assert outcome.violations() == ()
    assert sum(cutter.units(g.size) for g in outcome.gpulets) <= 6 * gpus


def test_maxmin_makes_the_smallest_count_over_demand_as_large_as_any_counts_do():
    asked = problem((2, 1, 1, 3, 1, 1, 1, 1), gpus=2)
    cutter = Cutter(asked.devices)
    found = partition(asked, cutter)
    demand = {s.size: s.demand for s in found.segments["a"] if s.demand}
    least = min(found.counts["a", size] / r for size, r in demand.items())
    for counts in product(range(8), repeat=len(demand)):
        if cutter.fits(dict(zip(demand, counts, strict=True))):
            assert min(n / r for n, r in zip(counts, demand.values(), strict=True)) <= least + 1e-9


def test_a_segment_without_room_goes_to_the_next_larger_size():
    asked = problem((1, 1, 1, 1, 1, 1, 1, 1), gpus=1)
    found = partition(asked, Cutter(asked.devices), utilization=by_slices)
    assert [(s.low, s.high) for s in found.segments["a"]] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 8)]
    counted = {size.sms for (_, size), n in found.counts.items() if n}
    assert {size.sms for _, size in found.moved}.isdisjoint(counted)
    assert found.moved
    assert {found.tops["a", size] for _, size in found.moved} == {0}
    assert max(found.tops["a", SIZES[sms]] for sms in counted) == 8
    outcome = paris(asked, utilization=by_slices)
    assert isinstance(outcome, Plan)
    assert {g.size.sms for g in outcome.gpulets} == counted


def test_two_models_on_two_gpus_keep_the_size_that_serves_both_largest_requests():
    """Each needs the largest size for its largest requests; smaller sizes forced before it would leave no room."""
    asked = problem((0.9, 0, 0, 0, 0.05, 0.03, 0.01, 0.01), slo=12, names=("a", "b"), gpus=2)
    outcome = paris(asked)
    assert isinstance(outcome, Plan)
    assert sorted(g.models for g in outcome.gpulets if g.size.sms == 98) == [("a",), ("b",)]


def test_what_applications_ask_is_carried_as_what_clients_ask():
    """Clients send the application's requests only: what it asks of the model is in the demand."""
    asked = problem((1,), rate=50.0)
    by_application = replace(asked, sent={"some application": 50.0})
    plan = paris(asked)
    assert isinstance(plan, Plan)
    assert paris(by_application) == plan
    assert carried(by_application, groups_in(plan)) == carried(asked, groups_in(plan)) > 1


def test_what_no_size_runs_in_time_is_refused_with_its_rows_and_times():
    outcome = paris(problem((0.9, 0, 0, 0, 0, 0, 0, 0.1), slo=10))
    assert isinstance(outcome, Infeasible)
    assert outcome.constraint == "a request of 8 rows takes 11.4286 ms at best; its SLO is 10 ms"


def test_a_request_that_no_size_holds_is_refused():
    table = Profile(tuple(points("a", flat_then_linear, batches=(1, 2, 4))))
    asked = problem((0.9, 0, 0, 0, 0, 0, 0, 0.1), profile=table)
    outcome = paris(asked)
    assert isinstance(outcome, Infeasible)
    assert "a request of 8 rows fits none of the sizes" in outcome.constraint


def test_a_large_request_that_only_rounding_left_out_keeps_a_size():
    """Hardly any load, but only the largest size is in time for it."""
    asked = problem((0.9989, 0, 0, 0, 0, 0, 0, 0.0011), slo=12, gpus=1)
    outcome = paris(asked)
    assert isinstance(outcome, Plan)
    assert [g.size.sms for g in outcome.gpulets] == [98]


def test_several_models_share_the_budget_by_what_their_requests_cost():
    asked = problem((1, 1, 1, 1), names=("a", "b"), gpus=12)
    asked = replace(asked, demand={"a": 30.0, "b": 10.0})
    outcome = paris(asked)
    assert isinstance(outcome, Plan)
    slices = {n: sum(Cutter(asked.devices).units(g.size) for g in outcome.gpulets if g.models == (n,)) for n in "ab"}
    assert slices["a"] + slices["b"] <= 84
    assert slices["a"] / slices["b"] == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("mechanism", [Mechanism.MPS, Mechanism.GREEN, Mechanism.CPU])
def test_other_cuts_count_as_sizes_too(mechanism):
    kind = cpu_kind(8) if mechanism is Mechanism.CPU else A100
    sms = [s.sms for s in Device(0, kind, mechanism).sizes()]
    table = Profile(tuple(points("a", lambda s, b: max(2, 8 * b / s * kind.sms / 8), sizes=sms)))
    devices = tuple(Device(d, kind, mechanism) for d in range(2))
    asked = replace(problem((3, 2, 1, 1), profile=table), devices=devices)
    outcome = paris(asked)
    assert isinstance(outcome, Plan)
    assert outcome.violations() == ()


def test_a_homogeneous_pool_has_one_size_and_fills_the_budget():
    asked = problem((1, 1), gpus=4, slices=24)
    counts = {n: len(homogeneous(asked, slices=n).gpulets) for n in (1, 2, 3, 7)}
    assert counts == {1: 24, 2: 12, 3: 8, 7: 3}
    with pytest.raises(PlanError, match="no size has 5 slices; a100-80gb has sizes of 1, 2, 3, 4, 7"):
        homogeneous(asked, slices=5)


def test_gpu_max_is_the_pool_that_the_judge_finds_best():
    worths = {14: 1.0, 28: 1.5, 42: 3.0, 56: 2.0, 98: 0.5}

    def worth(_problem, plan, *, least):
        found = worths[plan.gpulets[0].size.sms]
        return found if found >= least else 0.0

    assert {g.size.sms for g in largest_homogeneous(problem((1,)), worth=worth).gpulets} == {42}


def test_a_random_pool_is_full_and_only_its_seed_decides():
    asked = problem((1, 1), gpus=3, slices=18)
    cutter = Cutter(asked.devices, 18)
    pools = [random_mig(asked, seed=seed) for seed in range(6)]
    assert pools[0] == random_mig(asked, seed=0)
    assert len({tuple(g.size for g in pool.gpulets) for pool in pools}) > 3
    for pool in pools:
        counts = {g.size: sum(h.size == g.size for h in pool.gpulets) for g in pool.gpulets}
        assert all(not cutter.fits({**counts, size: counts.get(size, 0) + 1}) for size in cutter.sizes)


def test_what_a_pool_carries_is_a_flow_that_can_be_counted_by_hand():
    """One small and one large gpulet; half the requests only fit the large one in time."""
    asked = problem((0.5, 0, 0, 0, 0, 0, 0, 0.5), slo=12, rate=1.0)
    groups = [group(asked, SIZES[14], ["a"], 1), group(asked, SIZES[98], ["a"], 1)]
    assert carried(asked, groups) == pytest.approx(1 / (0.5 * 80 / 7 / 1000), rel=1e-4)
    assert carried(asked, groups[:1]) == 0
    assert carried(asked, groups[:1], spared=0.5) == pytest.approx(1 / (0.5 * 10 / 1000), rel=1e-4)
    assert groups_in(homogeneous(asked, slices=7)) == (group(asked, SIZES[98], ["a"], 2),)


def test_the_search_keeps_what_the_judge_holds_best_and_says_how_much():
    asked = problem((1, 1), gpus=1)

    def worth(_problem, plan, *, least):
        found = 2.0 + sum(g.size.sms == 28 for g in plan.gpulets) + (plan.dispatcher == "elsa")
        return found if found >= least else 0.0

    outcome = pooled(asked, starts=[lambda p: homogeneous(p, slices=7)], worth=worth)
    assert isinstance(outcome, Plan)
    assert outcome.violations() == ()
    assert sorted(g.size.sms for g in outcome.gpulets) == [14, 28, 28, 28]
    assert outcome.dispatcher == "elsa"
    assert outcome.promises["a"].headroom == pytest.approx(5.0)


def test_the_search_refuses_what_nothing_holds():
    asked = problem((1, 1), gpus=1, rate=100.0)
    outcome = pooled(asked, starts=[paris], worth=lambda *_, least: 0.25 if least <= 0.25 else 0.0)
    assert isinstance(outcome, Infeasible)
    assert "holds 0.250 of the rates" in outcome.constraint
    assert outcome.unserved["a"] == pytest.approx(112.5)


def test_every_group_is_told_the_most_rows_it_is_meant_for():
    asked = problem((1, 1, 1, 1, 1, 1, 1, 1), gpus=4)
    found = partition(asked, Cutter(asked.devices))
    for one in groups_of(asked, found):
        assert one.models["a"] == found.tops["a", one.size]
    assert fixed(3).largest == 3
