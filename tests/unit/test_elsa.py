import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Answer, Arrived, Cancelled, Drop, Finished, GpuletDown, GpuletUp, Reason, Reject, Start
from gpulet.core.metrics import Metrics
from gpulet.core.scheduler import Limits, Scheduler
from gpulet.dispatchers.elsa import Elsa, Rule, Within
from gpulet.dispatchers.fifs import Fifs
from gpulet.drivers.sim import Simulation, VirtualTimer
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.units import MS
from support import MortalExecutor, World, models_of, problem_of, requests_of, tiny_plan, tiny_profile

# One row takes 24, 12, 6 and 3 ms on sizes 1, 2, 4 and 8; each further row 8, 4, 2 and 1 ms.
NAMES = ["m0", "m1"]
POOL = [(1, ["m0"]), (2, ["m0"]), (4, ["m0"])]
PLAIN = ("", 0, False)


def world(layout, make=Elsa, *, early_drop=False, profile=None, **options):
    names = sorted({name for cut in layout for _, models in cut for name in models})
    plan = tiny_plan(layout, names)
    made = []

    def dispatcher(problem, plan):
        made.append(make(problem, plan, **options))
        return made[0]

    w = World(models_of(len(names)), plan, dispatcher, Limits(early_drop=early_drop), profile)
    w.dispatcher = made[0]
    return w


def request(number, slo, *, now=0, rows=1, model="m0", age=0, **more):
    return Request(number, model, now - age, now - age + slo, rows, **more)


def step(w, now, *events):
    w.timer.instant = now
    return w.scheduler.step(now, *events)


def arrive(w, now, number, slo, **more):
    return step(w, now, Arrived(request(number, slo, now=now, **more)))


def queue(w, gpulet):
    return [r.id for r in w.scheduler.fleet.gpulets[gpulet].queue]


# the six cases --------------------------------------------------------------------------------------------------------


def test_an_empty_system_serves_on_the_smallest_size_that_is_in_time():
    (start,) = arrive(world([POOL]), 0, 1, 25 * MS)
    assert (start.on, start.expected) == (0, 24 * MS)


def test_an_idle_gpulet_that_would_be_late_is_passed_over():
    (start,) = arrive(world([POOL]), 0, 1, 20 * MS)
    assert (start.on, start.expected) == (1, 12 * MS)


def test_where_none_has_slack_the_soonest_answer_counts():
    w = world([POOL])
    assert arrive(w, 0, 1, 7 * MS)[0].on == 2
    assert arrive(w, 0, 2, 7 * MS)[0].on == 1  # 12 ms there, 6 + 6 ms on size 4: the smaller size has ties
    assert arrive(w, 0, 3, 2 * MS) == []
    assert queue(w, 2) == [3]  # 12 ms against 24 ms on either other size


def test_with_alpha_0_everything_goes_to_the_smallest_size():
    w = world([POOL], alpha=0.0)
    w.run(requests_of([(n * MS, 0, 1, *PLAIN) for n in range(8)], models_of(1)))
    assert {c.on for _, _, commands in w.steps for c in commands if isinstance(c, Start)} == {0}


def ends(w):
    return {i: now for now, _, commands in w.steps for c in commands if isinstance(c, Answer) for i in c.requests}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=40), st.sampled_from(list(Within)))
def test_among_gpulets_of_one_size_it_is_least_work_left_and_first_idle_first_served(arrivals, within):
    answered = []
    for make, options in ((Elsa, {}), (Elsa, {"rule": Rule.LEAST_WORK}), (Fifs, {})):
        w = world([[(2, ["m0"])] * 4], make, **options)
        w.run(requests_of([(at * MS, 0, rows, *PLAIN) for at, rows in arrivals], models_of(1)))
        answered.append(ends(w))
    assert answered[0] == answered[1] == answered[2]


def test_slack_of_exactly_0_does_not_count():
    assert arrive(world([POOL]), 0, 1, 24 * MS)[0].on == 1
    assert arrive(world([POOL]), 0, 1, 24 * MS + 1)[0].on == 0


# its parameters -------------------------------------------------------------------------------------------------------


