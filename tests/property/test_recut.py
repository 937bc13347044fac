"""Random sequences of plans on the imaginary GPU: built, refused, swapped in or given up, under running batches."""

from collections import Counter
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.errors import DeviceError, DeviceFull, ModelError, PlanError, Unproven
from gpulet.executors.cuda.building import Builder
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.cut import Cut, State
from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.layout import lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import GIB, MIB, MS

GROUPS = 15
MODELS = {
    "a": ImaginaryModel(),
    "b": ImaginaryModel(weights=700 * MIB),
    "c": ImaginaryModel(pool=300 * MIB),
    "off": ImaginaryModel(error=1.0),
}
DEVICE = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)
CALLS = ("make_context", "make_stream", "sms", "sm_ids", "make_mark", "spin", "wait")


def plan_of(cuts, models):
    """A gpulet between each two cut points, but for every fourth, which is left idle."""
    ends = sorted(set(cuts))
    spans = [(a, b) for place, (a, b) in enumerate(zip(ends, ends[1:], strict=False)) if place % 4 != 3]
    gpulets = []
    for number, (a, b) in enumerate(spans):
        chosen = models[number % len(models)]
        turns = tuple(Turn(name, batch, 1.0, MS) for name, batch in chosen.items())
        gpulets.append(Gpulet(number, 0, Size(8 * (b - a), 50.0), 8 * a, 10 * MS, turns))
    return Plan((DEVICE,), tuple(gpulets))


turns = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(1, 5), min_size=1, max_size=2)
spoiled = st.one_of(turns, turns, turns, st.just({"off": 1}), st.just({"unknown": 1}), st.just({"c": 40}))
plans = st.builds(
    plan_of,
    st.lists(st.integers(0, GROUPS + 1), min_size=2, max_size=6, unique=True),
    st.lists(spoiled, min_size=1, max_size=3),
)
sound = st.builds(
    plan_of,
    st.lists(st.integers(0, GROUPS), min_size=2, max_size=6, unique=True),
    st.lists(turns, min_size=1, max_size=3),
)
faults = st.tuples(st.sampled_from(CALLS), st.integers(0, 4))
steps = st.one_of(
    st.tuples(st.just("start"), st.integers(0, 5), st.integers(1, 5)),
    st.tuples(st.just("start"), st.integers(0, 5), st.integers(1, 5)),
    st.tuples(st.just("finish"), st.integers(0, 5)),
    st.tuples(st.just("recut"), plans, st.none()),
    st.tuples(st.just("recut"), sound, st.none()),
    st.tuples(st.just("recut"), sound, faults),
    st.tuples(st.just("end"), st.booleans()),
)


