"""E8 asks what a re-cut under load costs: the green executor, two gpulets, steady batches, 64/68 and 96/36 by turns.

Build, drain and swap are told apart; nothing may be lost, every answer is compared, memory must not grow. At the end a
plan whose graphs are new is built beside what serves.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import models
import numpy as np
import torch
from devices import dtype_of, exported, open_models
from kit import Context, Result, judged, quantile, spread
from numpy.typing import NDArray

from gpulet.core.messages import Event, Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.executors.base import Buffer
from gpulet.executors.cuda.cut import Times
from gpulet.executors.cuda.graphs import TOLERANCE
from gpulet.executors.green import Green
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import MIB, MS, SECOND

if TYPE_CHECKING:
    from gpulet.executors.cuda.ports import CudaDriver
    from gpulet.executors.cuda.runtime import ModelRuntime

_MODELS = ("resnet50", "bert-base")
_ROWS = 8
_DEVICE = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)
_CUTS = ((64, 64), (96, 32))
_NEW = (48, 80)
_EVERY_S = 0.1
_SWAP_MS = 10.0
_GROWTH = 64 * MIB
_KINDS = {"FP16": np.float16, "FP32": np.float32}


@dataclass
class Request:
    """A payload."""

    inputs: tuple[Buffer, ...]
    dims: tuple[tuple[int, ...], ...]


@dataclass
class Load:
    """One gpulet's batches, one at a time, as long as it is idle in between; and what became of them."""

    gpulet: int
    request: Request
    started: int = 0
    ended: int = 0
    failed: int = 0
    times: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    golden: list[NDArray[np.float64]] = field(default_factory=list)


