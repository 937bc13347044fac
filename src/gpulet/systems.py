"""Systems: named pairs of a planner and a dispatcher with their defaults. `--system` takes these names.

A system of your own is `package.module:NAME`, where NAME is a `System` (docs/your-dispatcher.md).
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from gpulet.core.ports import MakeDispatcher, Planner, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.dutycycle import DutyCycle, Hold
from gpulet.dispatchers.fifo import Fifo
from gpulet.errors import ConfigError
from gpulet.plan import Plan
from gpulet.planners.best import best
from gpulet.planners.dedicated import dedicated
from gpulet.planners.elastic import elastic
from gpulet.planners.shared import shared


@dataclass(frozen=True, slots=True)
class System:
    """A planner and a dispatcher that belong together. `drops_early`: what cannot be in time is given up."""

    planner: Planner
    dispatcher: MakeDispatcher
    drops_early: bool = True
    about: str = ""


_UNLIMITED = 10**6
_CANDIDATES = (
    elastic,
    partial(elastic, most_per_device=_UNLIMITED),
    partial(elastic, most_per_device=_UNLIMITED, shares_in_time=False),
    shared,
)

SYSTEMS: Mapping[str, System] = {
    "gpulet": System(
        partial(best, candidates=_CANDIDATES),
        DutyCycle,
        about="ours: the plan with the most headroom of several, batches started as soon as a gpulet is idle",
    ),
    "elastic": System(
        elastic,
        partial(DutyCycle, hold=Hold.DUTY),
        about="gpu-lets (ATC'22) Algorithm 1 without interference, batches built for one duty cycle",
    ),
    "dedicated": System(dedicated, Fifo, drops_early=False, about="one whole device per model, first in first out"),
}


def find_system(name: str) -> System:
    """The system of that name, or the one at `package.module:NAME`; raises `ConfigError`."""
    if ":" in name:
        return _import_system(name)
    if name not in SYSTEMS:
        msg = f"unknown system {name!r}; known are {', '.join(SYSTEMS)}, or package.module:NAME for your own"
        raise ConfigError(msg)
    return SYSTEMS[name]


def _import_system(name: str) -> System:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"system {name!r} cannot be imported: {error}"
        raise ConfigError(msg) from error
    if not isinstance(found, System):
        msg = f"system {name!r} is a {type(found).__name__}, not a gpulet.systems.System"
        raise ConfigError(msg)
    return found


def make_scheduler(system: System, problem: Problem, plan: Plan, limits: Limits) -> Scheduler:
    """A fresh core for a plan."""
    return Scheduler(problem.models, plan, system.dispatcher(problem, plan), limits, problem.applications)
