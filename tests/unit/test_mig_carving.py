"""MIG instances for a plan: what is asked for is what is there, and what others made stays."""

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_nvml import FakeNvml, below_pynvml
from gpulet.device import KINDS, Device, Mechanism
from gpulet.errors import CarveError, GpuletError, PlanError, Unusable
from gpulet.executors.mig import Carver, Made
from gpulet.executors.migbinding import bound, visible
from gpulet.executors.nvml import Code, MigMode
from gpulet.executors.nvmllibrary import CarvingLibrary
from gpulet.mig import layouts
from gpulet.plan import Gpulet, Plan

KIND = "h200-141gb"
CREATE, COMPUTE = "nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"
END_COMPUTE, END = "nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy"


def plan_of(*spots, kind=KIND, gpus=1, processes=1):
    """A plan with a gpulet at each (GPU, type, slot)."""
    devices = tuple(Device(n, KINDS[kind], Mechanism.MIG) for n in range(gpus))
    sizes = {s.label: s for s in devices[0].sizes()}
    return Plan(
        devices, tuple(Gpulet(n, gpu, sizes[label], at, 0, (), processes) for n, (gpu, label, at) in enumerate(spots))
    )


def carver(fake, made=(), allowed=None):
    return Carver(fake, [g.uuid for g in fake.state] if allowed is None else allowed, made, pause=lambda _: None)


HALVES = plan_of((0, "4g.71gb", 0), (0, "3g.71gb", 4))
SMALL = plan_of((0, "2g.35gb", 0), (0, "1g.18gb", 2), (0, "1g.18gb", 6))


def spots(plan):
    return {(g.device, g.size.label, g.offset, True) for g in plan.gpulets}


def test_what_is_asked_for_is_there_and_bound():
    fake = FakeNvml(KIND)
    uuids = carver(fake).carve(HALVES)
    assert fake.standing() == spots(HALVES)
    assert uuids == bound(fake, HALVES)
    assert visible(uuids[1]) == {"CUDA_VISIBLE_DEVICES": uuids[1]}
    assert len(set(uuids.values())) == 2


def test_processes_of_one_gpulet_share_its_instance():
    fake = FakeNvml(KIND)
    plan = plan_of((0, "3g.71gb", 4), processes=2).unfolded()
    uuids = carver(fake).carve(plan)
    assert uuids[0] == uuids[1]
    assert len(fake.standing()) == 1


def test_carving_again_changes_nothing():
    fake = FakeNvml(KIND)
    first = carver(fake)
    uuids = first.carve(SMALL)
    fake.calls.clear()
    assert first.carve(SMALL) == carver(fake, first.made).carve(SMALL) == carver(fake).carve(SMALL) == uuids
    assert fake.calls == []


def test_a_new_plan_ends_what_the_old_one_made_and_keeps_what_both_have():
    fake = FakeNvml(KIND)
    mine = carver(fake)
    before = mine.carve(plan_of((0, "4g.71gb", 0), (0, "3g.71gb", 4)))
    after = mine.carve(plan_of((0, "2g.35gb", 0), (0, "3g.71gb", 4)))
    assert fake.standing() == {(0, "2g.35gb", 0, True), (0, "3g.71gb", 4, True)}
    assert after[1] == before[1]
    assert {(m.label, m.start) for m in mine.made} == {("2g.35gb", 0), ("3g.71gb", 4)}


def test_a_later_process_ends_only_what_was_written_down_as_ours():
    fake = FakeNvml(KIND)
    first = carver(fake)
    first.carve(HALVES)
    with pytest.raises(Unusable, match="not ours and in the way"):
        carver(fake).carve(SMALL)
    carver(fake, first.made).carve(SMALL)
    assert fake.standing() == spots(SMALL)


def test_what_only_looks_like_ours_is_not_ended():
    fake = FakeNvml(KIND)
    number = fake.put(0, "4g.71gb", 0)
    uuid = fake.state[0].instances[number].uuid
    for claim in (
        Made("GPU-else", number, "4g.71gb", 0, uuid),
        Made(fake.state[0].uuid, number, "4g.71gb", 0, "MIG-x"),
    ):
        with pytest.raises(Unusable, match="not ours"):
            carver(fake, [claim]).carve(SMALL)
    assert fake.calls == []


def test_one_in_the_way_is_named_with_the_commands_that_clear_it():
    fake = FakeNvml(KIND)
    fake.put(0, "1g.18gb", 5)
    why = r"1g\.18gb at 5 of GPU 0 is not ours .* of 3g\.71gb at 4; .* nvidia-smi mig -i 0 -gi 1 -dci && .* -dgi"
    with pytest.raises(Unusable, match=why):
        carver(fake).carve(HALVES)
    assert fake.calls == []


