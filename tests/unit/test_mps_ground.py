"""MPS gpulets: private daemons, clients with their shares, and nothing served that is not shown to have its share."""

import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fake_mps import FakeDaemons, binary, install, is_alive, told
from fake_nvml import FakeNvml
from gpulet.device import KINDS, Device, Mechanism, mps_size
from gpulet.errors import ConfigError, MpsError, PlanError, Unproven, Unusable
from gpulet.executors.daemons import Daemons
from gpulet.executors.mps import MpsGround, Options
from gpulet.executors.nvml import MigMode
from gpulet.executors.wire import Ready
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import GIB, MIB

KIND = "h100-80gb"
GPU, OTHER = "GPU-00000000-fake", "GPU-00000001-fake"


def plan_of(*shares, gpus=1, processes=1, kind=KIND, mechanism=Mechanism.MPS):
    """A plan with a gpulet of each (GPU, percentage); gpulet n runs the model m<n>."""
    devices = tuple(Device(n, KINDS[kind], mechanism) for n in range(gpus))
    gpulets = tuple(
        Gpulet(n, gpu, mps_size(KINDS[kind], share), 0, 10, (Turn(f"m{n}", 1, 1.0, 1),), processes)
        for n, (gpu, share) in enumerate(shares)
    )
    return Plan(devices, gpulets).unfolded()


@pytest.fixture
def world():
    return FakeDaemons()


@pytest.fixture
def nvml():
    return FakeNvml(KIND, KIND, mig=MigMode.OFF)


@pytest.fixture
def ground(world, nvml, tmp_path):
    """A ground on two GPUs, whose daemons are all gone afterwards."""
    made = ground_of(world, nvml, tmp_path)
    yield made
    made.close()
    assert not world.running
    assert not list(tmp_path.iterdir())


def ground_of(world, nvml, folder, **options):
    daemons = Daemons(binary(folder), folder, world, pause=lambda _: None)
    return MpsGround(lambda: nvml, daemons, Options(**options))


HALVES = plan_of((0, 40), (0, 60))
BOTH = plan_of((0, 40), (1, 100), gpus=2)


def test_every_gpulet_is_a_client_of_its_gpus_daemon_with_its_share(ground, world):
    posts = ground.prepare(BOTH)
    assert [d.gpu for d in world.running.values()] == [GPU, OTHER]
    for post, gpu, share in zip(posts, (GPU, OTHER), ("40", "100"), strict=True):
        folder = world.of(gpu).folder
        assert post.is_alone
        assert post.gpulets == (BOTH.gpulets[post.device],)
        assert post.environment == {
            "CUDA_VISIBLE_DEVICES": gpu,
            "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
            "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": share,
        }


def test_a_gpu_without_gpulets_gets_no_daemon(ground, world):
    ground.prepare(plan_of((1, 40), gpus=2))
    assert [d.gpu for d in world.running.values()] == [OTHER]


def test_what_is_spare_counts_in_a_clients_limit():
    gpulet = replace(plan_of((0, 50.0)).gpulets[0], spare=("other",))
    alone = Options({gpulet.models[0]: 3 * GIB}).limit(replace(gpulet, spare=()))
    assert Options({gpulet.models[0]: 3 * GIB, "other": 2 * GIB}).limit(gpulet) == alone + 2 * GIB


def test_a_client_is_limited_to_its_models_memory_where_that_is_known(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, memory={"m0": 3 * GIB, "m1": 0})
    limits = [post.environment.get("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT") for post in ground.prepare(HALVES)]
    assert limits == ["0=4096M", None]
    ground.close()


@pytest.mark.parametrize(
    ("share", "least", "most"), [(40, 52, 54), (50, 66, 66), (60, 78, 80), (1, 1, 2), (99.5, 130, 131)]
)
def test_a_share_is_proven_by_pid_and_the_sms_that_the_worker_counts(ground, world, share, least, most):
    (post,) = ground.prepare(plan_of((0, share)))
    world.attach(GPU, 4711)
    for sms in {least, most}:
        ground.prove(post, 4711, Ready((), sms=sms))
    for sms in {least - 1, most + 1} - {132}:
        with pytest.raises(
            Unproven, match=rf"counts {sms} SMs; {share:g} % of a .* 132 SMs is .*another share, or another"
        ):
            ground.prove(post, 4711, Ready((), sms=sms))
    with pytest.raises(Unproven, match=r"counts 132 SMs; .*: its share is not kept"):
        ground.prove(post, 4711, Ready((), sms=132))


@pytest.mark.parametrize("counted", [108, 148])
def test_a_gpu_of_another_kind_than_planned_is_said(ground, world, counted):
    (post,) = ground.prepare(plan_of((0, 100)))
    world.attach(GPU, 4711)
    ground.prove(post, 4711, Ready((), sms=132))
    with pytest.raises(
        Unproven, match=rf"counts {counted} SMs; 100 % .* with 132 SMs is 132: it is another kind of GPU"
    ):
        ground.prove(post, 4711, Ready((), sms=counted))


