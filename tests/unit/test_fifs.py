import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Arrived, Finished, GpuletDown, GpuletUp, Reason, Reject, Start
from gpulet.core.scheduler import Limits
from gpulet.dispatchers.fifs import Fifs, Idle
from gpulet.profile import Point, Profile
from gpulet.request import Request
from gpulet.units import MS
from support import World, models_of, requests_of, tiny_plan

# One row takes 24, 12, 6 and 3 ms on sizes 1, 2, 4 and 8; each further row 8, 4, 2 and 1 ms.
NAMES = ["m0", "m1"]
PLAIN = ("", 0, False)


def world(layout, *, profile=None, slo=100 * MS, **options):
    names = sorted({name for cut in layout for _, models in cut for name in models})
    plan, models = tiny_plan(layout, names), models_of(len(names), slo)
    return World(models, plan, lambda problem, plan: Fifs(problem, plan, **options), Limits(early_drop=False), profile)


def tops(by_size):
    return lambda problem, plan: {("m0", size): top for size, top in by_size.items()}


def step(w, now, *events):
    w.timer.instant = now
    return w.scheduler.step(now, *events)


def arrive(w, now, number, *, rows=1, model="m0", **more):
    return step(w, now, Arrived(Request(number, model, now, now + 100 * MS, rows, **more)))


def starts(w):
    return [c for _, _, commands in w.steps for c in commands if isinstance(c, Start)]


def test_what_is_idle_takes_the_oldest_request_over_all_models_alone():
    w = world([[(8, NAMES)]])
    w.run(requests_of([(n, n % 2, 1, *PLAIN) for n in range(5)], models_of(2)))
    assert [c.requests for c in starts(w)] == [(1,), (2,), (3,), (4,), (5,)]
    assert [c.expected for c in starts(w)] == [3 * MS] * 5


def test_whichever_falls_idle_first_takes_the_head_blind_to_sizes():
    w = world([[(1, ["m0"]), (4, ["m0"])]])
    arrive(w, 0, 1)
    arrive(w, 0, 2)
    assert arrive(w, 0, 3, rows=8) == []
    assert [c.on for c in step(w, 1, Finished(1)) if isinstance(c, Start)] == [0]


def test_what_no_idle_gpulet_can_run_is_passed_over():
    profile = Profile(
        tuple(
            Point(name, size, rows, *[rows * MS] * 3) for name in NAMES for size in (2, 4) for rows in (1, 2 * size - 2)
        )
    )
    w = world([[(2, ["m0"]), (4, NAMES)]], profile=profile)
    assert arrive(w, 0, 1, rows=7) == [Reject(1, Reason.TOO_LARGE)]
    assert [c.on for c in arrive(w, 0, 2, rows=6)] == [1]
    assert arrive(w, 0, 3, rows=6) == []
    assert arrive(w, 0, 4, model="m1") == []
    assert [(c.on, c.requests) for c in arrive(w, 0, 5)] == [(0, (5,))]
    assert [c.requests for c in step(w, 1, Finished(1)) if isinstance(c, Start)] == [(3,)]


@pytest.mark.parametrize(
    ("idle", "chosen"),
    [(Idle.FIRST, [2, 0, 1]), (Idle.LARGEST, [1, 2, 0]), (Idle.SMALLEST, [0, 2, 1])],
)
def test_of_several_idle_gpulets_the_rule_says_which(idle, chosen):
    """Made idle in the order 2, 0, 1."""
    w = world([[(1, ["m0"])], [(4, ["m0"])], [(2, ["m0"])]], idle=idle)
    step(w, 0, *(GpuletDown(g) for g in range(3)))
    for now, gpulet in enumerate((2, 0, 1), start=1):
        step(w, now, GpuletUp(gpulet))
    assert [c.on for number in range(3) for c in arrive(w, 5, number + 1)] == chosen


