"""Nexus (SOSP'19), the worked example of squishy bin packing in section 4.

The example gives two batches of each model. Between them a profile is linear here, which would let larger residues
through (C would take five rows); the tables below give the rows just above the small batch the latency of the large one.
"""

import pytest

from gpulet.core.ports import Problem
from gpulet.device import Device, Mechanism, find_kind
from gpulet.duty import Share, saturated_rate
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.nexus import nexus
from gpulet.profile import Point, Profile
from gpulet.units import MS

KIND = find_kind("v100")
SLO = {"a": 200, "b": 250, "c": 250}
RATE = {"a": 64.0, "b": 32.0, "c": 32.0}
TABLE = {"a": {8: 75, 9: 100, 16: 100}, "b": {4: 50, 5: 125, 16: 125}, "c": {4: 60, 5: 125, 16: 125}}
PROFILE = Profile(
    tuple(Point(m, KIND.sms, rows, *[ms * MS] * 3) for m, table in TABLE.items() for rows, ms in table.items())
)
MODELS = {name: Model(name, slo * MS, 16) for name, slo in SLO.items()}


def packed(*names, devices=3):
    fleet = tuple(Device(d, KIND, Mechanism.WHOLE) for d in range(devices))
    plan = nexus(Problem({n: MODELS[n] for n in names}, {n: RATE[n] for n in names}, fleet, PROFILE))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    return plan


@pytest.mark.parametrize(("name", "rate"), [("a", 160), ("b", 128), ("c", 128)])
def test_saturated_rates_are_the_papers(name, rate):
    curve = PROFILE.curve(name, KIND.sms)
    assert saturated_rate(Share(curve, SLO[name] * MS, RATE[name], 16)) == pytest.approx(rate)


@pytest.mark.parametrize(("name", "batch", "occupancy"), [("a", 8, 0.6), ("c", 4, 0.48), ("b", 4, 0.4)])
def test_residues_are_the_papers(name, batch, occupancy):
    gpulet = packed(name).gpulets[0]
    (turn,) = gpulet.turns
    assert (gpulet.duty_cycle, turn.batch) == (125 * MS, batch)
    assert turn.latency / gpulet.duty_cycle == pytest.approx(occupancy)


def test_a_and_b_share_a_device_and_c_has_its_own():
    plan = packed("a", "b", "c")
    shape = [(g.duty_cycle, [(t.model, t.batch) for t in g.turns]) for g in plan.gpulets]
    assert shape == [(125 * MS, [("a", 8), ("b", 4)]), (125 * MS, [("c", 4)])]
    assert plan.promises["a"].worst_latency == 200 * MS