class Scene:
    """The executor, its events, and the loads on it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.driver: CudaDriver | None = None
        self.given_up: list[Exception] = []
        self.up = asyncio.Event()
        self.ups: set[int] = set()
        self.down: list[int] = []
        self.waiting: dict[int, asyncio.Future[bool]] = {}
        self.loads = [Load(place, _request(context, model)) for place, model in enumerate(_MODELS)]
        self.is_over = False
        self._serial = 0
        payload = self._payload
        give_up = self._give_up
        exported(context, _MODELS)
        self.green = Green(
            plan(*_CUTS[0]), 0, self._open, time.monotonic_ns, self._hear, payload, lambda *_, **__: None, give_up
        )

    def _open(self) -> "tuple[CudaDriver, ModelRuntime]":
        self.driver, runtime = open_models(self.context, _MODELS)
        return self.driver, runtime

    def _payload(self, request: int) -> Request:
        return self.loads[request % len(self.loads)].request

    def _give_up(self, error: Exception) -> None:
        self.given_up.append(error)
        self.up.set()
        for waiting in self.waiting.values():
            if not waiting.done():
                waiting.set_result(False)

    def _hear(self, event: Event) -> None:
        match event:
            case GpuletUp(gpulet):
                self.ups.add(gpulet)
                if len(self.ups) == len(self.loads):
                    self.up.set()
            case Finished(batch):
                self.waiting.pop(batch).set_result(True)
            case RunFailed(batch):
                self.waiting.pop(batch).set_result(False)
            case GpuletDown(gpulet):
                self.down.append(gpulet)
            case _:
                pass

    async def feed(self, load: Load) -> None:
        """Half of the time the gpulet is busy."""
        while not self.is_over and not self.given_up:
            batch = len(self.loads) * self._serial + load.gpulet
            self._serial += 1
            began = time.perf_counter()
            waiting = self.waiting[batch] = asyncio.get_running_loop().create_future()
            load.started += 1
            self.green.start(Start(batch, load.gpulet, _MODELS[load.gpulet], "", _ROWS, (batch,)))
            if await waiting:
                self._compare(load, batch)
                load.ended += 1
            else:
                load.failed += 1
            load.times.append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(quantile(load.times[-20:], 0.5) / 1000)

    def _compare(self, load: Load, batch: int) -> None:
        outputs = self.green.outputs(batch)
        found = [np.frombuffer(r.data, _KINDS[r.tensor.datatype]).astype(np.float64) for r in outputs]
        load.golden = load.golden or found
        load.errors.append(max(_apart(a, b) for a, b in zip(found, load.golden, strict=True)))


def _apart(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(np.abs(found - wanted).max() / (np.abs(wanted).max() + 1e-12))


def _request(context: Context, model: str) -> Request:
    drawn = models.example(model, _ROWS, tiny=context.tiny, dtype=dtype_of(context))
    return Request((bytes(drawn.contiguous().view(torch.uint8).numpy()),), (tuple(drawn.shape),))


def plan(*sizes: int) -> Plan:
    """Gpulets beside each other, a model each."""
    gpulets, offset = [], 0
    for place, (sms, model) in enumerate(zip(sizes, _MODELS, strict=True)):
        turns = (Turn(model, _ROWS, 1.0, MS),)
        gpulets.append(Gpulet(place, 0, Size(sms, 100 * sms / _DEVICE.kind.sms), offset, 10 * MS, turns))
        offset += sms
    return Plan((_DEVICE,), tuple(gpulets))


def run(context: Context) -> Result:
    """BAD where a batch is lost or answered wrongly, a swap takes more than 10 ms, or memory grows."""
    return asyncio.run(_played(context))


async def _played(context: Context) -> Result:
    scene = Scene(context)
    scene.green.carve()
    await scene.up.wait()
    if scene.given_up:
        await scene.green.close()
        raise scene.given_up[0]
    feeding = [asyncio.ensure_future(scene.feed(load)) for load in scene.loads]
    numbers: dict[str, Any] = {}
    try:
        seconds = 1.0 if context.tiny else min(30.0, context.left / 2)
        numbers |= await _cut_by_turns(scene, seconds)
        numbers["beside_build"] = await _build_beside(scene)
    finally:
        scene.is_over = True
        done = await asyncio.gather(*feeding, return_exceptions=True)
        await scene.green.close()
    broken = [error for error in done if isinstance(error, BaseException)]
    if broken:
        raise broken[0]
    return _judge(scene, numbers)


async def _cut_by_turns(scene: Scene, seconds: float) -> dict[str, Any]:
    await asyncio.sleep(0.2 if scene.context.tiny else 2.0)
    quiet = [spread(load.times) for load in scene.loads]
    begin, times, memory = time.monotonic(), list[Times](), list[int]()
    while time.monotonic() < begin + seconds or len(times) < 4:  # noqa: PLR2004 (there and back, twice)
        times.append(await scene.green.recut(plan(*_CUTS[(len(times) + 1) % 2])))
        assert scene.driver
        memory.append(scene.driver.memory().free)
        await asyncio.sleep(_EVERY_S)
    named = {"build": [t.build for t in times], "drain": [t.drain for t in times], "swap": [t.swap for t in times]}
    found: dict[str, Any] = {f"first_{name}_ms": each[0] / MS for name, each in named.items()}
    found |= {f"{name}_ms": spread([t / MS for t in each[2:]]) for name, each in named.items()}
    return {**found, "recuts": len(times), "growth": memory[2] - memory[-1], "quiet_ms": quiet}


async def _build_beside(scene: Scene) -> dict[str, Any]:
    """Batches while a plan is built whose graphs nobody has yet, and that build's time."""
    before = [len(load.times) for load in scene.loads]
    took = await scene.green.recut(plan(*_NEW), 5 * SECOND)
    during = [load.times[n:] for load, n in zip(scene.loads, before, strict=True)]
    return {"build_ms": took.build / MS, "batches_ms": [spread(each) for each in during if each]}


def _judge(scene: Scene, numbers: dict[str, Any]) -> Result:
    loads = scene.loads
    started, ended, failed = (sum(getattr(load, what) for load in loads) for what in ("started", "ended", "failed"))
    errors = [error for load in loads for error in load.errors]
    wrong = sum(not error <= TOLERANCE for error in errors)
    lost = started - ended - failed
    numbers |= {"started": started, "ended": ended, "failed": failed, "lost": lost, "wrong": wrong, "down": scene.down}
    numbers |= {"largest_error": max(errors), "batches_ms": [spread(load.times) for load in loads]}
    checks = {
        f"{lost} batches lost": lost,
        f"{failed} batches failed": failed,
        f"{wrong} answers wrong": wrong,
        f"{len(scene.down)} times a gpulet went down": scene.down,
        f"a swap took {numbers['swap_ms']['max']:.2f} ms": numbers["swap_ms"]["max"] > _SWAP_MS,
        f"memory grew by {numbers['growth'] / MIB:.0f} MiB": numbers["growth"] > _GROWTH,
    }
    said = f"{numbers['recuts']} re-cuts under {ended} batches, lost {lost}; first build {numbers['first_build_ms']:.0f} ms, "
    said += f"then {numbers['build_ms']['median']:.2f}, drain {numbers['drain_ms']['median']:.2f}, "
    said += f"swap {numbers['swap_ms']['median']:.3f}"
    return judged([name for name, is_so in checks.items() if is_so], said, numbers)
