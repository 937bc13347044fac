import pytest

from gpulet.device import (
    KINDS,
    Device,
    Mechanism,
    Placement,
    Size,
    cpu_kind,
    find_kind,
    mps_size,
    overcut,
    sizes,
    with_mig_sms,
)
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


def test_unknown_kinds_and_kinds_without_mig_are_refused_by_name():
    with pytest.raises(ConfigError, match="unknown device kind 'gtx9'; known are cpu, rtx2080ti"):
        find_kind("gtx9")
    for kind in (cpu_kind(4), *map(find_kind, ("rtx2080ti", "v100", "t4"))):
        with pytest.raises(ConfigError, match=f"device kind {kind.name} has no MIG; kinds that have: a30, a100-40gb"):
            sizes(kind, Mechanism.MIG)


def test_hoppers_sms_are_not_in_proportion_to_the_slices():
    found = sizes(find_kind("h200-141gb"), Mechanism.MIG)
    assert [(s.label, s.sms) for s in found] == [
        ("1g.18gb", 16),
        ("2g.35gb", 32),
        ("3g.71gb", 60),
        ("4g.71gb", 64),
        ("7g.141gb", 132),
    ]
    assert [s.sms for s in sizes(find_kind("a30"), Mechanism.MIG)] == [14, 28, 56]


B200 = {"2g.45gb": 36, "3g.90gb": 66, "4g.90gb": 72, "7g.180gb": 148}


def test_unread_sms_cannot_be_planned_on():
    with pytest.raises(ConfigError) as raised:
        sizes(find_kind("b200"), Mechanism.MIG)
    assert str(raised.value) == (
        "device kind b200: nobody has read the SMs of MIG types 2g.45gb, 3g.90gb, 4g.90gb, 7g.180gb; read them from the "
        'device (nvidia-smi mig -lgip) and write mig_sms = {"2g.45gb" = SMS, "3g.90gb" = SMS, "4g.90gb" = SMS, '
        '"7g.180gb" = SMS} under [[devices]]'
    )
    assert [s.sms for s in sizes(with_mig_sms(find_kind("b200"), B200), Mechanism.MIG)] == [18, 36, 66, 72, 148]


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.sms])
def test_a_kind_whose_sms_nobody_has_read_makes_no_device(name):
    kind = find_kind(name)
    for mechanism in (Mechanism.WHOLE, Mechanism.MPS, Mechanism.GREEN, Mechanism.MIG):
        with pytest.raises(ConfigError, match=name):
            sizes(kind, mechanism)
        with pytest.raises(ConfigError, match=f"device kind {name}: its SMs are not on record"):
            Device(0, kind, mechanism)
    with pytest.raises(ConfigError, match="not on record"):
        mps_size(kind, 50)


def test_a_widest_type_that_was_read_stands_for_its_device():
    kind = with_mig_sms(find_kind("rtxpro6000"), {"1g.24gb": 40, "2g.48gb": 80, "4g.96gb": 180})
    assert [(s.sms, round(s.share_pct)) for s in Device(0, kind, Mechanism.MIG).sizes()] == [
        (40, 22),
        (80, 44),
        (180, 100),
    ]


@pytest.mark.parametrize(
    ("name", "reading", "message"),
    [
        ("b200", {"9g.1gb": 5}, "mig_sms: device kind b200 has no MIG type 9g.1gb; it has 1g.23gb, 1g.45gb, 2g.45gb"),
        ("v100", {"1g.5gb": 5}, "mig_sms: device kind v100 has no MIG type 1g.5gb; it has none"),
        ("b200", {"7g.180gb": 149}, "mig_sms: 7g.180gb = 149, but a b200 has 148 SMs"),
        ("gb200", {"7g.186gb": 150, "1g.47gb": 151}, "mig_sms: 1g.47gb = 151, but a gb200 has 150 SMs"),
        ("b200", {"2g.45gb": 18}, "mig_sms: 1g.23gb has 18 SMs, 2g.45gb only 18"),
    ],
)
def test_an_impossible_reading_is_refused(name, reading, message):
    with pytest.raises(ConfigError, match=message):
        with_mig_sms(find_kind(name), reading)


def test_a_gpu_makes_one_instance_with_media_engines():
    media = Size(14, 13.0, "1g.5gb+me")
    assert overcut(A100, [Placement(media, 0), Placement(MIG["1g.5gb"], 1)]) == ()
    assert overcut(A100, [Placement(media, 0), Placement(media, 1)]) == (
        "device 0: 1g.5gb+me and 1g.5gb+me: a GPU makes one +me instance",
    )


def test_double_memory_takes_the_slot_that_seven_single_ones_strand():
    wide = Size(14, 13.0, "1g.10gb")
    singles = [Placement(MIG["1g.5gb"], slot) for slot in range(6)]
    assert overcut(A100, [*singles, Placement(wide, 6)]) == ()
    assert overcut(A100, [Placement(wide, 5)]) == ("device 0: 1g.10gb cannot start at slot 5",)


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
