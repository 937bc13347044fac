"""What doctor shows of green contexts: every fault of a GPU is told by the line that it breaks, with numbers."""

import pytest

from gpulet.device import Kind, find_kind
from gpulet.errors import DeviceError, DeviceFull, DeviceLost, ModelError, Unusable
from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.proof import prove
from gpulet.executors.wire import Prove, WorkerModel
from gpulet.units import GIB

H200 = find_kind("h200-141gb")
SPLITS = [f"split {8 * n}|{132 - 8 * n}" for n in range(1, 16)]


def shown(driver=None, kind=H200, models=None, runtime=ImaginaryRuntime, beat=lambda: None, **faults):
    """What is told of that GPU, by name; whatever happens, what was made is given back."""
    driver = driver or FakeCudaDriver()
    for fault, value in faults.items():
        setattr(driver.faults, fault, value)
    models = models or {}
    asked = Prove({}, kind, tuple(WorkerModel(name, f"{name}.pt2", 32) for name in models))
    lines = {s.name: s for s in prove(lambda: (driver, runtime(driver, models)), asked, lambda: driver.now, beat)}
    assert driver.lost or not driver.live
    return lines


def unshown(lines):
    return [name for name, line in lines.items() if not line.is_shown]


def test_a_gpu_as_it_should_be_is_shown_line_by_line():
    lines = shown()
    assert list(lines) == ["groups", "remainder", "sizes", *SPLITS]
    assert unshown(lines) == []
    assert lines["groups"].says.startswith("imaginary GPU of 132 SMs: 132 SMs, 16 groups of 8 SMs and 4 over; ")
    assert lines["sizes"].says == "16 planned, 8 to 128 SMs, all there"
    half = lines["split 64|68"]
    assert half.says.startswith("64 and 68 SMs, 132 ids counted, disjoint, concurrent, graphs stay; ")
    assert (half.numbers["sms"], half.numbers["ids"]) == ([64, 68], 132)
    assert half.numbers["ms"] > 2, "the imaginary GPU was held for at least one long kernel"


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({"missing_sms": 2}, "share [0, 1) must have 8 SMs, the CUDA driver gave it 6"),
        ({"is_confining": False}, "share [0, 1) must have 8 SMs, blocks in its stream ran on 132"),
        ({"queues": 1}, "waits for share"),
        ({"graphs_stay": False}, "share [0, 1): a graph captured on it ran on 124 SMs outside, SM 1 first"),
    ],
)
def test_each_fault_breaks_every_split_with_numbers(faults, says):
    lines = shown(**faults)
    assert unshown(lines) == SPLITS
    assert says in lines[SPLITS[0]].says
    assert all(lines[name].is_needed for name in SPLITS)


def test_a_remainder_that_does_not_merge_is_told_and_costs_its_sms_alone():
    lines = shown(sets_merge_with_remainder=False)
    assert unshown(lines) == ["remainder"]
    assert lines["remainder"].says == "the 4 SMs over do not merge: they idle"
    assert not lines["remainder"].is_needed
    assert "split 64|64" in lines


def test_a_die_of_fewer_groups_names_the_sizes_that_plans_count_on_in_vain():
    lines = shown(FakeCudaDriver(TOPOLOGIES["h200-15"]))
    assert unshown(lines) == ["sizes"]
    assert lines["sizes"].says == "16 planned, this die lacks 128 SMs"
    assert lines["sizes"].numbers["lacking"] == [128]
    assert [name for name in lines if name.startswith("split")][-1] == "split 112|20"


def test_a_gpu_of_another_width_than_planned_is_told_with_both_numbers():
    lines = shown(FakeCudaDriver(TOPOLOGIES["a100"]))
    assert "108 SMs, a h200-141gb is planned with 132" in lines["groups"].says
    assert unshown(lines) == ["groups", "sizes"]


def test_a_gpu_that_nobody_planned_has_no_sizes_to_lack():
    lines = shown(FakeCudaDriver(TOPOLOGIES["t4"]), kind=Kind("something", 0, 16 * GIB))
    assert unshown(lines) == []
    assert "sizes" not in lines
    assert "remainder" not in lines, "40 SMs are 5 groups"