def test_one_that_stands_as_planned_is_taken_unless_somebody_computes_there():
    fake = FakeNvml(KIND)
    number = fake.put(0, "3g.71gb", 4)
    uuid = fake.state[0].instances[number].uuid
    assert carver(fake).carve(HALVES)[1] == uuid
    fake.holders[uuid] = (4711,)
    with pytest.raises(Unusable, match=r"3g.71gb at 4 of GPU 0 is held by process 4711"):
        carver(fake).carve(HALVES)


def test_ours_is_not_ended_while_a_process_holds_it():
    fake = FakeNvml(KIND)
    mine = carver(fake)
    fake.holders[mine.carve(HALVES)[0]] = (4711,)
    with pytest.raises(Unusable, match=r"4g.71gb at 0 of GPU 0 is held by process 4711"):
        mine.carve(SMALL)
    assert fake.standing() == spots(HALVES)


def test_without_permission_nothing_is_made_and_what_stands_is_bound():
    fake = FakeNvml(KIND)
    with pytest.raises(Unusable, match=r"no operator named it; to do: make 4g.71gb at 0, make 3g.71gb at 4"):
        carver(fake, allowed=()).carve(HALVES)
    with pytest.raises(Unusable, match=r"not carved: 4g.71gb at 0 of GPU 0, 3g.71gb at 4 of GPU 0"):
        bound(fake, HALVES)
    fake.put(0, "4g.71gb", 0)
    fake.put(0, "3g.71gb", 4)
    assert carver(fake, allowed=()).carve(HALVES) == bound(fake, HALVES)
    assert fake.calls == []


def test_who_may_not_see_slots_is_bound_by_type_to_idle_instances():
    fake = FakeNvml(KIND)
    fake.put(0, "2g.35gb", 0)
    fake.put(0, "1g.18gb", 3, pid=4711)
    fake.put(0, "1g.18gb", 4)
    fake.is_root = False
    with pytest.raises(Unusable, match=r"not carved: 1g\.18gb at 6 of GPU 0;"):
        bound(fake, SMALL)
    fake.put(0, "1g.18gb", 5)
    uuids = bound(fake, SMALL)
    idle = {i.uuid for i in fake.state[0].instances.values() if i.start != 3}
    assert set(uuids.values()) == idle
    twice = plan_of((0, "1g.18gb", 0), processes=2).unfolded()
    assert len(set(bound(fake, twice).values())) == 1


@pytest.mark.parametrize(
    ("arrange", "plan", "why"),
    [
        (lambda f: setattr(f.state[0], "mig", MigMode.OFF), HALVES, r"MIG off; an operator may run nvidia-smi -i 0"),
        (lambda f: None, plan_of((1, "3g.71gb", 4), gpus=2), "device 1 is planned, NVML shows 1 GPUs"),
        (lambda f: None, plan_of((0, "3g.40gb", 4), kind="h100-80gb"), "no MIG type 3g.40gb of a h100-80gb"),
    ],
)
def test_a_gpu_that_is_not_as_planned_is_refused(arrange, plan, why):
    fake = FakeNvml(KIND)
    arrange(fake)
    with pytest.raises(Unusable, match=why):
        carver(fake).carve(plan)
    assert fake.calls == []


def test_a_type_with_other_sms_than_planned_is_refused():
    """An H20 is cut like an H100 with 96 GB and has 78 SMs."""
    fake = FakeNvml("h100-96gb")
    types = fake.types(0)
    fake.types = lambda _: tuple(
        type(t)(*[t.number, t.label, t.slices, 9, *[getattr(t, f) for f in ("memory", "most", "span", "starts")]])
        for t in types
    )
    with pytest.raises(Unusable, match=r"3g\.48gb is planned with 4 memory slices from 4, 60 SMs; it has .* 9 SMs"):
        carver(fake).carve(plan_of((0, "3g.48gb", 4), kind="h100-96gb"))


def test_plans_that_are_not_migs_are_refused():
    fake = FakeNvml(KIND)
    with pytest.raises(PlanError, match="cut by green"):
        carver(fake).carve(Plan((Device(0, KINDS[KIND], Mechanism.GREEN),)))
    with pytest.raises(PlanError, match="overlaps"):
        carver(fake).carve(plan_of((0, "4g.71gb", 0), (0, "1g.18gb", 1)))


def test_what_somebody_else_ended_is_ours_no_more():
    fake = FakeNvml(KIND)
    mine = carver(fake)
    mine.carve(HALVES)
    fake.state[0].instances.clear()
    mine.jobs(HALVES)
    assert mine.made == ()


def test_an_instance_that_lingers_is_ended_a_moment_later():
    fake = FakeNvml(KIND)
    mine = carver(fake)
    mine.carve(HALVES)
    fake.fail(END, Code.IN_USE, times=3)
    mine.carve(SMALL)
    assert fake.standing() == spots(SMALL)


