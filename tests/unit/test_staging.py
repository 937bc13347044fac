"""Buffers of a graph on the host, what proves it, and which runtime takes which file: without any runtime."""

import numpy as np
import pytest

from gpulet.errors import DeviceFull, DeviceLost, ModelError, PlanError
from gpulet.executors.base import Signature, Tensor
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.faults import error_of, translated
from gpulet.executors.cuda.formats import Runtimes
from gpulet.executors.cuda.imaginary import ImaginaryRuntime
from gpulet.executors.cuda.layout import Interval
from gpulet.executors.cuda.ledger import MemoryLedger
from gpulet.executors.cuda.plainstream import PlainStream
from gpulet.executors.cuda.runtime import GraphKey, Need
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.cuda.staging import Buffers, as_parts, check_outputs, difference
from gpulet.executors.tensors import check_shape, filled

ROWS = Signature((Tensor("x", "FP32", (-1, 2)),), (Tensor("y", "INT64", (-1, 1)),))
WHOLE = Signature((Tensor("x", "FP32", (3, 2)),), (Tensor("y", "FP32", ()),), is_batched=False)
PAIR = Signature((Tensor("a", "INT64", (-1, -1)), Tensor("b", "BOOL", (-1, 3, -1))), (Tensor("y", "FP32", (-1, 1)),))


def test_parts_stand_one_behind_the_other_and_zeros_behind_them():
    driver = FakeCudaDriver()
    buffers = Buffers(driver, ROWS, [(4, 2)])
    buffers.inputs[0].array[:] = 9
    one, two = np.ones((1, 2), np.float32), np.full((2, 2), 2, np.float32)
    buffers.fill(3, [[one.tobytes(), b"", memoryview(two)]])
    assert buffers.inputs[0].array.tolist() == [[1, 1], [2, 2], [2, 2], [0, 0]]
    buffers.add_outputs([(4, 1)])
    buffers.outputs[0].array[:, 0] = [5, 6, 7, 8]
    (answered,) = buffers.answered(3)
    assert (answered.shape, np.frombuffer(answered.data, np.int64).tolist()) == ((3, 1), [5, 6, 7])
    assert driver.live == 2
    buffers.close()
    assert driver.live == 0
    assert bytes(answered.data)[:8] == (5).to_bytes(8, "little")


def test_what_is_not_so_many_rows_is_refused_with_its_numbers():
    buffers = Buffers(FakeCudaDriver(), ROWS, [(4, 2)])
    with pytest.raises(ModelError, match=r"input x: 12 bytes are not 2 rows of shape \[2\], 16 bytes"):
        buffers.fill(2, [[bytes(12)]])


def test_a_model_without_rows_is_filled_and_answered_whole():
    buffers = Buffers(FakeCudaDriver(), WHOLE, [(3, 2)])
    buffers.add_outputs([()])
    buffers.fill(1, [[bytes(24)]])
    assert [(a.shape, len(a.data)) for a in buffers.answered(1)] == [((), 4)]


def test_shapes_are_filled_in_the_order_of_the_inputs():
    assert filled(PAIR, 8, "12x7") == [(8, 12), (8, 3, 7)]
    assert filled(PAIR, 8, "") == [(8, 1), (8, 3, 1)]
    assert filled(WHOLE, 8, "") == [(3, 2)]
    check_shape("m", PAIR.inputs, "12x7")
    for wrong in ("12", "1x2x3", "axb", "0x1"):
        with pytest.raises(ModelError, match="model m has 2 free dimensions"):
            check_shape("m", PAIR.inputs, wrong)


def test_rows_drawn_are_the_same_for_the_same_seed_and_are_indices_into_anything():
    buffers = Buffers(FakeCudaDriver(), PAIR, [(8, 12), (8, 3, 7)])
    one, again, other = buffers.draw(1), buffers.draw(1), buffers.draw(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not np.array_equal(one[0], other[0])
    assert set(np.unique(one[0])) == {0, 1}
    buffers.fill(8, as_parts(one))
    assert np.array_equal(buffers.inputs[1].array, one[1])


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.1], [1.0, 2.0], 0.05),
        ([0.0], [0.0], 0.0),
        ([-INF, 2.0], [-INF, 2.0], 0.0),
        ([-INF, 2.0], [0.0, 2.0], INF),
        ([NAN, 2.0], [NAN, 2.0], NAN),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_a_difference_is_relative_and_a_nan_is_no_proof(found, expected, error):
    pair = ([np.ones(1), np.array(found)], [np.ones(1), np.array(expected)])
    assert difference(*pair) == pytest.approx(error, nan_ok=True)


def test_outputs_that_are_not_as_the_signature_has_them_are_refused():
    check_outputs("m", ROWS, [(4, 1)], 4)
    for shapes in ([(1, 1)], [(4, 2)], [(4,)], []):
        with pytest.raises(ModelError, match="model m"):
            check_outputs("m", ROWS, shapes, 4)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be", DeviceLost),
        ("CUDA failure 710: device-side assert triggered ; GPU=0", DeviceLost),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", DeviceFull),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)", DeviceFull),
        ("mat1 and mat2 shapes cannot be multiplied", ModelError),
        ("", ModelError),
    ],
)
def test_a_runtimes_exceptions_are_told_apart_by_cudas_words(text, kind):
    with pytest.raises(kind) as caught, translated("model m"):
        raise RuntimeError(text)
    assert str(caught.value) == f"model m: {text.splitlines()[0] if text else 'RuntimeError'}"
    assert isinstance(error_of("m", MemoryError()), DeviceFull)


def test_a_file_goes_to_the_runtime_of_its_format_and_others_are_refused_by_name():
    driver = FakeCudaDriver()
    made = []

    def make():
        made.append(1)
        return ImaginaryRuntime(driver, {"a": object()})

    def lacks():
        raise ImportError(name="torch")

    files = {"a": "a.onnx", "b": "b.pt2", "c": "c.plan", "d": "d.bin"}
    runtimes = Runtimes({name: ModelSource(path) for name, path in files.items()}, {".onnx": make, ".pt2": lacks})
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model b: .pt2 files need the package torch, which is not installed"):
            runtimes.load("b")
    with pytest.raises(ModelError, match=r"model c: c.plan is not served: a TensorRT plan"):
        runtimes.need(GraphKey("c", 1, Interval(0, 1)))
    with pytest.raises(ModelError, match=r"model d: d.bin is not served: served are .onnx, .pt2"):
        runtimes.load("d")
    with pytest.raises(ModelError, match="model e has no file"):
        runtimes.load("e")
    assert made == []


def test_a_session_is_charged_once_for_each_share():
    ledger = MemoryLedger(1000)
    left, right = Interval(0, 8), Interval(8, 16)
    keys = [GraphKey("a", 1, left), GraphKey("a", 8, left), GraphKey("a", 8, right)]
    needs = dict(zip(keys, (Need(100, 0, 0, 110), Need(100, 0, 0, 180), Need(100, 0, 0, 180)), strict=True))
    bill = {charge.what: charge.size for charge in ledger.bill(needs)}
    assert (bill["session of a on [0, 8)"], bill["session of a on [8, 16)"], bill["weights of a"]) == (180, 180, 100)
    with pytest.raises(PlanError):
        ledger.fit(needs)


def test_the_plain_stream_is_there_while_it_is_held():
    driver = FakeCudaDriver()
    plain = PlainStream(driver)
    assert plain.hold() == plain.hold() == plain.stream
    plain.release()
    assert driver.live == 1
    plain.release()
    assert driver.live == 0
    plain.hold()
    plain.release()
    driver.close()