def test_a_process_that_is_no_client_has_no_share(world, nvml, tmp_path):
    pauses = []
    ground = MpsGround(lambda: nvml, Daemons(binary(tmp_path), tmp_path, world, pauses.append))
    (post, _) = ground.prepare(HALVES)
    with pytest.raises(Unproven, match=f"process 4711 is not a client of the MPS daemon of {GPU}"):
        ground.prove(post, 4711, Ready((), sms=54))
    assert 1 < sum(pauses) < 3
    ground.close()


def test_a_client_that_is_listed_a_moment_later_is_proven(world, nvml, tmp_path):
    attach = [lambda: None, lambda: None, lambda: world.attach(GPU, 4711)]
    ground = MpsGround(lambda: nvml, Daemons(binary(tmp_path), tmp_path, world, lambda _: attach.pop(0)()))
    ground.prove(ground.prepare(HALVES)[0], 4711, Ready((), sms=54))
    assert not attach
    ground.close()


def test_a_daemon_that_does_not_answer_proves_nothing(ground, world):
    (post, _) = ground.prepare(HALVES)
    world.deaf.add(GPU)
    with pytest.raises(Unproven, match=r"process 4711 is not shown to be a client .*no answer in 10 s"):
        ground.prove(post, 4711, Ready((), sms=54))


def test_a_daemon_that_died_proves_nothing_and_the_next_plan_gets_another(ground, world):
    first = ground.prepare(BOTH)
    world.attach(GPU, 4711)
    pid = world.of(GPU).pid
    world.running.pop(pid)
    assert ground.lost == (0,)
    with pytest.raises(Unproven, match=f"the MPS daemon of {GPU} has died"):
        ground.prove(first[0], 4711, Ready((), sms=54))
    again = ground.prepare(BOTH)
    assert ground.lost == ()
    assert again[0].environment["CUDA_MPS_PIPE_DIRECTORY"] != first[0].environment["CUDA_MPS_PIPE_DIRECTORY"]
    assert again[1] == first[1], "the other GPU's workers stay"
    world.attach(GPU, 4712)
    ground.prove(again[0], 4712, Ready((), sms=54))


def test_a_re_cut_keeps_the_daemons_and_in_force_it_ends_those_of_gpus_without_gpulets(ground, world):
    ground.prepare(BOTH)
    ground.settle(BOTH)
    old = world.of(GPU).pid
    ground.prepare(HALVES)
    assert {d.gpu for d in world.running.values()} == {GPU, OTHER}
    assert world.of(GPU).pid == old
    world.attach(OTHER, 99)
    there = world.of(OTHER)
    ground.settle(HALVES)
    assert {d.gpu for d in world.running.values()} == {GPU}
    assert there.told == ["terminate_client 500 99"]


def test_where_one_daemon_does_not_start_all_is_as_before(ground, world):
    world.unable.add(OTHER)
    with pytest.raises(MpsError, match=r"exit code 1\); it logged: the device is used by another"):
        ground.prepare(BOTH)
    assert not world.running
    posts = ground.prepare(HALVES)
    pid = world.of(GPU).pid
    with pytest.raises(MpsError):
        ground.prepare(BOTH)
    assert [*world.running] == [pid]
    world.attach(GPU, 4711)
    ground.prove(posts[0], 4711, Ready((), sms=54))


