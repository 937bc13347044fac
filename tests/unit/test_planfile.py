"""Plans of every kind come back from JSON as they were."""

import json
from dataclasses import replace

import pytest
from test_plan import MIG_LAYOUT, RESIDENT, SESSION, TURNS

from gpulet.core.ports import Infeasible, Problem
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.planfile import read_plan, to_doc, to_json
from gpulet.profile import Profile
from gpulet.units import MS

YIELDING = replace(TURNS, gpulets=(TURNS.gpulets[0], replace(TURNS.gpulets[1], priority=2)))
MODELS = {name: Model(name, 60 * MS) for name in "abc"}


@pytest.mark.parametrize(
    "plan", [TURNS, MIG_LAYOUT, SESSION, RESIDENT, YIELDING], ids=["turns", "mig", "timeline", "residents", "priority"]
)
def test_a_plan_comes_back_from_json_as_it_was(plan):
    text = json.dumps(to_json(to_doc(plan, "mine", 5 * MS))).encode()
    models = {name: m for name, m in MODELS.items() if not plan.gpulets or plan.hosts(name)}
    assert read_plan(text, Problem(models, {}, plan.devices, Profile(())), "p.json") == plan


def test_a_plan_that_the_fleets_models_cannot_follow_is_refused():
    text = json.dumps(to_json(to_doc(TURNS, "mine", 5 * MS))).encode()
    small = {**MODELS, "c": Model("c", 60 * MS, max_batch=8)}
    with pytest.raises(PlanError, match="gpulet 1 plans batches of 16 for model c, which takes at most 8 there"):
        read_plan(text, Problem(small, {}, TURNS.devices, Profile(())), "p.json")
    more = {**MODELS, "d": Model("d", 60 * MS)}
    with pytest.raises(PlanError, match="model d of the fleet has no gpulet"):
        read_plan(text, Problem(more, {}, TURNS.devices, Profile(())), "p.json")


def test_a_refusal_says_what_is_unserved_and_why():
    refusal = Infeasible("a", "too much", "ask for less", {"a": 3.5}, TURNS)
    doc = to_json(to_doc(refusal, "mine", MS))
    assert (doc["feasible"], doc["unserved"]) == (False, {"a": 3.5})
    assert doc["reason"] == "model a: too much; ask for less"
    assert len(doc["gpulets"]) == 2
