"""Experiments on one GPU, each in a process of its own, within a budget; what is measured already is skipped.

    python benchmarks/gpu/run.py A --out DIR       is it possible: E0 to E6
    python benchmarks/gpu/run.py B --out DIR       is the server right: E8, E13, E7, E9, E12, E11
    python benchmarks/gpu/run.py C --out DIR       the profile of all models; again, until nothing is left

`--device cpu --tiny` rehearses all of it without a GPU: then every result says so and no number means anything.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kit import DONE, HERE, REPOSITORY, RESULTS, Result, Verdict, write
from runs import EXPERIMENTS, RUNS

_TRIES = 3
_LEAST_S = 8.0


class Started:
    """The processes that this one started; all end with it."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """In a session of its own, so that its children end with it."""
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """It and what it started."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop_all(self) -> None:
        """Nothing stays behind."""
        for process in self.processes:
            self.stop(process)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked."""
    a = _parsed(arguments)
    names = [name for name in RUNS[a.run] if not a.only or name in a.only]
    end = time.monotonic() + a.budget
    started = Started()
    signal.signal(signal.SIGTERM, _leave)
    try:
        todo = [name for name in names if not _skipped(a, name)]
        if any(EXPERIMENTS[name].needs_models for name in todo):
            _export(a, started)
        for name in todo:
            _measure(a, name, end, started)
    finally:
        started.stop_all()
        (a.models / "exporting").unlink(missing_ok=True)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", choices=list(RUNS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--models", type=Path, help="folder of the exported models; default: beside DIR")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds; then nothing new is started")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="experiments, such as E1,E4")
    parser.add_argument("--limit", type=float, help="seconds for each experiment instead of its own limit")
    parser.add_argument(
        "--grace", type=float, default=8.0, help="seconds for an experiment to end by itself at its limit"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--dtype", choices=["float16", "bfloat16", "float32"], help="of weights; default: half on a GPU"
    )
    parser.add_argument("--tiny", action="store_true", help="small models and few points")
    a = parser.parse_args(arguments)
    unknown = sorted(set(a.only) - set(RUNS[a.run]))
    if unknown:
        parser.error(f"run {a.run} has no {', '.join(unknown)}; it has {', '.join(RUNS[a.run])}")
    a.is_real = a.device == "cuda"
    a.dtype = a.dtype or ("float16" if a.is_real else "float32")
    a.models = a.models or a.out.parent / f"models-{'tiny' if a.tiny else 'full'}-{a.dtype}"
    if not a.is_real and a.out.resolve().is_relative_to(RESULTS):
        parser.error("a rehearsal is not written among results")
    return a


def _earlier(a: argparse.Namespace, name: str) -> dict[str, Any]:
    """What an earlier run says of it, of the same kind of run."""
    for folder in (a.out, *([RESULTS] if a.is_real else [])):
        path = folder / f"{name}.json"
        if path.exists():
            found: dict[str, Any] = json.loads(path.read_text())
            if found["rehearsal"] != a.is_real:
                return found
    return {}


def _skipped(a: argparse.Namespace, name: str) -> bool:
    earlier = _earlier(a, name)
    if earlier.get("verdict") in DONE:
        print(f"{name} skipped: {earlier['verdict']} before: {earlier['line']}", flush=True)
        return True
    if earlier.get("tries", 0) >= _TRIES:
        print(f"{name} skipped: tried {_TRIES} times: {earlier['verdict']} {earlier['line']}", flush=True)
        return True
    return False


def _environment(a: argparse.Namespace) -> dict[str, str]:
    """More hardware queues than streams, before CUDA starts; a module's kernels when they are first needed.

    A rehearsal's models are too small for two threads, which would wait for each other.
    """
    paths = [str(REPOSITORY / "src"), str(HERE), os.environ.get("PYTHONPATH", "")]
    ours = {"CUDA_DEVICE_MAX_CONNECTIONS": "32", "CUDA_MODULE_LOADING": "LAZY", "PYTHONUNBUFFERED": "1"}
    if not a.is_real:
        ours["OMP_NUM_THREADS"] = "1"
    return {**os.environ, **ours, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _export(a: argparse.Namespace, started: Started) -> None:
    """Beside the experiments that need no model; children wait for the file that they need while the marker stands."""
    a.models.mkdir(parents=True, exist_ok=True)
    (a.models / "exporting").touch()
    command = ["nice", "-n", "10", sys.executable, str(HERE / "models.py"), str(a.models), "--dtype", a.dtype]
    started.start([*command, *(["--tiny"] if a.tiny else [])], _environment(a))


def _measure(a: argparse.Namespace, name: str, end: float, started: Started) -> None:
    """One experiment, printed in one line."""
    left = end - time.monotonic()
    if left < _LEAST_S:
        print(f"{name} skipped: {left:.0f} s of the budget are left", flush=True)
        return
    seconds = max(1.0, min(a.limit or EXPERIMENTS[name].seconds, left - a.grace))
    tries = _earlier(a, name).get("tries", 0)
    began = time.monotonic()
    process = started.start(_command(a, name, seconds), _environment(a))
    try:
        code = process.wait(seconds + a.grace)
        why = "" if code == 0 else f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        why = f"killed after {seconds + a.grace:.0f} s"
    finally:
        started.stop(process)
    found = _found(a, name, why, time.monotonic() - began, tries)
    print(f"{name} {found['verdict']} {found['line']} ({found['seconds']:.1f} s)", flush=True)


def _command(a: argparse.Namespace, name: str, seconds: float) -> list[str]:
    command = [sys.executable, str(HERE / "child.py"), name, "--out", str(a.out), "--models", str(a.models)]
    command += ["--seconds", f"{seconds:g}", "--device", a.device, "--dtype", a.dtype]
    return [*command, *(["--tiny"] if a.tiny else [])]


def _found(a: argparse.Namespace, name: str, why: str, took: float, tries: int) -> dict[str, Any]:
    """What the child has written; a child that could not is FAILED, and what it had measured stays."""
    path = a.out / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if why or not found:
        kept = found.get("numbers", {})
        result = Result(Verdict.FAILED, why or "it wrote nothing", kept)
        found = {"experiment": name, "rehearsal": not a.is_real, "seconds": round(took, 2), "numbers": kept}
        found |= {"verdict": result.verdict, "line": result.line}
    counted = found["verdict"] == Verdict.FAILED
    found["tries"] = tries + counted
    write(path, found)
    return found


def _leave(_number: int, _frame: object) -> NoReturn:
    sys.exit(143)


if __name__ == "__main__":
    main()
