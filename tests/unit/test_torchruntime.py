"""PyTorch models below an imaginary GPU: true numbers, and the order of what a GPU would be asked."""

import json
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gpulet.errors import DeviceError, DeviceFull, DeviceLost, ModelError, Unproven
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.cuda.opening import open_rehearsal
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.tensors import NUMPY_TYPES
from gpulet.units import MIB

pytestmark = pytest.mark.slow
LEFT, RIGHT = Interval(0, 8), Interval(8, 17)


@pytest.fixture(scope="module")
def torch_models():
    import torch_models  # noqa: PLC0415 (a second that `make check` need not wait)

    return torch_models


@pytest.fixture(scope="module")
def files(torch_models, tmp_path_factory):
    return torch_models.export_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def opened(files):
    """A cache of graphs over a rehearsal; nothing may be left when it is closed."""
    driver, runtime = open_rehearsal({name: ModelSource(path) for name, path in files.items()})
    pool = ContextPool(driver, lay_out(driver))
    cache = GraphCache(pool, runtime, open_ledger(driver))
    yield cache
    cache.close()
    driver.close()


def answers(cache, key, rows, *inputs):
    graph = cache.build(key)
    parts = [[a.tobytes() for a in np.split(array, range(1, len(array)))] for array in inputs]
    graph.replay(rows, parts)  # which has ended when it returns, since this GPU's work is done by the CPU
    tensors = cache.signatures[key.model].outputs
    return [
        np.frombuffer(a.data, NUMPY_TYPES[t.datatype]).reshape(a.shape)
        for t, a in zip(tensors, graph.outputs(rows), strict=True)
    ]


def test_an_exported_program_tells_its_signature_and_answers_each_row(opened, torch_models):
    key = GraphKey("dense", 4, LEFT)
    x = np.random.default_rng(1).random((3, 4), np.float32)
    (y,) = answers(opened, key, 3, x)
    import torch  # noqa: PLC0415

    expected = torch_models.seeded(torch_models.Dense)(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    signature = opened.signatures["dense"]
    assert [(t.datatype, t.shape) for t in (*signature.inputs, *signature.outputs)] == [
        ("FP32", (-1, 4)),
        ("FP32", (-1, 3)),
    ]
    assert (signature.inputs[0].name, signature.is_batched) == ("x", True)
    opened.check(key)


def test_rows_of_an_earlier_batch_do_not_reach_a_later_one(opened):
    key = GraphKey("dense", 4, LEFT)
    full, one = np.ones((4, 4), np.float32), np.zeros((1, 4), np.float32)
    (before,) = answers(opened, key, 1, one)
    before = before.copy()
    answers(opened, key, 4, full)
    (after,) = answers(opened, key, 1, one)
    assert np.array_equal(before, after)
    assert after.shape == (1, 3)


def test_one_models_weights_serve_all_its_graphs(opened):
    keys = [GraphKey("conv", bucket, interval) for bucket in (1, 4) for interval in (LEFT, RIGHT)]
    image = np.random.default_rng(2).random((1, 3, 8, 8), np.float32)
    found = [answers(opened, key, 1, image)[0].copy() for key in keys]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-6)
    assert opened.runtime.need(keys[0]).weights == 4 * (2 * 3 * 3 * 3 + 2)
    for key in keys:
        opened.check(key)


def test_a_shape_class_fills_the_free_dimensions_of_all_inputs(opened):
    key = GraphKey("pair", 2, LEFT, "7x7")
    ids, mask = np.ones((2, 7), np.int64), np.ones((2, 7), np.float32)
    pooled, places = answers(opened, key, 2, ids, mask)
    assert [t.name for t in opened.signatures["pair"].outputs] == ["pooled", "places"]
    assert pooled.shape == (2, 4)
    assert places.tolist() == [list(range(1, 8))] * 2
    expected = pooled.copy()
    opened.check(key)
    ids_dims, mask_dims = (t.dims for t in opened.signatures["pair"].inputs)
    assert ids_dims == mask_dims == opened.signatures["pair"].outputs[1].dims
    assert len(set(ids_dims)) == 2
    named = GraphKey("pair", 2, LEFT, "7")
    by_name, _ = answers(opened, named, 2, ids, mask)
    np.testing.assert_array_equal(by_name, expected)
    with pytest.raises(ModelError, match="model pair has 2 free dimensions"):
        opened.build(GraphKey("pair", 2, LEFT, "7x7x7"))
    with pytest.raises(ModelError, match="pair x 2 of 7x9"):
        opened.build(GraphKey("pair", 2, LEFT, "7x9"))
    assert opened.keys == (key, named)


