"""A profile of a device that nobody measured, always labelled as such."""

from collections.abc import Iterable

from gpulet.device import Kind, Size
from gpulet.profile import Point, Profile
from gpulet.roofline import Form, Numbers, Roofline, Work
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
    points = tuple(
        Point(name, size, rows, mean := roof.latency(size, rows), upper := round(UPPER * mean), upper)
        for name, roof in roofs.items()
        for size in spots
        for rows in ROWS
    )
    return Profile(points, analytic=_label(kind.name, names, hardware.trust))


def _label(kind: str, models: Iterable[str], trust: str) -> str:
    return (
        f"latencies of {', '.join(models)} on {kind} are analytic, not measured (roofline at fp16, constants: {trust}; "
        "nothing fitted): good for a first look, wrong by a factor of two where kernels are small"
    )
