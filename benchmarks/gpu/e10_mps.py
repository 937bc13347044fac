"""E10 asks whether MPS keeps shares here: a private daemon, two clients of half the SMs, each shown by its PID and the SMs it
counts; how long from the spawn of a client to its first answer; and whether plain CUDA works when the daemon is gone.

The compute mode is never touched. Without a GPU the same workers stand without a daemon.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devices import exported
from kit import Context, NotHereError, Result, judged

from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.errors import GpuletError, MpsError, Unproven
from gpulet.executors.daemons import Daemons
from gpulet.executors.gpus import REAL, REHEARSED, Gpus
from gpulet.executors.ground import Ground, Post, plan_of
from gpulet.executors.mps import MpsGround
from gpulet.executors.mpscontrol import BINARY, Binary, find_binary
from gpulet.executors.nvmllibrary import open_nvml
from gpulet.executors.wire import Occupy, Ready, WorkerModel
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.profiler import Bench
from gpulet.units import MS, SECOND

_MODEL = "resnet50"
_ROWS = 8
_KIND = find_kind("h200-141gb")


def run(context: Context) -> Result:
    """BAD where a client cannot be shown to have its share, or plain CUDA fails afterwards."""
    path = str(exported(context, (_MODEL,))[_MODEL])
    model = WorkerModel(_MODEL, path, _ROWS)
    numbers: dict[str, Any] = {}
    complaints: list[str] = []
    try:
        with _ground(context, numbers) as ground:
            numbers["clients"] = asyncio.run(_clients(context, ground, model))
    except (Unproven, MpsError) as error:
        complaints.append(str(error))
    try:
        numbers["afterwards"] = asyncio.run(_plain(context, model))
    except GpuletError as error:
        complaints.append(f"plain CUDA afterwards: {error}")
    found = numbers.get("clients", [])
    said = f"{numbers.get('features', 'no daemon')}; first answers after "
    said += ", ".join(f"{client['first_s']:.1f} s on {client['sms']} SMs" for client in found) or "never"
    return judged(complaints, said, numbers)


@contextmanager
def _ground(context: Context, numbers: dict[str, Any]) -> Iterator[Ground]:
    """Of the daemon, which is gone at the end; raises `NotHereError` where it is not installed."""
    if not context.is_real:
        yield _Unguarded()
        return
    path = find_binary()
    if not path:
        msg = f"{BINARY} is not installed"
        raise NotHereError(msg)
    binary = Binary(path, os.environ)
    features = binary.probe()
    numbers["features"] = f"version {features.version}, static {features.has_static}, v3 {features.has_v3}"
    ground = MpsGround(open_nvml, Daemons(binary, Path(tempfile.gettempdir())))
    try:
        yield ground
    finally:
        ground.close()


class _Unguarded(Gpus):
    """Posts as MPS has them, and nobody who keeps their shares."""

    def prepare(self, plan: Plan) -> tuple[Post, ...]:
        return tuple(Post(g.device, (g,), self.environment(g.device), is_alone=True) for g in plan.gpulets)

    def prove(self, post: Post, pid: int, ready: Ready) -> None:
        pass


async def _clients(context: Context, ground: Ground, model: WorkerModel) -> list[dict[str, Any]]:
    """Two at once; each is proven, then asked for a few batches."""
    turns = (Turn(model.name, _ROWS, 0.0, 0),)
    halves = (Gpulet(n, 0, mps_size(_KIND, 50), 0, SECOND, turns) for n in range(2))
    plan = Plan((Device(0, _KIND, Mechanism.MPS),), tuple(halves))
    posts = await asyncio.to_thread(ground.prepare, plan)
    benches = [Bench(REAL if context.is_real else REHEARSED) for _ in posts]
    try:
        served = (_client(ground, bench, post, plan, model) for bench, post in zip(benches, posts, strict=True))
        return list(await asyncio.gather(*served))
    finally:
        await asyncio.gather(*(bench.close() for bench in benches))


async def _client(ground: Ground, bench: Bench, post: Post, plan: Plan, model: WorkerModel) -> dict[str, Any]:
    began = time.monotonic()
    task = Occupy(post.environment, plan_of(post, plan), post.device, (model,), REAL.slots)
    ready = await bench.load(task)
    assert isinstance(ready, Ready), "a fresh worker is not re-cut"
    await asyncio.to_thread(ground.prove, post, bench.pid, ready)
    shapes = bench.fill(_ROWS, "")
    await bench.run(shapes)
    first_s = time.monotonic() - began
    took = [await bench.run(shapes) / MS for _ in range(10)]
    return {"sms": ready.sms, "pid": bench.pid, "first_s": first_s, "batch_ms": sorted(took)[len(took) // 2]}


async def _plain(context: Context, model: WorkerModel) -> float:
    """Milliseconds of a batch on the whole GPU without a daemon."""
    gpulet = Gpulet(0, 0, mps_size(_KIND, 100), 0, SECOND, (Turn(model.name, _ROWS, 0.0, 0),))
    plan = Plan((Device(0, _KIND, Mechanism.WHOLE),), (gpulet,))
    bench = Bench(REAL if context.is_real else REHEARSED)
    try:
        await bench.load(Occupy(Gpus().environment(0), plan, 0, (model,), REAL.slots))
        return await bench.run(bench.fill(_ROWS, "")) / MS
    finally:
        await bench.close()