def test_a_request_that_has_waited_before_has_less_slack():
    assert arrive(world([POOL]), 10 * MS, 1, 25 * MS, age=10 * MS)[0].on == 1


@pytest.mark.parametrize(("factors", "chosen"), [({"alpha": 1.1}, 1), ({"beta": 1.1}, 1), ({"alpha": 1.0}, 0)])
def test_the_safety_factors_ask_for_more_slack(factors, chosen):
    assert arrive(world([POOL], **factors), 0, 1, 25 * MS)[0].on == chosen


def test_within_a_size_the_smallest_wait_or_the_first_with_slack():
    spread, filled = (world([[(4, ["m0"])] * 2], within=within) for within in Within)
    for w in (spread, filled):
        assert arrive(w, 0, 1, 100 * MS)[0].on == 0
    assert arrive(spread, 0, 2, 100 * MS)[0].on == 1
    assert arrive(filled, 0, 2, 100 * MS) == []
    assert queue(filled, 0) == [2]


def test_least_work_left_does_not_see_sizes():
    w = world([[(4, ["m0"]), (1, ["m0"])]], rule=Rule.LEAST_WORK)
    assert [c.on for n in (1, 2, 3) for c in arrive(w, 0, n, 100 * MS)] == [1, 0]
    assert queue(w, 0) == [3]


def test_requests_run_alone_in_order_of_arrival_and_urgent_ones_first():
    w = world([[(8, ["m0", "m1"])]])
    arrivals = [(0, 0, 1, *PLAIN), (1, 1, 1, *PLAIN), (2, 0, 1, *PLAIN), (3, 1, 1, "", 1, False)]
    w.run(requests_of(arrivals, models_of(2)))
    assert [c.requests for _, _, commands in w.steps for c in commands if isinstance(c, Start)] == [
        (1,),
        (4,),
        (2,),
        (3,),
    ]