def test_half_precision_goes_through(opened):
    (y,) = answers(opened, GraphKey("half", 2, LEFT), 2, np.ones((2, 4), np.float16))
    assert (y.dtype, y.shape) == (np.float16, (2, 2))
    opened.check(GraphKey("half", 2, LEFT))


@pytest.mark.parametrize(("name", "shapes"), [("total", [(1, 4), ()]), ("fixed", [(1, 3)])])
def test_a_model_whose_outputs_have_no_rows_runs_one_request_at_a_time(opened, name, shapes):
    key = GraphKey(name, 1, LEFT)
    found = answers(opened, key, 1, np.ones((1, 4), np.float32))
    assert not opened.signatures[name].is_batched
    assert [f.shape for f in found] == shapes
    opened.check(key)


def test_a_result_that_is_not_a_number_is_no_proof(opened):
    key = GraphKey("broken", 1, LEFT)
    opened.build(key)
    with pytest.raises(Unproven, match="nan"):
        opened.check(key)


def test_a_need_is_estimated_then_measured_and_grows_with_the_batch(opened):
    small, large = GraphKey("conv", 1, LEFT), GraphKey("conv", 64, LEFT)
    before = opened.runtime.need(small), opened.runtime.need(large)
    assert before[1].pool - before[0].pool == 63 * 4 * (3 + 2) * 64 * 5 // 4
    assert before[0].pool >= 32 * MIB
    opened.build(large)
    assert opened.runtime.need(large).pool == 0


def test_inputs_of_another_size_are_refused_and_the_graph_serves_on(opened):
    key = GraphKey("dense", 2, LEFT)
    graph = opened.build(key)
    with pytest.raises(ModelError, match="input x: 12 bytes are not 1 rows"):
        graph.replay(1, [[bytes(12)]])
    answers(opened, key, 1, np.ones((1, 4), np.float32))


def test_a_model_can_be_loaded_again_after_it_was_unloaded(opened):
    key = GraphKey("dense", 1, LEFT)
    x = np.ones((1, 4), np.float32)
    first = answers(opened, key, 1, x)[0].copy()
    opened.drop(key)
    assert opened.signatures == {}
    assert np.array_equal(answers(opened, key, 1, x)[0], first)


# files ----------------------------------------------------------------------------------------------------------------


def scripted(torch_models, folder, sidecar):
    return open_rehearsal({"m": ModelSource(torch_models.script(folder, "m", sidecar))})


def test_torchscript_is_served_by_its_sidecar(torch_models, tmp_path):
    driver, runtime = scripted(torch_models, tmp_path, torch_models.SIDECAR)
    cache = GraphCache(ContextPool(driver, lay_out(driver)), runtime, open_ledger(driver))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (y,) = answers(cache, GraphKey("m", 4, LEFT), 2, np.ones((2, 4), np.float32))
    assert [t.name for t in cache.signatures["m"].outputs] == ["y"]
    cache.check(GraphKey("m", 4, LEFT))
    assert y.shape == (2, 3)
    assert runtime.need(GraphKey("m", 8, LEFT)).weights == 4 * (4 * 3 + 3)
    cache.close()
    driver.close()


