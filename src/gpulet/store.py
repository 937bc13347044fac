"""The profile store: measured tables under the user's cache directory.

A table is keyed by what it depends on: the model file's hash, the device, the runtime's version. What a machine's own
front-end costs and how much overlapping runs slow each other stand in one small JSON file per machine.
"""

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from gpulet.units import US, Duration


@dataclass(frozen=True, slots=True)
class Machine:
    """What `gpulet profile` learns about a machine: `front_end_us` of CPU per request, `contention` of shared cores."""

    front_end_us: float = 0.0
    contention: float = 0.0

    @property
    def front_end(self) -> Duration:
        """CPU time the front-end spends on one request."""
        return round(self.front_end_us * US)


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/gpulet`, by default `~/.cache/gpulet`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpulet"


def version_of(package: str) -> str:
    """A package and the version that is installed here, as part of a key."""
    try:
        return f"{package}{version(package)}"
    except PackageNotFoundError:
        return package


def gpu_tag(kind: str, mechanism: str) -> str:
    """What identifies a GPU of that kind, cut so: with the version of its driver, where one is loaded."""
    told = Path("/proc/driver/nvidia/version")
    found = re.search(r"Kernel Module\D*([\d.]+)", told.read_text(encoding="utf-8")) if told.exists() else None
    return f"{kind}-{mechanism}" + (f"-driver{found[1]}" if found else "")


def cpu_tag(cores: int) -> str:
    """What identifies this machine's processor and how much of it may be used."""
    return f"cpu-{hashlib.sha256(_processor().encode()).hexdigest()[:8]}-{cores}"


def _processor() -> str:
    """The model of the first core, where Linux tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class ProfileStore:
    """Tables as files: `<root>/profiles/<model hash>-<device>-<runtime>.csv`."""

    def __init__(self, root: Path, device: str, runtime: str) -> None:
        self._folder = root / "profiles"
        self._device = device
        self._runtime = runtime

    def path(self, digest: str) -> Path:
        """Where the table of a model with this hash stands, or would stand."""
        return self._folder / f"{digest[:16]}-{self._device}-{self._runtime}.csv"

    def read(self, digest: str) -> str:
        """The table's text; empty when there is none."""
        path = self.path(digest)
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def write(self, digest: str, text: str) -> None:
        """Replace the table, all or nothing."""
        _replace(self.path(digest), text)

    def read_machine(self) -> Machine:
        """What is known of the machine; zeros when nothing was measured."""
        path = self._machine_path
        return msgspec.json.decode(path.read_bytes(), type=Machine) if path.exists() else Machine()

    def write_machine(self, machine: Machine) -> None:
        """Replace what is known of the machine."""
        _replace(self._machine_path, msgspec.json.encode(asdict(machine)).decode())

    def read_memory(self) -> dict[str, int]:
        """The bytes that a copy of a model took when it was loaded last, by its file's hash."""
        path = self._memory_path
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}

    def write_memory(self, sizes: Mapping[str, int]) -> None:
        """Replace what is known of it."""
        _replace(self._memory_path, msgspec.json.encode(sizes).decode())

    @property
    def _memory_path(self) -> Path:
        return self._folder / f"{self._device}-{self._runtime}-memory.json"

    @property
    def _machine_path(self) -> Path:
        return self._folder / f"{self._device}-gpulet{version('gpulet')}.json"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
