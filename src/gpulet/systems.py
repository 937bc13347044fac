"""Systems: named pairs of a planner and a dispatcher with their defaults. `--system` takes these names.

A system of your own is `package.module:NAME`, where NAME is a `System` (docs/your-dispatcher.md).
"""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from gpulet.baselines import EVALUATED
from gpulet.bounded import PERCENTILE, Quick, worth
from gpulet.core.metrics import Metrics
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.clipper import Clipper, regression
from gpulet.dispatchers.clockwork import Clockwork
from gpulet.dispatchers.dutycycle import DutyCycle, Hold
from gpulet.dispatchers.elsa import Elsa
from gpulet.dispatchers.fifo import Fifo
from gpulet.dispatchers.fifs import Fifs
from gpulet.dispatchers.glet import GletDispatcher
from gpulet.dispatchers.triton import Triton
from gpulet.errors import ConfigError
from gpulet.ours import as_planned, ours
from gpulet.plan import Plan
from gpulet.planners.autoscale import autoscaled
from gpulet.planners.clockwork import clockwork
from gpulet.planners.dedicated import dedicated
from gpulet.planners.elastic import elastic
from gpulet.planners.exact import exact
from gpulet.planners.glet import Cuts, Style, glet
from gpulet.planners.homogeneous import homogeneous, largest_homogeneous
from gpulet.planners.ideal import ideal
from gpulet.planners.infaas import infaas
from gpulet.planners.nexus import nexus
from gpulet.planners.paris import paris
from gpulet.planners.random_mig import random_mig
from gpulet.planners.segments import segments
from gpulet.planners.uncut import uncut
from gpulet.system import System
from gpulet.units import Instant
from gpulet.useful import useful_sizes

__all__ = ["SYSTEMS", "System", "composed", "find_system", "make_metrics", "make_scheduler"]

_ROUGH = Quick(2_000, 3, PERCENTILE)


def _glet_as_known(problem: Problem, *, cuts: Cuts) -> Plan | Infeasible:
    """The artifact's placement, with interference where anybody has measured it."""
    return glet(problem, cuts=cuts, with_interference=problem.interference is not None)


