"""D-STACK and the baselines of its own evaluation (Dhakal et al., TCC 2024), GSLICE among them, as systems."""

from collections.abc import Mapping
from functools import partial

from gpulet.dispatchers.dstack import Dstack
from gpulet.dispatchers.fifo import Fifo
from gpulet.dispatchers.fixedbatch import FIXED_BATCH, FixedBatch
from gpulet.dispatchers.greedy import Greedy, Rule
from gpulet.dispatchers.gslice import Gslice
from gpulet.dispatchers.temporal import Temporal
from gpulet.planners.dstack import dstack
from gpulet.planners.everywhere import everywhere
from gpulet.planners.gslice import gslice
from gpulet.planners.scaled import scaled
from gpulet.planners.temporal import round_robin, temporal
from gpulet.planners.uncut import uncut
from gpulet.system import System

EVALUATED: Mapping[str, System] = {
    "dstack": System(
        dstack,
        Dstack,
        carves=True,
        about="D-STACK (TCC'24): a planned session that runs every model in each of its SLOs, free SMs to the least served",
    ),
    "gslice": System(
        gslice,
        Gslice,
        drops_early=False,
        carves=True,
        about="GSLICE (SoCC'20): one share a model, shares and batches tuned while serving, late requests served late",
    ),
    "gslice-static": System(
        scaled,
        Fifo,
        drops_early=False,
        about="GSLICE without its tuner: gpulets at the knees, scaled down together where they do not fit",
    ),
    "temporal": System(
        temporal,
        Temporal,
        drops_early=False,
        about="temporal sharing: whole devices in slices in proportion to SLOs (D-STACK's baseline)",
    ),
    "round-robin": System(
        round_robin,
        partial(Temporal, has_slices=False),
        drops_early=False,
        about="temporal sharing without slices: one batch of each model in turn on whole devices",
    ),
    "fixed-batch": System(
        partial(uncut, batch=FIXED_BATCH),
        FixedBatch,
        drops_early=False,
        about="batches of 16 on uncut devices, as under default MPS (D-STACK's baseline)",
    ),
    "max-throughput": System(
        everywhere,
        Greedy,
        drops_early=False,
        carves=True,
        about="at knees, the set of models that gives most rows/s at every event (D-STACK's baseline)",
    ),
    "max-min": System(
        everywhere,
        partial(Greedy, rule=Rule.MAX_MIN),
        drops_early=False,
        carves=True,
        about="at knees, the smallest first at every event (D-STACK's baseline)",
    ),
    "rolling": System(
        everywhere,
        partial(Greedy, rule=Rule.LEAST_RUNTIME),
        drops_early=False,
        carves=True,
        about="at knees, who has had the least GPU time first, if it fits (max-min on runtime)",
    ),
}