def limited(largest_of):
    """A profile in which each size has its own largest number of rows; shape "7" takes half as long."""
    return Profile(
        tuple(
            Point("m0", size, rows, *[(2 + rows) * 8 // size * MS // (2 if shape else 1)] * 3, shape=shape)
            for size, largest in largest_of.items()
            for rows in (1, largest)
            for shape in ("", "7")
        )
    )


def test_a_size_on_which_the_rows_do_not_fit_is_skipped():
    w = world([POOL], profile=limited({1: 2, 2: 4, 4: 6, 8: 8}))
    on = [arrive(w, 0, rows, 1000 * MS, rows=rows)[0].on for rows in (2, 4, 6)]
    assert on == [0, 1, 2]
    assert arrive(w, 0, 7, 1000 * MS, rows=7) == [Reject(7, Reason.TOO_LARGE)]


def test_shape_classes_have_their_own_estimates():
    w = world([POOL], profile=limited({1: 8, 2: 8, 4: 8, 8: 8}))
    assert arrive(w, 0, 1, 20 * MS, shape="7")[0].on == 0


def test_a_model_that_nobody_hosts_is_refused():
    plan = tiny_plan([[(4, ["m1"])]], NAMES)
    w = World(models_of(2), plan, Elsa)
    assert arrive(w, 0, 1, 100 * MS) == [Reject(1, Reason.TOO_LARGE)]


# what happens to what is queued ---------------------------------------------------------------------------------------


def two_of_size_4():
    """Both run for 6 ms, one more waits at the first: its wait is 12 ms, the other's 6 ms."""
    w = world([[(4, ["m0"])] * 2])
    for number in (1, 2, 3):
        arrive(w, 0, number, 100 * MS)
    assert queue(w, 0) == [3]
    return w


def test_a_request_that_is_cancelled_is_waited_for_no_longer():
    w = two_of_size_4()
    arrive(w, 0, 4, 100 * MS)
    assert queue(w, 1) == [4]
    step(w, 1, Cancelled(4))
    arrive(w, 2, 5, 100 * MS)
    assert queue(w, 1) == [5]


def test_a_request_that_expires_is_waited_for_no_longer():
    w = world([[(4, ["m0"])] * 2], early_drop=True)
    for number, slo in ((1, 100), (2, 100), (3, 5), (4, 100)):
        arrive(w, 0, number, slo * MS)
    assert [queue(w, g) for g in (0, 1)] == [[3], [4]]
    assert step(w, 5 * MS) == [Drop(3, Reason.EXPIRED)]
    arrive(w, 5 * MS, 5, 100 * MS)
    assert [queue(w, g) for g in (0, 1)] == [[5], [4]]


def test_a_run_that_ends_early_makes_its_gpulet_free_then():
    w = two_of_size_4()
    step(w, 1 * MS, Finished(1))
    assert queue(w, 0) == []
    arrive(w, 1 * MS, 4, 100 * MS)  # 6 ms to wait at the first gpulet, 5 at the second
    arrive(w, 1 * MS, 5, 100 * MS)  # 6 and 11 ms
    assert [queue(w, g) for g in (0, 1)] == [[5], [4]]


def test_a_gpulet_that_is_down_gets_nothing_while_another_is_up():
    w = world([[(4, ["m0"]), (2, ["m0"])]])
    step(w, 0, GpuletDown(0))
    assert [c.on for c in arrive(w, 0, 1, 1 * MS)] == [1]
    assert [c.on for c in step(w, 0, GpuletUp(0), Arrived(request(2, 1 * MS)))] == []
    assert [c.on for c in arrive(w, 0, 3, 1 * MS)] == [0]


def test_where_all_are_down_requests_wait_for_one():
    w = world([[(4, ["m0"]), (2, ["m0"])]])
    step(w, 0, GpuletDown(0), GpuletDown(1))
    for number in (1, 2, 3):
        assert arrive(w, 0, number, 1 * MS) == []
    assert [queue(w, g) for g in (0, 1)] == [[1, 3], [2]]  # 6, then 12 ms on either, then 12 against 24 ms
    assert [c.requests for c in step(w, 1, GpuletUp(1))] == [(2,)]
    assert [c.requests for c in step(w, 2, GpuletUp(0))] == [(1,)]


def test_a_lost_run_is_waited_for_again():
    w = two_of_size_4()
    arrive(w, 0, 4, 100 * MS)  # both have 12 ms to do
    step(w, 3 * MS, GpuletDown(0), GpuletUp(0))
    assert queue(w, 0) == [3]  # 6 ms of request 1 and 6 ms of request 3; the other 3 ms and 6 ms
    arrive(w, 3 * MS, 5, 100 * MS)
    assert [queue(w, g) for g in (0, 1)] == [[3], [4, 5]]


def test_a_lost_run_is_told_from_a_cancelled_request_of_as_many_rows():
    w = world([[(4, ["m0"])] * 2], profile=limited({1: 8, 2: 8, 4: 8, 8: 8}))
    arrive(w, 0, 1, 100 * MS)
    arrive(w, 0, 2, 100 * MS)
    arrive(w, 0, 3, 100 * MS, shape="7")  # 3 ms, where the others are 6 ms
    assert queue(w, 0) == [3]
    step(w, 1 * MS, GpuletDown(0), Cancelled(3))
    assert queue(w, 0) == [1]
    assert [c.requests for c in step(w, 2 * MS, GpuletUp(0))] == [(1,)]
    arrive(w, 2 * MS, 4, 100 * MS)  # 6 ms to wait at the first gpulet, 4 ms at the second
    arrive(w, 2 * MS, 5, 100 * MS)
    assert [queue(w, g) for g in (0, 1)] == [[5], [4]]


def test_a_gpulet_that_went_down_and_came_up_in_one_step_is_not_forgotten():
    w = world([[(4, ["m0"]), (2, ["m0"])]])
    arrive(w, 0, 1, 5 * MS)
    step(w, 6 * MS, GpuletDown(0), Arrived(request(2, 1 * MS)), GpuletUp(0))
    assert [c.on for c in arrive(w, 6 * MS, 3, 1 * MS)] == [0]


@pytest.mark.parametrize("late", [False, True])
def test_requests_of_one_step_know_of_each_other(late):
    w = world([[(4, ["m0"])] * 2])
    if late:
        step(w, 0, *(Arrived(request(n, 100 * MS)) for n in (1, 2)))
    step(w, 20 * MS, *(Arrived(request(n, 200 * MS)) for n in (3, 4, 5, 6)))
    started = [] if late else [3, 4]
    assert [[n for n in queue(w, g) if n not in started] for g in (0, 1)] == ([[3, 5], [4, 6]] if late else [[5], [6]])


# its estimates against the fleet --------------------------------------------------------------------------------------


class Checked(Elsa):
    """Each choice is compared with one that is made from the fleet alone, gpulet by gpulet."""

    def __init__(self, problem, plan, **options):
        super().__init__(problem, plan, **options)
        self.profile = problem.profile
        self.within = options.get("within", Within.MIN_WAIT)
        self.alpha = options.get("alpha", 1.0)

    def latency(self, gpulet, r):
        curve = self.profile.curve(r.model, gpulet.planned.size.sms, r.shape)
        return curve[r.rows - 1] if r.rows <= len(curve) else 0

    def wait(self, now, gpulet):
        left = max(0, gpulet.busy_until - now) if gpulet.running else 0
        return left + sum(self.latency(gpulet, r) for r in gpulet.queue)

    def bind(self, now, request, fleet):
        able = [g for g in fleet.gpulets.values() if request.model in g.planned.models and self.latency(g, request)]
        able = [g for g in able if g.is_up] or able
        waits = {g.id: self.wait(now, g) for g in able}
        chosen = super().bind(now, request, fleet)
        if not able:
            assert chosen is Reason.TOO_LARGE
        elif any(g.is_up for g in able):
            left = request.deadline - now
            assert chosen in self.allowed(request, left, able, waits)
        else:
            least = min(waits[g.id] + self.latency(g, request) for g in able)
            assert waits[chosen] + self.latency(fleet.gpulets[chosen], request) == least
        return chosen

    def allowed(self, request, left, able, waits):
        """The gpulets of the right size with the right wait."""
        by_size = sorted({g.planned.size.sms for g in able})
        for size in by_size:
            pool = [g for g in able if g.planned.size.sms == size]
            slack = [g for g in pool if left - self.alpha * (waits[g.id] + self.latency(g, request)) > 0]
            if slack and self.within is Within.FIRST_FIT:
                return [slack[0].id]
            if slack:
                return [g.id for g in pool if waits[g.id] == min(waits[o.id] for o in pool)]
        keys = {g.id: (waits[g.id] + self.latency(g, request), g.planned.size.sms) for g in able}
        return [g for g, key in keys.items() if key == min(keys.values())]


LAYOUTS = [
    [[(1, ["m0"]), (1, ["m0"]), (2, ["m0"]), (4, ["m0"])], [(4, ["m0", "m1"]), (4, ["m0", "m1"])]],
    [[(4, NAMES), (4, NAMES)], [(8, ["m1"])], [(8, ["m0"])]],
    [[(2, NAMES), (2, NAMES), (2, NAMES), (2, ["m0"])]],
    [[(4, ["m0"])] * 2] * 2,
]
milliseconds = st.integers(0, 60).map(lambda n: n * MS)
arrival = st.tuples(
    milliseconds,
    st.integers(0, 1),
    st.integers(1, 8),
    st.sampled_from(["", "", "7"]),
    st.sampled_from([0, 0, 0, 1]),
    st.booleans(),
)
death = st.tuples(milliseconds, st.integers(0, 5), st.integers(1, 20).map(lambda n: n * MS))
cancel = st.tuples(milliseconds, st.integers(1, 40))


@settings(max_examples=300, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    arrivals=st.lists(arrival, max_size=40),
    deaths=st.lists(death, max_size=4),
    cancels=st.lists(cancel, max_size=6),
    slo=st.sampled_from([10, 30, 100]),
    speeds=st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.0, 1.7]), min_size=2, max_size=2),
    within=st.sampled_from(list(Within)),
    alpha=st.sampled_from([1.0, 1.5]),
    early_drop=st.booleans(),
)
@pytest.mark.slow
def test_every_choice_is_that_of_waits_counted_anew_from_the_fleet(
    layout, arrivals, deaths, cancels, slo, speeds, within, alpha, early_drop
):
    w = world(layout, Checked, early_drop=early_drop, within=within, alpha=alpha)
    real = tiny_profile(["m0"]).stretched(speeds[0]).points + tiny_profile(["m1"]).stretched(speeds[1]).points
    w.executor = MortalExecutor(Profile(real), w.plan, w.timer, w.simulation.feed)
    w.simulation.attach(w.executor)
    for when, gpulet, back_after in deaths:
        if gpulet < len(w.plan.gpulets):
            w.kill(when, gpulet, back_after)
    for when, number in cancels:
        w.cancel(when, number)
    w.run(requests_of(arrivals, models_of(2, slo * MS)))