def test_what_could_not_be_undone_is_said():
    fake = FakeNvml(KIND)
    fake.fail(COMPUTE, Code.INSUFFICIENT_RESOURCES, after=1)
    fake.fail(END, Code.NO_PERMISSION)
    with pytest.raises(
        CarveError, match=r"insufficient resources \(23\); 3g.71gb at 4 of GPU 0 was made and stands"
    ) as failed:
        carver(fake).carve(HALVES)
    assert len(failed.value.left) == 1
    assert fake.standing() == {(0, "3g.71gb", 4, False)}


def test_what_was_left_is_cleared_by_the_next_plan():
    fake = FakeNvml(KIND)
    mine = carver(fake)
    fake.fail(COMPUTE, Code.INSUFFICIENT_RESOURCES, after=1)
    fake.fail(END, Code.NO_PERMISSION)
    with pytest.raises(CarveError):
        mine.carve(HALVES)
    mine.carve(SMALL)
    assert fake.standing() == spots(SMALL)


def test_an_interrupt_leaves_the_old_state(monkeypatch):
    fake = FakeNvml(KIND)
    mine = carver(fake)
    mine.carve(HALVES)
    create, interrupts = fake.create_compute, [KeyboardInterrupt()]

    def interrupted(*where):
        if interrupts:
            raise interrupts.pop()
        create(*where)

    monkeypatch.setattr(fake, "create_compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine.carve(SMALL)
    assert fake.standing() == spots(HALVES)


def test_it_goes_through_the_real_package(monkeypatch):
    fake = FakeNvml(KIND)
    with below_pynvml(monkeypatch, fake):
        mine = Carver(CarvingLibrary(pynvml, fake.allowed), fake.allowed, pause=lambda _: None)
        mine.carve(HALVES)
        uuids = mine.carve(SMALL)
    assert fake.standing() == spots(SMALL)
    assert uuids == bound(fake, SMALL)


LAYOUTS = {kind: layouts(KINDS[kind].geometry) for kind in (KIND, "a100-40gb", "a30")}


@st.composite
def cases(draw):
    """Two GPUs of a kind, what strangers have there, three plans, and which calls fail."""
    kind = draw(st.sampled_from(sorted(LAYOUTS)))
    strangers = [(gpu, i.type.label, i.start) for gpu in range(2) for i in draw(st.sampled_from(LAYOUTS[kind]))[:2]]
    kept = draw(st.booleans()) * [
        (spot, draw(st.booleans()), draw(st.sampled_from((0, 0, 4711)))) for spot in strangers if draw(st.booleans())
    ]
    plans = [
        plan_of(
            *[(gpu, i.type.label, i.start) for gpu in range(2) for i in draw(st.sampled_from(LAYOUTS[kind]))],
            kind=kind,
            gpus=2,
        )
        for _ in range(3)
    ]
    codes = st.sampled_from((Code.INSUFFICIENT_RESOURCES, Code.NO_PERMISSION, Code.IN_USE, Code.UNKNOWN))
    failures = draw(
        st.lists(
            st.tuples(
                st.sampled_from((CREATE, COMPUTE, END_COMPUTE, END)),
                codes,
                st.integers(0, 4),
                st.sampled_from((1, 2, 50)),
            ),
            max_size=3,
        )
    )
    return kind, kept, plans, failures


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(cases())
def test_any_sequence_of_plans_is_carved_whole_or_left_as_it_was_or_told(case):
    kind, strangers, plans, failures = case
    fake = FakeNvml(kind, kind)
    for (gpu, label, start), whole, pid in strangers:
        fake.put(gpu, label, start, whole=whole, pid=pid if whole else 0)
    theirs = [dict(g.instances) for g in fake.state]
    mine = carver(fake)
    for call, code, after, times in failures:
        fake.fail(call, code, after, times)
    for plan in plans:
        before, changes, left = fake.standing(), len(fake.calls), ()
        try:
            uuids = mine.carve(plan)
        except CarveError as error:
            left = error.left
        except GpuletError:
            assert fake.standing() == before
            assert len(fake.calls) == changes
        else:
            others = {(g, i.label, i.start, bool(i.uuid)) for g, there in enumerate(theirs) for i in there.values()}
            assert before != fake.standing() or len(fake.calls) == changes
            assert fake.standing() == spots(plan) | others
            before, changes = fake.standing(), len(fake.calls)
            assert mine.carve(plan) == bound(fake, plan) == uuids
            assert len(fake.calls) == changes
        assert left or fake.standing() == before
        for gpu, there in enumerate(theirs):
            assert there.items() <= fake.state[gpu].instances.items(), "somebody else's instance was touched"
        assert {(m.gpu, m.number, m.label, m.start, m.uuid) for m in mine.made} == {
            (g.uuid, number, i.label, i.start, i.uuid)
            for g, there in zip(fake.state, theirs, strict=True)
            for number, i in g.instances.items()
            if number not in there
        }, "what we made is not what we know to have made"
