"""What executors/cuda/driver.py calls, against the real cuda-bindings: by name and arity, then call by call.

There is no GPU here. A stub of libcuda.so.1 stands below the bindings (libcuda.c), so that what passes through them is
what would pass on a GPU.
"""

import ast
import ctypes
import inspect
import json
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

cuda = pytest.importorskip("cuda.bindings.driver")

import gpulet.executors.cuda.driver as module  # noqa: E402
from fake_nvml import FakeNvml, below_pynvml  # noqa: E402
from gpulet.errors import DeviceError, DeviceFull, DeviceLost, Unproven, Unusable  # noqa: E402
from gpulet.executors.cuda.contexts import ContextPool  # noqa: E402
from gpulet.executors.cuda.fake import FakeCudaDriver  # noqa: E402
from gpulet.executors.cuda.hostmemory import HostMemory  # noqa: E402
from gpulet.executors.cuda.layout import lay_out  # noqa: E402
from gpulet.executors.nvml import MigMode  # noqa: E402
from gpulet.units import MS, US  # noqa: E402

SOURCE = ast.parse(Path(module.__file__).read_text())
CALLS = [
    node
    for node in ast.walk(SOURCE)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"_do", "_is_done"}
]
STUB = Path(__file__).with_name("libcuda.c")


def dotted(node):
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("call", CALLS, ids=[call.args[0].attr for call in CALLS])
def test_every_call_exists_and_takes_as_many_arguments(call):
    function = getattr(cuda, call.args[0].attr)
    assert len(call.args) - 1 == len(inspect.signature(function).parameters)


def test_every_name_of_the_bindings_is_one_of_theirs():
    used = {tuple(d) for node in ast.walk(SOURCE) if (d := dotted(node)) and d[0] == "cuda" and len(d) > 1}
    newer = {"CUdevWorkqueueConfigScope"}  # 13.1, behind a look-up of its resource type
    known = [names for names in used if names[1] not in newer]
    assert len(known) > 50
    for names in known:
        found = cuda
        for name in names[1:]:
            found = getattr(found, name)


def test_no_other_module_names_the_bindings():
    folder = Path(module.__file__).parents[2]
    others = [p for p in folder.rglob("*.py") if "cuda.bindings import" in p.read_text()]
    assert others == [Path(module.__file__)]


def test_every_result_of_the_bindings_is_told_apart():
    kinds = {r: type(module.error_of(cuda.cuInit, r)) for r in cuda.CUresult}
    assert kinds[cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY] is DeviceFull
    assert kinds[cuda.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS] is DeviceLost
    assert kinds[cuda.CUresult.CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION] is DeviceError
    assert (
        str(module.error_of(cuda.cuInit, cuda.CUresult.CUDA_ERROR_LAUNCH_FAILED))
        == "cuInit: CUDA_ERROR_LAUNCH_FAILED (719)"
    )


def test_a_machine_without_a_cuda_driver_is_told_so_in_one_line():
    code = "from gpulet.executors.cuda.driver import open_cuda; open_cuda()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = found.stderr.splitlines()[-1] if found.stderr else ""
    assert "Unusable: cuInit: " in last or found.returncode == 0


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """The stub below the bindings of this process; once loaded, `dlopen` finds it by its soname."""
    compiler = which("cc") or which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, "-o", library, STUB, "-ldl"], check=True)
    return ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


@pytest.fixture
def gpu(stub):
    stub.stub_shape(132, 16)
    opened = module.open_cuda(0)
    yield opened
    stub.stub_fail(b"", 0)
    opened.close()
    assert stub.stub_left() == 0


@pytest.fixture(params=["stub", "imaginary"])
def any_gpu(request):
    """What is shown of the bindings is shown of the imaginary GPU as well, on which all the rest is tested."""
    if request.param == "stub":
        yield request.getfixturevalue("gpu")
    else:
        driver = FakeCudaDriver()
        yield driver
        driver.close()


def test_a_gpu_says_what_it_is(gpu):
    assert (gpu.name, gpu.version) == ("Imaginary H200", 13000)
    whole = gpu.whole()
    assert (whole.sms, whole.least, whole.alignment) == (132, 8, 8)
    assert (gpu.memory().free, gpu.memory().total) == (100, 141)


@pytest.mark.parametrize(("sms", "groups", "left"), [(132, 16, 4), (132, 15, 12), (128, 16, 0)])
def test_one_split_gives_all_groups_and_what_is_left(gpu, stub, sms, groups, left):
    stub.stub_shape(sms, groups)
    found = gpu.split(gpu.whole(), 8)
    assert [g.sms for g in found.groups] == [8] * groups
    assert (found.remainder.sms if found.remainder else 0) == left


def test_streams_of_merged_groups_run_on_their_sms_alone(any_gpu):
    gpu = any_gpu
    found = gpu.split(gpu.whole(), 8)
    contexts = [gpu.make_context(sets) for sets in (found.groups[:14], [*found.groups[14:], found.remainder])]
    assert [gpu.sms(context) for context in contexts] == [112, 20]
    streams = [gpu.make_stream(context) for context in (*contexts, None)]
    assert [gpu.context(stream) for stream in streams] == [*contexts, None]
    first, second, free = (gpu.sm_ids(stream, 6400, 20 * US) for stream in streams)
    assert (len(first), len(second)) == (112, 20)
    assert free == first | second == set(range(132))
    assert len(gpu.sm_ids(streams[1], 640, 20 * US)) == 20
    assert gpu.replayed_ids(streams[1], streams[2], 6400, 20 * US) == second
    for stream in streams:
        gpu.drain(stream)
        gpu.destroy_stream(stream)
    for context in contexts:
        gpu.destroy_context(context)


