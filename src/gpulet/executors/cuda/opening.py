"""Opening a GPU with its model runtimes, or a rehearsal of one. Called in worker processes, on the builder's thread.

Imports stand in the functions that need them: a rehearsal needs no CUDA, and an installation may lack a runtime that
none of its models asks for.
"""
# ruff: noqa: PLC0415

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver
from gpulet.executors.cuda.formats import Runtimes
from gpulet.executors.cuda.ledger import HEADROOM
from gpulet.executors.cuda.ports import CudaDriver
from gpulet.executors.cuda.runtime import ModelRuntime
from gpulet.executors.cuda.sources import ModelSource

if TYPE_CHECKING:
    from gpulet.executors.cuda.torchdevice import TorchDevice

Models = Mapping[str, ModelSource]


def open_real(
    models: Models, ordinal: int = 0, *, sm_target: bool = True, benchmark: bool = False
) -> tuple[CudaDriver, ModelRuntime]:
    """A GPU, current to this thread, and what runs these models on it; raises `Unusable`.

    `sm_target`, `benchmark`: how kernels are chosen at capture (`torchdevice.GpuOptions`).
    """
    from gpulet.executors.cuda.driver import open_cuda

    driver = open_cuda(ordinal)

    def device() -> "TorchDevice":
        from gpulet.executors.cuda.torchdevice import GpuOptions, open_gpu

        return open_gpu(ordinal, GpuOptions(sm_target, benchmark), round(HEADROOM / 2 * driver.memory().total))

    def onnx() -> ModelRuntime:
        from gpulet.executors.cuda.onnxcuda import OnnxRuntime, on_gpu

        return OnnxRuntime(driver, on_gpu(ordinal), models)

    return driver, _runtimes(driver, models, device, onnx)


def open_rehearsal(models: Models, _ordinal: int = 0, *, kind: str = "h200") -> tuple[CudaDriver, ModelRuntime]:
    """As `open_real`, an imaginary GPU (`kind` of `fake.TOPOLOGIES`) whose models run on the CPU: right numbers, nobody's times."""
    driver = FakeCudaDriver(TOPOLOGIES[kind])

    def device() -> "TorchDevice":
        from gpulet.executors.cuda.torchdevice import CpuDevice

        return CpuDevice()

    def onnx() -> ModelRuntime:
        from gpulet.executors.cuda.onnxcuda import OnnxRuntime, on_cpu

        return OnnxRuntime(driver, on_cpu, models)

    return driver, _runtimes(driver, models, device, onnx)


def _runtimes(
    driver: CudaDriver, models: Models, device: "Callable[[], TorchDevice]", onnx: Callable[[], ModelRuntime]
) -> Runtimes:
    @cache
    def torch() -> ModelRuntime:
        """One for both of PyTorch's formats: a share has one pool of its memory."""
        from gpulet.executors.cuda.torchruntime import TorchRuntime

        return TorchRuntime(driver, device(), models)

    return Runtimes(models, {".pt2": torch, ".pt": torch, ".onnx": onnx})
