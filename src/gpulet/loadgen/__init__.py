"""Open-loop load against any Open Inference Protocol v2 server over HTTP.

Arrivals are drawn beforehand, as for the simulator. A request that finds no free connection waits for one, and its
latency counts from the instant it was due, so a slow server cannot slow its own measurement (coordinated omission).
"""

from gpulet.loadgen.outcome import Outcome
from gpulet.loadgen.sending import Check, Stream, drive

__all__ = ["Check", "Outcome", "Stream", "drive"]