@pytest.mark.parametrize(
    ("sidecar", "words"),
    [
        (None, "signature.json must stand beside it"),
        ({"inputs": []}, "signature.json: Object missing required field"),
        ({"inputs": [{"name": "x", "datatype": "BF16", "shape": [-1]}], "outputs": []}, "x of BF16"),
        ({"inputs": [], "outputs": [{"name": "y", "datatype": "FP32", "shape": [0]}]}, r"y of FP32 \[0\]"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1], "dims": ["n"]}], "outputs": []},
            "x has 2 dimensions and names for 1",
        ),
    ],
)
def test_torchscript_without_a_usable_sidecar_says_what_is_needed(torch_models, tmp_path, sidecar, words):
    with pytest.raises(ModelError, match=f"model m: .*{words}"):
        scripted(torch_models, tmp_path, sidecar)[1].load("m")


def test_a_sidecar_that_is_wrong_is_told_at_capture(torch_models, tmp_path):
    wrong = {**torch_models.SIDECAR, "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 7]}]}
    driver, runtime = scripted(torch_models, tmp_path, wrong)
    cache = GraphCache(ContextPool(driver, lay_out(driver)), runtime, open_ledger(driver))
    with pytest.raises(ModelError, match=r"output y of 1 rows has shape \[1, 3\], not \[-1, 7\]"):
        cache.build(GraphKey("m", 1, LEFT))
    driver.close()


@pytest.mark.parametrize("ending", ["pt2", "pt"])
def test_a_file_that_is_no_model_is_refused_by_name(torch_models, tmp_path, ending):
    path = tmp_path / f"junk.{ending}"
    path.write_bytes(b"junk")
    (tmp_path / "signature.json").write_text(json.dumps(torch_models.SIDECAR))
    missing = str(tmp_path / f"none.{ending}")
    _, runtime = open_rehearsal({"junk": ModelSource(str(path)), "none": ModelSource(missing)})
    for name in ("junk", "none"):
        with pytest.raises(ModelError, match=f"model {name}: "):
            runtime.load(name)


def test_pickles_in_an_exported_program_are_not_read(files, tmp_path):
    import zipfile  # noqa: PLC0415

    path = tmp_path / "evil.pt2"
    with zipfile.ZipFile(files["dense"]) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("dense/data/constants/opaque_obj_0", b"")
    _, runtime = open_rehearsal({"evil": ModelSource(str(path))})
    with pytest.raises(ModelError, match=r"evil.pt2 holds a pickled object"):
        runtime.load("evil")


# a GPU's order of calls -----------------------------------------------------------------------------------------------


class Recorder:
    """Stands for `torch.cuda`: what is asked of it, in order; its graphs run nothing again."""

    def __init__(self):
        self.calls = []
        self.pools = 0
        self.fault = self.pool_fault = None

    def __getattr__(self, name):
        def call(*given, **named):
            self.calls.append(name)
            return 0

        return call

    def names(self, *wanted):
        return [c for c in self.calls if c.split(" ")[0] in wanted]

    def ExternalStream(self, handle, device):  # noqa: N802
        return handle

    @contextmanager
    def stream(self, handle):
        self.calls.append(f"stream {handle}")
        yield
        self.calls.append("unstream")

    @contextmanager
    def use_mem_pool(self, pool, device):
        self.calls.append(f"pool {pool.id}")
        if self.pool_fault:
            raise self.pool_fault
        yield
        self.calls.append("unpool")

    def MemPool(self):  # noqa: N802
        self.calls.append("MemPool")
        self.pools += 1
        return SimpleNamespace(id=(0, self.pools))

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(
            capture_begin=lambda pool, capture_error_mode: self.calls.append(f"begin {pool} {capture_error_mode}"),
            capture_end=self.end,
            replay=lambda: self.calls.append("replay"),
            reset=lambda: self.calls.append("reset"),
        )

    def get_device_properties(self, where):
        return SimpleNamespace(multi_processor_count=132, major=9)

    def current_blas_handle(self):
        self.calls.append("handle")
        return 77

    def end(self):
        self.calls.append("end")
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault


@pytest.fixture
def gpu(files):
    """The runtime as on a GPU, but that its tensors are the CPU's and its calls are recorded."""
    import torch  # noqa: PLC0415

    from gpulet.executors.cuda.torchdevice import GpuDevice, GpuOptions  # noqa: PLC0415
    from gpulet.executors.cuda.torchruntime import TorchRuntime  # noqa: PLC0415

    cuda = Recorder()
    targets = lambda handle, sms: cuda.calls.append(f"target {sms}")  # noqa: E731
    device = GpuDevice(0, GpuOptions(), targets, cuda)
    device.where = torch.device("cpu")
    driver = FakeCudaDriver()
    runtime = TorchRuntime(driver, device, {name: ModelSource(path) for name, path in files.items()})
    return SimpleNamespace(cuda=cuda, driver=driver, runtime=runtime, pool=ContextPool(driver, lay_out(driver)))


def test_a_capture_is_warmed_up_in_its_pool_on_its_stream_and_recorded_without_stopping_others(gpu):
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.cuda.calls.clear()
    graph = gpu.runtime.capture(GraphKey("dense", 2, LEFT), share)
    order = gpu.cuda.names("MemPool", "stream", "pool", "target", "unpool", "begin", "end", "replay", "unstream")
    assert order == [
        "MemPool",
        f"stream {share.stream}",
        "pool (0, 2)",
        "target 64",
        "target 0",
        "unpool",
        "target 64",
        "begin (0, 2) thread_local",
        "end",
        "target 0",
        "replay",
        "unstream",
    ]
    assert not gpu.cuda.names("synchronize", "empty_cache", "graph")
    gpu.cuda.calls.clear()
    puts = gpu.driver.calls["put"]
    mark = graph.replay(1, [[bytes(16)]])
    assert gpu.cuda.calls == [f"stream {share.stream}", "replay", "unstream"]
    assert gpu.driver.calls["put"] == puts + 1
    gpu.driver.wait(mark)
    again = gpu.runtime.capture(GraphKey("dense", 4, LEFT), share)
    beside = gpu.cuda.names("MemPool", "pool", "begin")
    assert beside == ["MemPool", "pool (0, 3)", "begin (0, 2) thread_local"], "its warm-up touches no replay's scratch"
    gpu.cuda.calls.clear()
    for closing in (graph, again):
        closing.close()
    assert gpu.cuda.calls[-1] == "reset"
    gpu.runtime.capture(GraphKey("dense", 4, LEFT), share)
    assert gpu.cuda.names("MemPool") == ["MemPool"], "a pool goes with its last graph"


def test_all_of_the_gpu_needs_no_target(gpu):
    gpu.runtime.load("dense")
    everything = gpu.pool.layout.everything
    gpu.runtime.capture(GraphKey("dense", 1, everything), gpu.pool.share(everything))
    assert gpu.cuda.names("target", "handle") == []


def test_a_capture_that_fails_and_still_ends_is_forgotten(gpu, monkeypatch):
    def not_recording(device, pool):
        msg = "endAllocatePool: not currently recording to mempool_id"
        raise RuntimeError(msg)

    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", not_recording, raising=False)
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.cuda.fault = RuntimeError("CUDA error: out of memory")
    with pytest.raises(DeviceFull, match=r"dense x 2 on \[0, 8\): CUDA error: out of memory"):
        gpu.runtime.capture(GraphKey("dense", 2, LEFT), share)
    assert gpu.cuda.names("end", "reset") == ["end", "end", "reset"]


def test_a_capture_that_fails_leaves_nothing_behind_and_spoils_only_its_pool(gpu, monkeypatch):
    ended = Counter()
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        told = lambda device, pool, name=name: ended.update([(name, pool)])  # noqa: E731
        monkeypatch.setattr(f"torch._C.{name}", told, raising=False)
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    kept = gpu.runtime.capture(GraphKey("dense", 1, LEFT), share)

    gpu.cuda.fault = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    live = gpu.driver.live
    with pytest.raises(ModelError, match=r"dense x 2 on \[0, 8\): CUDA error: operation failed"):
        gpu.runtime.capture(GraphKey("dense", 2, LEFT), share)
    assert gpu.driver.live == live
    assert ended == {("_cuda_endAllocateToPool", (0, 2)): 1, ("_cuda_releasePool", (0, 2)): 1}
    gpu.cuda.calls.clear()
    gpu.runtime.capture(GraphKey("dense", 2, LEFT), share).close()
    assert "begin (0, 4) thread_local" in gpu.cuda.calls
    gpu.runtime.capture(GraphKey("dense", 2, LEFT), share).close()
    assert "begin (0, 5) thread_local" in gpu.cuda.calls, "a pool that had its last graph is not taken up again"
    kept.close()


@pytest.mark.parametrize(
    ("text", "kind"), [("CUDA out of memory. Tried", DeviceFull), ("CUDA error: an illegal memory access", DeviceLost)]
)
def test_what_cuda_says_at_capture_is_told_as_ours(gpu, text, kind):
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.cuda.pool_fault = RuntimeError(text)
    with pytest.raises(kind, match="dense x 1"):
        gpu.runtime.capture(GraphKey("dense", 1, LEFT), share)


def test_a_lost_gpu_shows_behind_another_failure(gpu):
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.driver.faults.break_call("drain", DeviceLost("drain: LAUNCH_FAILED (719)"))
    gpu.cuda.pool_fault = RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED")
    with pytest.raises(DeviceLost, match="LAUNCH_FAILED"):
        gpu.runtime.capture(GraphKey("dense", 1, LEFT), share)


def test_a_mark_that_cannot_be_made_leaves_no_graph(gpu):
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.driver.faults.break_call("make_mark", DeviceError("make_mark: no"))
    live = gpu.driver.live
    with pytest.raises(DeviceError):
        gpu.runtime.capture(GraphKey("dense", 1, LEFT), share)
    assert gpu.cuda.calls.count("reset") == 1
    assert gpu.driver.live == live


def test_a_pool_that_grew_is_what_its_graph_needs(gpu):
    gpu.runtime.load("dense")
    share = gpu.pool.share(LEFT)
    gpu.cuda.max_memory_allocated = lambda where: 3 * MIB
    gpu.cuda.memory_allocated = lambda where: MIB
    found = iter([0, 20 * MIB, 20 * MIB, 20 * MIB, 20 * MIB, 20 * MIB])
    gpu.cuda.memory_reserved = lambda where: next(found)
    graphs = [gpu.runtime.capture(GraphKey("dense", bucket, LEFT), share) for bucket in (4, 2)]
    pools = [gpu.runtime.need(GraphKey("dense", bucket, LEFT)).pool for bucket in (4, 2)]
    assert pools == [20 * MIB, 2 * MIB]
    assert gpu.runtime.need(GraphKey("dense", 8, RIGHT)).pool == 40 * MIB, "as its neighbour in size, by rows"
    for graph in graphs:
        graph.close()


def test_every_call_of_torch_cuda_exists_and_takes_what_it_is_given():
    import re  # noqa: PLC0415
    from inspect import getsource, signature  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from gpulet.executors.cuda import torchdevice  # noqa: PLC0415

    named = set(re.findall(r"\b_?cuda\.(\w+)\(", getsource(torchdevice)))
    assert len(named) > 12
    assert [name for name in named if not hasattr(torch.cuda, name)] == []
    private = set(re.findall(r'torch\._C[.,] ?"?(_cud\w+|_set\w+)', getsource(torchdevice)))
    assert len(private) == 5
    known = getsource(torch.cuda.memory) + (Path(torch.__file__).parent / "_C" / "__init__.pyi").read_text()
    assert [name for name in private if name not in known] == []
    assert {"pool", "capture_error_mode"} <= set(signature(torch.cuda.CUDAGraph.capture_begin).parameters)
    assert "device" in signature(torch.cuda.use_mem_pool).parameters
    assert "device" in signature(torch.cuda.ExternalStream.__new__).parameters
