"""E4 asks whether disjoint shares overlap in time, and how often two streams stand on one hardware queue.

For each number of `CUDA_DEVICE_MAX_CONNECTIONS` in a process of its own, since CUDA reads it once.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from devices import Gpu, held
from kit import Context, Result, judged

from gpulet.executors.cuda.contexts import Share
from gpulet.executors.cuda.ports import Stream
from gpulet.units import MS, US

_LONG = 1500 * US
_SHORT = 10 * US
_STREAMS = (4, 16, 40)
_WANTED = "32"
_PAIR_S = 0.002


def run(context: Context) -> Result:
    """BAD where four streams alias with 32 queues, or long kernels on disjoint shares run one after the other."""
    found = {queues: _asked(context, queues) for queues in (_WANTED, "8", "")}
    numbers: dict[str, Any] = {f"connections {queues or 'unset'}": each for queues, each in found.items()}
    mine = found[_WANTED]
    complaints = [f"{name}: {each['error']}" for name, each in numbers.items() if "error" in each]
    if "error" in mine:
        return judged(complaints, "nothing is known", numbers)
    few = mine["aliased"][str(_STREAMS[0])]
    if few["aliased"]:
        complaints.append(f"{few['aliased']} of {few['pairs']} pairs of {_STREAMS[0]} streams alias")
    if mine["overlap"] < 0.9:  # noqa: PLR2004 (the launches are not at the same instant)
        complaints.append(f"two kernels of {10 * _LONG / MS:g} ms overlap by {mine['overlap']:.0%}")
    rates = (f"{n} streams {each['aliased']}/{each['pairs']}" for n, each in mine["aliased"].items())
    return judged(complaints, f"overlap {mine['overlap']:.0%}; aliased with 32: {', '.join(rates)}", numbers)


def _asked(context: Context, queues: str) -> dict[str, Any]:
    environment = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": queues}
    if not queues:
        del environment["CUDA_DEVICE_MAX_CONNECTIONS"]
    seconds = max(5.0, min(22.0, context.left / 2))
    command = [sys.executable, __file__, context.device, str(seconds), str(context.out)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds + 20, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds + 20:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no word"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(context: Context) -> dict[str, Any]:
    with held(context) as gpu:
        intervals = gpu.halves(len(gpu.layout.groups) // 2 * gpu.layout.group)
        one, other = (gpu.pool.share(interval) for interval in intervals)
        found: dict[str, Any] = {"overlap": _overlap(gpu, one, other), "aliased": {}}
        for count in _STREAMS:
            found["aliased"][str(count)] = _aliased(context, gpu, (one, other), count)
        gpu.drop(*intervals)
    return found


def _overlap(gpu: Gpu, one: Share, other: Share) -> float:
    """Of two long kernels: 1 where both take as long as one, 0 where they take as long as one after the other."""
    shares = (one, other)
    marks = [gpu.driver.make_mark() for _ in range(3)]
    gpu.driver.put(marks[0], one.stream)
    for share, mark in zip(shares, marks[1:], strict=True):
        gpu.driver.spin(share.stream, 10 * _LONG)
        gpu.driver.put(mark, share.stream)
    for mark in marks[1:]:
        gpu.driver.wait(mark)
    both = max(gpu.driver.elapsed(marks[0], mark) for mark in marks[1:])
    for mark in marks:
        gpu.driver.destroy_mark(mark)
    return max(0.0, 2 - both / (10 * _LONG))


def _aliased(context: Context, gpu: Gpu, shares: tuple[Share, Share], count: int) -> dict[str, int]:
    """Over all pairs of a stream here and one there."""
    left, right = ([gpu.driver.make_stream(share.context) for _ in range(count // 2)] for share in shares)
    seen = late = 0
    for busy in left:
        for short in right:
            if context.left < _PAIR_S:
                break
            seen += 1
            late += _is_late(gpu, busy, short)
    for stream in (*left, *right):
        gpu.driver.destroy_stream(stream)
    return {"pairs": seen, "aliased": late}


def _is_late(gpu: Gpu, busy: Stream, short: Stream) -> bool:
    """Twice in a row: a thread that is held up looks the same once."""
    mark = gpu.driver.make_mark()
    late = True
    for _ in range(2):
        gpu.driver.spin(busy, _LONG)
        gpu.driver.spin(short, _SHORT)
        gpu.driver.put(mark, short)
        gpu.driver.wait(mark)
        late = late and gpu.driver.is_idle(busy)
        gpu.driver.drain(busy)
    gpu.driver.destroy_mark(mark)
    return late


if __name__ == "__main__":
    device, seconds, out = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    print(json.dumps(_measured(Context(Path(out), Path(out), until, device == "cuda", tiny=False))), flush=True)
    os._exit(0)  # libraries' own ends may crash
