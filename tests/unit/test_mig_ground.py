"""MIG gpulets: bound to what stands, made where an operator allows it, noted, and never cut from under a worker."""

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_mps import FakeDaemons, binary
from fake_nvml import FakeNvml
from gpulet.device import KINDS, Device, Mechanism
from gpulet.errors import CarveError, GpuletError, MpsError, PlanError, Unproven, Unusable
from gpulet.executors.daemons import Daemons
from gpulet.executors.mig import Made
from gpulet.executors.migground import MadeFile, MigGround, Permission
from gpulet.executors.nvml import Code, MigMode
from gpulet.executors.wire import Ready
from gpulet.mig import layouts
from gpulet.plan import Gpulet, Plan

KIND = "h200-141gb"
CREATE, COMPUTE = "nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"


def plan_of(*spots, gpus=1):
    """A plan with a gpulet at each (GPU, type, slot) or (GPU, type, slot, processes), one for each process."""
    devices = tuple(Device(n, KINDS[KIND], Mechanism.MIG) for n in range(gpus))
    sizes = {s.label: s for s in devices[0].sizes()}
    gpulets = (Gpulet(n, gpu, sizes[label], at, 0, (), *more) for n, (gpu, label, at, *more) in enumerate(spots))
    return Plan(devices, tuple(gpulets)).unfolded()


LEFT = (0, "4g.71gb", 0)
RIGHT = (0, "3g.71gb", 4)
HALVES = plan_of(LEFT, RIGHT)
SMALL = plan_of((0, "2g.35gb", 0), (0, "1g.18gb", 2))
SHARED = plan_of(LEFT, (0, "3g.71gb", 4, 2))


class Machine:
    """A fake GPU or two, a folder for what is noted, and grounds on them."""

    def __init__(self, folder, gpus=1):
        self.nvml = FakeNvml(*[KIND] * gpus)
        self.mps = FakeDaemons()
        self.noted = MadeFile(folder / "state" / "mig.json")
        self.folder = folder

    def ground(self, allowed=None, has_mps=True, pause=lambda _: None):
        gpus = [g.uuid for g in self.nvml.state] if allowed is None else allowed
        daemons = Daemons(binary(self.folder), self.folder, self.mps, pause=lambda _: None)
        permission = Permission(gpus, lambda _: self.nvml, self.noted)
        return MigGround(lambda: self.nvml, permission, daemons if has_mps else None, pause)

    def reader(self):
        return MigGround(lambda: self.nvml, None, None)

    def serve(self, posts, first=900):
        """Each post's worker computes in its instance."""
        for pid, post in enumerate(posts, first):
            self.nvml.holders[uuid_of(post)] = (pid,)

    def standing(self):
        return {(gpu, label, start) for gpu, label, start, _ in self.nvml.standing()}


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def uuid_of(post):
    return post.environment["CUDA_VISIBLE_DEVICES"]


def test_a_gpulet_is_a_process_in_its_own_instance(machine):
    ground = machine.ground()
    posts = ground.prepare(HALVES)
    assert machine.standing() == {LEFT, RIGHT}
    there = {(i.label, i.start): i.uuid for i in machine.nvml.instances(0)}
    assert [dict(post.environment) for post in posts] == [
        {"CUDA_VISIBLE_DEVICES": there["4g.71gb", 0]},
        {"CUDA_VISIBLE_DEVICES": there["3g.71gb", 4]},
    ]
    assert all(post.is_alone and post.gpulets == (g,) for post, g in zip(posts, HALVES.gpulets, strict=True))
    assert not machine.mps.daemons
    ground.close()
    assert machine.standing() == set()
    assert machine.noted.read() == ()


def test_without_permission_what_stands_is_bound_and_nothing_changes(machine):
    with pytest.raises(Unusable, match=r"not carved: 4g.71gb at 0"):
        machine.reader().prepare(HALVES)
    machine.nvml.put(*LEFT)
    machine.nvml.put(*RIGHT)
    for ground in (machine.reader(), machine.ground(allowed=())):
        posts = ground.prepare(HALVES)
        ground.settle(HALVES)
        ground.close()
        assert {uuid_of(post) for post in posts} == {i.uuid for i in machine.nvml.instances(0)}
    assert machine.nvml.calls == []
    assert not machine.noted.path.exists()


def test_only_gpus_that_were_named_are_cut(tmp_path):
    machine = Machine(tmp_path, gpus=2)
    ground = machine.ground(allowed=[machine.nvml.state[1].uuid])
    with pytest.raises(Unusable, match=r"GPU 0 \(GPU-00000000-fake\) may not be cut"):
        ground.prepare(plan_of(LEFT, (1, "3g.71gb", 4), gpus=2))
    assert machine.nvml.calls == []
    machine.nvml.put(*LEFT)
    ground.prepare(plan_of(LEFT, (1, "3g.71gb", 4), gpus=2))
    ground.close()
    assert machine.standing() == {LEFT}


