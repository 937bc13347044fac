"""No planner claims more than there is: whenever it emits a plan, the true optimum of the case is at least the demand."""

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, cpu_kind, find_kind
from gpulet.dispatchers.elsa import Elsa
from gpulet.dispatchers.fifs import Fifs
from gpulet.interference import CONSTANT, Interference
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.everywhere import everywhere
from gpulet.planners.exact import Waits, exact, optimum, physical_bound
from gpulet.planners.gslice import gslice
from gpulet.planners.scaled import scaled
from gpulet.profile import Point, Profile
from gpulet.systems import SYSTEMS
from gpulet.units import MS

KIND = find_kind("rtx2080ti")
CORES = cpu_kind(5)
TOLERANCE = 1e-6
NOBODY = Interference(CONSTANT, (1.0,))
"""Neighbours that cost nothing, for the systems that ask for a model of them."""
CORES_ONLY = {name for name, system in SYSTEMS.items() if system.planner in {gslice, scaled, everywhere}}
"""Shares are whole SMs, between the sizes a GPU is cut into: on cores those are the same."""
ALONE = {name: physical_bound for name, system in SYSTEMS.items() if system.dispatcher in {Elsa, Fifs}}
OVERLAPPING = dict.fromkeys(
    ["triton", "clipper", "clipper-regression", "fixed-batch", "temporal", "round-robin", "infaas"], physical_bound
)
BY_TURNS = partial(optimum, waits=Waits.TURN)
LIMITS = {
    "gpulet": physical_bound,
    "dstack": physical_bound,
    **dict.fromkeys(["max-throughput", "max-min", "rolling"], physical_bound),
    "nexus": BY_TURNS,
    "clockwork": BY_TURNS,
    **ALONE,
    **OVERLAPPING,
}
"""Ours need not keep to a duty cycle, nor need those that run every request alone; Nexus' rule for waiting is weaker,
and is what `clockwork` is planned by.

Runs that overlap each get a part of the device at every instant, which no duty cycle does;
a slice may hold several batches. D-STACK's sizes change from run to run.
"""
MIG_ONLY = {"segments"}
CHOSEN_BY_SIMULATION = {"fifs"}
"""One of the pools of gpu1 to gpu7, which are tried themselves; half a minute of simulations to find out which."""
"""Against all counts that fit: test_counts.py."""


@st.composite
def problems(draw, *, on_cores=False):
    """One to three models of a few rows, one or two devices, latencies of whole milliseconds, demand near what fits."""
    kind, mechanism = (CORES, Mechanism.CPU) if on_cores else (KIND, Mechanism.MPS)
    devices = tuple(Device(d, kind, mechanism) for d in range(draw(st.integers(1, 2))))
    sizes = [size.sms for size in devices[0].sizes()]
    measured = sorted(draw(st.sets(st.sampled_from(sizes), min_size=3, max_size=min(6, len(sizes)))))
    models, points, demand = {}, [], {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        rows = draw(st.integers(2, 6))
        base, parallel, serial = (draw(st.integers(0, n)) for n in (5, 8, 3))
        for size in measured:
            for row in range(1, rows + 1):
                ms = 1 + base + serial * row + parallel * row * sizes[-1] // (4 * size) + draw(st.integers(0, 1))
                points.append(Point(name, size, row, *[ms * MS] * 3))
        models[name] = Model(name, draw(st.integers(10, 120)) * MS, rows)
        demand[name] = float(draw(st.integers(1, 4)))
    problem = Problem(models, demand, devices, Profile(tuple(points)))
    factor = physical_bound(problem) * draw(st.integers(1, 20)) / 20 or 1
    return replace(problem, demand={name: rate * factor for name, rate in demand.items()})


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in MIG_ONLY | CHOSEN_BY_SIMULATION])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_planner_claims_more_than_the_optimum(name, data):
    problem = replace(data.draw(problems(on_cores=name in CORES_ONLY)), interference=NOBODY)
    outcome = SYSTEMS[name].planner(problem)
    if isinstance(outcome, Plan):
        assert outcome.violations() == ()
        assert LIMITS.get(name, optimum)(problem) >= 1 - TOLERANCE


@settings(max_examples=60, deadline=None)
@given(problem=problems(), waits=st.sampled_from(Waits))
def test_exact_accepts_whatever_is_within_the_optimum_and_nothing_exceeds_the_bound(problem, waits):
    factor = optimum(problem, waits=waits)
    assert factor <= physical_bound(problem) + TOLERANCE
    outcome = exact(problem, waits=waits)
    assert isinstance(outcome, Plan) == (factor >= 1 - 1e-9)
    if factor:
        scaled = {name: rate * factor * (1 - TOLERANCE) for name, rate in problem.demand.items()}
        plan = exact(replace(problem, demand=scaled), waits=waits)
        assert isinstance(plan, Plan)
        assert plan.violations() == ()
    else:
        assert isinstance(outcome, Infeasible)