def test_idle_longest_counts_from_the_end_of_the_last_run():
    w = world([[(4, ["m0"])] * 3])
    for number in (1, 2, 3):
        arrive(w, 0, number)
    for now, batch in enumerate((2, 3, 1), start=1):
        step(w, now, Finished(batch))
    assert [c.on for number in (4, 5, 6) for c in arrive(w, 5, number)] == [1, 2, 0]


def test_a_random_choice_is_seeded():
    def order(seed):
        w = world([[(1, ["m0"])] * 8], idle=Idle.RANDOM, seed=seed)
        return [c.on for number in range(8) for c in arrive(w, 0, number + 1)]

    orders = [order(seed) for seed in range(5)]
    assert orders[0] == order(0)
    assert all(sorted(o) == list(range(8)) for o in orders)
    assert len({tuple(o) for o in orders}) == 5


def attainment(idle):
    """Small requests and, now and then, large ones, one at a time: 8 rows take 80 ms on size 1 and 20 ms on size 4."""
    w = world([[(1, ["m0"]), (4, ["m0"])]], slo=50 * MS, idle=idle)
    arrivals = [(n * 100 * MS, 0, 8 if n % 3 == 2 else 1, *PLAIN) for n in range(60)]
    metrics = w.run(requests_of(arrivals, models_of(1, 50 * MS)))
    return metrics.report(6000 * MS)["total"]["attainment"]


def test_at_no_load_large_requests_are_late_unless_the_largest_idle_gpulet_is_next():
    assert attainment(Idle.LARGEST) == 1
    assert attainment(Idle.SMALLEST) == pytest.approx(2 / 3)
    assert 2 / 3 < attainment(Idle.FIRST) < 1
    assert 2 / 3 < attainment(Idle.RANDOM) < 1


def test_what_is_down_takes_nothing():
    w = world([[(4, ["m0"])] * 2])
    step(w, 0, GpuletDown(0))
    assert [c.on for c in arrive(w, 1, 1)] == [1]
    assert arrive(w, 1, 2) == []
    assert [c.on for c in step(w, 2, GpuletUp(0))] == [0]


@pytest.mark.parametrize(("rows", "chosen"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (8, 2)])
def test_a_segment_runs_on_its_size_or_the_next_larger_that_there_is(rows, chosen):
    segments = tops({1: 2, 2: 4, 3: 4, 4: 5, 8: 7})
    w = world([[(1, ["m0"])], [(4, ["m0"])], [(8, ["m0"])]], segments=segments)
    assert [c.on for c in arrive(w, 0, 1, rows=rows)] == [chosen]
    assert arrive(w, 0, 2, rows=rows) == []


def test_a_segment_whose_size_cannot_run_it_is_the_next_ones():
    profile = Profile(tuple(Point("m0", size, rows, *[rows * MS] * 3) for size in (1, 4) for rows in (1, 2 * size)))
    w = world([[(1, ["m0"]), (4, ["m0"])]], segments=tops({1: 6, 4: 8}), profile=profile)
    assert [c.on for c in arrive(w, 0, 1, rows=3)] == [1]


milliseconds = st.integers(0, 30).map(lambda n: n * MS)
arrival = st.tuples(milliseconds, st.integers(0, 1), st.integers(1, 8), st.just(""), st.just(0), st.just(False))


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(arrival, max_size=40),
    deaths=st.lists(st.tuples(milliseconds, st.integers(0, 2), milliseconds), max_size=3),
    idle=st.sampled_from(list(Idle)),
)
def test_nothing_waits_while_a_gpulet_that_could_run_it_is_idle(arrivals, deaths, idle):
    w = world([[(1, ["m0"]), (2, NAMES), (4, ["m1"])]], idle=idle)
    fleet = w.scheduler.fleet

    def check(*_):
        idle = {model for g in fleet.gpulets.values() if g.is_idle for model in g.planned.models}
        assert idle.isdisjoint(queue.model for queue in fleet.waiting.values())

    w.simulation._observers = (*w.simulation._observers, check)  # noqa: SLF001 (before anything runs)
    for when, gpulet, back_after in deaths:
        w.kill(when, gpulet, back_after + 1)
    w.run(requests_of(arrivals, models_of(2, 100 * MS)))
