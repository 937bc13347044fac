"""Application requests under every dispatcher: answered exactly once, whatever becomes of their stages."""

from collections import Counter
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.application import Application, Stage
from gpulet.core.journal import encode_step, replay
from gpulet.core.messages import Answer, Gather, Spawn
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.units import MS, SECOND
from support import CARVES, DISPATCHERS, World, models_of, problem_of, requests_of, tiny_plan

NAMES = ["m0", "m1", "m2"]
LAYOUTS = [[[(8, NAMES)]], [[(2, NAMES), (2, ["m0"]), (4, ["m1", "m2"])], [(8, NAMES)]]]
LEAST = 3 * MS
"""One row on all of a device of `tiny_profile`."""


def graph(drawn):
    """Stages s0, s1, ...: each behind at most two of those before it."""
    stages = []
    for n, (model, parents, fan_out) in enumerate(drawn):
        after = tuple(sorted({f"s{parent % n}" for parent in parents})) if n else ()
        stages.append(Stage(f"s{n}", NAMES[model], after, fan_out, least=LEAST))
    return tuple(stages)


stage = st.tuples(
    st.integers(0, 2), st.lists(st.integers(0, 9), max_size=2), st.sampled_from([0.3, 0.5, 1.0, 1.0, 1.5, 2.0])
)
graphs = st.lists(stage, min_size=1, max_size=5).map(graph)
# Small integers, so that ties happen; 3 is the application.
arrival = st.tuples(
    st.integers(0, 30).map(lambda n: n * MS),
    st.sampled_from([0, 1, 2, 3, 3, 3]),
    st.integers(1, 4),
    st.sampled_from(["", "7"]),
    st.sampled_from([0, 0, 1]),
    st.booleans(),
)
death = st.tuples(st.integers(0, 40).map(lambda n: n * MS), st.integers(0, 3), st.integers(1, 20).map(lambda n: n * MS))
cancel = st.tuples(st.integers(0, 40).map(lambda n: n * MS), st.integers(1, 20))


def world_of(name, layout, limits, stages, slo=40 * MS):
    models = models_of(3, slo)
    plan = tiny_plan(LAYOUTS[layout], NAMES)
    if name in CARVES:
        plan = Plan(plan.devices)
    application = Application("app", slo, stages)
    world = World(models, plan, DISPATCHERS[name], limits, applications=(application,))
    return world, [*models, Model("app", slo)]


@pytest.mark.parametrize("name", DISPATCHERS)
@settings(max_examples=150, deadline=None)
@given(
    layout=st.integers(0, 1),
    stages=graphs,
    arrivals=st.lists(arrival, min_size=4, max_size=24),
    deaths=st.lists(death, max_size=2),
    cancels=st.lists(cancel, max_size=3),
    poisoned=st.sets(st.integers(1, 30), max_size=2),
    limits=st.builds(Limits, st.sampled_from([2, 5, 1000]), st.booleans()),
)
def test_every_application_request_is_answered_exactly_once(
    name, layout, stages, arrivals, deaths, cancels, poisoned, limits
):
    world, sources = world_of(name, layout, limits, stages)
    world.executor.poisoned = poisoned
    for when, gpulet, back_after in deaths:
        if gpulet < len(world.plan.gpulets):
            world.kill(when, gpulet, back_after)
    for when, request in cancels:
        world.cancel(when, request)
    metrics = world.run(requests_of(arrivals, sources))
    for counts in metrics.models.values():
        assert counts.unanswered == 0
    report = metrics.report(SECOND)
    outcomes = ("served", "rejected", "expired", "cancelled", "failed", "lost")
    for row in (*report["models"].values(), report["total"]):
        assert row["arrived"] == sum(row[outcome] for outcome in outcomes)
    assert report["total"]["arrived"] == len(arrivals)
    assert world.scheduler.is_idle
    problem = problem_of(sources[:3], world.plan)
    dispatcher = DISPATCHERS[name](problem, world.plan)
    fresh = Scheduler(problem.models, world.plan, dispatcher, limits, tuple(world.scheduler.applications.values()))
    assert list(replay(fresh, [encode_step(*step) for step in world.steps])) == []


@settings(max_examples=60, deadline=None)
@given(stages=graphs, count=st.integers(1, 8))
def test_when_nothing_is_lost_every_stage_gets_its_share(stages, count):
    world, sources = world_of("idle picks", 1, Limits(), stages, slo=1000 * SECOND)
    metrics = world.run(requests_of([(n * MS, 3, 1, "", 0, False) for n in range(count)], sources))
    assert metrics.models["app"].served == count
    commands = [c for _, _, step in world.steps for c in step]
    made = Counter(c.stage for c in commands if isinstance(c, Spawn))
    for s in stages:
        parents = made[s.after[0]] if len(s.after) == 1 else count
        assert made[s.name] == floor(Fraction(1, 2) + parents * Fraction(str(s.fan_out)))
    _assert_order({s.name: s.after for s in stages}, commands)


def _assert_order(after, commands):
    """Joins start behind all requests of all that they wait for; the answer names the batches of the leaves."""
    leaves = set(after) - {parent for parents in after.values() for parent in parents}
    part_of, made, done, ran_in = {}, Counter(), Counter(), {}
    for command in commands:
        match command:
            case Spawn(request, application, stage_name):
                part_of[request.id] = (application, stage_name)
                made[application, stage_name] += 1
                joins = [s for s, parents in after.items() if len(parents) > 1 and stage_name in parents]
                assert not any(made[application, join] for join in joins)
                for parent in after[stage_name] if len(after[stage_name]) > 1 else ():
                    assert made[application, parent] == done[application, parent]
            case Answer(batch, requests):
                done.update(part_of[i] for i in requests)
                for application in {part_of[i][0] for i in requests if part_of[i][1] in leaves}:
                    ran_in.setdefault(application, []).append(batch)
            case Gather(application, batches):
                assert list(batches) == ran_in.get(application, [])
            case _:
                pass


@settings(max_examples=60, deadline=None)
@given(stages=graphs, arrivals=st.lists(arrival, min_size=3, max_size=15))
def test_a_stage_request_is_due_as_late_as_the_stages_behind_it_allow(stages, arrivals):
    world, sources = world_of("idle picks", 1, Limits(), stages)
    world.run(requests_of(arrivals, sources))
    behind = world.scheduler.applications["app"].longest_after({s.name: s.least for s in stages})
    whole = {r.id: r for r in world.watch.arrived.values() if r.model == "app"}
    for _, _, commands in world.steps:
        for spawn in (c for c in commands if isinstance(c, Spawn)):
            assert spawn.request.deadline == whole[spawn.application].deadline - behind[spawn.stage]