def test_a_gpu_that_cannot_be_opened_is_one_line():
    def refuse():
        msg = "cuInit: CUDA_ERROR_NO_DEVICE (100)"
        raise Unusable(msg)

    (line,) = prove(refuse, Prove({}, H200), lambda: 0, pytest.fail)
    assert (line.name, line.is_shown, line.says) == ("groups", False, "cuInit: CUDA_ERROR_NO_DEVICE (100)")


def test_one_share_that_fails_leaves_the_others_to_be_shown():
    driver = FakeCudaDriver()
    driver.faults.break_call("make_context", DeviceFull("cuGreenCtxCreate: CUDA_ERROR_OUT_OF_MEMORY (2)"), after=3)
    lines = shown(driver)
    assert unshown(lines) == [SPLITS[1]]
    assert "OUT_OF_MEMORY" in lines[SPLITS[1]].says


@pytest.mark.parametrize("call", ["sm_ids", "spin", "replayed_ids"])
def test_a_lost_gpu_ends_the_proof_after_what_was_shown(call):
    driver = FakeCudaDriver()
    driver.faults.break_call(call, DeviceLost("cuEventSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS (700)"))
    lines = shown(driver)
    assert unshown(lines) == ["device"]
    assert "ILLEGAL_ADDRESS" in lines["device"].says
    assert not [name for name in lines if name.startswith("split")]


# Models.


def test_each_size_of_a_model_is_compared_with_the_whole_gpu():
    lines = shown(models={"near": ImaginaryModel(error=0.004), "far": ImaginaryModel(error=0.3)})
    assert unshown(lines) == ["model far"]
    near = lines["model near"]
    assert near.says.startswith("16 sizes, worst 0.004 off the whole GPU at 8 SMs, 0.02 allowed, batch 4; ")
    assert (near.numbers["sizes"], near.numbers["worst"], near.numbers["batch"]) == (16, 0.004, 4)
    assert lines["model far"].says.startswith("16 sizes, worst 0.3 off the whole GPU")


def test_a_model_that_takes_long_is_heard_of_at_each_size():
    beats = []
    shown(models={"m": ImaginaryModel()}, beat=lambda: beats.append(1))
    assert len(beats) == 16


class OneBadSize(ImaginaryRuntime):
    """Kernels for 24 SMs are wrong, for 40 they give no numbers."""

    worst = 0.5

    def error(self, key, graph):
        return {3: 0.5, 5: self.worst}.get(key.interval.stop, 0.001)


class OneNan(OneBadSize):
    worst = float("nan")


@pytest.mark.parametrize(("runtime", "sms"), [(OneBadSize, 24), (OneNan, 40)])
def test_the_worst_size_is_named_and_what_is_no_number_is_worse_than_any(runtime, sms):
    line = shown(models={"m": ImaginaryModel()}, runtime=runtime)["model m"]
    assert not line.is_shown
    assert line.numbers["at"] == sms


def test_weights_stay_on_the_gpu_while_sizes_come_and_go():
    runtimes = []

    def make(driver, models):
        runtimes.append(ImaginaryRuntime(driver, models))
        return runtimes[0]

    shown(models={"m": ImaginaryModel()}, runtime=make)
    assert runtimes[0].calls["load"] == 1
    assert runtimes[0].calls["capture"] == 17, "a small one that stays, and one for each size"
    assert runtimes[0].driver.used == 0


def test_a_model_that_cannot_be_is_told_by_name_and_the_next_is_shown():
    class Picky(ImaginaryRuntime):
        def load(self, model):
            if model == "bad":
                msg = "model bad: not a model"
                raise ModelError(msg)
            return super().load(model)

    models = {"bad": ImaginaryModel(), "large": ImaginaryModel(weights=500 * GIB), "good": ImaginaryModel()}
    lines = shown(models=models, runtime=Picky)
    assert unshown(lines) == ["model bad", "model large"]
    assert lines["model bad"].says == "not a model"
    assert "GiB" in lines["model large"].says or "MiB" in lines["model large"].says


def test_an_error_of_the_gpu_at_one_size_is_that_models_line():
    driver = FakeCudaDriver()
    driver.faults.break_call("make_mark", DeviceError("cuEventCreate: CUDA_ERROR_INVALID_HANDLE (400)"), after=18)
    lines = shown(driver, models={"m": ImaginaryModel()})
    assert unshown(lines) == ["model m"]
    assert "INVALID_HANDLE" in lines["model m"].says
