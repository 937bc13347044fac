"""D-STACK's eight models on a V100, its mixes, and the problems that they make.

Knees, SLOs, batches and runtimes are the paper's as remembered: they await a look at its table. Membership of C-7 is the
least sure. ResNet-50 and VGG-19 run a little longer than half their SLO, which breaks the paper's own equation 12. The
paper publishes no latency but that at the knee: away from it we take the curve that its analytical model gives.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from gpulet.core.ports import Problem
from gpulet.device import KINDS, Device, Kind, Mechanism, mps_size
from gpulet.efficacy import OperatingPoint
from gpulet.model import Model
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.units import MS, NEVER, SECOND, Duration, from_ms

BATCH = 16
STEP = 5
"""Shares are multiples of 5 %, as far as the opportunistic pass goes below a knee at a time; none is smaller."""
KIND: Kind = replace(KINDS["v100"], sms=100, mps_shares=tuple(range(STEP, 101, STEP)))
"""A V100 counted in percent, as the paper does: scaled shares in whole SMs of its 80 would be 3 % off for Mobilenet."""
LINK = 1_920.0
"""Images/s that the paper's generator sends over its 10 Gb/s link, all models together."""
SERIAL_RATIO = 0.25
"""Serial work of a kernel, in units of the time one SM needs for one of its parallel operations."""
KNEE_PART = 0.5
"""The knee as a part of the widest kernel's parallelism: (sqrt(r^2 + 3) - r) / 3 for r = 0.25."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: knee in percent of the GPU, SLO and runtime of a batch there, in ms."""

    knee_pct: int
    slo_ms: float
    runtime_ms: float
    batch: int = BATCH


TABLE: Mapping[str, Row] = {
    "mobilenet": Row(20, 25, 10),
    "alexnet": Row(30, 25, 8),
    "bert": Row(30, 25, 9),
    "resnet18": Row(30, 25, 12),
    "resnet50": Row(40, 50, 28),
    "inception": Row(40, 50, 25),
    "vgg19": Row(50, 100, 55),
    "resnext50": Row(50, 100, 40),
}
CONVNET_SLO_MS = 100.0
"""A stand-in of ours: the convnets have no SLO."""
CONVNETS: Mapping[str, Row] = {
    "convnet1": Row(30, CONVNET_SLO_MS, 10.3, 1),
    "convnet2": Row(40, CONVNET_SLO_MS, 14.6, 1),
    "convnet3": Row(60, CONVNET_SLO_MS, 15.4, 1),
}
"""LeNet-like networks of three widths. What a batch of theirs holds is not known: a batch counts as one."""
HALF: Mapping[str, Row] = {f"{n}_t4": replace(r, knee_pct=2 * r.knee_pct) for n, r in TABLE.items()}
"""The same kernels on a T4, which has half the SMs: a guess of ours, nobody remembers its table."""
ROWS: Mapping[str, Row] = {**TABLE, **CONVNETS, **HALF}
MIXES: Mapping[str, tuple[str, ...]] = {
    "C-2": ("resnet50", "vgg19"),
    "C-3": ("alexnet", "resnet50", "vgg19"),
    "C-4": ("mobilenet", "alexnet", "resnet50", "vgg19"),
    "C-7": ("mobilenet", "bert", "resnet18", "resnet50", "inception", "vgg19", "resnext50"),
    "convnets": tuple(CONVNETS),
}


MEASURED_BATCHES = (1, 2, 4, 8, 10, 12, 16)
"""What the paper profiles, as remembered; latencies of all but the last are known by the analytical model alone."""


def slowdown(part: float) -> float:
    """Latency at a part of the knee over that at the knee: 50 kernels that narrow linearly, normalised."""
    width = min(1.0, part * KNEE_PART)
    return _time(width) / _time(KNEE_PART)


def _time(width: float) -> float:
    return SERIAL_RATIO + (width + 1 / width) / 2


def profile(names: Sequence[str], batches: Sequence[int] = ()) -> Profile:
    """Latencies at every whole percent, of full batches alone, so that fewer rows take as long.

    With `batches` also of these: the analytical model's knee is in proportion to rows, the runtime there is the same.
    """
    points: list[Point] = []
    for name in names:
        row = ROWS[name]
        for share, batch in product(range(STEP, 101), sorted({*batches, row.batch})):
            knee_pct = row.knee_pct * batch / row.batch
            latency: Duration = round(row.runtime_ms * MS * slowdown(share / knee_pct))
            points.append(Point(name, mps_size(KIND, share).sms, batch, latency, latency, latency))
    return Profile(tuple(points))


def published(names: Sequence[str] = tuple(ROWS)) -> dict[str, OperatingPoint]:
    """Size, batch and runtime of each model at its knee."""
    rows = {name: ROWS[name] for name in names}
    return {n: OperatingPoint(mps_size(KIND, r.knee_pct), r.batch, from_ms(r.runtime_ms)) for n, r in rows.items()}


def mix(name: str, *, gpus: int = 1) -> Problem:
    """A mix on V100s."""
    return mixed(MIXES[name], gpus=gpus)


def mixed(names: Sequence[str], *, gpus: int = 1, batches: Sequence[int] = ()) -> Problem:
    """Any models on V100s. The demand is one batch of each in each of its SLOs: what the mandatory plan serves."""
    models = {n: Model(n, from_ms(ROWS[n].slo_ms), ROWS[n].batch) for n in names}
    demand = {n: gpus * model.max_batch * SECOND / model.slo for n, model in models.items()}
    devices = tuple(Device(d, KIND, Mechanism.MPS, resizes=True) for d in range(gpus))
    return Problem(models, demand, devices, profile(names, batches))


def saturated(problem: Problem, duration: Duration) -> Iterator[Request]:
    """More single rows of each model than all devices run in that time, there from the start, and never due."""
    serial = 0
    for name, model in problem.models.items():
        shortest = problem.profile.curve(name, KIND.sms)[-1]
        for _ in range(len(problem.devices) * model.max_batch * (duration // shortest + 2)):
            serial += 1
            yield Request(serial, name, 0, NEVER)
