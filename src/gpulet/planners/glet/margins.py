"""The margins that gpu-lets' artifact keeps without naming them. Each can be switched off; `NONE` switches off all."""

import math
from dataclasses import dataclass

from gpulet.units import MIB


@dataclass(frozen=True, slots=True)
class Margins:
    """Names are ours, defaults the artifact's (specification of gpu-lets, sections 1, 2.3 and 7)."""

    latency_ratio: float = 1.1
    """Every latency times this."""
    rate_quantile: float = 0.99
    """Plan for this quantile of Poisson(rate) + 1 requests in a second; 0 plans for the rate."""
    quantile_limit: int = 550
    """Above this rate the quantile is not computed: the rate times `rate_ratio`."""
    rate_ratio: float = 1.1
    slack: int = 15
    """A remainder of at most this many rows/s counts as served."""
    acceptance: float = 0.85
    """With interference: a model that has this part of its rate counts as served."""
    residual_slack: float = 1.05
    """With interference: a gpulet below saturation may exceed its objective by this factor before it is adjusted."""
    gain_gate: float = 1.05
    """A larger size must bring this factor of throughput to be considered as the efficient one."""
    max_batch: int = 31
    """The artifact's bisection never tests 32."""
    most_models: int = 3
    """Models that may share a gpulet in time."""
    network_gbit: float = 3.0
    """Input data that one device may receive, in Gibit/s; counted where a model's input size is known."""
    memory_room: float = 0.9
    """The part of a device's memory that may be used; counted where device and model memory are known."""
    process_memory: int = 1230 * MIB
    """What a gpulet's process takes before any model is loaded."""

    def planned_rate(self, rate: float) -> int:
        """Rows/s to plan for: 100 -> 125, 400 -> 448; 551 -> 606."""
        if not self.rate_quantile:
            return math.ceil(rate)
        mean = int(rate)
        if mean > self.quantile_limit:
            return int(mean * self.rate_ratio)
        probability, total, count = math.exp(-rate), math.exp(-rate), 0
        while total < self.rate_quantile:
            count += 1
            probability *= rate / count
            total += probability
        return count + 1


NONE = Margins(
    latency_ratio=1.0,
    rate_quantile=0.0,
    slack=0,
    acceptance=1.0,
    residual_slack=1.0,
    gain_gate=1.0,
    max_batch=10**6,
    most_models=10**6,
    network_gbit=math.inf,
    memory_room=math.inf,
    process_memory=0,
)
"""Every margin off: what is left is the artifact's way to place gpulets."""
