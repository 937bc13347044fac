"""E11 asks what a fault costs: is it told as a lost device, to every thread; how long until a new process serves, cold and
from a standby; does the GPU serve on after a process with a hung kernel was killed.

Every part is a process of its own, started and ended here.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from devices import held, serving
from kit import Context, Result, judged
from loops import Model

from gpulet.errors import DeviceError
from gpulet.executors.cuda.ports import CudaDriver, Stream
from gpulet.units import SECOND

_MODEL = "resnet50"
_ROWS = 8
_PATIENCE_S = 2.0
"""The watchdog's hard limit where nothing is known of a model."""
_SPINS = 40
"""Each ends by itself, after 2^24 rounds at the latest."""


def run(context: Context) -> Result:
    """BAD where a fault is not a lost device, a standby is no faster, or the GPU does not come back."""
    numbers: dict[str, Any] = {"cold_s": _served(context, "cold")}
    numbers["standby_s"] = _served(context, "standby")
    numbers["fault"] = _faulty(context) if context.is_real else {"said": "a CPU has no such fault"}
    numbers["hang"] = _hung(context)
    numbers["after_hang_s"] = _served(context, "cold")
    complaints = []
    if numbers["standby_s"] > numbers["cold_s"]:
        complaints.append(f"a standby takes {numbers['standby_s']:.1f} s, a cold start {numbers['cold_s']:.1f}")
    if context.is_real and numbers["fault"].get("kinds") != ["DeviceLost", "DeviceLost", "DeviceLost"]:
        complaints.append(f"a fault was told as {numbers['fault']}")
    if not numbers["hang"]["was_hung"]:
        complaints.append("the kernel that should hang did not")
    said = f"restart {numbers['cold_s']:.1f} s cold, {numbers['standby_s']:.1f} s from a standby; "
    said += f"a hung process was gone {numbers['hang']['killed_s']:.2f} s after it was killed, the next served "
    return judged(complaints, f"{said}after {numbers['after_hang_s']:.1f} s; fault: {numbers['fault']}", numbers)


@contextmanager
def _started(context: Context, part: str) -> Iterator[subprocess.Popen[str]]:
    """Ended whatever happens."""
    given = [str(context.out), str(context.models), context.device, context.dtype, str(int(context.tiny))]
    command = [sys.executable, __file__, part, str(max(5.0, context.left)), *given]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _heard(process: subprocess.Popen[str], word: str) -> str:
    """The line that begins with a word; what comes before it is libraries'."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    msg = f"a process ended with {process.wait()} before it said {word!r}"
    raise RuntimeError(msg)


def _served(context: Context, part: str) -> float:
    """Seconds until the first answer: from the start of the process, or from the word that a standby waits for."""
    began = time.perf_counter()
    with _started(context, part) as process:
        if part == "standby":
            _heard(process, "standing")
            began = time.perf_counter()
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        _heard(process, "served")
        return time.perf_counter() - began


def _faulty(context: Context) -> dict[str, Any]:
    with _started(context, "fault") as process:
        found: dict[str, Any] = json.loads(_heard(process, "found"))
        return found


def _hung(context: Context) -> dict[str, Any]:
    """As the watchdog: wait for the batch's end, then kill."""
    with _started(context, "hang") as process:
        _heard(process, "hanging")
        try:
            process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            was_hung = True
        else:
            was_hung = False
        began = time.perf_counter()
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        return {"was_hung": was_hung, "killed_s": time.perf_counter() - began}


# in the processes ------------------------------------------------------------------------------------------------------


def _cold(context: Context) -> None:
    with serving(context, [_MODEL]) as served:
        interval = served.gpu.prefix(64)
        graph = served.graph(_MODEL, _ROWS, interval)
        served.gpu.driver.wait(graph.replay(_ROWS, served.given(_MODEL, _ROWS)))
        print("served", flush=True)


def _standby(context: Context) -> None:
    """Everything imported, no CUDA."""
    import gpulet.executors.cuda.opening  # noqa: PLC0415
    import gpulet.executors.cuda.torchruntime  # noqa: PLC0415

    if context.is_real:
        import gpulet.executors.cuda.driver  # noqa: F401, PLC0415
    print("standing", flush=True)
    sys.stdin.readline()
    _cold(context)


def _fault(context: Context) -> None:
    """An index out of bounds on one share; what the thread there, one on the other share and a third one are told."""
    with serving(context, [_MODEL]) as served:
        driver, intervals = served.gpu.driver, served.gpu.halves(64)
        one, other = served.gpu.shares(intervals)
        loop = served.loop(_MODEL, _ROWS, intervals[1])
        kinds: list[str] = []
        threads = [
            threading.Thread(target=_watch, args=(driver, other.stream, kinds, loop)),
            threading.Thread(target=_break, args=(driver, one.stream, kinds)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        _told(kinds, lambda: driver.drain(one.stream))
        print("found", json.dumps({"kinds": kinds}), flush=True)
        os._exit(0)  # nothing can be given back any more


def _told(kinds: list[str], act: object) -> None:
    assert callable(act)
    try:
        act()
    except DeviceError as error:
        kinds.append(type(error).__name__)
        print(error, file=sys.stderr)
    except Exception as error:  # noqa: BLE001 (an error of another kind is what is asked for)
        kinds.append(f"{type(error).__name__}: {error}"[:160])
    else:
        kinds.append("nothing")


def _watch(driver: CudaDriver, stream: Stream, kinds: list[str], loop: Model) -> None:
    def until_told() -> None:
        end = time.monotonic() + 10
        while time.monotonic() < end:
            loop.launch()
            driver.drain(stream)

    driver.enter()
    _told(kinds, until_told)


def _break(driver: CudaDriver, stream: Stream, kinds: list[str]) -> None:
    def act() -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(int(stream))):
            table = torch.ones(4, device="cuda")
            table[torch.full((4,), 1 << 40, device="cuda")].add_(1)
        driver.drain(stream)

    driver.enter()
    time.sleep(0.5)
    _told(kinds, act)


def _hang(context: Context) -> None:
    """Kernels that take far longer than a batch may; on the CPU a sleep stands for them."""
    with held(context) as gpu:
        share = gpu.pool.share(gpu.prefix(8))
        for _ in range(_SPINS):
            gpu.driver.spin(share.stream, 30 * SECOND)
        print("hanging", flush=True)
        if not context.is_real:
            time.sleep(2 * _PATIENCE_S)
        gpu.driver.drain(share.stream)
        os._exit(0)


def _main() -> None:
    part, seconds, out, models, device, dtype, tiny = sys.argv[1:]
    until = time.monotonic() + float(seconds)
    context = Context(Path(out), Path(models), until, device == "cuda", tiny == "1", dtype)
    threading.Thread(target=_end, args=(float(seconds),), daemon=True).start()
    {"cold": _cold, "standby": _standby, "fault": _fault, "hang": _hang}[part](context)


def _end(after: float) -> None:
    """Whatever hangs here ends."""
    time.sleep(after)
    os._exit(3)


if __name__ == "__main__":
    _main()