# learning -------------------------------------------------------------------------------------------------------------


def slowed(speed, **options):
    """The estimates of requests that come one by one, where runs take `speed` times what the profile says."""
    w = world([[(8, ["m0"])]], **options)
    w.executor = MortalExecutor(tiny_profile(["m0"]).stretched(speed), w.plan, w.timer, w.simulation.feed)
    w.simulation.attach(w.executor)
    w.run(requests_of([(n * 100 * MS, 0, 1, *PLAIN) for n in range(60)], models_of(1)))
    return [c.expected for _, _, commands in w.steps for c in commands if isinstance(c, Start)]


def test_estimates_are_the_profiles_unless_asked_to_learn():
    assert set(slowed(1.5)) == {3 * MS}


@pytest.mark.parametrize("speed", [0.7, 1.5])
def test_learned_estimates_come_to_what_is_measured(speed):
    learned = slowed(speed, learns=0.2)
    assert learned[0] == 3 * MS
    assert learned[-1] == pytest.approx(speed * 3 * MS, rel=0.001)


def test_a_stall_counts_as_twice_the_profile_at_most():
    assert max(slowed(50, learns=0.2)) <= 6 * MS


# its cost -------------------------------------------------------------------------------------------------------------


class Counted(dict):
    """The fleet's gpulets, that count how often one is looked at."""

    looks = 0

    def __getitem__(self, place):
        Counted.looks += 1
        return super().__getitem__(place)


