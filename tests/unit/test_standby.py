"""A worker that stands by has the models loaded that whoever dies had."""

import asyncio
import errno
import fcntl
import os
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from gpulet.core.messages import Start
from gpulet.device import Size
from gpulet.errors import Unusable
from gpulet.executors import crew as crews
from gpulet.executors import process as processes
from gpulet.executors import worker as workers
from gpulet.executors.base import Signature
from gpulet.executors.crew import Crew
from gpulet.executors.ground import Post
from gpulet.executors.process import CPU, WorkerProcess
from gpulet.executors.shelf import Shelf
from gpulet.executors.stations import Running, Station, Suspects
from gpulet.executors.wire import Assign, FromWorker, ModelReady, Prepare, WorkerModel
from gpulet.plan import Gpulet
from gpulet.units import MIB, MS

A, B = (WorkerModel(name, f"{name}.onnx", 4) for name in "ab")
CORES = tuple(sorted(os.sched_getaffinity(0)))
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.Decoder(FromWorker).decode


@pytest.fixture
def child(monkeypatch):
    """A worker on a thread that loads nothing; `loads` is what it was to load, `broken` what it cannot."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(5)

    class Child:
        def __init__(self):
            self.loads = []
            self.broken = set()

        def load(self, model, threads):
            self.loads.append((model.name, threads))
            is_broken = model.name in self.broken
            return ModelReady(model.name, Signature((), ()), "broken" if is_broken else ""), [] if is_broken else [self]

        def prepare(self, *models, threads=1, until):
            ours.send(encode(Prepare(threads, models)))
            self.wait(until)

        def wait(self, count):
            ends = time.monotonic() + 5
            while len(self.loads) < count:
                assert time.monotonic() < ends, self.loads
                time.sleep(0.001)

        def assign(self, *models, threads=1, is_gentle=False):
            ours.send(encode(Assign(CORES, threads, models, is_gentle=is_gentle)))
            return decode(ours.recv(1 << 16))

    made = Child()
    monkeypatch.setattr(workers, "load", made.load)
    monkeypatch.setattr(workers, "gently", lambda call: call())
    monkeypatch.setattr(workers, "restore", lambda: None)
    worker = workers.Worker(theirs, memoryview(bytearray(64)))
    thread = threading.Thread(target=worker.serve)
    thread.start()
    with theirs, ours:
        yield made
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("is_gentle", [False, True])
def test_what_is_loaded_already_is_not_loaded_again(child, is_gentle):
    child.prepare(A, B, until=2)
    assert [m.name for m in child.assign(B, is_gentle=is_gentle).models] == ["b"]
    assert child.loads == [("a", 1), ("b", 1)]


def test_what_was_not_foreseen_is_loaded(child):
    child.prepare(A, until=1)
    assert [m.name for m in child.assign(A, B).models] == ["a", "b"]
    assert child.loads == [("a", 1), ("b", 1)]


def test_a_model_for_other_threads_is_another(child):
    child.prepare(A, until=1)
    child.assign(A, threads=2)
    assert child.loads == [("a", 1), ("a", 2)]


def test_a_changed_file_is_loaded_again(child):
    child.prepare(A, until=1)
    child.assign(msgspec.structs.replace(A, digest="new"))
    assert child.loads == [("a", 1), ("a", 1)]


def test_what_could_not_be_loaded_is_tried_again(child):
    child.broken = {"a"}
    child.prepare(A, until=1)
    child.broken = set()
    assert not child.assign(A).models[0].error
    assert len(child.loads) == 2


def test_what_is_no_longer_foreseen_is_let_go(child):
    child.prepare(A, until=1)
    child.prepare(B, until=2)
    child.assign(A, B)
    assert child.loads == [("a", 1), ("b", 1), ("a", 1)]


# what is foreseen -----------------------------------------------------------------------------------------------------


def station(number, cores, *told, given=(A, B), sms=1):
    """One that has loaded `told`, each of so many MiB; one without is broken."""
    gpulet = Gpulet(number, 0, Size(sms, 12.5 * sms), 0, 10 * MS, ())
    made = Station(Post(0, (gpulet,), is_alone=True, cores=cores))
    made.given = given
    made.told = tuple(ModelReady(m, Signature((), ()), "" if mib else "no", bytes=mib * MIB) for m, mib in told)
    return made


def foreseen(*stations, most=100 * MIB):
    return Shelf({}, lambda *_, **__: None).foreseen(stations, most)


def test_all_that_workers_of_cores_have_is_foreseen():
    assert foreseen(station(0, (0,), ("a", 10), given=(A,)), station(1, (1,), ("b", 10), given=(B,))) == Prepare(
        1, (A, B)
    )


def test_of_workers_of_several_sizes_the_commonest_is_foreseen():
    two = [station(n, (2 * n, 2 * n + 1), ("a", 10), ("b", 10), sms=2) for n in range(2)]
    assert foreseen(station(9, (8,), ("a", 10), given=(A,)), *two) == Prepare(2, (A, B))


def test_no_more_is_foreseen_than_there_is_room_for():
    assert foreseen(station(0, (0,), ("a", 60), ("b", 50))) == Prepare(1, (A,))


def test_what_could_not_be_loaded_is_not_foreseen():
    assert foreseen(station(0, (0,), ("a", 0), ("b", 50))) == Prepare(1, (B,))


@pytest.mark.parametrize(
    ("stations", "most"), [((), 1), ((station(0, (), ("a", 1)),), 100 * MIB), ((station(0, (0,), ("a", 1)),), 0)]
)
def test_nothing_is_foreseen_without_cores_or_room(stations, most):
    assert foreseen(*stations, most=most) is None


# the crew -------------------------------------------------------------------------------------------------------------


class Process:
    is_importing = is_loading = False
    is_open = True

    def __init__(self, *_, **__):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


def test_each_that_stands_by_is_told_once(monkeypatch):
    monkeypatch.setattr(crews, "WorkerProcess", Process)
    crew = Crew(CPU, lambda *_, **__: None)
    first, then = Prepare(1, (A,)), Prepare(1, (A, B))
    crew.stand_by()
    for prepare in (None, first, first, then):
        crew.stand_by(prepare)
    hired = crew.hire()
    assert hired.sent == [first, then]
    crew.stand_by(then)
    assert crew.hire().sent == [then]


def test_there_may_be_any_number_of_open_files():
    ours, theirs = socket.socketpair()
    high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 2000)
    with ours, theirs, socket.socket(fileno=high) as channel:
        assert not workers.is_readable(channel)
        ours.send(b"x")
        assert workers.is_readable(channel)


def test_where_no_process_can_be_had_that_is_an_error_of_ours_and_nothing_is_left_open(monkeypatch):
    def exhausted(*_arguments, **_options):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.subprocess, "Popen", exhausted)

    def files():
        return len([*Path("/proc/self/fd").iterdir()])

    async def begin():
        before = files()
        with pytest.raises(Unusable, match="no process for a worker: Resource temporarily unavailable"):
            WorkerProcess(lambda _: None, lambda: None, CPU)
        assert files() == before

    asyncio.run(begin())


def test_a_worker_that_nobody_waits_for_to_end_is_killed():
    async def begin():
        worker = WorkerProcess(lambda _: None, lambda: None, CPU)
        worker.suspend()
        closing = asyncio.create_task(worker.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert worker._child.wait(1.0) == -signal.SIGKILL  # noqa: SLF001 (it would stand still for ever)

    asyncio.run(begin())


def test_who_died_at_the_same_time_of_the_same_contents_is_no_second_death():
    def ran(batch, since):
        start = Start(batch, 0, "m", "", 1, (batch,))
        return Running(start, [SimpleNamespace(inputs=(b"same",), dims=((4,),))], since)

    suspects = Suspects()
    assert not suspects.accuse([ran(1, 5 * MS)], 10 * MS)
    assert not suspects.accuse([ran(2, 6 * MS)], 11 * MS), "it ran beside the first"
    assert suspects.accuse([ran(3, 20 * MS)], 30 * MS) == "m"
