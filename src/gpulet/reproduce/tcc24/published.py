"""The systems of the comparison. Those of D-STACK's own evaluation that look for knees are given the table's.

The paper tunes every model to its knee before it compares schedulers, and two rows of the table as remembered break the
rule that our own search for knees keeps. Everything else is what `--system` takes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from gpulet.baselines import EVALUATED
from gpulet.core.ports import MakeDispatcher, Planner
from gpulet.dispatchers.greedy import Greedy, Rule
from gpulet.planners.dstack import dstack
from gpulet.planners.everywhere import everywhere
from gpulet.planners.scaled import scaled
from gpulet.reproduce.tcc24.data import published
from gpulet.systems import System, find_system

_POINTS = published()
_EVERYWHERE: Planner = partial(everywhere, points=_POINTS)
_GREEDY: MakeDispatcher = partial(Greedy, points=_POINTS)
_AT_KNEES: Mapping[str, System] = {
    "dstack": replace(EVALUATED["dstack"], planner=partial(dstack, points=_POINTS)),
    "gslice-static": replace(EVALUATED["gslice-static"], planner=partial(scaled, points=_POINTS)),
    "max-throughput": replace(EVALUATED["max-throughput"], planner=_EVERYWHERE, dispatcher=_GREEDY),
    "max-min": replace(
        EVALUATED["max-min"], planner=_EVERYWHERE, dispatcher=partial(Greedy, rule=Rule.MAX_MIN, points=_POINTS)
    ),
    "rolling": replace(
        EVALUATED["rolling"], planner=_EVERYWHERE, dispatcher=partial(Greedy, rule=Rule.LEAST_RUNTIME, points=_POINTS)
    ),
}


def system_at_knees(name: str) -> System:
    """The system of that name, at the table's knees where it is one that looks for knees; raises `ConfigError`."""
    return _AT_KNEES[name] if name in _AT_KNEES else find_system(name)
