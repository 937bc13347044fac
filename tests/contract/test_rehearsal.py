"""The green executor with PyTorch's and ONNX's models on an imaginary GPU: true numbers, also over a re-cut."""

import asyncio
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest

from gpulet.core.messages import Finished, GpuletUp, Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.cuda.opening import open_rehearsal
from gpulet.executors.cuda.sources import ModelSource
from gpulet.executors.green import Green
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import MS
from servers import save_model

DEVICE = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)


@dataclass
class Request:
    inputs: tuple
    dims: tuple


def plan(*spans):
    turns = (Turn("dense", 4, 1.0, MS), Turn("deep", 4, 1.0, MS))
    return Plan((DEVICE,), tuple(Gpulet(n, 0, Size(b - a, 50.0), a, 10 * MS, turns) for n, (a, b) in enumerate(spans)))


class Bench:
    def __init__(self, models):
        self.events = asyncio.Queue()
        self.requests = {}
        self.timer = LiveTimer(asyncio.get_running_loop())
        tell = lambda event, **fields: None  # noqa: E731
        ask, emit = self.requests.__getitem__, self.events.put_nowait
        opened = lambda: open_rehearsal(models)  # noqa: E731
        self.green = Green(plan((0, 64), (64, 128)), 0, opened, self.timer, emit, ask, tell, pytest.fail)

    async def until(self, kind, count=1):
        found = []
        while len(found) < count:
            event = await asyncio.wait_for(self.events.get(), 60)
            found += [event] if isinstance(event, kind) else []
        return found

    async def answer(self, batch, model, x):
        """Each row is a request of its own."""
        numbers = tuple(1000 * batch + n for n in range(len(x)))
        self.requests.update({n: Request((row[None].tobytes(),), ((1, 4),)) for n, row in zip(numbers, x, strict=True)})
        self.green.start(Start(batch, batch % 2, model, "", len(x), numbers))
        await self.until(Finished)
        (result,) = self.green.outputs(batch)
        return np.frombuffer(result.data, np.float32).reshape(result.shape).copy()


async def serves(models, expected):
    bench = Bench(models)
    bench.green.carve()
    await bench.until(GpuletUp, 2)
    x = np.random.default_rng(3).random((4, 4), np.float32)
    for batch, rows in enumerate((1, 2, 3, 4)):
        for model in ("dense", "deep"):
            found = await bench.answer(2 * batch + (model == "deep"), model, x[:rows])
            np.testing.assert_allclose(found, expected[model](x[:rows]), rtol=1e-5, atol=1e-6)
    times = await bench.green.recut(plan((0, 96), (96, 128)))
    assert times.build > 0
    found = await bench.answer(100, "dense", x)
    np.testing.assert_allclose(found, expected["dense"](x), rtol=1e-5, atol=1e-6)
    await bench.green.close()
    bench.timer.close()


def test_models_of_both_runtimes_answer_with_true_numbers_before_and_after_a_re_cut(tmp_path):
    import torch  # noqa: PLC0415 (a second that the collection of other tests need not wait)

    import torch_models  # noqa: PLC0415

    dense = torch_models.seeded(torch_models.Dense)
    dynamic = ({0: torch_models.ROWS},)
    save_model(tmp_path, "deep", layers=2)
    onnx = str(tmp_path / "deep" / "1" / "model.onnx")
    pt2 = torch_models.export(tmp_path, "dense", dense, (torch.ones(2, 4),), dynamic)
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    expected = {
        "dense": lambda x: dense(torch.from_numpy(x)).detach().numpy(),
        "deep": lambda x: session.run(None, {"x": x})[0],
    }
    asyncio.run(serves({"dense": ModelSource(pt2), "deep": ModelSource(onnx)}, expected))
