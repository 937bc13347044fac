"""The profile asks how long a batch of every model takes, on every size, in every batch: the table that planners read.

`latency.csv` has a line for each point as it is measured: the GPU's time of one graph, and the time from the launch until
a waiting thread knows the end. `profile.csv` is made of it, in our format (`--profile` of the commands): mean, p95 and p99
are what a server waits, `host_ms` what of the mean is not the GPU's. `profile.json` says on what it was measured.

A lost context costs its process only: the next one goes on; what failed twice is left out.
"""

import csv
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from devices import Gpu, Served, serving
from e00_machine import versions
from kit import SIZES, Context, Result, Verdict, judged, quantile, write
from loops import device_times, wall_times
from models import MODELS

from gpulet.errors import DeviceLost, GpuletError
from gpulet.executors.cuda.contexts import Share
from gpulet.profile import Point, Profile
from gpulet.profiletable import format_profile
from gpulet.units import MS, from_ms

BATCHES = (1, 2, 4, 8, 16, 32)
_SIZE_TIERS = {132: 0, 64: 0, 32: 0, 96: 1, 16: 1, 8: 1}
_BATCH_TIERS = {1: 0, 8: 0, 32: 0, 4: 1, 16: 1}
_LAST_TIER = 2
_SAMPLES = 30
_COLUMNS = (
    "gpu",
    "model",
    "size",
    "batch",
    *(f"{what}_{n}" for what in ("gpu", "wall") for n in ("median", "p95", "p99")),
)
_HEADER = (*_COLUMNS, "wall_mean", "samples")
_LOST = 4
"""The exit code of a process whose GPU context is lost."""
_KILLED = frozenset({-6, -7, -11})
"""Aborted, bus error, segmentation fault: libraries end so too."""
_MOST_LOST = 8
_TRIES = 2
_LEAST_S = 3.0
Spot = tuple[str, int, int]
"""Model, size in SMs, batch."""


def spots(sizes: Iterable[int], models: Sequence[str], batches: Sequence[int] = BATCHES) -> list[Spot]:
    """Most valuable first: a coarse grid of all models, then finer; on each size models in order, so that little is reloaded."""
    wanted = [
        (_SIZE_TIERS.get(size, _LAST_TIER) + _BATCH_TIERS.get(batch, _LAST_TIER), -size, order, batch)
        for size in sizes
        for order in range(len(models))
        for batch in batches
    ]
    return [(models[order], -size, batch) for _, size, order, batch in sorted(wanted)]


def run(context: Context) -> Result:
    """BAD where a latency rises with the size by more than a tenth beyond noise: then a profile's curve hides a step."""
    lost = 0
    while context.left > _LEAST_S and lost < _MOST_LOST:
        code = _worked(context)
        if code not in {_LOST, *_KILLED}:
            break
        lost += 1
    state = json.loads((context.out / "profile-state.json").read_text())
    lines = _lines(context)
    numbers: dict[str, Any] = {"points": len(lines), "lost_contexts": lost, **state}
    if not lines:
        return Result(Verdict.FAILED, f"nothing was measured; {lost} processes ended early", numbers)
    points = [_point(line) for line in lines]
    (context.out / "profile.csv").write_text(format_profile(points))
    models = len(Profile(tuple(points)).models)
    said = f"{len(points)} points of {models} models on {state['gpu']}, {state['left']} to go, {state['failed']} failed"
    if state["left"]:
        return Result(Verdict.PARTLY, said, numbers)
    return judged(_steps(points) if context.is_real else [], said, numbers)


def _worked(context: Context) -> int:
    """The exit code of a process that measures until its time is over; 0 where that was overrun."""
    command = [sys.executable, __file__, str(context.left - 2), str(context.out), str(context.models)]
    command += [context.device, context.dtype, str(int(context.tiny))]
    try:
        code = subprocess.run(command, timeout=context.left + 5, check=False).returncode
    except subprocess.TimeoutExpired:
        return 0
    if code not in {0, _LOST, *_KILLED}:
        msg = f"the process that measures ended with {code}"
        raise RuntimeError(msg)
    return code


def _point(line: Mapping[str, str]) -> Point:
    median, p95, p99 = (from_ms(float(line[f"wall_{n}"])) for n in ("median", "p95", "p99"))
    host = max(0, median - from_ms(float(line["gpu_median"])))
    size, batch, samples = (int(line[name]) for name in ("size", "batch", "samples"))
    return Point(line["model"], size, batch, median, p95, p99, samples, host=host)


def _steps(points: Sequence[Point]) -> list[str]:
    """More SMs that take longer."""
    curves: dict[tuple[str, int], dict[int, int]] = {}
    for p in points:
        curves.setdefault((p.model, p.rows), {})[p.size] = p.mean - p.host
    found = []
    for (model, rows), curve in curves.items():
        for small, large in zip(sorted(curve), sorted(curve)[1:], strict=False):
            if curve[large] > 1.1 * curve[small]:
                found.append(
                    f"{model} x {rows}: {curve[small] / MS:.3f} ms on {small}, {curve[large] / MS:.3f} on {large}"
                )
    return found


