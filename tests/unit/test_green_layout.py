"""Splits, intervals and shares, on every topology of the imaginary GPU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpulet.device import Device, Mechanism, find_kind
from gpulet.errors import DeviceError, DeviceFull, DeviceLost, PlanError, Unproven
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver, Topology
from gpulet.executors.cuda.layout import Interval, lay_out

KINDS = {"h200": "h200-141gb", "a100": "a100-40gb", "v100": "v100", "rtx2080ti": "rtx2080ti", "t4": "t4"}


def made(name="h200", **faults):
    driver = FakeCudaDriver(TOPOLOGIES[name])
    for fault, value in faults.items():
        setattr(driver.faults, fault, value)
    return driver, ContextPool(driver, lay_out(driver))


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_groups_and_remainder_are_all_sms_once(name):
    driver, pool = made(name)
    layout, topology = pool.layout, TOPOLOGIES[name]
    assert (len(layout.groups), layout.group, layout.whole) == (topology.groups, 8, topology.sms)
    left = topology.sms - 8 * topology.groups
    assert (layout.remainder.sms if layout.remainder else 0) == left
    places = [pool.share(Interval(g, g + 1)).ids for g in range(topology.groups - 1)]
    places.append(pool.share(Interval(topology.groups - 1, layout.everything.stop)).ids)
    assert sum(map(len, places)) == len(frozenset().union(*places)) == topology.sms


@pytest.mark.parametrize("name", KINDS)
def test_a_die_gives_the_sizes_that_planners_count_on(name):
    _, pool = made(name)
    offered = Device(0, find_kind(KINDS[name]), Mechanism.GREEN).sizes()
    assert pool.layout.unachievable(offered) == ()
    assert [s.sms for s in pool.layout.sizes()] == [s.sms for s in offered]
    assert [s.label for s in pool.layout.sizes()] == [s.label for s in offered]


def test_a_die_of_fewer_groups_names_the_sizes_it_lacks_and_refuses_them():
    _, pool = made("h200-15")
    offered = Device(0, find_kind("h200-141gb"), Mechanism.GREEN).sizes()
    assert [s.sms for s in pool.layout.unachievable(offered)] == [128]
    with pytest.raises(
        PlanError, match="64 SMs at 64 reach group 16; this GPU was split into 15 groups of 8 SMs and 12"
    ):
        pool.layout.interval(64, 64)
    assert pool.layout.interval(64, 56) == Interval(8, 16)
    assert pool.share(Interval(8, 16)).sms == 68


@pytest.mark.parametrize("place", [(4, 8), (0, 12), (0, 0), (-8, 8)])
def test_a_place_between_groups_is_refused(place):
    _, pool = made()
    with pytest.raises(PlanError, match="do not begin and end with groups of 8 SMs"):
        pool.layout.interval(*place)


def test_a_prefix_and_the_suffix_behind_it_are_the_whole_gpu():
    driver, pool = made()
    one, other = (pool.share(pool.layout.interval(*place)) for place in ((0, 64), (64, 64)))
    assert (one.sms, other.sms) == (64, 68)
    assert not one.ids & other.ids
    pool.prove_apart([one.interval, other.interval])


def test_a_driver_that_does_not_merge_the_remainder_leaves_it_idle():
    driver, pool = made(sets_merge_with_remainder=False)
    assert pool.layout.remainder is None
    assert pool.share(pool.layout.interval(64, 64)).sms == 64
    everything = pool.share(pool.layout.interval(0, 128))
    assert (everything.context, everything.sms) == (None, 132)


def test_no_memory_for_the_trial_of_the_remainder_is_not_taken_for_a_refusal():
    driver = FakeCudaDriver()
    driver.faults.break_call("make_context", DeviceFull("make_context: OUT_OF_MEMORY (2)"))
    with pytest.raises(DeviceFull):
        lay_out(driver)


def test_shares_are_made_once_and_given_back():
    driver, pool = made()
    assert pool.share(Interval(0, 4)) is pool.share(Interval(0, 4))
    assert driver.live == 2
    pool.hold(Interval(0, 4))
    with pytest.raises(AssertionError, match="is held by 1"):
        pool.drop(Interval(0, 4))
    pool.share(Interval(4, 8))
    assert pool.idle() == (Interval(4, 8),)
    pool.release(Interval(0, 4))
    pool.close()
    driver.close()


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ({"is_confining": False}, r"share \[0, 4\) must have 32 SMs, blocks in its stream ran on 132"),
        ({"graphs_stay": False}, r"share \[0, 4\): a graph captured on it ran on 100 SMs outside, SM \d+ first"),
        ({"missing_sms": 2}, r"share \[0, 4\) must have 32 SMs, the CUDA driver gave it 30"),
    ],
)
def test_a_share_that_is_not_what_was_asked_is_unproven_and_leaves_nothing_behind(faults, why):
    driver, pool = made(**faults)
    with pytest.raises(Unproven, match=why):
        pool.share(Interval(0, 4))
    assert driver.live == 0
    assert Interval(0, 4) not in pool


def test_a_share_is_proven_even_while_a_neighbour_fills_some_of_its_sms():
    driver, pool = made(crowded_rounds=20)
    assert pool.share(Interval(0, 4)).sms == 32
    driver.faults.crowded_rounds = 10**6
    with pytest.raises(Unproven, match="must have 32 SMs, blocks in its stream ran on 16"):
        pool.share(Interval(4, 8))


@pytest.mark.parametrize("call", ["make_context", "make_stream", "context", "sms", "sm_ids"])
def test_a_call_that_fails_on_the_way_leaves_nothing_behind(call):
    driver, pool = made()
    driver.faults.break_call(call, DeviceError(f"{call}: NOT_SUPPORTED (801)"))
    with pytest.raises(DeviceError, match=call):
        pool.share(Interval(0, 4))
    assert driver.live == 0
    assert pool.share(Interval(0, 4)).sms == 32


def test_a_lost_device_refuses_everything_from_then_on():
    driver, pool = made()
    driver.faults.break_call("sm_ids", DeviceLost("sm_ids: ILLEGAL_ADDRESS (700)"))
    for _ in range(2):
        with pytest.raises(DeviceLost):
            pool.share(Interval(0, 4))


def test_streams_on_one_hardware_queue_are_made_anew():
    driver, pool = made(queues=2)
    first, free, second = Interval(0, 4), Interval(12, 16), Interval(4, 8)
    for interval in (first, free, second):
        before = pool.share(interval)
    pool.prove_apart([first, second])
    assert pool.share(second).stream != before.stream
    assert pool.share(second).ids == before.ids
    spins = driver.calls["spin"]
    pool.prove_apart([second, first])
    assert driver.calls["spin"] == spins, "what was shown once is not shown again"


def test_streams_that_cannot_be_told_apart_are_unproven():
    _, pool = made(queues=1)
    for interval in (Interval(0, 4), Interval(4, 8)):
        pool.share(interval)
    with pytest.raises(Unproven, match=r"share \[4, 8\) waits for share \[0, 4\)"):
        pool.prove_apart([Interval(0, 4), Interval(4, 8)])


def test_a_split_cannot_be_split_again():
    driver, pool = made()
    with pytest.raises(DeviceError):
        driver.split(pool.layout.groups[0], 8)


cuts = st.integers(1, 20).flatmap(
    lambda groups: st.tuples(
        st.just(groups), st.integers(0, 7), st.lists(st.integers(0, groups - 1), min_size=4, max_size=4)
    )
)


@given(cuts)
def test_intervals_overlap_exactly_if_their_sms_do(cut):
    groups, left, ends = cut
    driver = FakeCudaDriver(Topology(8 * groups + left, groups))
    pool = ContextPool(driver, lay_out(driver))
    spans = [sorted(ends[:2]), sorted(ends[2:])]
    one, other = (pool.share(pool.layout.interval(8 * a, 8 * (b + 1 - a))) for a, b in spans)
    assert one.interval.overlaps(other.interval) == bool(one.ids & other.ids)
