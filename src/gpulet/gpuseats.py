"""Workers on a real GPU to measure models on: one share of it at a time, carved and proven as for serving."""

import asyncio

from gpulet.device import Device, Mechanism, Size
from gpulet.executors.ground import Ground, Post, plan_of
from gpulet.executors.process import Program
from gpulet.executors.wire import Occupy, Ready, Recut, WorkerModel
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profiler import Bench
from gpulet.units import SECOND

_GREEN_SIZES = (8, 16, 24, 32, 48, 64, 96, 128)
"""SMs; between them latency is interpolated."""


def gpu_sizes(device: Device) -> tuple[int, ...]:
    """The sizes to measure: all that the device has, of green contexts a ladder."""
    sizes = tuple(dict.fromkeys(size.sms for size in device.sizes()))
    if device.mechanism is not Mechanism.GREEN:
        return sizes
    return tuple(sms for sms in sizes if sms in _GREEN_SIZES or sms == sizes[-1])


class GpuSeats:
    """Shares of one device of a ground. A worker that holds all of it is re-cut for the next size, others are replaced."""

    def __init__(self, device: Device, ground: Ground, program: Program) -> None:
        self._device = device
        self._ground = ground
        self._program = program
        self._bench: Bench | None = None
        self._is_alone = False

    async def take(self, model: WorkerModel, size: int) -> Bench:
        """A worker with that much of the device, proven; raises `Unusable` where it cannot have it."""
        plan = self._plan(model, next(s for s in self._device.sizes() if s.sms == size))
        if self._bench and not self._is_alone:
            await self._bench.load(Recut(plan, SECOND))
            return self._bench
        if self._bench:
            await self._bench.close()
        (post,) = await asyncio.to_thread(self._ground.prepare, plan)
        self._is_alone = post.is_alone
        self._bench = Bench(self._program)
        await self._hold(self._bench, post, plan, model)
        return self._bench

    async def _hold(self, bench: Bench, post: Post, plan: Plan, model: WorkerModel) -> None:
        task = Occupy(post.environment, plan_of(post, plan), post.device, (model,), self._program.slots)
        ready = await bench.load(task)
        assert isinstance(ready, Ready), "a fresh worker is not re-cut"
        await asyncio.to_thread(self._ground.prove, post, bench.pid, ready)

    async def close(self) -> None:
        """Stop the worker and give the ground back."""
        if self._bench:
            await self._bench.close()
        self._bench = None
        await asyncio.to_thread(self._ground.close)

    def _plan(self, model: WorkerModel, size: Size) -> Plan:
        turn = Turn(model.name, model.max_batch, 0.0, 0)
        return Plan((self._device,), (Gpulet(0, self._device.index, size, 0, SECOND, (turn,)),))
