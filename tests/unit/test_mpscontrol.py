"""The MPS control daemon: private, asked within time limits, and gone afterwards, on a fake of its binary."""

import json
import os
import signal

import pytest

from fake_mps import FakeMpsControl, behave, binary, install, is_alive, told
from gpulet.errors import MpsError
from gpulet.executors.mpscontrol import Binary, Client, Daemon, Features, started
from gpulet.units import GIB, MIB

GPU = "GPU-74d43ed3-cdf7-e667-3644-bf5b4f46ed65"


@pytest.fixture
def here(tmp_path):
    install(tmp_path, servers={"500": [501, 502], "600": []})
    return tmp_path


def started_as(here):
    return json.loads(told(here)[0])


def test_the_daemon_is_private_and_alone_is_told_its_gpu(here):
    theirs = {"CUDA_VISIBLE_DEVICES": "7", "CUDA_MPS_PIPE_DIRECTORY": "elsewhere", "CUDA_MPS_PROTOCOL_VERSION": "3"}
    with started(binary(here, theirs), here, GPU):
        assert (here / "pipe").stat().st_mode & 0o777 == 0o700
    assert started_as(here) == {
        "arguments": ["-f"],
        "CUDA_VISIBLE_DEVICES": GPU,
        "CUDA_MPS_PIPE_DIRECTORY": str(here / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(here / "log"),
    }


@pytest.fixture(params=["port", pytest.param("program", marks=pytest.mark.slow)])
def both(request, here):
    """The fake port, and a real daemon of the fake program; with each what it was told."""
    if request.param == "port":
        fake = FakeMpsControl({500: (501, 502), 600: ()})
        yield fake, lambda: fake.told
        return
    with started(binary(here), here, GPU) as mps:
        yield mps, lambda: [line for line in told(here) if line.startswith(("set", "term"))]


def test_attachment_is_proven_by_pid(both):
    mps, _ = both
    assert mps.servers() == (500, 600)
    assert mps.clients() == (501, 502)
    assert mps.serves(502)
    assert not mps.serves(500)
    assert not mps.serves(50)


def test_defaults_and_ends_of_clients_are_told(both):
    mps, heard = both
    mps.set_default_share(37.5)
    mps.set_default_memory(3 * GIB)
    mps.end_client(502)
    mps.end_client(999)
    assert heard() == [
        "set_default_active_thread_percentage 37.5",
        "set_default_device_pinned_mem_limit 0 3072M",
        "terminate_client 500 502",
    ]


def test_partitions_end_where_chunks_do(both):
    mps, _ = both
    assert mps.add_partition(GPU, 9).startswith(f"{GPU}/")
    with pytest.raises(MpsError, match="Failed to fulfill"):
        mps.add_partition(GPU, 16)
    mps.remove_partition(f"{GPU}/Dx4AA")


def test_a_client_finds_the_daemon_and_nothing_of_another(here):
    base = {"PATH": "bin", "CUDA_VISIBLE_DEVICES": "7", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "3"}
    daemon = Daemon(binary(here), here, GPU)
    there = {"PATH": "bin", "CUDA_MPS_PIPE_DIRECTORY": str(here / "pipe"), "CUDA_MPS_LOG_DIRECTORY": str(here / "log")}
    assert daemon.environment(Client(), base) == there
    assert daemon.environment(Client(20.0, 3 * MIB + 5), base) == there | {
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "20",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=3M",
    }
    assert daemon.environment(Client(partition=f"{GPU}/Dx4"), {})["CUDA_MPS_SM_PARTITION"] == f"{GPU}/Dx4"


@pytest.mark.parametrize("client", [Client(-1.0), Client(100.5), Client(memory=5)])
def test_impossible_shares_and_limits_are_refused(here, client):
    with pytest.raises(MpsError, match=r"not in \(0, 100\]|less than one MiB"):
        Daemon(binary(here), here, GPU).environment(client, {})


def fails(here, pids):
    with started(binary(here), here, GPU) as mps:
        pids.append(mps.pid)
        assert is_alive(mps.pid)
        raise ZeroDivisionError


def test_it_is_gone_when_the_context_ends(here):
    pids = []
    with pytest.raises(ZeroDivisionError):
        fails(here, pids)
    assert not is_alive(*pids)
    assert told(here)[-1].startswith("quit")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"hangs": True}, {"stays": True}, {"stays": True, "stubborn": True}, {"refuses": ["quit"]}]
)
def test_one_that_does_not_quit_is_ended(here, how):
    behave(here, stubborn=how.get("stubborn", False))
    with started(binary(here, answer_s=2.0, quit_s=0.6), here, GPU) as mps:
        pid = mps.pid
        behave(here, **how)
    assert not is_alive(pid)


