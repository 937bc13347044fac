from dataclasses import replace

import pytest

from gpulet.core.ports import Infeasible, Problem
from gpulet.device import Device, Mechanism, find_kind, mps_size
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.profile import Point, Profile
from gpulet.remedies import Remedies, remedies
from gpulet.systems import SYSTEMS
from gpulet.units import MS

KIND = find_kind("rtx2080ti")


def problem(rate, slo=60):
    """Two models; `a` alone overfills both devices."""
    points = tuple(
        Point(name, mps_size(KIND, share).sms, rows, *[round((4 + rows * 180 / (20 + share)) * MS)] * 3)
        for name in "ab"
        for share in (20, 40, 50, 60, 80, 100)
        for rows in (1, 2, 4, 8, 16, 32)
    )
    models = {"a": Model("a", slo * MS), "b": Model("b", 100 * MS)}
    fleet = tuple(Device(i, KIND, Mechanism.MPS) for i in range(2))
    return Problem(models, {"a": rate, "b": 50.0}, fleet, Profile(points))


@pytest.mark.parametrize("name", [pytest.param("gpulet", marks=pytest.mark.slow), "elastic", "glet", "nexus"])
def test_every_change_that_is_named_does_fit_and_a_smaller_one_does_not(name):
    planner = SYSTEMS[name].planner
    asked = problem(2600.0)
    refusal = planner(asked)
    assert isinstance(refusal, Infeasible)
    found = remedies(planner, asked, refusal)
    model = asked.models[refusal.model]
    assert found.devices
    assert found.rate
    last = asked.devices[-1]

    def with_devices(count):
        more = tuple(replace(last, index=2 + n) for n in range(count))
        return planner(replace(asked, devices=(*asked.devices, *more)))

    def with_rate(less):
        return planner(replace(asked, demand={**asked.demand, model.name: asked.demand[model.name] - less}))

    assert isinstance(with_devices(found.devices), Plan)
    assert isinstance(with_devices(found.devices - 1), Infeasible)
    assert isinstance(with_rate(found.rate), Plan)
    if name in {"elastic", "nexus"}:  # margins and judges refuse some rates that they accept when higher
        assert isinstance(with_rate(found.rate - asked.demand[model.name] / 100), Infeasible)
    if found.slo:
        longer = {**asked.models, model.name: replace(model, slo=model.slo + found.slo)}
        assert isinstance(planner(replace(asked, models=longer)), Plan)


def test_an_objective_that_is_too_short_is_lengthened():
    planner = SYSTEMS["gpulet"].planner
    asked = problem(10.0, slo=8)
    refusal = planner(asked)
    assert isinstance(refusal, Infeasible)
    found = remedies(planner, asked, refusal)
    assert found.devices == 0
    assert found.slo
    longer = {**asked.models, "a": replace(asked.models["a"], slo=8 * MS + found.slo)}
    assert isinstance(planner(replace(asked, models=longer)), Plan)
    assert "an SLO " in str(found)


def test_changes_are_told_in_one_line():
    assert (
        str(Remedies(2, 5 * MS, 30.0))
        == "it fits with 2 devices more or an SLO 5.0 ms longer or 30.0 rows/s less of it"
    )
    assert str(Remedies(1)) == "it fits with 1 device more"
    assert str(Remedies()) == "no single change of it was found that fits"


def test_own_cores_are_not_multiplied():
    asked = problem(2600.0)
    planner = SYSTEMS["nexus"].planner
    refusal = planner(asked)
    assert isinstance(refusal, Infeasible)
    assert remedies(planner, asked, refusal, adds_devices=False).devices == 0