@pytest.mark.parametrize("has_permission", [False, True])
def test_an_instance_in_which_somebody_computes_is_not_taken(machine, has_permission):
    machine.nvml.put(*LEFT, pid=4711)
    machine.nvml.put(*RIGHT)
    ground = machine.ground() if has_permission else machine.reader()
    with pytest.raises(Unusable, match=r"4g.71gb at 0 of GPU 0 is held by process 4711"):
        ground.prepare(HALVES)
    assert machine.nvml.calls == []


def test_foreign_instances_stay(machine):
    theirs = (0, "1g.18gb", 6)
    machine.nvml.put(*theirs)
    ground = machine.ground()
    with pytest.raises(Unusable, match=r"is not ours and in the way of 3g.71gb at 4"):
        ground.prepare(HALVES)
    ground.prepare(plan_of(LEFT, theirs))
    ground.settle(plan_of(LEFT))
    ground.close()
    assert machine.standing() == {theirs}


def test_a_share_is_proven_by_its_types_sms(machine):
    ground = machine.ground()
    posts = ground.prepare(HALVES)
    ground.prove(posts[0], 4711, Ready((), sms=64))
    with pytest.raises(Unproven, match=r"gpulet 1: process 4712 counts 132 SMs; 3g.71gb at 4 of GPU 0 has 60"):
        ground.prove(posts[1], 4712, Ready((), sms=132))


# Several processes in one instance.


