"""Applications: their checks, their sections in a fleet file, and the core that turns one stage into the next."""

from dataclasses import replace

import pytest

from gpulet.application import BUILT_IN, Application, Stage
from gpulet.capacity import largest_factor, simulated
from gpulet.cli.common import arrivals_of
from gpulet.core.journal import Header, encode_header, encode_step, read_header, replay
from gpulet.core.messages import (
    FIRST_STAGE_REQUEST,
    Answer,
    Arrived,
    Cancelled,
    Drop,
    Fail,
    Finished,
    Gather,
    GpuletDown,
    Reason,
    Reject,
    RunFailed,
    Spawn,
    Start,
    Stopping,
)
from gpulet.core.scheduler import Limits
from gpulet.device import Mechanism
from gpulet.errors import BadInput, ConfigError
from gpulet.fleetfile import open_site
from gpulet.model import Model
from gpulet.problems import load_profile, make_problem
from gpulet.request import Request
from gpulet.systems import SYSTEMS, make_scheduler
from gpulet.units import MS, SECOND
from support import SHAPES, World, models_of, problem_of, requests_of, tiny_plan

NAMES = ["m0", "m1", "m2"]
A, B, C = (FIRST_STAGE_REQUEST + n for n in range(3))


def app(*stages, slo=40 * MS, name="app"):
    """Stages as (name, after, fan-out); the model is the name's last two letters."""
    return Application(name, slo, tuple(Stage(n, n[-2:], tuple(after), fan_out) for n, after, fan_out in stages))


CHAIN = app(("m0", (), 1.0), ("m1", ("m0",), 1.0))
FORK = app(("m0", (), 1.0), ("m1", ("m0",), 1.0), ("m2", ("m0",), 1.0))
TWINS = app(("m0", (), 1.0), ("m1", (), 1.0))


def world(application=CHAIN, dispatcher=SHAPES["idle picks"], slo=40 * MS, **limits):
    plan = tiny_plan([[(4, ["m0"]), (2, ["m1"]), (2, ["m2"])]], NAMES)
    return World(models_of(3, slo), plan, dispatcher, Limits(**limits), applications=(application,))


def request(number, *, model="app", now=0, deadline=40 * MS, rows=1, **more):
    return Request(number, model, now, deadline, rows, **more)


def step(w, now, *events):
    w.timer.instant = now
    commands = w.scheduler.step(now, *events)
    w.watch.observe(now, events, commands)
    w.metrics.record(now, events, commands)
    return commands


def of(kind, commands):
    return [c for c in commands if isinstance(c, kind)]


