"""What another plan would have made of arrivals that came: both are simulated on them, in a process that then ends."""

import asyncio
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Any

from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.drivers.sim import simulate
from gpulet.errors import PlanError, Unusable
from gpulet.parallel import end_at_once, end_with_parent
from gpulet.plan import Plan
from gpulet.planfile import to_doc, to_json
from gpulet.replanning import demanded
from gpulet.systems import composed, make_scheduler
from gpulet.units import SECOND
from gpulet.workload import Arrivals

_LONGEST_S = 600.0
_NICE = 10


@dataclass(frozen=True, slots=True)
class WhatIf:
    """`problem.in_force` against `plan`, or where that is None against what `system` plans for these arrivals.

    `serving` names the system that serves: its own name, and whose planner and dispatcher it has.
    """

    serving: tuple[str, str, str]
    system: str
    problem: Problem
    plan: Plan | None
    arrivals: Arrivals
    limits: Limits


async def ask(asked: WhatIf) -> dict[str, Any]:
    """Both reports, and the plan; raises `GpuletError`."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin)
    try:
        async with asyncio.timeout(_LONGEST_S):
            return await asyncio.get_running_loop().run_in_executor(pool, answer, asked)
    except (BrokenProcessPool, TimeoutError) as error:
        msg = f"what-if was given up: {error!r}"
        raise Unusable(msg) from None
    finally:
        end_at_once(pool)


def answer(asked: WhatIf) -> dict[str, Any]:
    """The same here and now."""
    arrivals, seconds = asked.arrivals, asked.arrivals.duration / SECOND
    rates = {
        model.name: float(arrivals.rows[arrivals.which == place].sum()) / seconds
        for place, model in enumerate(arrivals.models)
    }
    problem = demanded(asked.problem, rates)
    whose = (asked.system, "", "") if asked.system else asked.serving
    plan = asked.plan or _planned(replace(problem, in_force=Plan(())), whose)
    limits = replace(asked.limits, early_drop=composed(*whose).drops_early)
    return {
        "seconds": seconds,
        "rates": rates,
        "in_force": _served(asked.serving, problem, problem.in_force, arrivals, asked.limits),
        "candidate": _served(whose, problem, plan, arrivals, limits),
        "plan": to_json(to_doc(plan, whose[0], 0)),
    }


def _planned(problem: Problem, whose: tuple[str, str, str]) -> Plan:
    outcome = composed(*whose).planner(problem)
    if isinstance(outcome, Infeasible):
        msg = f"system {whose[0]} has no plan for what came: {outcome}"
        raise PlanError(msg)
    return outcome


def _served(
    system: tuple[str, str, str], problem: Problem, plan: Plan, arrivals: Arrivals, limits: Limits
) -> dict[str, Any]:
    scheduler = make_scheduler(composed(*system), problem, plan, limits)
    metrics = simulate(scheduler, problem.profile, plan, arrivals, interference=problem.interference)
    report = metrics.report(arrivals.duration)
    rows = {**report["models"], "total": report["total"]}
    keys = ("arrived", "served", "late", "attainment", "goodput", "p50_ms", "p99_ms")
    models: dict[str, Any] = {name: {key: row[key] for key in keys} for name, row in rows.items()}  # type: ignore[literal-required] # those of a row
    return {"models": models, "devices_used": plan.devices_used}


def _begin() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICE)