def test_fellows_share_an_instance_through_a_daemon_in_it(machine):
    ground = machine.ground()
    alone, *fellows = ground.prepare(SHARED)
    uuid = uuid_of(fellows[0])
    (daemon,) = machine.mps.running.values()
    assert daemon.gpu == uuid
    assert alone.environment == {"CUDA_VISIBLE_DEVICES": uuid_of(alone)}
    for post in fellows:
        assert post.environment == {
            "CUDA_VISIBLE_DEVICES": uuid,
            "CUDA_MPS_PIPE_DIRECTORY": str(daemon.folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(daemon.folder / "log"),
        }
    machine.mps.attach(uuid, 4711)
    ground.prove(alone, 4710, Ready((), sms=64))
    ground.prove(fellows[0], 4711, Ready((), sms=60))
    with pytest.raises(Unproven, match=f"process 4712 is not a client of the MPS daemon of {uuid}"):
        ground.prove(fellows[1], 4712, Ready((), sms=60))
    with pytest.raises(Unproven, match="counts 132 SMs"):
        ground.prove(fellows[0], 4711, Ready((), sms=132))
    ground.dismiss(alone, 4710)
    ground.dismiss(fellows[0], 4711)
    assert daemon.told == ["terminate_client 500 4711"]
    ground.settle(SHARED)
    assert daemon.is_running
    ground.close()
    assert not machine.mps.running


def test_fellows_need_the_control_binary(machine):
    with pytest.raises(Unusable, match=r"2 processes in 3g.71gb at 4 of GPU 0 need nvidia-cuda-mps-control"):
        machine.ground(has_mps=False).prepare(SHARED)
    assert machine.nvml.calls == []


def test_where_the_daemon_does_not_start_the_instances_are_ended(machine):
    ground = machine.ground()
    uuid = uuid_of(ground.prepare(SHARED)[1])
    ground.close()
    machine.mps.unable.add(uuid)
    with pytest.raises(MpsError, match="the device is used by another"):
        ground.prepare(SHARED)
    assert machine.standing() == set()
    assert machine.noted.read() == ()


def test_a_daemon_that_died_is_named_and_replaced(machine):
    ground = machine.ground()
    before = ground.prepare(SHARED)
    ground.settle(SHARED)
    machine.serve(before)
    machine.mps.running.clear()
    assert ground.lost == (0,)
    after = ground.prepare(SHARED)
    assert ground.lost == ()
    assert after[0] == before[0]
    assert after[1].environment["CUDA_MPS_PIPE_DIRECTORY"] != before[1].environment["CUDA_MPS_PIPE_DIRECTORY"]


# Re-cuts.


def test_a_re_cut_beside_workers_uses_free_slots_and_in_force_ends_the_old_ones(machine):
    ground = machine.ground()
    old = plan_of(RIGHT)
    before = ground.prepare(old)
    ground.settle(old)
    machine.serve(before)
    new = plan_of((0, "2g.35gb", 0), (0, "1g.18gb", 2))
    posts = ground.prepare(new)
    assert machine.standing() == {RIGHT, (0, "2g.35gb", 0), (0, "1g.18gb", 2)}
    machine.serve(posts, first=950)
    ground.settle(new)
    assert RIGHT in machine.standing(), "its process is listed for a moment yet"
    machine.nvml.holders.pop(uuid_of(before[0]))
    ground.settle(new)
    assert machine.standing() == {(0, "2g.35gb", 0), (0, "1g.18gb", 2)}
    machine.nvml.holders.clear()
    ground.close()
    assert machine.standing() == set()


def test_a_re_cut_that_needs_the_slots_of_workers_is_refused_by_name_and_the_old_plan_stays(machine):
    ground = machine.ground()
    before = ground.prepare(HALVES)
    ground.settle(HALVES)
    machine.serve(before)
    calls = len(machine.nvml.calls)
    with pytest.raises(
        Unusable, match=r"GPU 0: 1g.18gb at 2, 2g.35gb at 0 cannot be made beside 4g.71gb at 0, where wor"
    ):
        ground.prepare(SMALL)
    assert len(machine.nvml.calls) == calls
    again = ground.prepare(plan_of(RIGHT))
    assert again[0].environment == before[1].environment, "what both plans have is not made twice"


def test_a_plan_that_was_prepared_and_given_up_is_forgotten_by_settling_the_old_one(machine):
    ground = machine.ground()
    old = plan_of(RIGHT)
    machine.serve(ground.prepare(old))
    ground.settle(old)
    ground.prepare(SMALL)
    ground.settle(old)
    assert machine.standing() == {RIGHT}
    ground.prepare(HALVES)


def test_a_re_cut_keeps_somebody_elses_instance_that_our_worker_uses(machine):
    machine.nvml.put(*RIGHT)
    ground = machine.ground()
    old = plan_of(RIGHT)
    machine.serve(ground.prepare(old))
    ground.settle(old)
    assert uuid_of(ground.prepare(HALVES)[1]) == machine.nvml.instances(0)[1].uuid


def test_who_may_not_see_slots_keeps_what_its_workers_use(machine):
    for start in (4, 5, 6):
        machine.nvml.put(0, "1g.18gb", start)
    machine.nvml.is_root = False
    ground = machine.reader()
    old = plan_of((0, "1g.18gb", 4))
    (before,) = ground.prepare(old)
    ground.settle(old)
    first, second = ground.prepare(plan_of((0, "1g.18gb", 4), (0, "1g.18gb", 0)))
    assert first.environment == before.environment
    assert uuid_of(second) != uuid_of(first)


def test_a_step_that_fails_leaves_what_serves(machine):
    ground = machine.ground()
    old = plan_of(RIGHT)
    machine.serve(ground.prepare(old))
    ground.settle(old)
    noted = machine.noted.read()
    machine.nvml.fail(COMPUTE, Code.INSUFFICIENT_RESOURCES, after=1)
    with pytest.raises(CarveError, match="what stood before stands again"):
        ground.prepare(SMALL)
    assert machine.standing() == {RIGHT}
    assert machine.noted.read() == noted


# What is noted.


def test_what_is_made_is_noted_and_a_later_process_ends_it(machine):
    machine.ground().prepare(HALVES)
    assert {(m.gpu, m.label, m.start) for m in machine.noted.read()} == {
        ("GPU-00000000-fake", "4g.71gb", 0),
        ("GPU-00000000-fake", "3g.71gb", 4),
    }
    machine.ground().prepare(SMALL)
    assert machine.standing() == {(0, "2g.35gb", 0), (0, "1g.18gb", 2)}
    assert [path.name for path in machine.noted.path.parent.iterdir()] == ["mig.json"]


def test_an_instance_is_noted_before_the_next_step(machine, monkeypatch):
    seen = []
    compute = machine.nvml.create_compute
    monkeypatch.setattr(
        machine.nvml, "create_compute", lambda *where: (seen.append(machine.noted.read()), compute(*where))
    )
    machine.ground().prepare(HALVES)
    assert [[(m.label, bool(m.uuid)) for m in made] for made in seen] == [
        [("4g.71gb", False)],
        [("4g.71gb", True), ("3g.71gb", False)],
    ]


def test_a_file_that_cannot_be_read_or_written_is_said_before_anything_changes(machine):
    machine.noted.path.parent.mkdir()
    machine.noted.path.write_text('[{"gpu": 1}]')
    with pytest.raises(
        Unusable, match=r"mig.json: cannot be read, and says which MIG instances are ours: Expected `str`"
    ):
        machine.ground().prepare(HALVES)
    machine.noted.path.unlink()
    machine.noted.path.parent.rmdir()
    machine.noted.path.parent.write_text("in the way")
    with pytest.raises(Unusable, match=r"cannot be (read|written)"):
        machine.ground().prepare(HALVES)
    assert machine.nvml.calls == []


def test_what_is_written_is_read_back(tmp_path):
    made = (Made("GPU-a", 3, "1g.18gb", 6, "MIG-b"), Made("GPU-a", 4, "1g.18gb", 5))
    file = MadeFile(tmp_path / "new" / "mig.json")
    assert file.read() == ()
    file.write(made)
    assert file.read() == made
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mig.json"]


# The end.


def test_closing_waits_a_moment_for_processes_that_are_listed_yet(machine):
    ground = machine.ground(pause=lambda _: machine.nvml.holders.clear())
    machine.serve(ground.prepare(HALVES))
    ground.close()
    assert machine.standing() == set()


def test_closing_says_what_somebody_holds_and_leaves_it_noted(machine):
    pauses = []
    ground = machine.ground(pause=pauses.append)
    machine.serve(ground.prepare(plan_of(LEFT)))
    with pytest.raises(Unusable, match=r"4g.71gb at 0 of GPU 0 is held by process 900"):
        ground.close()
    assert 1 < sum(pauses) < 3
    assert [m.label for m in machine.noted.read()] == ["4g.71gb"]


def test_closing_says_what_cannot_be_ended(machine):
    ground = machine.ground()
    ground.prepare(HALVES)
    machine.nvml.fail("nvmlComputeInstanceDestroy", Code.UNKNOWN)
    with pytest.raises(CarveError, match="nvmlComputeInstanceDestroy"):
        ground.close()
    assert len(machine.noted.read()) == 2


def test_a_ground_that_prepared_nothing_closes_without_a_call(machine):
    machine.ground().close()
    assert machine.nvml.calls == []
    assert not machine.noted.path.exists()


@pytest.mark.parametrize(
    ("mode", "plan", "error", "why"),
    [
        (MigMode.OFF, HALVES, Unusable, "MIG off; an operator may run nvidia-smi -i 0 -mig 1"),
        (MigMode.ON, plan_of((1, "3g.71gb", 4), gpus=2), Unusable, "device 1 is planned, NVML shows 1 GPUs"),
        (MigMode.ON, plan_of(LEFT, (0, "1g.18gb", 1)), PlanError, "overlaps"),
        (MigMode.ON, Plan((Device(0, KINDS[KIND], Mechanism.GREEN),)), PlanError, "cut by green"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(machine, mode, plan, error, why):
    machine.nvml.state[0].mig = mode
    for ground in (machine.reader(), machine.ground()):
        with pytest.raises(error, match=why):
            ground.prepare(plan)
    assert machine.nvml.calls == []
    assert not machine.noted.path.exists()


LAYOUTS = layouts(KINDS[KIND].geometry)
CALLS = (CREATE, COMPUTE, "nvmlComputeInstanceDestroy", "nvmlGpuInstanceDestroy")


@st.composite
def lives(draw):
    """Somebody else's instances, plans and whether each comes into force, calls that fail, whether NVML shows our workers."""
    spots = st.sampled_from(LAYOUTS).map(lambda layout: [(0, i.type.label, i.start) for i in layout])
    theirs = draw(spots)[:1]
    cuts = draw(st.lists(st.tuples(spots, st.booleans()), min_size=1, max_size=4))
    failures = draw(st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 6)), max_size=2))
    return theirs, cuts, failures, draw(st.booleans())


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(lives())
def test_whatever_happens_instances_of_workers_and_of_others_stay_and_in_the_end_ours_are_gone(life):
    theirs, cuts, failures, is_shown = life
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        for spot in theirs:
            machine.nvml.put(*spot)
        for call, after in failures:
            machine.nvml.fail(call, Code.UNKNOWN, after)
        ground, serving, in_force = machine.ground(), (), plan_of()
        for spots, is_chosen in cuts:
            with suppress(GpuletError):
                posts = ground.prepare(plan_of(*spots))
                assert [place_of(machine, post) for post in posts] == spots
                if is_chosen:
                    serving, in_force = posts, plan_of(*spots)
            assert {uuid_of(post) for post in serving} <= {i.uuid for i in machine.nvml.instances(0)}
            machine.nvml.holders.clear()
            machine.serve(serving if is_shown else ())
            ground.settle(in_force)
            assert {uuid_of(post) for post in serving} <= {i.uuid for i in machine.nvml.instances(0)}
            assert machine.standing() >= set(theirs)
        machine.nvml.holders.clear()
        for call in CALLS:
            machine.nvml._failures[call].clear()  # noqa: SLF001 (those that did not happen)
        ground.close()
        assert machine.standing() == set(theirs)
        assert not machine.noted.path.exists() or machine.noted.read() == ()


def place_of(machine, post):
    (it,) = (i for i in machine.nvml.instances(0) if i.uuid == uuid_of(post))
    return it.gpu, it.label, it.start