# the type ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "application app has no stages"),
        ((("m0", (), 0.0),), "application app: stage m0: fan_out must be above 0, is 0"),
        ((("m0", (), -1.5),), "fan_out must be above 0, is -1.5"),
        ((("m0", (), float("inf")),), "fan_out must be above 0, is inf"),
        ((("m0", (), 1.0), ("m0", (), 1.0)), "application app: stage m0 is listed 2 times"),
        ((("m0", ("nobody",), 1.0),), "stage m0 is after unknown stage 'nobody'; known are m0"),
        ((("m0", (), 1.0), ("m1", ("m0", "m0"), 1.0)), "stage m1 names a stage twice in after: m0, m0"),
        ((("m0", ("m0",), 1.0),), "application app: stages m0 -> m0 wait for each other, a cycle of 1"),
        (
            (("m0", (), 1.0), ("a", ("m0", "c"), 1.0), ("b", ("a",), 1.0), ("c", ("b",), 1.0)),
            "stages a -> b -> c -> a wait for each other, a cycle of 3",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused(stages, message):
    with pytest.raises(ConfigError, match=message):
        app(*stages)


def test_budgets_of_a_path_may_not_exceed_the_objective():
    stages = [Stage("a", "a", (), 1, 50 * MS), Stage("b", "b", ("a",), 1, 20 * MS), Stage("c", "c", ("a",), 1, 31 * MS)]
    with pytest.raises(
        ConfigError, match=r"application x: stages a -> c have budgets of 50 \+ 31 = 81 ms, its SLO is 80"
    ):
        Application("x", 80 * MS, tuple(stages))
    assert Application("x", 81 * MS, tuple(stages)).longest_after({s.name: s.budget for s in stages})["a"] == 31 * MS


def test_the_built_in_applications_are_the_papers():
    game, traffic = BUILT_IN["game"], BUILT_IN["traffic"]
    assert (game.slo, traffic.slo) == (108 * MS, 202 * MS)
    assert [s.model for s in game.leaves] == ["resnet50", *(f"lenet{n}" for n in range(1, 7))]
    assert {s.budget for s in game.stages} == {108 * MS}
    assert [(s.model, s.after, s.budget // MS) for s in traffic.stages] == [
        ("ssd-mobilenetv1", (), 90),
        ("googlenet", ("ssd-mobilenetv1",), 112),
        ("vgg16", ("ssd-mobilenetv1",), 112),
    ]


# the core ---------------------------------------------------------------------------------------------------------------


def test_a_finished_stage_becomes_requests_of_the_next_and_the_last_becomes_the_answer():
    w = world(FORK)
    spawn, first = step(w, 0, Arrived(request(7, rows=2, priority=1)))
    assert spawn == Spawn(Request(A, "m0", 0, 40 * MS, 2, "", 1), 7, "m0")
    assert (first.model, first.rows, first.requests) == ("m0", 2, (A,))
    answer, *spawns, second, third = step(w, 9, Finished(first.batch))
    assert answer == Answer(first.batch, (A,))
    assert [(s.request.id, s.request.model, s.request.arrival, s.stage) for s in spawns] == [
        (B, "m1", 9, "m1"),
        (C, "m2", 9, "m2"),
    ]
    assert step(w, 11, Finished(third.batch)) == [Answer(third.batch, (C,))]
    assert step(w, 12, Finished(second.batch)) == [
        Answer(second.batch, (B,)),
        Gather(7, (third.batch, second.batch)),
    ]
    assert w.scheduler.is_idle
    w.watch.finish()


def spawned_by(w, application, arrivals):
    """How many requests of stage m1 each application request led to, everything answered at once."""
    counts = []
    for n in range(arrivals):
        commands = step(w, n, Arrived(request(n + 1, now=n, deadline=SECOND)))
        seen = 0
        while starts := of(Start, commands):
            commands = step(w, n, *(Finished(s.batch) for s in starts))
            seen += sum(s.stage == "m1" for s in of(Spawn, commands))
        counts.append(seen)
    w.watch.finish()
    return counts


@pytest.mark.parametrize(
    ("fan_out", "counts"),
    [
        (0.5, [1, 0, 1, 0, 1, 0]),
        (3.0, [3, 3, 3, 3, 3, 3]),
        (2.5, [3, 2, 3, 2, 3, 2]),
        (0.1, [0, 0, 0, 0, 1, 0] + [0] * 8 + [1, 0]),
        (1 / 3, [0, 1, 0, 0, 1, 0]),
    ],
)
def test_a_fractional_fan_out_is_spread_evenly(fan_out, counts):
    w = world(app(("m0", (), 1.0), ("m1", ("m0",), fan_out)))
    assert spawned_by(w, "app", len(counts)) == counts
    assert w.metrics.models["app"].served == len(counts)


def test_an_application_request_whose_first_stages_owe_nothing_is_answered_at_once():
    w = world(app(("m0", (), 0.25)))
    assert step(w, 0, Arrived(request(1))) == [Gather(1, ())]
    assert of(Spawn, step(w, 1, Arrived(request(2, now=1))))


def test_fan_outs_multiply_along_a_path():
    w = world(app(("m0", (), 2.0), ("m1", ("m0",), 3.0)))
    assert spawned_by(w, "app", 2) == [6, 6]
    assert w.metrics.models["m0"].served == 4


def test_a_join_starts_when_all_its_parents_are_done_once_for_the_application_request():
    w = world(app(("m0", (), 2.0), ("m1", (), 1.0), ("m2", ("m0", "m1"), 1.0)))
    commands = step(w, 0, Arrived(request(1)))
    zero, one = of(Start, commands)
    assert not of(Spawn, step(w, 1, Finished(one.batch)))
    answer, *more = step(w, 2, Finished(zero.batch))
    assert answer.requests in {(A,), (A, B)}
    while not of(Spawn, more):
        (last,) = of(Start, more)
        more = step(w, 3, Finished(last.batch))
    (joined,) = of(Spawn, more)
    assert (joined.stage, joined.request.model) == ("m2", "m2")
    (start,) = of(Start, more)
    assert step(w, 4, Finished(start.batch))[-1] == Gather(1, (start.batch,))
    w.watch.finish()


def test_a_join_does_not_wait_for_parents_that_owe_nothing():
    w = world(app(("m0", (), 1.0), ("m1", ("m0",), 0.25), ("m2", ("m0", "m1"), 1.0)))
    (_, first) = step(w, 0, Arrived(request(1)))
    commands = step(w, 1, Finished(first.batch))
    assert [s.stage for s in of(Spawn, commands)] == ["m2"]


def test_one_model_may_be_two_stages():
    w = world(Application("app", 40 * MS, (Stage("first", "m0"), Stage("again", "m0", ("first",)))))
    (_, first) = step(w, 0, Arrived(request(1)))
    _, spawn, second = step(w, 1, Finished(first.batch))
    assert (spawn.stage, second.model) == ("again", "m0")
    assert step(w, 2, Finished(second.batch))[-1] == Gather(1, (second.batch,))


def test_a_stage_may_take_what_the_stages_behind_it_cannot_use():
    least = {"m0": 2 * MS, "m1": 3 * MS, "m2": 7 * MS}
    timed = replace(FORK, stages=tuple(replace(s, least=least[s.name]) for s in FORK.stages))
    w = world(timed)
    spawn, first = step(w, 0, Arrived(request(1, hard=True)))
    assert (spawn.request.deadline, spawn.request.hard) == (33 * MS, True)
    _, one, two, *_ = step(w, 9 * MS, Finished(first.batch))
    assert (one.request.deadline, two.request.deadline) == (40 * MS, 40 * MS)


@pytest.mark.parametrize("missing", [0, 1])
def test_early_drop_spares_what_could_still_be_in_time(missing):
    """Alone, rows of m0 and m1 take 6 and 12 ms here; a whole device would do m1 in 3."""
    timed = replace(CHAIN, stages=(CHAIN.stages[0], replace(CHAIN.stages[1], least=3 * MS)))
    w = world(timed, SYSTEMS["gpulet"].dispatcher)
    metrics = w.run([request(1, deadline=18 * MS - missing)])
    assert metrics.models["app"].served == 1 - missing
    assert metrics.models["m0"].served == 1
    assert metrics.models["app"].late == 0


def test_a_stage_request_that_expires_takes_its_application_request_along():
    w = world(CHAIN)
    step(w, 0, Arrived(request(1, model="m0")))
    step(w, 1, Arrived(request(2, now=1, deadline=5 * MS)))
    assert step(w, 5 * MS) == [Drop(A, Reason.EXPIRED), Drop(2, Reason.EXPIRED)]
    assert w.metrics.models["app"].expired == 1
    assert w.scheduler.wake_at > 5 * MS


def test_a_failed_stage_gives_up_what_waits_of_its_siblings():
    w = world(app(("m0", (), 1.0), ("m1", (), 1.0), ("m2", (), 1.0)))
    step(w, 0, Arrived(request(1, model="m1")), Arrived(request(2, model="m2")))
    (*_, start) = step(w, 1, Arrived(request(3, now=1)))  # only m0 is free
    assert step(w, 2, RunFailed(start.batch)) == [
        Fail(A, Reason.RUN_FAILED),
        Fail(3, Reason.RUN_FAILED),
        Drop(B, Reason.ABANDONED),
        Drop(C, Reason.ABANDONED),
    ]


def test_what_runs_of_a_failed_application_request_finishes_and_is_ignored():
    w = world(TWINS)
    step(w, 0, Arrived(request(1)))
    assert step(w, 1, RunFailed(1)) == [Fail(A, Reason.RUN_FAILED), Fail(1, Reason.RUN_FAILED)]
    assert step(w, 2, Finished(2)) == [Answer(2, (B,))]
    w.watch.finish()


def test_a_refused_first_stage_refuses_and_a_refused_later_one_drops():
    w = world(TWINS, max_queue=1)
    step(w, 0, Arrived(request(1, model="m1")))
    step(w, 0, Arrived(request(2, model="m1")))
    assert step(w, 1, Arrived(request(3)))[-3:-1] == [Reject(B, Reason.QUEUE_FULL), Reject(3, Reason.QUEUE_FULL)]
    assert w.metrics.models["app"].rejected == 1
    w = world(CHAIN, max_queue=1)
    (_, start) = step(w, 0, Arrived(request(1)))
    step(w, 0, Arrived(request(2, model="m1")))
    step(w, 0, Arrived(request(3, model="m1")))
    assert step(w, 1, Finished(start.batch))[-2:] == [Reject(B, Reason.QUEUE_FULL), Drop(1, Reason.QUEUE_FULL)]


@pytest.mark.parametrize(
    ("bad", "reason"), [({"model": "nobody"}, Reason.UNKNOWN_MODEL), ({"rows": 9}, Reason.TOO_LARGE)]
)
def test_what_cannot_be_served_is_refused_before_anything_is_made(bad, reason):
    assert step(world(), 0, Arrived(request(1, **bad))) == [Reject(1, reason)]


def test_a_cancelled_application_request_is_over_whatever_of_it_runs():
    w = world(TWINS)
    step(w, 0, Arrived(request(1, model="m1")))
    step(w, 0, Arrived(request(2)))
    assert step(w, 1, Cancelled(2)) == [Drop(2, Reason.CANCELLED), Drop(B, Reason.ABANDONED)]
    assert step(w, 2, Cancelled(2)) == []
    assert step(w, 3, Finished(2)) == [Answer(2, (A,))]
    assert w.metrics.models["app"].cancelled == 1


def test_a_stopping_server_finishes_the_application_requests_it_has():
    w = world(CHAIN)
    (_, first) = step(w, 0, Arrived(request(1)))
    step(w, 0, Stopping())
    assert step(w, 0, Arrived(request(2))) == [Reject(2, Reason.STOPPED)]
    (_, _, second) = step(w, 1, Finished(first.batch))
    assert step(w, 2, Finished(second.batch))[-1] == Gather(1, (second.batch,))


def test_a_dead_workers_stage_requests_are_retried_unless_their_application_request_is_over():
    w = world(TWINS)
    step(w, 0, Arrived(request(1)))
    assert step(w, 1, GpuletDown(0)) == []
    assert of(Fail, step(w, 2, RunFailed(2))) == [Fail(B, Reason.RUN_FAILED), Fail(1, Reason.RUN_FAILED)]
    w = world(TWINS)
    step(w, 0, Arrived(request(1)))
    step(w, 1, Cancelled(1))
    assert step(w, 2, GpuletDown(0)) == [Fail(A, Reason.WORKER_LOST)]


class DropsAndStarts:
    """One decision that drops a request of m0 and starts everything of m1."""

    def __init__(self, problem, plan):
        self.inner = SHAPES["idle picks"](problem, plan)
        self.is_armed = False

    def bind(self, now, request, fleet):
        return self.inner.bind(now, request, fleet)

    def decide(self, now, changed, fleet):
        from gpulet.core.ports import Decision, Run  # noqa: PLC0415

        queues = {q.model: q for name in fleet.models for q in fleet.central(name)}
        if "m0" in queues and "m1" in queues and fleet.gpulets[1].is_idle:
            return Decision([Run(1, list(queues["m1"]))], drop=list(queues["m0"]))
        return Decision()


def test_a_decision_may_start_the_sibling_of_what_it_drops():
    w = world(TWINS, DropsAndStarts)
    commands = step(w, 0, Arrived(request(1)))
    assert commands[2:] == [
        Drop(A, Reason.EXPIRED),
        Drop(1, Reason.EXPIRED),
        Start(1, 1, "m1", "", 1, (B,)),
    ]
    assert step(w, 1, Finished(1)) == [Answer(1, (B,))]
    w.watch.finish()


def test_the_total_counts_what_clients_sent():
    w = world(FORK, SYSTEMS["gpulet"].dispatcher)
    sources = [*models_of(3), Model("app", 40 * MS)]
    report = w.run(requests_of([(6 * n * MS, n % 4, 1, "", 0, False) for n in range(80)], sources)).report(SECOND)
    rows = report["models"]
    assert (report["total"]["arrived"], rows["app"]["arrived"]) == (80, 20)
    assert rows["m0"]["arrived"] == 40
    assert rows["app"]["served"] > 0
    counts = ("served", "rejected", "expired", "cancelled", "failed", "lost")
    for row in (*rows.values(), report["total"]):
        assert row["arrived"] == sum(row[name] for name in counts)
    for name in counts[1:4]:
        assert report["total"][name] <= sum(row[name] for row in rows.values())


def test_a_journal_with_applications_is_replayed_command_for_command():
    application = app(("m0", (), 1.5), ("m1", ("m0",), 0.7), ("m2", ("m0", "m1"), 1.0))
    w = world(application, SYSTEMS["gpulet"].dispatcher)
    w.kill(9 * MS, 1, 5 * MS)
    w.cancel(8 * MS, 5)
    w.run(requests_of([(n * MS, 0, 1 + n % 2, "", 0, n % 3 == 0) for n in range(40)], [Model("app", 40 * MS)]))
    problem = replace(problem_of(models_of(3), w.plan), applications=(application,))
    parsed = read_header(encode_header(Header.of("gpulet", problem, w.plan, Limits())))
    assert parsed.applications == (application,)
    fresh = make_scheduler(SYSTEMS["gpulet"], parsed.problem(), parsed.plan, parsed.limits)
    assert any(of(Gather, commands) for _, _, commands in w.steps)
    assert list(replay(fresh, [encode_step(*step) for step in w.steps])) == []


# the fleet file ---------------------------------------------------------------------------------------------------------

DEVICE = '[[devices]]\nkind = "rtx2080ti"\ncount = 2\nexecutor = "simulated"\nprofile = "p.csv"\n'
TABLE = "model,size,batch,mean_ms\n" + "".join(
    f"{name},{size},{rows},{(base + per_row * rows) * 68 / size}\n"
    for name, base, per_row in (("det", 6, 1), ("cls", 2, 0.5), ("ocr", 3, 0.5))
    for size in (14, 34, 68)
    for rows in (1, 8)
)
SHOP = """
[[applications]]
name = "shop"
slo_ms = 200
rate = 40
[[applications.stages]]
model = "det"
[[applications.stages]]
name = "small"
model = "cls"
after = ["det"]
fan_out = 2.5
[[applications.stages]]
model = "ocr"
after = ["det"]
fan_out = 0.5
"""
BUDGETS = SHOP.replace('model = "det"\n', 'model = "det"\nbudget_ms = 100\n')
BUDGETS = BUDGETS.replace("fan_out =", "budget_ms = 90\nfan_out =")


@pytest.fixture
def problem(tmp_path):
    def make(text, factor=1.0):
        (tmp_path / "p.csv").write_text(TABLE)
        (tmp_path / "fleet.toml").write_text(DEVICE + text)
        site = open_site(tmp_path / "fleet.toml")
        return make_problem(site, load_profile(site), factor=factor)

    return make


def test_an_application_brings_its_models_and_their_rates(problem):
    found = problem(SHOP)
    assert found.demand == {"det": 40, "cls": 100, "ocr": 20}
    assert found.rates == {"shop": 40}
    (application,) = found.applications
    budgets = {s.name: s.budget for s in application.stages}
    assert budgets["det"] + max(budgets["small"], budgets["ocr"]) <= 200 * MS
    assert {n: m.slo for n, m in found.models.items()} == {
        "det": budgets["det"],
        "cls": budgets["small"],
        "ocr": budgets["ocr"],
    }
    assert [s.least for s in application.stages] == [7 * MS, 2.5 * MS, 3.5 * MS]


def test_rates_of_a_model_of_its_own_add_and_the_shorter_objective_holds(problem):
    own = '[[models]]\nname = "cls"\nslo_ms = 50\nrate = 7\n[[models]]\nname = "det"\nrate = 1\n'
    found = problem(BUDGETS + own, factor=2)
    assert found.demand == {"det": 82, "cls": 214, "ocr": 40}
    assert found.rates == {"shop": 80, "cls": 14, "det": 2}
    assert {n: m.slo // MS for n, m in found.models.items()} == {"cls": 50, "det": 100, "ocr": 90}
    assert [m.name for m in found.sources] == ["cls", "det", "shop", "ocr"]


@pytest.mark.slow
def test_a_listed_model_without_a_rate_of_its_own_still_shares_what_is_left(problem):
    listed = '[[models]]\nname = "extra"\n'
    text = SHOP.replace('"ocr"', '"det"').replace('model = "det"\nafter', 'name = "again"\nmodel = "det"\nafter')
    found = problem(text.replace('"cls"', '"ocr"') + listed.replace("extra", "cls"))
    assert found.demand["det"] == 60
    assert found.rates["cls"] == found.demand["cls"] > 0
    assert "det" not in found.rates


@pytest.mark.parametrize("name", ["traffic", "game"])
def test_built_ins_need_a_name_and_a_rate(problem, tmp_path, name):
    table = "model,size,batch,mean_ms\n" + "".join(
        f"{s.model},{size},{rows},{rows + 68 / size}\n"
        for s in BUILT_IN[name].stages
        for size in (14, 68)
        for rows in (1, 8)
    )
    text = f'[[applications]]\nname = "{name}"\nrate = 30\n'
    (tmp_path / "fleet.toml").write_text(DEVICE + text)
    (tmp_path / "p.csv").write_text(table)
    site = open_site(tmp_path / "fleet.toml")
    found = make_problem(site, load_profile(site))
    assert [s.budget for s in found.applications[0].stages] == [s.budget for s in BUILT_IN[name].stages]
    assert found.demand == dict.fromkeys((s.model for s in BUILT_IN[name].stages), 30)
    (tmp_path / "fleet.toml").write_text(DEVICE + text + 'split = "nexus"\nslo_ms = 150\n')
    again = make_problem(site := open_site(tmp_path / "fleet.toml"), load_profile(site)).applications[0]
    assert again.slo == 150 * MS
    assert sum(s.budget for s in again.longest_path({s.name: s.budget for s in again.stages})) == 150 * MS


STAGE = '[[applications.stages]]\nname = "x"\nmodel = "cls"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            SHOP.replace('["det"]\nfan_out = 2.5', '["dat"]'),
            "application shop: stage small is after unknown stage 'dat'",
        ),
        (
            SHOP.replace('model = "det"\n', 'model = "det"\nafter = ["ocr"]\n'),
            "stages det -> ocr -> det wait for each other",
        ),
        (SHOP + STAGE + STAGE, "application shop: stage x is listed 2 times"),
        (SHOP.replace("2.5", "0"), "application shop: stage small: fan_out must be above 0, is 0"),
        (SHOP.replace("2.5", "nan"), r"line 17: applications\[0\].stages\[1\].fan_out = nan: must be a finite"),
        (SHOP.replace("2.5", '"many"'), r"line 17: applications\[0\].stages\[1\].fan_out = 'many': must be"),
        (SHOP.replace("fan_out = 0.5", "fanout = 1"), r"line 21: unknown key applications\[0\].stages\[2\].fanout"),
        (SHOP.replace("rate = 40", "rate = 0"), r"line 10: applications\[0\].rate = 0: must be greater than 0"),
        (SHOP.replace("rate = 40\n", ""), r"line 7: applications\[0\].rate is missing"),
        (SHOP.replace("slo_ms = 200\n", ""), "application shop: slo_ms is missing; only the built-in game, traffic"),
        (
            SHOP.partition("[[applications.s")[0],
            "application shop has no stages and is not built in; built in are game",
        ),
        (SHOP.replace("slo_ms = 200", "slo_ms = 10"), "application shop: no split of its SLO of 10 ms into 100 steps"),
        (
            BUDGETS.replace("= 200", "= 180"),
            r"application shop: stages det -> small have budgets of 100 \+ 90 = 190 ms",
        ),
        (BUDGETS + STAGE, 'application shop: stage x has no budget_ms; split = "fixed" needs one for each of its 4'),
        (SHOP.replace("rate", 'split = "fixed"\nrate'), "application shop: stage det has no budget_ms"),
        (SHOP.replace("rate", 'split = "magic"\nrate'), r"applications\[0\].split = 'magic': must be"),
        (SHOP + STAGE + 'after = ["small", "ocr"]\n', r"application shop: stage x waits for 2 stages \(small, ocr\)"),
        (SHOP.replace('"shop"', '"ocr"'), "application ocr has the name of a model"),
        (SHOP + '[[models]]\nname = "shop"\n', "application shop has the name of a model"),
        (SHOP + SHOP, "application shop is listed 2 times"),
        (SHOP.replace('"ocr"', '"who"'), "no profile for who in p.csv"),
    ],
)
def test_a_bad_application_is_refused_in_one_line(problem, text, message):
    with pytest.raises(BadInput, match=message) as raised:
        problem(text)
    assert "\n" not in str(raised.value)