def test_one_that_dies_at_once_is_said_with_its_exit_code(here):
    behave(here, dies=3)
    with (
        pytest.raises(MpsError, match=r"get_server_list: (the daemon is gone \(exit code 3\)|.*Cannot find)"),
        started(binary(here), here, GPU),
    ):
        pytest.fail("it never answered")


@pytest.mark.slow
def test_one_that_never_answers_is_given_up_and_ended(here):
    behave(here, deaf=True)
    with pytest.raises(MpsError, match="Cannot find MPS control daemon"), started(binary(here, start_s=0.3), here, GPU):
        pytest.fail("it never answered")


@pytest.mark.slow
def test_one_that_dies_later_is_said_with_its_log(here):
    with started(binary(here), here, GPU) as mps:
        os.kill(mps.pid, signal.SIGKILL)
        os.waitid(os.P_PID, mps.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(MpsError, match=r"the daemon is gone \(exit code -9\); its log is in .*log"):
            mps.clients()


@pytest.mark.slow
def test_one_that_hangs_does_not_hang_us(here):
    with started(binary(here, answer_s=2.0, quit_s=0.3), here, GPU) as mps:
        behave(here, hangs=True)
        quick = Daemon(binary(here, answer_s=0.2), here, GPU)
        quick._child = mps._child  # noqa: SLF001 (the same daemon, asked with less patience)
        with pytest.raises(MpsError, match=r"get_server_list: no answer in 0\.2 s") as failed:
            quick.servers()
        assert failed.value.exit_code == 3


@pytest.mark.slow
def test_one_that_refuses_is_quoted(here):
    behave(here, refuses=["set_default_active_thread_percentage"])
    with started(binary(here), here, GPU) as mps, pytest.raises(MpsError, match="CUDA_ERROR_MPS_SERVER_NOT_READY"):
        mps.set_default_share(50)


def test_a_binary_that_is_not_there_is_said():
    with pytest.raises(MpsError, match="-v: cannot be run: No such file"):
        Binary("nowhere/nvidia-cuda-mps-control", {}).probe()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "features"),
    [
        ({"version": "13000"}, Features(13000, has_static=False, has_v3=False)),
        ({"version": "13010"}, Features(13010, has_static=True, has_v3=False)),
        ({"version": "13040", "usage": " [-p | --protocol N]"}, Features(13040, has_static=True, has_v3=True)),
        ({"version": "unknown"}, Features(0, has_static=False, has_v3=False)),
    ],
)
def test_features_are_what_the_binary_says(here, says, features):
    behave(here, **says)
    assert binary(here).probe() == features
    assert told(here) == [], "probing starts nothing"


@pytest.mark.slow
def test_static_partitions_need_a_binary_that_has_them(here):
    with (
        pytest.raises(MpsError, match="static partitioning needs version 13010, this is 13000"),
        started(binary(here), here, GPU, is_static=True),
    ):
        pytest.fail("started")
    assert told(here) == []
    behave(here, version="13010")
    with started(binary(here), here, GPU, is_static=True) as mps:
        assert mps.add_partition(GPU, 5) == f"{GPU}/Dx4AAAAA"
        with pytest.raises(MpsError, match="Failed to fulfill"):
            mps.add_partition(GPU, 16)
    assert started_as(here)["arguments"] == ["-f", "-S"]


def test_a_pipe_that_is_too_long_for_a_socket_is_refused(here):
    with pytest.raises(MpsError, match="longer than the 107 bytes"), started(binary(here), here / ("x" * 100), GPU):
        pytest.fail("started")
