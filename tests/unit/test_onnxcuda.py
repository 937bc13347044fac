"""ONNX models below an imaginary GPU: sessions by share, and true numbers."""

import numpy as np
import onnxruntime as ort
import pytest

from gpulet.errors import DeviceError, ModelError
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import Interval, lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.cuda.onnxcuda import OnnxRuntime, on_cpu, on_gpu
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.executors.cuda.sources import ModelSource
from gpulet.units import MIB
from servers import save_detector, save_model

LEFT, RIGHT = Interval(0, 8), Interval(8, 17)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_model(folder, "deep", layers=2)
    save_model(folder, "free", width="width")
    (folder / "detector" / "1").mkdir(parents=True)
    save_detector(folder, "detector")
    shapes = {"free": ("5",)}
    found = {
        n: ModelSource(str(folder / n / "1" / "model.onnx"), shapes.get(n, ())) for n in ("deep", "free", "detector")
    }
    return {**found, "none": ModelSource(str(folder / "none.onnx"))}


@pytest.fixture
def opened(models):
    driver = FakeCudaDriver()
    runtime = OnnxRuntime(driver, on_cpu, models)
    cache = GraphCache(ContextPool(driver, lay_out(driver)), runtime, open_ledger(driver))
    yield cache
    cache.close()
    driver.close()


def answers(cache, key, rows, x):
    graph = cache.build(key)
    cache.runtime.driver.wait(graph.replay(rows, [[x.tobytes()]]))
    return [np.frombuffer(a.data, np.float32).reshape(a.shape) for a in graph.outputs(rows)]


def test_each_row_is_answered_and_padding_is_cut_off(opened, models):
    key = GraphKey("deep", 4, LEFT)
    x = np.random.default_rng(1).random((3, 4), np.float32)
    (y,) = answers(opened, key, 3, x)
    session = ort.InferenceSession(models["deep"].path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(y, session.run(None, {"x": x})[0], rtol=1e-6)
    opened.check(key)
    assert opened.signatures["deep"].is_batched


def test_free_dimensions_have_the_names_that_the_file_gives_them(opened):
    opened.build(GraphKey("free", 1, LEFT, "5"))
    signature = opened.signatures["free"]
    assert signature.inputs[0].dims == signature.outputs[0].dims == ("N", "width")


def test_a_shape_class_fills_free_dimensions(opened):
    key = GraphKey("free", 2, LEFT, "5")
    x = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert np.array_equal(answers(opened, key, 2, x)[0], x)
    with pytest.raises(ModelError, match="model free has 1 free dimensions"):
        opened.runtime.need(GraphKey("free", 2, LEFT, "5x5"))


def test_a_model_whose_outputs_depend_on_the_data_is_not_batched(opened):
    signature = opened.runtime.load("detector")
    assert not signature.is_batched
    opened.runtime.unload("detector")


def test_a_session_serves_all_buckets_of_a_share_and_goes_with_the_last(opened, models):
    keys = [GraphKey("deep", bucket, interval) for bucket in (1, 4) for interval in (LEFT, RIGHT)]
    before = opened.runtime.need(keys[0])
    graphs = [opened.build(key) for key in keys]
    sessions = [opened.runtime.session(key) for key in keys]
    assert sessions[0] is sessions[2]
    assert sessions[0] is not sessions[1]
    assert len(graphs) == 4
    opened.drop(keys[0])
    assert opened.runtime.session(keys[2]) is sessions[0]
    opened.drop(keys[2])
    with pytest.raises(KeyError):
        opened.runtime.session(keys[2])
    assert before.session > before.weights > 0


def test_a_session_needs_what_the_gpu_has_less_afterwards(opened, monkeypatch):
    driver, opening = opened.runtime.driver, ort.InferenceSession

    def open_session(*given, **named):
        driver.used += 10 * MIB
        return opening(*given, **named)

    opened.runtime.load("deep")
    monkeypatch.setattr(ort, "InferenceSession", open_session)
    share = opened.pool.share(LEFT)
    keys = [GraphKey("deep", bucket, LEFT) for bucket in (4, 2)]
    graphs = [opened.runtime.capture(key, share) for key in keys]
    assert [opened.runtime.need(key).session for key in keys] == [10 * MIB, 10 * MIB]
    for graph in graphs:
        graph.close()
    opened.runtime.unload("deep")
    opened.pool.drop(LEFT)


def test_a_file_that_is_not_there_is_told_by_the_models_name(opened):
    with pytest.raises(ModelError, match="model none: "):
        opened.build(GraphKey("none", 1, LEFT))


def test_a_gpu_without_the_provider_says_which_package_is_missing(models):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("it is installed")
    driver = FakeCudaDriver()
    runtime = OnnxRuntime(driver, on_gpu(0), models)
    with pytest.raises(ModelError, match="model deep: the package onnxruntime-gpu is needed"):
        runtime.load("deep")
    driver.close()


def test_sessions_are_bound_to_their_stream_and_never_use_the_default_one(monkeypatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    (name, options), _ = on_gpu(1)(123)
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["user_compute_stream"], options["do_copy_in_default_stream"]) == (
        "1",
        "123",
        "0",
    )


def test_a_capture_that_fails_leaves_nothing_behind(opened):
    opened.build(GraphKey("deep", 1, LEFT))
    driver = opened.runtime.driver
    live = driver.live
    for call, after in (("lock_pages", 0), ("lock_pages", 1), ("make_mark", 0), ("drain", 0)):
        driver.faults.break_call(call, DeviceError(f"{call}: no"), after)
        with pytest.raises(DeviceError, match=f"{call}: no"):
            opened.build(GraphKey("deep", 2, LEFT))
        assert driver.live == live
