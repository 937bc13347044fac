"""What ONNX Runtime alone does on this machine: runs per second of the heavy model on all cores, in two ways."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_WARM = 2
_ARRANGEMENTS = {"two processes of one thread": (2, 1), "one process of two threads": (1, 2)}


def rates(model: Path, seconds: float, niceness: int = 0) -> dict[str, Any]:
    """Runs per second of each arrangement, and the better one."""
    found = {name: _rate(model, seconds, niceness, *counts) for name, counts in _ARRANGEMENTS.items()}
    return {**found, "per_second": max(found.values())}


def _rate(model: Path, seconds: float, niceness: int, processes: int, threads: int) -> float:
    command = ["nice", "-n", str(niceness), sys.executable, __file__, str(model), str(threads), str(seconds)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(float(process.communicate(timeout=seconds + 60)[0]) for process in started)


def main(path: str, threads: str, seconds: str) -> None:
    """One process: batch 1, one run after the other."""
    import numpy as np  # noqa: PLC0415 (only in the processes that run it)
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    told = session.get_inputs()[0]
    row = np.random.default_rng(1).random((1, *told.shape[1:]), np.float32)
    for _ in range(_WARM):
        session.run(None, {told.name: row})
    began, count = time.monotonic(), 0
    while time.monotonic() - began < float(seconds):
        session.run(None, {told.name: row})
        count += 1
    print(count / (time.monotonic() - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
