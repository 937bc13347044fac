"""Efficacy: which size and batch of a model give the most for what they take (D-STACK, Dhakal et al., TCC 2024).

`eta = throughput / (latency x size) = batch / (latency^2 x size)`, the greatest over all measured sizes and batches that
keep the objective: the batch is assembled and run within it, and a run takes at most half of it, since a request may
just miss a batch. The paper fits a curve and asks a solver; the grid is so small that we try all of it.

Ours: the first row of a batch need not be waited for, so `b` rows are assembled in `(b - 1) / rate` (the paper's `b /
rate` refuses single rows that come seldom); and a point must carry the rate by runs back to back.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter

from gpulet.device import Device, Size
from gpulet.duty import Share
from gpulet.model import Model
from gpulet.profile import Profile
from gpulet.units import SECOND, Duration


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How a model is run: `batch` rows on `size`, `latency` long."""

    size: Size
    batch: int
    latency: Duration


def assembly(batch: int, rate: float) -> Duration:
    """Until the last row of a batch has come, from its first; 0 where nobody says how fast they come."""
    return round((batch - 1) * SECOND / rate) if rate > 0 else 0


def operating_points(shares: Iterable[tuple[Size, Share]]) -> list[OperatingPoint]:
    """Every point of one model that keeps its objective and carries its rate, the highest efficacy first.

    Of equals the larger batch goes first, then the smaller size.
    """
    found: list[tuple[float, int, int, OperatingPoint]] = []
    for size, share in shares:
        for batch, latency in enumerate(share.curve[: share.max_batch], start=1):
            if 2 * latency > share.slo:
                break
            in_time = assembly(batch, share.rate) + latency <= share.slo
            if in_time and batch * SECOND >= share.rate * latency:
                point = OperatingPoint(size, batch, latency)
                found.append((-batch / (latency**2 * size.sms), -batch, size.sms, point))
    found.sort(key=itemgetter(0, 1, 2))
    return [point for _, _, _, point in found]


def shares_of(profile: Profile, model: Model, device: Device, rate: float) -> list[tuple[Size, Share]]:
    """What the model would have of each size that the device can be cut into and that somebody has measured."""
    least = profile.sizes(model.name)[0]
    sizes = [size for size in device.sizes() if size.sms >= least]
    return [(s, Share(profile.curve(model.name, s.sms), model.slo, rate, model.max_batch)) for s in sizes]


def knee_point(profile: Profile, model: Model, device: Device) -> OperatingPoint:
    """The point of highest efficacy; a model that no size runs in time takes whole devices, a row at a time."""
    shares = shares_of(profile, model, device, 0.0)
    size, share = shares[-1]
    return next(iter(operating_points(shares)), OperatingPoint(size, 1, share.curve[0]))
