from collections import Counter
from itertools import pairwise

import pytest

from gpulet.core.messages import Answer, Arrived, Start
from gpulet.core.ports import Infeasible, Problem
from gpulet.core.scheduler import Limits
from gpulet.device import Device, Kind, Mechanism
from gpulet.dispatchers.gslice import TUNING, Gslice, Line, next_cap, next_share
from gpulet.errors import PlanError
from gpulet.model import Model
from gpulet.plan import Plan
from gpulet.planners.gslice import gslice
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.units import MS, NEVER, SECOND
from support import Watch, World

KIND = Kind("hundred", 100, 100)
SLO = 100 * MS


def problem(demand, devices=1, memory=0, slo=SLO, mechanism=Mechanism.MPS):
    """5 ms and 2 ms a row on all of 100 SMs; rows inversely with the share."""
    points = tuple(
        Point(name, size, rows, *[5 * MS + 200 * MS * rows // size] * 3)
        for name in demand
        for size in (10, 20, 40, 50, 80, 100)
        for rows in (1, 64)
    )
    models = {name: Model(name, slo, 64, memory) for name in demand}
    return Problem(models, demand, tuple(Device(d, KIND, mechanism) for d in range(devices)), Profile(points))


# planner --------------------------------------------------------------------------------------------------------------


def test_a_model_alone_starts_with_its_whole_device():
    plan = gslice(problem({"a": 60.0, "b": 60.0}, devices=2))
    assert isinstance(plan, Plan)
    assert [(g.device, g.size.sms, g.models) for g in plan.gpulets] == [(0, 100, ("a",)), (1, 100, ("b",))]
    assert [(r.device, r.model) for r in plan.residents] == [(0, "a"), (1, "b")]


def test_equal_models_start_with_equal_shares_and_honest_promises():
    plan = gslice(problem({"a": 60.0, "b": 60.0}))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    assert [(g.size.sms, g.offset) for g in plan.gpulets] == [(50, 0), (50, 50)]
    # 5 + 4 b <= 50 ms: 11 rows in 49 ms.
    assert plan.promises["a"].throughput == pytest.approx(11 / 0.049)
    assert plan.promises["a"].worst_latency == 98 * MS


def test_who_needs_more_than_its_knees_part_gets_what_it_needs():
    plan = gslice(problem({"a": 300.0, "b": 20.0}))
    assert isinstance(plan, Plan)
    assert plan.violations() == ()
    a, b = (g.size.sms for g in plan.gpulets)
    assert a > 60
    assert a + b <= 100


def test_nobody_is_placed_where_the_tuner_could_not_hold_it():
    refused = gslice(problem({"a": 300.0, "b": 300.0}))
    assert isinstance(refused, Infeasible)
    assert refused.model == "b"
    assert refused.constraint == "300.0 rows/s need 70 SMs of one device, and 30 are left"
    assert "lower its rate by" in refused.nearest
    too_much = gslice(problem({"a": 900.0}, devices=2))
    assert isinstance(too_much, Infeasible)
    assert too_much.constraint == "it lives on one device, and a whole one carries 449.0 of 900.0 rows/s"
    assert gslice(problem({"a": 1.0}, slo=10 * MS)).nearest == "raise its SLO"


def test_memory_decides_who_can_live_together():
    assert isinstance(gslice(problem({"a": 10.0, "b": 10.0}, memory=50)), Plan)
    assert isinstance(gslice(problem({"a": 10.0, "b": 10.0}, memory=51)), Infeasible)
    assert isinstance(gslice(problem({"a": 10.0, "b": 10.0}, memory=51, devices=2)), Plan)


def test_devices_without_shares_of_any_size_are_refused():
    with pytest.raises(PlanError, match="not of whole"):
        gslice(problem({"a": 1.0}, mechanism=Mechanism.WHOLE))


# tuning rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "rows", "latency", "expected"),
    [
        (0, 4, 100, 4),  # exactly the objective
        (8, 4, 109, 4),  # late, but within the dead band
        (8, 4, 150, 3),  # 50 late at 37.5 a row: one fewer
        (8, 8, 300, 3),  # 200 late at 37.5 a row: five fewer
        (8, 1, 300, 1),  # one row stays one row
        (8, 8, 95, 8),  # early, within the dead band
        (8, 8, 80, 10),  # 20 of room at 10 a row
        (8, 4, 40, 8),  # a small batch says nothing
        (0, 4, 40, 10),  # without a cap every batch counts
    ],
)
def test_the_cap_jumps_to_the_objective(cap, rows, latency, expected):
    assert next_cap(cap, rows, latency, 100, 0.1) == expected


@pytest.mark.parametrize(
    ("arrivals", "service", "lateness", "expected"),
    [
        (100, 100, 1.25, 0.5 * 1.2),  # late though the rates agree: by latency (the published code would give 0.05)
        (200, 100, 1.25, 0.5 * 2 / 0.9),  # late and too slow: the larger
        (100, 105, 0.5, 0.5),  # early, but as busy as it should be
        (200, 100, 0.25, 0.5 * 2 / 0.85),  # early, but too slow for its rate
        (100, 400, 0.9, 0.5 * 0.9),  # idle, but close to its objective
        (100, 400, 0.1, 0.5 / 4 / 0.85),  # idle and early: to 85 % busy
    ],
)
def test_the_share_follows_rates_and_latency(arrivals, service, lateness, expected):
    assert next_share(0.5, arrivals, service, lateness) == pytest.approx(expected)


def test_the_service_rate_is_that_of_a_batch_as_long_as_allowed():
    line = Line(0.5)
    line.add(1, 9)
    assert line.service(45, 64) == 1 / 9  # one batch is no line
    line.add(3, 17)
    assert line.service(45, 64) == pytest.approx(10 / 45)  # 5 + 4 a row
    assert line.service(45, 4) == pytest.approx(4 / 21)


# serving --------------------------------------------------------------------------------------------------------------


def evenly(rates):
    """`rates[model]` lists (seconds, rows/s)."""
    arrivals = []
    for name, pieces in rates.items():
        start = 0
        for seconds, rate in pieces:
            arrivals += [(start * SECOND + n * SECOND // rate, name) for n in range(seconds * rate)]
            start += seconds
    return [Request(i, name, t, t + SLO) for i, (t, name) in enumerate(sorted(arrivals), start=1)]


class Served(World):
    """Follows the shares, and who was late when."""

    def __init__(self, asked, make=Gslice):
        plan = gslice(asked)
        assert isinstance(plan, Plan)
        self.made = []

        def keep(problem, plan):
            self.made.append(make(problem, plan))
            return self.made[-1]

        super().__init__(list(asked.models.values()), plan, keep, Limits(early_drop=False), asked.profile)
        self.shares, self.late, self.requests = [], Counter(), {}
        self.simulation._observers = (self.watch.observe, self.observe)  # noqa: SLF001 (before anything runs)

    def observe(self, now, events, commands):
        self.requests |= {e.request.id: e.request for e in events if isinstance(e, Arrived)}
        shares = self.made[0].shares
        assert sum(shares.values()) <= 100
        assert all(c.on.size in {*shares.values()} for c in commands if isinstance(c, Start))
        if not self.shares or self.shares[-1][1] != shares:
            self.shares.append((now, shares))
        for request in (self.requests[i] for c in commands if isinstance(c, Answer) for i in c.requests):
            self.late[request.model, request.arrival // SECOND] += now > request.deadline

    def share(self, name, second):
        return [shares[name] for at, shares in self.shares if at <= second * SECOND][-1]


@pytest.mark.slow
def test_shares_follow_a_rate_that_quadruples_and_the_slo_holds_again():
    world = Served(problem({"a": 60.0, "b": 60.0}))
    world.run(evenly({"a": [(30, 60), (40, 240), (30, 60)], "b": [(100, 60)]}))
    before, during, after = (world.share("a", second) for second in (29, 69, 99))
    assert before <= 30, "a share is no larger than its rate needs"
    assert during >= 50, "four times the rate needs more than half of the device"
    assert after <= 30, "and gives it back"
    assert sum(n for (name, second), n in world.late.items() if name == "a" and 30 <= second < 40) > 100
    assert not any(n for (name, second), n in world.late.items() if 45 <= second < 100)
    assert not any(n for (name, second), n in world.late.items() if name == "b" and second > 10)


@pytest.mark.slow
def test_one_share_changes_at_a_time_and_only_once_its_standby_is_ready():
    world = Served(problem({"a": 60.0, "b": 60.0, "c": 60.0}))
    world.run(evenly({"a": [(20, 60), (20, 150)], "b": [(40, 60)], "c": [(40, 60)]}))
    instants = [at for at, _ in world.shares]
    assert len(instants) > 3
    assert all(later - earlier >= TUNING.standby for earlier, later in pairwise(instants[1:]))
    for (_, one), (_, other) in pairwise(world.shares):
        assert sum(one[name] != other[name] for name in one) == 1


def test_nothing_is_granted_beyond_what_is_left():
    world = Served(problem({"a": 60.0, "b": 60.0}))
    world.run(evenly({"a": [(3, 60), (4, 400)], "b": [(3, 60), (4, 400)]}))
    assert world.shares[-1][1]["a"] + world.shares[-1][1]["b"] <= 100


def test_an_idle_fleet_asks_for_nothing():
    world = Served(problem({"a": 60.0}))
    world.run(evenly({"a": [(3, 60)]}))
    assert world.scheduler.is_idle
    assert world.scheduler.wake_at == NEVER


def test_what_nobody_serves_or_no_batch_holds_is_refused_at_once():
    asked = problem({"a": 60.0})
    world = Served(asked)
    metrics = world.run([Request(1, "a", 0, SLO, 64), Request(2, "a", 0, SLO, 65)])
    assert (metrics.models["a"].served, metrics.models["a"].rejected) == (1, 1)
    homeless = Gslice(asked, Plan(asked.devices))
    assert homeless.bind(0, Request(3, "a", 0, SLO), world.scheduler.fleet) == "predicted late"
    assert isinstance(world.watch, Watch)