class Machine:
    """What an executor does with a Cut, one call at a time, and what must hold after each."""

    def __init__(self):
        self.driver = FakeCudaDriver(TOPOLOGIES["h200-15"], memory=3 * GIB)
        pool = ContextPool(self.driver, lay_out(self.driver))
        self.cache = GraphCache(pool, ImaginaryRuntime(self.driver, MODELS), open_ledger(self.driver))
        clock = lambda: self.driver.now  # noqa: E731
        self.builder = Builder(self.cache, 0, clock)
        self.cut = Cut(clock)
        self.is_recutting = False
        self.ends = Counter()
        self.began = 0
        self.reached = Counter()
        self.recut(plan_of([0, 7, 15], [{"a": 4}, {"b": 2}]), None)
        self.end(is_wanted=True)

    def start(self, gpulet, rows):
        gpulet %= max(1, len(self.cut.stations))
        station = self.cut.stations.get(gpulet)
        if station is None or station.running or station.parked:
            return
        model = station.place.gpulet.models[0]
        self.began += 1
        try:
            replay = self.cut.start(Start(self.began, gpulet, model, "", rows, (self.began,)))
        except ModelError:
            self.ends[self.began] += 1
            return
        self.reached["batches" if replay else "parked"] += 1
        if replay:
            self.replay(replay)

    def replay(self, replay):
        graph = self.cache.graph(replay.key)
        graph.replay(replay.start.rows, [[bytes(4 * replay.start.rows)]])

    def finish(self, number):
        running = sorted(s.running.start.batch for s in self.cut.stations.values() if s.running)
        if running:
            batch = running[number % len(running)]
            self.ends[batch] += 1
            self.cut.finish(batch)

    def recut(self, plan, fault):
        if self.is_recutting:
            return
        if fault:
            name, after = fault
            self.driver.faults.break_call(name, DeviceFull(f"{name}: OUT_OF_MEMORY (2)"), after)
        before = self.state(), frozenset(self.cache.keys), self.cache.pool.idle()
        try:
            built = self.builder.build(plan, self.cut.keys)
        except (PlanError, ModelError, DeviceError, Unproven) as refused:
            self.reached[type(refused).__name__] += 1
            assert self.state() == before[0], "a plan that is refused leaves the plan in force as it is"
            assert self.cut.keys <= frozenset(self.cache.keys) <= before[1], "and nothing of itself"
            assert self.cache.pool.idle() == ()
            return
        finally:
            self.driver.faults.broken.clear()
        self.reached["evictions"] += not before[1] <= frozenset(self.cache.keys)
        self.cut.drain(built)
        self.is_recutting = True

    def end(self, is_wanted):
        if not self.is_recutting or (is_wanted and not self.cut.is_drained):
            return
        before = self.places()
        resumed = self.cut.swap() if is_wanted else self.cut.abort()
        assert is_wanted or self.places() == before, "a plan that is given up leaves the plan in force"
        self.reached["swaps" if is_wanted else "aborts"] += 1
        self.reached["returned"] += len(resumed.returned)
        self.is_recutting = False
        for replay in resumed.replays:
            self.replay(replay)
        for start in resumed.returned:
            self.ends[start.batch] += 1

    def places(self):
        return {g: (s.place.interval, s.place.gpulet.models) for g, s in self.cut.stations.items()}

    def state(self):
        return {g: (s.place, s.state, s.running, s.parked) for g, s in self.cut.stations.items()}

    def check(self):
        """No two gpulets that may run have a group, or an SM, in common; what runs is there to be run."""
        active = [s for s in self.cut.stations.values() if s.running or s.state is State.RUNNING]
        for one, other in combinations(active, 2):
            assert not one.place.interval.overlaps(other.place.interval)
            ids = [self.cache.pool.share(s.place.interval).ids for s in (one, other)]
            assert not ids[0] & ids[1]
        assert self.cut.keys <= frozenset(self.cache.keys)
        assert self.driver.memory().free >= 0
        for station in self.cut.stations.values():
            assert not station.running or station.running.key.interval == station.place.interval

    def settle(self):
        """Let everything end: then every batch has ended once, and everything can be given back."""
        self.end(is_wanted=False)
        while any(s.running for s in self.cut.stations.values()):
            self.finish(0)
        assert self.ends == Counter(range(1, self.began + 1)), "a batch was lost, or ended twice"
        assert not any(s.parked for s in self.cut.stations.values())
        self.cut.stations.clear()
        self.cache.close()
        assert (self.driver.used, self.driver.live) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=40))
def test_gpulets_never_share_sms_nothing_is_lost_and_a_refused_plan_changes_nothing(script):
    machine = Machine()
    for name, *given_ in script:
        getattr(machine, name)(*given_)
        machine.check()
    machine.settle()


def test_the_sequences_reach_what_they_are_about():
    reached = Counter()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.lists(steps, min_size=10, max_size=40))
    def count(script):
        machine = Machine()
        for name, *given_ in script:
            getattr(machine, name)(*given_)
        reached.update(machine.reached.keys() - {n for n, times in machine.reached.items() if not times})

    count()
    wanted = (
        "batches",
        "parked",
        "swaps",
        "aborts",
        "returned",
        "evictions",
        "PlanError",
        "ModelError",
        "DeviceFull",
        "Unproven",
    )
    assert all(reached[name] >= 3 for name in wanted), reached