def test_marks_tell_how_far_a_stream_is(any_gpu):
    gpu = any_gpu
    gpu.enter()
    stream = gpu.make_stream(None)
    start, end = gpu.make_mark(), gpu.make_mark()
    gpu.put(start, stream)
    gpu.spin(stream, 3 * MS // 2)
    gpu.put(end, stream)
    gpu.wait(end)
    assert gpu.is_reached(start)
    assert gpu.is_reached(end)
    assert gpu.is_idle(stream)
    assert gpu.elapsed(start, end) == pytest.approx(1.5 * MS, rel=0.01)
    for mark in (start, end):
        gpu.destroy_mark(mark)
    gpu.destroy_stream(stream)


@pytest.mark.skipif(not hasattr(cuda, "CUdevWorkqueueConfigScope"), reason="these bindings are older than 13.1")
@pytest.mark.parametrize(("version", "is_balanced"), [(13000, 0), (13010, 1)])
def test_balanced_work_queues_are_asked_for_where_the_driver_has_them(gpu, stub, version, is_balanced):
    stub.stub_version(version)
    opened = module.open_cuda(0)
    opened.destroy_context(opened.make_context(opened.split(opened.whole(), 8).groups))
    opened.close()
    stub.stub_version(13000)
    assert stub.stub_balanced() == is_balanced


def test_pages_of_the_host_are_locked_until_they_are_closed(any_gpu):
    memory = HostMemory(any_gpu)
    pages = [memory.room(size) for size in (0, 5, 5000)]
    assert [(len(p), int(p.sum())) for p in pages] == [(0, 0), (5, 0), (5000, 0)]
    pages[1][:] = 1
    memory.close()
    assert int(pages[1].sum()) == 5, "they can still be read"


def test_all_of_a_layout_stands_on_the_bindings(gpu):
    """What is tested on the imaginary GPU, once on the bindings: layout, proven shares, their streams apart."""
    pool = ContextPool(gpu, lay_out(gpu))
    intervals = [pool.layout.interval(offset, 64) for offset in (0, 64)]
    assert [pool.share(interval).sms for interval in intervals] == [64, 68]
    with pytest.raises(Unproven, match="hardware queue"):  # nothing takes time on the stub: whoever waits has waited
        pool.prove_apart(intervals)
    assert pool.share(pool.layout.everything).sms == 132
    pool.close()


@pytest.mark.parametrize(
    ("name", "result", "kind"), [("cuGreenCtxCreate", 2, DeviceFull), ("cuDevResourceGenerateDesc", 914, DeviceError)]
)
def test_a_context_that_is_refused_is_told_by_call_and_result(gpu, stub, name, result, kind):
    groups = gpu.split(gpu.whole(), 8).groups
    stub.stub_fail(name.encode(), result)
    with pytest.raises(DeviceError, match=rf"{name}: \w+ \({result}\)") as caught:
        gpu.make_context(groups)
    assert type(caught.value) is kind


def test_a_mark_that_is_not_reached_is_no_error_and_a_lost_device_is(gpu, stub):
    stream, mark = gpu.make_stream(None), gpu.make_mark()
    gpu.put(mark, stream)
    stub.stub_fail(b"cuEventQuery", 600)
    assert not gpu.is_reached(mark)
    stub.stub_fail(b"cuEventQuery", 700)
    with pytest.raises(DeviceLost, match="ILLEGAL_ADDRESS"):
        gpu.is_reached(mark)
    gpu.destroy_mark(mark)
    gpu.destroy_stream(stream)


def test_a_gpu_that_is_not_there_is_refused_by_number(stub):
    with pytest.raises(Unusable, match="GPU 3 was asked for, this machine shows 1"):
        module.open_cuda(3)


def test_doctor_shows_a_gpu_through_its_worker_and_the_bindings(stub, gpulet, monkeypatch, tmp_path):
    """The whole way: command, process, bindings. On the stub nothing takes time, so nothing is shown to be concurrent."""
    stub.stub_shape(132, 16)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(Path(stub._name).parent))  # noqa: SLF001 (where the child finds it)
    (tmp_path / "fleet.toml").write_text('[[devices]]\nkind = "h200-141gb"\nmechanism = "green"\n')
    with below_pynvml(monkeypatch, FakeNvml("h200-141gb", mig=MigMode.OFF)):
        code, out, _ = gpulet("doctor", tmp_path / "fleet.toml", "--json")
    checks = {c["check"]: c for c in json.loads(out)["checks"] if c["check"].startswith("green 0 ")}
    assert code == 3
    assert len(checks) == 18
    groups = checks["green 0 groups"]
    assert "Imaginary H200: 132 SMs, 16 groups of 8 SMs and 4 over" in groups["says"]
    assert (groups["verdict"], groups["cuda"]) == ("ok", 13000)
    assert [checks[f"green 0 {name}"]["verdict"] for name in ("remainder", "sizes")] == ["ok", "ok"]
    for name, check in checks.items():
        if name.startswith("green 0 split"):
            assert check["says"].endswith("their streams stand on one hardware queue"), check