SYSTEMS: Mapping[str, System] = {
    "gpulet": System(
        ours,
        as_planned,
        prober=partial(ours, enough=1.0),
        sketcher=partial(ours, enough=1.0, judge=None),
        retunes=True,
        about="ours: the safest of several planners' plans that holds in simulation, or runs sized as they come",
    ),
    "elastic": System(
        partial(autoscaled, planner=elastic),
        partial(DutyCycle, hold=Hold.DUTY),
        about="gpu-lets (ATC'22) Algorithms 1 and 2 without interference, batches built for one duty cycle",
    ),
    "elastic-int": System(
        partial(autoscaled, planner=partial(elastic, with_interference=True)),
        partial(DutyCycle, hold=Hold.DUTY),
        about="the same with interference; needs a fitted file under [interference]",
    ),
    "glet": System(
        glet,
        GletDispatcher,
        drops_early=False,
        about="gpu-lets as its artifact really plans and dispatches, with all its margins",
    ),
    "glet-int": System(
        partial(glet, with_interference=True),
        GletDispatcher,
        drops_early=False,
        about="the same with interference; needs a fitted file under [interference]",
    ),
    "sbp": System(
        partial(glet, style=Style.SBP),
        GletDispatcher,
        drops_early=False,
        about="the artifact without partitions: temporal sharing of whole devices only",
    ),
    "greedy": System(
        partial(glet, style=Style.GREEDY),
        GletDispatcher,
        drops_early=False,
        about="the artifact's guided self-tuning: smallest sufficient sizes, no temporal sharing",
    ),
    "ideal": System(
        partial(ideal, place=_glet_as_known),
        GletDispatcher,
        drops_early=False,
        about="gpu-lets' ideal: every split of the devices, placed as glet does (with interference where it is known)",
    ),
    "nexus": System(
        nexus,
        DutyCycle,
        about="Nexus (SOSP'19): squishy bin packing on whole devices, turns without idling, early drop",
    ),
    "paris-elsa": System(
        paris,
        Elsa,
        drops_early=False,
        about="PARIS and ELSA (DAC'22): counts of sizes by the batches that come, the smallest gpulet with slack",
    ),
    "paris-fifs": System(paris, Fifs, drops_early=False, about="PARIS' counts, first idle first served"),
    "fifs": System(
        partial(largest_homogeneous, worth=partial(worth, Fifs, _ROUGH)),
        Fifs,
        drops_early=False,
        about="GPU(max) of PARIS and ELSA: the homogeneous pool that holds most, first idle first served",
    ),
    **{
        f"gpu{n}": System(
            partial(homogeneous, slices=n), Fifs, drops_early=False, about=f"GPU({n}): gpulets of {n} slices, FIFS"
        )
        for n in (1, 2, 3, 7)
    },
    "random-fifs": System(random_mig, Fifs, drops_early=False, about="a random mix of sizes, first idle first served"),
    "random-elsa": System(random_mig, Elsa, drops_early=False, about="a random mix of sizes, ELSA"),
    "segments": System(
        segments,
        DutyCycle,
        about="MIG instances with several processes of one model (ParvaGPU, SC'24), counted by a solver: fewest devices",
    ),
    "triton": System(
        uncut,
        Triton,
        drops_early=False,
        about="Triton's dynamic batcher with its defaults: every model on every uncut device, runs slow each other",
    ),
    "clipper": System(
        uncut,
        Clipper,
        drops_early=False,
        about="Clipper (NSDI'17): batch sizes by additive increase and multiplicative decrease, devices uncut",
    ),
    "clipper-regression": System(
        uncut,
        partial(Clipper, sizing=regression),
        about="the batcher of Clipper's released code: explores sizes, then estimates them from the time left",
    ),
    "clockwork": System(
        partial(clockwork, place=nexus),
        Clockwork,
        carves=True,
        loads=True,
        about="Clockwork (OSDI'20): latest start first on whole devices, nothing predicted late, models loaded and evicted",
    ),
    "dedicated": System(dedicated, Fifo, drops_early=False, about="one whole device per model, first in first out"),
    **EVALUATED,
    "exact": System(
        exact,
        DutyCycle,
        about="the optimum of small fleets, by a solver: the yardstick; batches started as soon as a gpulet is idle",
    ),
    "infaas": System(
        partial(infaas, beside=uncut),
        Fifo,
        drops_early=False,
        about="INFaaS (ATC'21): as many replicas as the rate asks for on uncut devices, first in first out",
    ),
}


def find_system(name: str) -> System:
    """The system of that name, or the one at `package.module:NAME`; raises `ConfigError`."""
    if ":" in name:
        return _import_system(name)
    if name not in SYSTEMS:
        msg = f"unknown system {name!r}; known are {', '.join(SYSTEMS)}, or package.module:NAME for your own"
        raise ConfigError(msg)
    return SYSTEMS[name]


def composed(name: str, planner: str = "", dispatcher: str = "") -> System:
    """The system of that name, with the planner of another and the dispatcher of a third, where they are named."""
    base = find_system(name)
    plans = find_system(planner) if planner else base
    other = find_system(dispatcher) if dispatcher else base
    return replace(
        base,
        planner=plans.planner,
        prober=plans.prober,
        sketcher=plans.sketcher,
        dispatcher=other.dispatcher,
        drops_early=other.drops_early,
        carves=other.carves,
        loads=other.loads,
    )


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
    """A fresh core for a plan, each process of a gpulet by itself."""
    plan = plan.unfolded()
    return Scheduler(problem.models, plan, system.dispatcher(problem, plan), limits, problem.applications)


def make_metrics(problem: Problem, plan: Plan, begins: Instant) -> Metrics:
    """What its steps are folded into, from `begins` on."""
    applications = [application.name for application in problem.applications]
    names = [*problem.models, *applications]
    return Metrics(names, plan, knees=useful_sizes(problem), applications=applications, begins=begins)
