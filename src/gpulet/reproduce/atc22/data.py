"""The measurements of gpu-lets, read from a folder beside the project: they are not ours to pass on."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpulet.device import GPULETS_SHARES, KINDS, Kind, mps_size
from gpulet.errors import ConfigError
from gpulet.importing import import_tables
from gpulet.importing.overheads import parse_overhead
from gpulet.importing.table import Table, read_table
from gpulet.importing.utilization import Use
from gpulet.interference import Interference, parse_interference
from gpulet.profile import Point, Profile
from gpulet.units import MIB, from_ms

KIND: Kind = replace(KINDS["rtx2080ti"], memory=11_000 * MIB)
"""The artifact counts 11,000 MB of a 2080 Ti (resource/device-config.json)."""
LENETS = tuple(f"lenet{n}" for n in range(1, 7))

_PDF = ("figures of the paper's submission, in the public fork RegiaYoung/glet", "no licence: cite the paper")
_GLET = ("casys-kaist/glet, folder resource", "no licence file in the repository")
_IGNITER = ("icloud-ecnu/igniter, i-Gniter/Profile/tools/gpulet.config", "no licence file in the repository")
SOURCES: Mapping[str, tuple[str, str]] = {
    "rtx2080ti_latency.csv": _PDF,
    "fig10_interference_error_cdf.csv": _PDF,
    "fig12_peak_rate.csv": _PDF,
    "concat_overhead.csv": _GLET,
    "rtx2080ti_utilization.csv": _GLET,
    "rtx2080ti_interference_coefficients.csv": _GLET,
    "v100_igniter/pairs.csv": _IGNITER,
    "v100_igniter/solo.csv": _IGNITER,
    "fig14_like_rates.csv": ("gpulet's own curve, in the manner of figure 14", "ours"),
}
"""Where each file comes from, and under which licence."""
_IMAGES = "googlenet,resnet50,vgg16"


@dataclass(frozen=True, slots=True)
class Measurements:
    """What gpu-lets' scheduler plans with, on a 2080 Ti."""

    folder: Path
    profile: Profile
    interference: Interference

    def table(self, name: str) -> Table:
        """Another file of the folder."""
        return read(self.folder, name)


def read(folder: Path, name: str) -> Table:
    """A file of the folder; raises `ConfigError` that says which it is, from where, under which licence."""
    path = folder / name
    try:
        return read_table(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError):
        origin, licence = SOURCES[name]
        msg = f"{path} is missing; it comes from {origin} ({licence}); name the folder with --data"
        raise ConfigError(msg) from None


def load(folder: Path) -> Measurements:
    """Latency of figure 3, concatenation on the host, utilisation; LeNet guessed, since nobody published it."""
    overheads = [
        parse_overhead(option, lambda name: read(folder, name))
        for option in (
            f"concat_overhead.csv:3x224x224:1.9:{_IMAGES}",
            "concat_overhead.csv:3x300x300:2.5:ssd-mobilenetv1",
        )
    ]
    utilization = read(folder, "rtx2080ti_utilization.csv")
    latency = read(folder, "rtx2080ti_latency.csv")
    points, _ = import_tables([latency], KIND, "glet", 1, overheads, utilization)
    coefficients = folder / "rtx2080ti_interference_coefficients.csv"
    read(folder, coefficients.name)
    interference = parse_interference(coefficients.read_text(encoding="utf-8"), str(coefficients))
    return Measurements(folder, Profile((*points, *_lenets(utilization))), interference)


def _lenets(utilization: Table) -> list[Point]:
    """A guess: L(b) = 0.6 + 0.7 (b - 1) / 31 ms at every share, and the artifact's 0.4 ms of concatenation."""
    uses: dict[int, Use] = {
        line.count("batch"): (line.not_negative("l2_pct") / 100, line.not_negative("dram_pct") / 100)
        for line in utilization.lines
        if line.text("model") == "lenet"
    }
    points = []
    for name in LENETS:
        for share in GPULETS_SHARES:
            for rows, (l2, dram) in sorted(uses.items()):
                latency = from_ms(0.6 + 0.7 * (rows - 1) / 31 + 0.4)
                size, part = mps_size(KIND, share).sms, share / 100
                use = {"host": from_ms(0.4), "l2": l2 * part, "dram": dram * part}
                points.append(Point(name, size, rows, latency, latency, latency, **use))  # type: ignore[arg-type] # l2 and dram are floats, host an int
    return points
