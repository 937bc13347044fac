"""The optimum of small cases, by a mixed-integer program (HiGHS): the yardstick of the other planners. No paper.

The plans it ranges over: every device is cut into gpulets of its own sizes, side by side; every gpulet runs one
configuration, that is some models with a batch each, in a duty cycle D that holds one run of each, so sum L <= D. What
a request then waits is bounded by one of two published rules (`Waits`). D = sum L gives the same batches more often and
sooner than any longer D, so a configuration is its batches, and model m gets b_m / sum L rows/s of it. A configuration
is left out when one of the same or a smaller size gives every model as much; of the rest, and of the ways to cut a
device, whole numbers are chosen such that the least (throughput / demand) of all models is largest.

`physical_bound` bounds every dispatcher, also those that follow no duty cycle or choose a size for each run.
"""

from gpulet.planners.exact.bound import physical_bound
from gpulet.planners.exact.configurations import Waits
from gpulet.planners.exact.planning import exact, optimum

__all__ = ["Waits", "exact", "optimum", "physical_bound"]
