"""Latency that nobody measured: a roofline with five numbers per model and device.

Known of the model: FLOPs, weights, activations, kernels. Known of the device: SMs S, peak P, bandwidth B. With s SMs and a
batch b, and t0, eta, c, a and sigma fitted (or guessed, `START`):

    x = c b / s             q = sqrt(1 + 1/x^2)                        waves: 1/x while SMs are idle, 1 when all are full
    compute = FLOPs b q / (P eta s/S)         memory = a (weights + activations b) / (B min(1, s / (sigma S)))
    latency = t0 + (compute^4 + memory^4)^(1/4)

That is the form as designed, for work that the host launches ahead (TensorRT, CUDA graphs). Other forms that measured
tables ask for: compute and memory simply added (norm 1), since each layer is bound by one or the other; and the host's time
hidden behind the device's, since eager launches run ahead: the longer of the two counts, not their sum.

Times are real seconds here: fitted, never compared with instants; `latency` gives whole nanoseconds.
"""

from dataclasses import astuple, dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from gpulet.units import SECOND, Duration

Floats = NDArray[np.float64]
_KNEE = 8.0
"""The norm in which the longer of host and device counts: nearly a maximum, but smooth."""


class Host(StrEnum):
    """What becomes of the host's time: added to the device's, or hidden behind it."""

    ADDED = "added"
    HIDDEN = "hidden"


class Waves(StrEnum):
    """How thread blocks fill SMs: smoothly over all kernels, or in whole waves, which gives a saw-tooth."""

    SMOOTH = "smooth"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Form:
    """Which of the forms: the norm in which compute and memory time join, the host's time, the waves."""

    norm: float = 4.0
    host: Host = Host.ADDED
    waves: Waves = Waves.SMOOTH

    def __str__(self) -> str:
        return f"norm {self.norm:g}, host {self.host}" + (", whole waves" if self.waves is Waves.WHOLE else "")


FORMS = tuple(Form(norm, host) for host in Host for norm in (4.0, 1.0))
"""What is tried where nobody says which; the first is the form as designed."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one row of a model asks of a device; `flops` counts a multiply and an add as two.

    `weights` and `activations` (read and written by all kernels, elementwise ones fused) are numbers of elements.
    """

    flops: float
    weights: float
    activations: float
    kernels: int
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device's SMs, peak in FLOP/s, bandwidth in bytes/s, bytes per element, and how far to trust that."""

    sms: int
    peak: float
    bandwidth: float
    width: int
    trust: str


@dataclass(frozen=True, slots=True)
class Numbers:
    """The five: t0 `host` (seconds), eta `efficiency`, c `blocks` per row, a `traffic`, sigma `saturation`.

    `blocks` counts what fills an SM as one; `saturation` is the part of the SMs that saturates the memory.
    """

    host: float
    efficiency: float
    blocks: float
    traffic: float
    saturation: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """A model on a device."""

    work: Work
    hardware: Hardware
    numbers: Numbers
    form: Form = Form()

    def latency(self, size: int, rows: int) -> Duration:
        """Of a batch of `rows` on `size` SMs, in nanoseconds."""
        seconds = latencies(np.array([size]), np.array([rows]), self)
        return max(1, round(float(seconds[0]) * SECOND))


def latencies(size: Floats, rows: Floats, model: Roofline) -> Floats:
    """The same of many batches at once, in seconds."""
    work, device, form = model.work, model.hardware, model.form
    host, efficiency, blocks, traffic, saturation = astuple(model.numbers)
    x = blocks * rows / size
    waves = np.ceil(x) / x if form.waves is Waves.WHOLE else np.sqrt(1 + 1 / x**2)
    compute = work.flops * rows * waves * device.sms / (device.peak * efficiency * size)
    moved = traffic * (work.weights + work.activations * rows) * device.width
    memory = moved / (device.bandwidth * np.minimum(1, size / (saturation * device.sms)))
    busy = _joined(compute, memory, form.norm)
    return host + busy if form.host is Host.ADDED else _joined(busy, np.full_like(busy, host), _KNEE)


def _joined(one: Floats, other: Floats, norm: float) -> Floats:
    """Scaled by the larger one, so that no power under- or overflows."""
    most = np.maximum(one, other)
    joined: Floats = most * ((one / most) ** norm + (other / most) ** norm) ** (1 / norm)
    return joined
