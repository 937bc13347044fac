from hypothesis import given
from hypothesis import strategies as st

from gpulet.duty import IMPOSSIBLE, Share, residual, saturated, saturated_rate, squishy
from gpulet.knee import knee
from gpulet.units import MS, SECOND

curves = st.lists(st.integers(1, 20), min_size=1, max_size=12).map(lambda xs: tuple(sorted(x * MS for x in xs)))
shares = st.builds(
    Share, curves, st.integers(2, 200).map(lambda n: n * MS), st.integers(1, 400).map(float), st.integers(1, 12)
)


@given(shares)
def test_a_saturated_gpulet_runs_twice_within_the_slo_and_no_larger_batch_would(share):
    cycle = saturated(share)
    if cycle == IMPOSSIBLE:
        assert 2 * share.curve[0] > share.slo
        return
    (batch,) = cycle.batches
    assert 2 * share.curve[batch - 1] <= share.slo
    if batch < min(len(share.curve), share.max_batch):
        assert 2 * share.curve[batch] > share.slo
    assert saturated_rate(share) == batch * SECOND / cycle.duty


@given(shares)
def test_a_residual_carries_its_rate_within_its_slo(share):
    cycle = residual(share)
    if cycle.batches:
        (batch,) = cycle.batches
        assert cycle.worst <= share.slo
        assert cycle.latencies[0] <= cycle.duty
        assert batch * SECOND / cycle.duty >= share.rate * (1 - 1e-6)


@given(st.lists(shares, min_size=1, max_size=3))
def test_a_squishy_cycle_carries_every_rate_within_every_slo(tenants):
    cycle = squishy(tenants)
    if cycle.batches:
        assert sum(cycle.latencies) <= cycle.duty
        for share, batch in zip(tenants, cycle.batches, strict=True):
            assert cycle.worst <= share.slo
            assert batch <= min(share.max_batch, len(share.curve))
            assert batch * SECOND >= cycle.duty * share.rate * (1 - 1e-9)


def test_a_rate_too_low_to_fill_a_batch_runs_single_rows():
    cycle = residual(Share((10 * MS, 12 * MS), 50 * MS, 5.0, 2))
    assert (cycle.batches, cycle.duty, cycle.worst) == ((1,), 40 * MS, 50 * MS)


def test_models_share_where_only_a_smaller_batch_fits():
    # One row every 40: at the largest cycle that the SLO allows two rows gather, whose 52 do not fit 48 of cycle.
    cycle = squishy([Share((30, 52), 100, SECOND / 40, 2)])
    assert (cycle.duty, cycle.batches) == (40, (1,))


def test_the_knee_is_the_point_farthest_above_the_chord():
    assert knee([20, 40, 50, 60, 80, 100], [400, 580, 600, 620, 650, 662]) == 1
    assert knee([1, 2, 3], [10, 20, 30]) == 2
    assert knee([1, 2, 4], [5, 5, 5]) == 0