def unwatched(layout, speed, arrivals):
    """A dispatcher and the looks at gpulets in such a run, in which nobody proves anything."""
    names = sorted({name for cut in layout for _, models in cut for name in models})
    models, plan, timer = models_of(len(names)), tiny_plan(layout, names), VirtualTimer()
    problem = problem_of(models, plan)
    dispatcher = Elsa(problem, plan)
    scheduler = Scheduler(problem.models, plan, dispatcher, Limits(early_drop=False))
    scheduler.fleet.gpulets = Counted(scheduler.fleet.gpulets)
    simulation = Simulation(scheduler, timer, Metrics(names, plan))
    executor = MortalExecutor(tiny_profile(names).stretched(speed), plan, timer, simulation.feed)
    simulation.attach(executor)
    executor.carve()
    Counted.looks = 0
    simulation.run(requests_of(arrivals, models))
    return dispatcher, Counted.looks


def looks_per_request(copies, speed):
    """With as many gpulets of sizes 1, 2 and 4, and as much more to do."""
    arrivals = [(n * 3 * MS // copies, 0, 1 + n % 3, *PLAIN) for n in range(400 * copies)]
    return unwatched([[(1, ["m0"]), (2, ["m0"]), (4, ["m0"])]] * copies, speed, arrivals)[1] / len(arrivals)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.3])
def test_a_decision_does_not_look_at_more_gpulets_where_there_are_more(speed):
    assert looks_per_request(16, speed) < 1.3 * looks_per_request(1, speed)


@pytest.mark.parametrize("speed", [0.8, 1.3])
def test_what_is_remembered_does_not_grow(speed):
    arrivals = [(n * 2 * MS, 0, 1, *PLAIN) for n in range(1000)]
    dispatcher, _ = unwatched([[(8, NAMES)], [(8, NAMES)]], speed, arrivals)
    pools = [pool for pools in dispatcher._pools.values() for pool in pools]  # noqa: SLF001 (memory has no port)
    assert max(len(heap) for pool in pools for heap in (pool.due, pool.ready)) < 50
