"""Workers under test: asked one batch at a time, with everything that they say kept."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from gpulet.core.messages import Carve, Finished, GpuletDown, GpuletUp, RunFailed, Start
from gpulet.drivers.timers import LiveTimer
from gpulet.executors.stations import Patience
from gpulet.executors.wire import WorkerModel
from gpulet.executors.workers import Workers


async def soon(holds):
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come about in 20 s")


class Bench:
    """Workers of a plan, what they emitted and told, and requests for them."""

    def __init__(self, first, ground, program, names, patience):
        self.events = asyncio.Queue()
        self.requests = {}
        self.told = []
        self.given_up = []
        self.batch = 0
        self.up = set()
        self.timer = LiveTimer(asyncio.get_running_loop())
        models = names if isinstance(names, dict) else {name: WorkerModel(name, f"{name}.pt2", 4) for name in names}
        ask = self.requests.__getitem__
        self.workers = Workers(
            first,
            models,
            ground,
            program,
            self.timer,
            self.emit,
            ask,
            lambda event, **fields: self.told.append((event, fields)),
            self.given_up.append,
            patience,
        )

    def run(self, sms, model="plain"):
        """A batch on SMs that it brings along."""
        return self.start(Carve(0, sms), model)

    def start(self, gpulet=0, model="plain", fill=1.0):
        self.batch += 1
        data = np.full((2, 4), fill, np.float32)
        self.requests[self.batch] = type("Request", (), {"inputs": (data.tobytes(),), "dims": (data.shape,)})()
        self.workers.start(Start(self.batch, gpulet, model, "", 2, (self.batch,)))
        return self.batch

    async def until(self, kind):
        while True:
            event = await asyncio.wait_for(self.events.get(), 20)
            if isinstance(event, kind):
                return event

    def emit(self, event):
        self.events.put_nowait(event)
        if isinstance(event, GpuletUp):
            self.up.add(event.gpulet)
        elif isinstance(event, GpuletDown):
            self.up.discard(event.gpulet)

    async def soon(self, holds):
        await soon(holds)

    async def serves(self, gpulet=0, model="plain"):
        batch = self.start(gpulet, model)
        event = await self.until((Finished, RunFailed, GpuletDown))
        assert isinstance(event, Finished)
        assert event.batch == batch
        assert self.workers.outputs(batch)[0].shape in {(2, 1), (2, 4)}

    def events_told(self):
        return [event for event, _ in self.told]


@asynccontextmanager
async def carved(first, ground, program, names=("plain", "deep"), patience=None, count=None):
    """Workers once `count` gpulets, or all of them, are up."""
    bench = Bench(first, ground, program, names, patience or Patience())
    bench.workers.carve()
    try:
        for _ in range(len(first.gpulets) if count is None else count):
            await bench.until(GpuletUp)
        yield bench
    finally:
        await bench.workers.close()
        bench.timer.close()
