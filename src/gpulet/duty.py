"""Batches and duty cycles within an objective: the rules that gpu-lets, Nexus and their followers share.

A request may just miss a batch, so it waits for one batch to build and one to run. Source: gpu-lets (ATC'22, section
4.2) and its artifact; squishy bin packing (Nexus, SOSP'19, section 6.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from operator import truediv

from gpulet.profile import Curve
from gpulet.units import SECOND, Duration


@dataclass(frozen=True, slots=True)
class Share:
    """One model's claim on a gpulet: its latency by rows there, its objective, its rows/s, its batch limit."""

    curve: Curve
    slo: Duration
    rate: float
    max_batch: int


@dataclass(frozen=True, slots=True)
class Cycle:
    """How a gpulet is shared: `batches[i]` rows of the i-th model in every `duty`; no batches when it cannot be."""

    duty: Duration = 0
    batches: tuple[int, ...] = ()
    latencies: tuple[Duration, ...] = ()

    @property
    def worst(self) -> Duration:
        """The longest a request of any model here takes: it just misses its turn and is in the last of the next."""
        return self.duty + sum(self.latencies)


IMPOSSIBLE = Cycle()


def saturated(share: Share) -> Cycle:
    """Back-to-back batches: the largest with 2 L(b) <= SLO."""
    batch = min(share.max_batch, _largest(share.curve, share.slo // 2))
    if not batch:
        return IMPOSSIBLE
    latency = share.curve[batch - 1]
    return Cycle(latency, (batch,), (latency,))


def saturated_rate(share: Share) -> float:
    """Rows/s that a gpulet of this curve affords within the objective; 0 when even one row is too slow."""
    cycle = saturated(share)
    return cycle.batches[0] * SECOND / cycle.duty if cycle.batches else 0.0


def residual(share: Share) -> Cycle:
    """A rate below saturation: the largest batch with L(b) + b/rate <= SLO, or single rows as they come."""
    limit = min(share.max_batch, len(share.curve))
    for batch in range(limit, 0, -1):
        latency, build = share.curve[batch - 1], round(batch * SECOND / share.rate)
        if latency + build <= share.slo and latency <= build:
            return Cycle(build, (batch,), (latency,))
    latency = share.curve[0]
    duty = share.slo - latency
    fits = latency <= duty and duty * share.rate <= SECOND
    return Cycle(duty, (1,), (latency,)) if fits else IMPOSSIBLE


def squishy(shares: Sequence[Share]) -> Cycle:
    """Several models in one duty cycle D: batches b_i = ceil(D rate_i) with sum L_i <= D and D + sum L_i <= every SLO.

    Of all such D the largest is taken, since larger batches use the gpulet better. Between two instants at which a batch
    grows nothing changes but D, so those instants and the largest D that the objectives allow are all that need be tried.
    """
    slo = min(share.slo for share in shares)
    if 2 * sum(share.curve[0] for share in shares) > slo or sum(map(_least_use, shares)) > 1:
        return IMPOSSIBLE
    low, high = 0, slo
    while low < high:
        middle = (low + high + 1) // 2
        cycle = _cycle(shares, middle)
        low, high = (middle, high) if cycle.batches and cycle.worst <= slo else (low, middle - 1)
    steps = {int(b * SECOND // s.rate) for s in shares for b in range(1, min(s.max_batch, len(s.curve)) + 1)}
    for duty in sorted({low, *(step for step in steps if 0 < step < low)}, reverse=True):
        cycle = _cycle(shares, duty) if duty else IMPOSSIBLE
        if cycle.batches and sum(cycle.latencies) <= cycle.duty:
            return cycle
    return IMPOSSIBLE


def slices(cycle: Duration, slos: Sequence[Duration]) -> list[Duration]:
    """A cycle cut in proportion to objectives."""
    total = sum(slos)
    return [cycle * slo // total for slo in slos]


def _least_use(share: Share) -> float:
    """The part of a gpulet's time that the rate takes at its best batch."""
    return share.rate * float(min(map(truediv, share.curve, count(1)))) / SECOND


def _cycle(shares: Sequence[Share], duty: Duration) -> Cycle:
    batches = tuple(max(1, -int(-duty * share.rate // SECOND)) for share in shares)
    if any(b > min(s.max_batch, len(s.curve)) for b, s in zip(batches, shares, strict=True)):
        return IMPOSSIBLE
    return Cycle(duty, batches, tuple(s.curve[b - 1] for b, s in zip(batches, shares, strict=True)))


def _largest(curve: Curve, budget: Duration) -> int:
    """Curves rise, so the count of latencies within the budget is the largest batch."""
    low, high = 0, len(curve)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if curve[middle - 1] <= budget else (low, middle - 1)
    return low


def bunched(rate: float, window: Duration, loss: float) -> float:
    """The rows/s that must be carried so that Poisson arrivals at `rate` overflow a window by at most `loss` of them.

    The smallest whole capacity C with E[(N - C)+] <= loss x E[N], N ~ Poisson(rate x window), as rows/s. It takes the
    place of margins that know neither the objective nor how many gpulets share the load: the shorter the window and the
    lower the rate, the larger the allowance.
    """
    mean = rate * window / SECOND
    if mean > _NORMAL_FROM:
        return rate * (1 + _standard_excess(mean, loss) / math.sqrt(mean))
    probability = math.exp(-mean)
    below, capacity, overflow = probability, 0, mean
    while overflow > loss * mean:
        overflow -= 1 - below
        capacity += 1
        probability *= mean / capacity
        below += probability
    return max(rate, capacity * SECOND / window)


_NORMAL_FROM = 500.0


def _standard_excess(mean: float, loss: float) -> float:
    """The z with E[(Z - z)+] = loss x sqrt(mean) for a standard normal Z, by bisection."""
    target = loss * math.sqrt(mean)
    low, high = -3.0, 6.0
    for _ in range(40):
        z = (low + high) / 2
        excess = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) - z * math.erfc(z / math.sqrt(2)) / 2
        low, high = (z, high) if excess > target else (low, z)
    return max(0.0, high)