def test_real_devices_serve_no_applications_yet(tmp_path):
    text = '[[devices]]\nkind = "cpu"\nprofile = "p.csv"\n'
    (tmp_path / "fleet.toml").write_text(text + SHOP)
    with pytest.raises(
        ConfigError, match="application shop: executor cpu serves no applications yet, since outputs of"
    ):
        open_site(tmp_path / "fleet.toml")


@pytest.mark.slow
def test_a_simulation_draws_application_requests_and_capacity_scales_them(problem, tmp_path):
    found = problem(SHOP + '[[models]]\nname = "cls"\nrate = 10\n')
    site = open_site(tmp_path / "fleet.toml")
    plan = site.system.planner(found)
    assert plan.violations() == ()
    report = simulated(site, found, plan, arrivals_of(found, "poisson", 4.0, 1))
    rows = report["models"]
    assert 120 < rows["shop"]["arrived"] < 200
    assert rows["shop"]["attainment"] > 0.99
    assert rows["ocr"]["arrived"] == pytest.approx(rows["shop"]["arrived"] / 2, abs=1)
    own = rows["cls"]["arrived"] - 2.5 * rows["shop"]["arrived"]
    assert 20 < own < 60
    assert report["total"]["arrived"] == pytest.approx(rows["shop"]["arrived"] + own, abs=1)
    factor, limiting = largest_factor(site, load_profile(site), precision=0.05)
    assert factor > 1
    assert limiting in found.models
    (tmp_path / "trace.csv").write_text("arrival_s,model,rows\n0.1,shop,2\n0.2,cls,1\n0.3,shop,1\n")
    traced = simulated(site, found, plan, arrivals_of(found, f"trace:{tmp_path / 'trace.csv'}", 4.0, 1))["models"]
    assert (traced["shop"]["served"], traced["det"]["served"], traced["cls"]["served"]) == (2, 2, 6)


def test_sources_of_a_plain_problem_are_its_models():
    plan = tiny_plan([[(8, NAMES)]], NAMES, Mechanism.GREEN)
    plain = problem_of(models_of(3), plan)
    assert plain.sources == tuple(plain.models.values())
    assert plain.rates == plain.demand
