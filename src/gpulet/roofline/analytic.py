"""A profile of a device that nobody measured, always labelled as such."""

from collections.abc import Iterable, Iterator, Mapping

from gpulet.device import Kind, Size
from gpulet.profile import Point, Profile
from gpulet.roofline import Form, Numbers, Roofline, Work
from gpulet.roofline.fit import Fitted
from gpulet.roofline.hardware import find_hardware
from gpulet.roofline.works import find_work

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""The batches that are computed; between them a profile is linear."""
UPPER = 1.15
"""Upper quantile over the mean where only the mean is computed (our allowance, not a measurement)."""
_FIXED, _PER_KERNEL = 50e-6, 2.5e-6
"""Seconds of the host per batch and per node of a CUDA graph, as remembered."""


def start(work: Work) -> Numbers:
    """Where nothing was fitted: guesses within the ranges that are usual for fused half precision."""
    return Numbers(_FIXED + _PER_KERNEL * work.kernels, 0.45, 30.0, 1.0, 0.5)


def analytic(kind: Kind, sizes: Iterable[Size], models: Iterable[str]) -> Profile:
    """Latency of `models` at these sizes of `kind`, half precision, fused, launched as CUDA graphs; nothing was measured.

    Raises `ConfigError` for a kind or a model that is not on record.
    """
    hardware = find_hardware(kind.name)
    names, spots = tuple(models), [size.sms for size in sizes]
    works = {name: find_work(name, kind.name) for name in names}
    roofs = {name: Roofline(work, hardware, start(work), Form()) for name, work in works.items()}
    points = tuple(_point(name, roof, size, rows) for name, roof in roofs.items() for size in spots for rows in ROWS)
    return Profile(points, analytic=_label(kind.name, names, hardware.trust))


def filled(table: Profile, sizes: Iterable[Size], fits: Mapping[str, Fitted]) -> Profile:
    """A table whose models are computed at all `sizes` where their fit is accepted; the others stay as measured.

    Nothing is computed beyond the table's smallest size and largest batches: absent may mean that it does not fit there.
    """
    spots = [size.sms for size in sizes]
    good = {name: fit.model for name, fit in fits.items() if fit.is_accepted}
    kept = tuple(p for p in table.points if p.model not in good)
    points = (p for name, roof in good.items() for p in _computed(name, roof, table, spots))
    said = f"latencies of {', '.join(good)} are analytic, fitted to few points; measured: "
    said += ", ".join(name for name in table.models if name not in good) or "nothing else"
    return Profile((*points, *kept), table.statistic, table.is_monotone, said if good else "")


def _computed(name: str, roof: Roofline, table: Profile, spots: Iterable[int]) -> Iterator[Point]:
    for size in (s for s in spots if s >= table.sizes(name)[0]):
        most = table.max_batch(name, size)
        yield from (_point(name, roof, size, rows) for rows in sorted({*(n for n in ROWS if n < most), most}))


def _point(name: str, roof: Roofline, size: int, rows: int) -> Point:
    mean = roof.latency(size, rows)
    upper = round(UPPER * mean)
    return Point(name, size, rows, mean, upper, upper)


def _label(kind: str, models: Iterable[str], trust: str) -> str:
    return (
        f"latencies of {', '.join(models)} on {kind} are analytic, not measured (roofline at fp16, constants: {trust}; "
        "nothing fitted): good for a first look; small models may take 2 to 4 times as long"
    )
