"""One interface over mechanisms: counts of sizes on equal devices."""

import pytest

from gpulet.cutting import Cutter
from gpulet.device import Device, Mechanism, Size, cpu_kind, find_kind, overcut
from gpulet.errors import PlanError


def devices_of(kind, mechanism, count=2):
    return [Device(index, kind, mechanism) for index in range(3, 3 + count)]


MIG = devices_of(find_kind("a100-40gb"), Mechanism.MIG)
MPS = devices_of(find_kind("rtx2080ti"), Mechanism.MPS)


def test_mig_counts_in_compute_slices_and_by_its_geometry():
    cutter = Cutter(MIG)
    one, two, three, four, seven = cutter.sizes
    assert [cutter.units(size) for size in cutter.sizes] == [1, 2, 3, 4, 7]
    assert cutter.room == 14
    assert cutter.fits({four: 2, three: 2})
    assert not cutter.fits({two: 7})
    assert not cutter.fits({seven: 1, four: 1, three: 2})
    assert Cutter(devices_of(find_kind("a30"), Mechanism.MIG)).room == 8


def test_a_budget_of_slices_binds_before_the_devices_do():
    cutter = Cutter(MIG, slices=12)
    one = cutter.sizes[0]
    assert cutter.room == 12
    assert cutter.fits({one: 12})
    assert not cutter.fits({one: 13})
    with pytest.raises(PlanError, match=r"13 x 1g.5gb do not fit on 2 x a100-40gb, 12 units of room"):
        cutter.pack({one: 13})


@pytest.mark.parametrize(
    ("devices", "counts", "expected"),
    [
        (MIG, {"3g.20gb": 1, "4g.20gb": 1, "1g.5gb": 2}, {"4g.20gb": 1, "3g.20gb": 1, "1g.5gb": 2}),
        (MPS, {"60 %": 2, "40 %": 1, "20 %": 2}, {"60 %": 2, "40 %": 1, "20 %": 2}),
        (devices_of(cpu_kind(4), Mechanism.CPU), {"3 cores": 1, "2 cores": 2}, {"3 cores": 1, "2 cores": 2}),
        (devices_of(find_kind("h200-141gb"), Mechanism.GREEN), {"8 groups": 4}, {"8 groups": 4}),
        (devices_of(find_kind("t4"), Mechanism.WHOLE), {"whole": 2}, {"whole": 2}),
    ],
)
def test_what_is_packed_stands_on_the_devices_without_overlap(devices, counts, expected):
    cutter = Cutter(devices)
    sizes = {size.label: size for size in cutter.sizes}
    packed = cutter.pack({sizes[label]: n for label, n in counts.items()})
    found = [placement.size.label for _, placement in packed]
    assert {label: found.count(label) for label in found} == expected
    for device in devices:
        assert overcut(device, [p for index, p in packed if index == device.index]) == ()
    assert {index for index, _ in packed} <= {3, 4}


def test_shares_are_packed_largest_first():
    cutter = Cutter(MPS)
    sizes = {size.share_pct: size for size in cutter.sizes}
    counts = {sizes[20]: 2, sizes[60]: 2, sizes[40]: 1}
    assert [(d, p.size.share_pct, p.offset) for d, p in cutter.pack(counts)] == [
        (3, 60, 0),
        (3, 40, 60),
        (4, 60, 0),
        (4, 20, 60),
        (4, 20, 80),
    ]
    assert not cutter.fits({sizes[60]: 3})
    assert not cutter.fits({sizes[100]: 1, sizes[80]: 1, sizes[40]: 1})


def test_a_whole_device_is_cut_once():
    cutter = Cutter(devices_of(find_kind("t4"), Mechanism.WHOLE))
    assert cutter.fits({cutter.sizes[0]: 2})
    assert not cutter.fits({cutter.sizes[0]: 3})


@pytest.mark.parametrize(
    ("devices", "slices", "message"),
    [
        ([], 0, "there are none"),
        ([*MIG, *MPS], 0, "there are a100-40gb by mig, rtx2080ti by mps"),
        ([MIG[0], Device(1, MIG[0].kind, Mechanism.MPS)], 0, "there are a100-40gb by mig, a100-40gb by mps"),
        (MPS, 5, "a budget of 5 compute slices on devices that mps cuts"),
        (MIG, 15, "a budget of 15 compute slices of the 14 there are"),
    ],
)
def test_unequal_devices_and_impossible_budgets_are_refused(devices, slices, message):
    with pytest.raises(PlanError, match=message):
        Cutter(devices, slices)


def test_a_size_of_another_device_is_refused():
    with pytest.raises(PlanError, match=r"no MIG type '1g.6gb' here"):
        Cutter(MIG).fits({Size(14, 25.0, "1g.6gb"): 1})
