import pytest

from gpulet.device import Device, Mechanism, Placement, Size, cpu_kind, find_kind, mps_size, overcut, sizes
from gpulet.errors import ConfigError

A100 = Device(0, find_kind("a100-40gb"), Mechanism.MIG)
MIG = {size.label: size for size in A100.sizes()}


def test_twenty_percent_of_a_2080_ti_is_14_sms_with_nominal_share_20():
    size = mps_size(find_kind("rtx2080ti"), 20)
    assert (size.sms, size.share_pct) == (14, 20.0)


def test_sizes_follow_the_mechanism():
    assert [s.sms for s in sizes(cpu_kind(3), Mechanism.CPU)] == [1, 2, 3]
    assert [s.sms for s in sizes(find_kind("h200-141gb"), Mechanism.GREEN)] == list(range(8, 129, 8))
    assert [s.share_pct for s in sizes(find_kind("rtx2080ti"), Mechanism.MPS)] == [20, 40, 50, 60, 80, 100]
    assert [s.sms for s in sizes(find_kind("t4"), Mechanism.WHOLE)] == [40]


def test_unknown_kinds_and_unwritten_geometries_are_refused_by_name():
    with pytest.raises(ConfigError, match="unknown device kind 'gtx9'; known are cpu, rtx2080ti"):
        find_kind("gtx9")
    with pytest.raises(ConfigError, match="h100-80gb has no MIG types on record"):
        sizes(find_kind("h100-80gb"), Mechanism.MIG)


def test_mig_types_fit_where_their_slots_are_free():
    fits = [Placement(MIG["3g.20gb"], 4), Placement(MIG["2g.10gb"], 0), Placement(MIG["1g.5gb"], 2)]
    assert overcut(A100, fits) == ()
    assert overcut(A100, [Placement(MIG["3g.20gb"], 2)]) == ("device 0: 3g.20gb cannot start at slot 2",)
    clash = [Placement(MIG["4g.20gb"], 0), Placement(MIG["1g.5gb"], 3)]
    assert overcut(A100, clash) == ("device 0: 1g.5gb at 3 overlaps 4g.20gb at 0",)


@pytest.mark.parametrize(("parts", "fits"), [((50, 50), True), ((20, 80), True), ((60, 60), False)])
def test_mps_shares_add_up_to_at_most_100(parts, fits):
    device = Device(1, find_kind("rtx2080ti"), Mechanism.MPS)
    found = overcut(device, [Placement(mps_size(device.kind, p), 0) for p in parts])
    assert found == (() if fits else ("device 1 is cut into 120 of its 100 %",))


def test_cores_must_be_disjoint_and_inside_the_device():
    device = Device(0, cpu_kind(4), Mechanism.CPU)
    two = Size(2, 50.0, "2 cores")
    assert overcut(device, [Placement(two, 0), Placement(two, 2)]) == ()
    assert overcut(device, [Placement(two, 0), Placement(two, 1)]) == ("device 0: 2 cores at 1 overlaps 2 cores at 0",)
    assert overcut(device, [Placement(two, 3)]) == ("device 0: 2 cores at 3 ends at 5 of 4",)


def test_whole_devices_overlap_by_definition():
    device = Device(0, find_kind("t4"), Mechanism.WHOLE)
    whole = device.sizes()[0]
    assert overcut(device, [Placement(whole, 0), Placement(whole, 0)]) == ()
