"""A plan of each kind, written by hand, and what breaks it."""

from dataclasses import replace

import pytest

from gpulet.device import Device, Mechanism, Size, find_kind, mps_size
from gpulet.plan import Gpulet, Plan, Promise, Resident, Timeline, TimelineRun, Turn, placements
from gpulet.units import MS

TI = find_kind("rtx2080ti")
A100 = find_kind("a100-40gb")
MIG = {s.label: s for s in Device(0, A100, Mechanism.MIG).sizes()}

TURNS = Plan(
    (Device(0, TI, Mechanism.MPS),),
    (
        Gpulet(0, 0, mps_size(TI, 40), 0, 30 * MS, (Turn("a", 8, 260.0, 10 * MS), Turn("b", 4, 130.0, 12 * MS))),
        Gpulet(1, 0, mps_size(TI, 60), 40, 20 * MS, (Turn("c", 16, 800.0, 20 * MS),)),
    ),
    promises={"a": Promise(200.0, 266.0, 52 * MS, 60 * MS)},
)
MIG_LAYOUT = Plan(
    (Device(0, A100, Mechanism.MIG),),
    (
        Gpulet(0, 0, MIG["4g.20gb"], 0, 20 * MS, (Turn("a", 8, 800.0, 20 * MS),), processes=2),
        Gpulet(1, 0, MIG["2g.10gb"], 4, 10 * MS, (Turn("b", 8, 800.0, 10 * MS),)),
        Gpulet(2, 0, MIG["1g.5gb"], 6, 10 * MS, (Turn("b", 4, 400.0, 10 * MS),)),
    ),
)


def sms(n):
    return Size(n, 100 * n / TI.sms)


SESSION = Plan(
    (Device(0, TI, Mechanism.MPS),),
    timelines=(
        Timeline(
            0,
            100 * MS,
            (
                TimelineRun(0, 40 * MS, "a", sms(20), 8),
                TimelineRun(0, 100 * MS, "b", sms(40), 4),
                TimelineRun(40 * MS, 60 * MS, "c", sms(28), 4),
            ),
        ),
    ),
)
RESIDENT = Plan((Device(0, TI, Mechanism.WHOLE),), residents=(Resident(0, "a", 4 << 30), Resident(0, "b", 5 << 30)))


def test_hand_written_plans_of_every_kind_hold():
    for plan in (TURNS, MIG_LAYOUT, SESSION, RESIDENT):
        assert plan.violations() == ()
        assert plan.devices_used == 1


def test_an_overcut_device_is_named_with_its_numbers():
    wide = replace(TURNS.gpulets[1], size=mps_size(TI, 80))
    assert replace(TURNS, gpulets=(TURNS.gpulets[0], wide)).violations() == ("device 0 is cut into 120 of its 100 %",)


def test_turns_must_fit_their_duty_cycle():
    short = replace(TURNS.gpulets[0], duty_cycle=20 * MS)
    plan = replace(TURNS, gpulets=(short, TURNS.gpulets[1]))
    assert plan.violations() == ("gpulet 0: turns take 22 ms of a duty cycle of 20 ms",)


def test_promises_must_hold_the_slo_and_the_demand():
    late = replace(TURNS, promises={"a": Promise(200.0, 266.0, 70 * MS, 60 * MS)})
    assert late.violations() == ("model a: worst latency 70 ms, SLO 60 ms",)
    poor = replace(TURNS, promises={"a": Promise(300.0, 266.0, 52 * MS, 60 * MS)})
    assert poor.violations() == ("model a: 266 rows/s planned of 300",)


def test_two_mig_instances_cannot_share_a_slot():
    clash = replace(MIG_LAYOUT.gpulets[2], offset=5)
    plan = replace(MIG_LAYOUT, gpulets=(*MIG_LAYOUT.gpulets[:2], clash))
    assert plan.violations() == ("device 0: 1g.5gb at 5 overlaps 2g.10gb at 4",)


def test_the_turns_of_each_process_must_fit_its_duty_cycle():
    short = replace(MIG_LAYOUT.gpulets[0], duty_cycle=10 * MS)
    plan = replace(MIG_LAYOUT, gpulets=(short, *MIG_LAYOUT.gpulets[1:]))
    assert plan.violations() == ("gpulet 0: turns take 20 ms of a duty cycle of 10 ms",)