def test_a_limit_that_mps_does_not_take_leaves_no_daemon(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, memory={"m0": MIB // 2 - GIB})
    with pytest.raises(MpsError, match="less than one MiB"):
        ground.prepare(HALVES)
    assert world.daemons
    assert not world.running
    assert not list(tmp_path.iterdir())


def test_busy_workers_are_ended_through_the_daemon(ground, world):
    (post, _) = ground.prepare(HALVES)
    world.attach(GPU, 4711, 4712)
    daemon = world.of(GPU)
    ground.dismiss(post, 4711)
    assert daemon.told == ["terminate_client 500 4711"]
    daemon.refuses.add("terminate_client")
    ground.dismiss(post, 4712)
    ground.close()
    assert not world.running


@pytest.mark.parametrize(
    ("plan", "error", "why"),
    [
        (plan_of((2, 40), gpus=3), Unusable, "device 2 is planned, NVML shows 2 GPUs"),
        (plan_of((0, 40), mechanism=Mechanism.GREEN), PlanError, r"device 0 \(h100-80gb\) is cut by green, not by MPS"),
        (plan_of((0, 60), (0, 60)), PlanError, "cut into 120 of its 100 %"),
        (plan_of((0, 60), processes=2), PlanError, "2 processes cannot share 60 %"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(ground, world, plan, error, why):
    with pytest.raises(error, match=why):
        ground.prepare(plan)
    assert not world.daemons


def test_a_gpu_in_mig_mode_is_refused(world, tmp_path):
    ground = ground_of(world, FakeNvml(KIND), tmp_path)
    with pytest.raises(Unusable, match=r"MIG on; .* nvidia-smi -i 0 -mig 0"):
        ground.prepare(HALVES)


def test_a_folder_that_is_not_there_is_said(world, nvml, tmp_path):
    with pytest.raises(MpsError, match=r"no folder can be made in .*absent: No such file"):
        ground_of(world, nvml, tmp_path / "absent").prepare(HALVES)


# Static partitions.


def test_partitions_are_those_chunks_that_fit_in_a_size(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, chunk_sms=8)
    first, second = ground.prepare(HALVES)
    daemon = world.of(GPU)
    assert daemon.is_static
    assert daemon.told == [f"sm_partition add {GPU} 6", f"sm_partition add {GPU} 9"]
    assert first.environment["CUDA_MPS_SM_PARTITION"].startswith(f"{GPU}/")
    assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in first.environment
    world.attach(GPU, 4711)
    ground.prove(first, 4711, Ready((), sms=48))
    with pytest.raises(Unproven, match=r"counts 53 SMs; 40 % .* is 48: another share"):
        ground.prove(first, 4711, Ready((), sms=53))
    ground.close()


def test_a_re_cut_cuts_only_what_is_new_and_in_force_gives_the_rest_back(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, chunk_sms=8)
    old = ground.prepare(plan_of((0, 40), (0, 30)))
    told_of = world.of(GPU).told
    told_of.clear()
    new = plan_of((0, 20), (0, 40))
    posts = ground.prepare(new)
    assert told_of == [f"sm_partition add {GPU} 3"]
    assert posts[1].environment == old[0].environment
    told_of.clear()
    gone = old[1].environment["CUDA_MPS_SM_PARTITION"].partition("/")[2]
    ground.settle(new)
    assert told_of == [f"sm_partition rm {GPU} {gone}"]
    ground.settle(new)
    assert len(told_of) == 1
    ground.close()


def test_a_re_cut_for_which_chunks_are_lacking_leaves_the_old_ones(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, chunk_sms=8)
    ground.prepare(HALVES)
    daemon = world.of(GPU)
    daemon.told.clear()
    with pytest.raises(MpsError, match="Failed to fulfill"):
        ground.prepare(plan_of((0, 7), (0, 80)))
    assert [line.split()[1] for line in daemon.told] == ["add", "add", "rm"]
    assert daemon.is_running
    daemon.told.clear()
    ground.prepare(HALVES)
    assert daemon.told == []
    ground.close()


def test_fellow_processes_share_a_partition_and_a_lost_daemon_takes_its_partitions_along(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, chunk_sms=8)
    plan = plan_of((0, 40), processes=2)
    posts = ground.prepare(plan)
    assert posts[0].environment == posts[1].environment
    world.running.clear()
    again = ground.prepare(plan)
    assert world.of(GPU).told == [f"sm_partition add {GPU} 6"]
    assert again[0].environment != posts[0].environment
    ground.close()


def test_sizes_below_a_chunk_and_odd_chunks_are_refused(world, nvml, tmp_path):
    ground = ground_of(world, nvml, tmp_path, chunk_sms=16)
    with pytest.raises(PlanError, match="its 13 SMs are less than a chunk of 16"):
        ground.prepare(plan_of((0, 10)))
    with pytest.raises(ConfigError, match="-8"):
        Options(chunk_sms=-8)


# The same with the real port and a program for the binary.


def real_ground(folder, nvml):
    return MpsGround(lambda: nvml, Daemons(binary(folder, quit_s=1.0), Path(tempfile.gettempdir())))


@pytest.fixture
def here(tmp_path):
    install(tmp_path, servers={"500": [501]})
    return tmp_path


@pytest.mark.slow
def test_two_gpus_have_two_real_daemons_and_close_ends_them(here, nvml):
    ground = real_ground(here, nvml)
    posts = ground.prepare(BOTH)
    ground.prove(posts[0], 501, Ready((), sms=54))
    pids = [ground._daemons.pid(gpu) for gpu in (GPU, OTHER)]  # noqa: SLF001 (to see them gone)
    assert all(is_alive(pid) for pid in pids)
    folder = Path(posts[0].environment["CUDA_MPS_PIPE_DIRECTORY"]).parents[1]
    assert folder.stat().st_mode & 0o777 == 0o700
    ground.close()
    assert not any(is_alive(pid) for pid in pids)
    assert not folder.exists()
    assert "terminate_client 500 501" in told(here)


@pytest.mark.slow
def test_a_real_daemon_that_is_killed_is_noticed(here, nvml):

    ground = real_ground(here, nvml)
    (post, _) = ground.prepare(HALVES)
    os.kill(ground._daemons.pid(GPU), signal.SIGKILL)  # noqa: SLF001 (as above)
    until = time.monotonic() + 5
    while not ground.lost and time.monotonic() < until:
        pass
    with pytest.raises(Unproven, match="has died"):
        ground.prove(post, 501, Ready((), sms=54))
    (again, _) = ground.prepare(HALVES)
    ground.prove(again, 501, Ready((), sms=54))
    ground.close()