def _lines(context: Context) -> list[dict[str, str]]:
    """What is measured, here or committed; a line that a killed process has torn does not count."""
    found: dict[Spot, dict[str, str]] = {}
    earlier, own = context.earlier("latency.csv"), context.out / "latency.csv"
    for path in dict.fromkeys(p for p in (earlier, own) if p and p.exists()):
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                if None not in line.values():
                    found[line["model"], int(line["size"]), int(line["batch"])] = line
    return list(found.values())


# in a process of its own ----------------------------------------------------------------------------------------------


class Table:
    """Lines as they are measured, and what failed."""

    def __init__(self, context: Context) -> None:
        self.path = context.out / "latency.csv"
        self.errors = context.out / "errors.jsonl"
        self.done = {(line["model"], int(line["size"]), int(line["batch"])) for line in _lines(context)}
        old = self.errors.read_text().splitlines() if self.errors.exists() else []
        self.failures = Counter(tuple(json.loads(line)["spot"]) for line in old)

    def add(self, line: Sequence[object]) -> None:
        """On the disk at once; behind a torn line a new one begins."""
        is_new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            if not is_new and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([_HEADER, line] if is_new else [line])
            file.flush()
            os.fsync(file.fileno())

    def fail(self, spot: Spot) -> None:
        """Why, for those who look."""
        self.failures[spot] += 1
        with self.errors.open("a") as file:
            file.write(json.dumps({"spot": spot, "error": traceback.format_exc()}) + "\n")

    def is_open(self, spot: Spot) -> bool:
        """Still to be measured."""
        return spot not in self.done and self.failures[spot] < _TRIES


def _measure_all(context: Context) -> None:
    """Until all is measured or the time is over; raises `DeviceLost`."""
    models = list(MODELS)[: 2 if context.tiny else None]
    table = Table(context)
    with serving(context, models) as served:
        gpu = served.gpu
        sizes = gpu.sizes(SIZES[:1] if context.tiny else SIZES)
        wanted = spots(sizes, models, BATCHES[:2] if context.tiny else BATCHES)
        with ExitStack() as kept:
            refused = {size for size in sizes if not _is_kept(kept, gpu, table, size)}
            wanted = [spot for spot in wanted if spot[1] not in refused]
            for spot in wanted:
                _tell(context, gpu, table, sum(map(table.is_open, wanted)))
                if table.is_open(spot) and context.left > _LEAST_S:
                    _try(served, table, spot)
            _tell(context, gpu, table, sum(map(table.is_open, wanted)))
            served.cache.close()


def _is_kept(kept: ExitStack, gpu: Gpu, table: Table, size: int) -> bool:
    """Whether there is a proven share of that size; the others are measured all the same."""
    try:
        kept.enter_context(gpu.keeping(gpu.prefix(size)))
    except DeviceLost:
        raise
    except GpuletError:
        table.fail(("", size, 0))
        return False
    return True


def _try(served: Served, table: Table, spot: Spot) -> None:
    """One point; a model stays loaded by its smallest graph on the whole GPU."""
    model, size, batch = spot
    try:
        served.graph(model, 1, served.gpu.layout.everything)
        table.add(_measured(served, spot))
        table.done.add(spot)
    except DeviceLost:
        table.fail(spot)
        raise
    except (GpuletError, RuntimeError) as error:
        table.fail(spot)
        print(f"profile: {model} x {batch} on {size} SMs failed: {str(error)[:120]}", flush=True)


def _measured(served: Served, spot: Spot) -> list[object]:
    model, size, batch = spot
    gpu, key = served.gpu, served.key(model, batch, served.gpu.prefix(size))
    share: Share = gpu.pool.share(key.interval)
    was_there = key in served.cache
    loop = served.loop(model, batch, key.interval)
    device, wall = (times(gpu.driver, loop, _SAMPLES) for times in (device_times, wall_times))
    if not was_there:
        served.cache.drop(key)
    named = [round(quantile(times, part) / MS, 6) for times in (device, wall) for part in (0.5, 0.95, 0.99)]
    mean = round(sum(wall) / len(wall) / MS, 6)
    return [gpu.driver.name, model, share.sms, batch, *(max(ms, 1e-6) for ms in named), mean, len(wall)]


def _tell(context: Context, gpu: Gpu, table: Table, left: int) -> None:
    """How far it is, and on what."""
    failed = sum(count >= _TRIES for count in table.failures.values())
    known = {"gpu": gpu.driver.name, "cuda": gpu.driver.version, "sms": gpu.layout.whole, "dtype": context.dtype}
    counts = {"left": left, "failed": failed, "rehearsal": not context.is_real}
    write(context.out / "profile-state.json", {**known, **counts, "versions": versions()})


def _main() -> None:
    seconds, out, models, device, dtype, tiny = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    try:
        _measure_all(Context(Path(out), Path(models), until, device == "cuda", tiny == "1", dtype))
    except DeviceLost as error:
        print(f"profile: {error}; going on in another process", flush=True)
        sys.stdout.flush()
        os._exit(_LOST)  # nothing can be given back any more
    os._exit(0)  # libraries' own ends may crash


if __name__ == "__main__":
    _main()