def test_an_unfolded_plan_has_a_gpulet_for_each_process_at_one_place():
    plan = MIG_LAYOUT.unfolded()
    assert [(g.id, g.offset, g.process, g.turns[0].rate) for g in plan.gpulets] == [
        (0, 0, 1, 400),
        (1, 0, 2, 400),
        (2, 4, 0, 800),
        (3, 6, 0, 400),
    ]
    assert plan.violations() == ()
    assert plan.devices_used == 1
    assert [placement.offset for placement in placements(plan.gpulets)] == [4, 6, 0]
    assert plan.unfolded() is plan
    assert TURNS.unfolded() is TURNS


def test_processes_that_are_not_each_there_once_are_named():
    first, second, *others = MIG_LAYOUT.unfolded().gpulets
    lost = replace(MIG_LAYOUT, gpulets=(first, *(replace(g, id=g.id - 1) for g in others)))
    assert lost.violations() == ("device 0: 4g.20gb at 0 has the processes 1, not each of 2 once",)
    twice = replace(MIG_LAYOUT, gpulets=(first, replace(second, process=1), *others))
    assert twice.violations() == ("device 0: 4g.20gb at 0 has the processes 1, 1, not each of 2 once",)
    third = replace(MIG_LAYOUT, gpulets=(replace(first, process=3), second, *others))
    assert third.violations()[0] == "gpulet 0 is process 3 of 2"
    none = replace(MIG_LAYOUT, gpulets=(replace(MIG_LAYOUT.gpulets[0], processes=0), *MIG_LAYOUT.gpulets[1:]))
    assert none.violations() == ("gpulet 0 is process 0 of 0",)


def test_a_neighbour_among_fellow_processes_is_still_overcut():
    first, second, *others = MIG_LAYOUT.unfolded().gpulets
    plan = replace(MIG_LAYOUT, gpulets=(first, second, replace(others[0], offset=2), others[1]))
    assert plan.violations() == ("device 0: 2g.10gb at 2 overlaps 4g.20gb at 0",)


@pytest.mark.parametrize("plan", [MIG_LAYOUT, MIG_LAYOUT.unfolded()], ids=["folded", "unfolded"])
def test_every_process_has_a_replica_in_memory(plan):
    assert [*plan.overfull({"a": 9 << 30, "b": 4 << 30})] == []
    whole = [*plan.overfull({"a": 16 << 30, "b": 5 << 30})][-1]
    assert whole == f"device 0: its gpulets' models need {42 << 30} of {40 << 30} bytes"


def test_a_timeline_must_not_take_more_sms_than_there_are_nor_leave_its_period():
    runs = SESSION.timelines[0].runs
    greedy = replace(SESSION.timelines[0], runs=(*runs, TimelineRun(50 * MS, 10 * MS, "d", sms(14), 1)))
    assert replace(SESSION, timelines=(greedy,)).violations() == ("device 0 is cut into 82 of its 68 SMs at 50 ms",)
    long = replace(SESSION.timelines[0], runs=(TimelineRun(90 * MS, 20 * MS, "a", sms(20), 8),))
    assert replace(SESSION, timelines=(long,)).violations() == ("device 0: a ends at 110 of 100 ms",)


def test_residents_must_fit_the_memory():
    more = replace(RESIDENT, residents=(*RESIDENT.residents, Resident(0, "c", 3 << 30)))
    assert more.violations() == (f"device 0: residents need {12 << 30} of {11 << 30} bytes",)


def test_an_unknown_device_is_named():
    lost = replace(RESIDENT, residents=(Resident(3, "a"),))
    assert lost.violations() == ("device 3 is not one of the 1 devices",)


def test_what_does_not_fit_the_memory_of_its_mig_instance_is_named_with_both_numbers():
    room = next(t.memory for t in A100.mig_types if t.label == "4g.20gb")
    fits, too_much = {"a": room // 2}, {"a": room // 2 + 1}
    assert list(MIG_LAYOUT.overfull(fits)) == []
    line = f"device 0: 4g.20gb at 0: its models need {2 * (room // 2 + 1)} of {room} bytes"
    assert list(MIG_LAYOUT.overfull(too_much)) == [line]
    assert list(MIG_LAYOUT.unfolded().overfull(too_much)) == [line]
