"""Random sequences of plans with gpulets and plans whose runs bring a size of their own, under running batches."""

from collections import Counter
from itertools import combinations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from gpulet.core.messages import Carve, Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.errors import ModelError
from gpulet.executors.cuda.building import Builder
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.cut import Cut
from gpulet.executors.cuda.fake import TOPOLOGIES, FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.layout import lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.wire import WorkerModel
from gpulet.plan import Gpulet, Plan, Resident, Turn
from gpulet.units import MS

DEVICE = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)
MODELS = {name: WorkerModel(name, "", 2) for name in ("a", "b", "c")}
SMS = 128


def cut_into(sizes):
    """Gpulets of these sizes side by side, with the models `a` and `b`."""
    turns = (Turn("a", 2, 1.0, MS), Turn("b", 2, 1.0, MS))
    spots = [(size, sum(sizes[:place])) for place, size in enumerate(sizes) if sum(sizes[: place + 1]) <= SMS]
    return Plan((DEVICE,), tuple(Gpulet(n, 0, Size(s, 50.0), at, 10 * MS, turns) for n, (s, at) in enumerate(spots)))


def uncut(names):
    return Plan((DEVICE,), residents=tuple(Resident(0, name) for name in sorted(names)))


plans = st.one_of(
    st.builds(cut_into, st.lists(st.sampled_from([8, 24, 32, 64]), min_size=1, max_size=4)),
    st.builds(uncut, st.sets(st.sampled_from(list(MODELS)), min_size=1)),
)
runs = st.tuples(st.just("run"), st.sampled_from([8, 16, 24, 32, 64]), st.sampled_from(list(MODELS)))
steps = st.one_of(
    st.tuples(st.just("start"), st.integers(0, 3), st.sampled_from(list(MODELS))),
    st.tuples(st.just("run"), st.just(128), st.sampled_from(list(MODELS))),
    *(4 * [runs]),
    *(3 * [st.tuples(st.just("finish"), st.integers(0, 9))]),
    st.tuples(st.just("recut"), plans),
    st.tuples(st.just("end"), st.booleans()),
)


class Machine:
    """What `Green` does with a `Cut`; `free` are the SMs that the core may start runs on."""

    def __init__(self):
        driver = FakeCudaDriver(TOPOLOGIES["h200"])
        cache = GraphCache(
            ContextPool(driver, lay_out(driver)),
            ImaginaryRuntime(driver, dict.fromkeys(MODELS, ImaginaryModel())),
            open_ledger(driver),
        )
        clock = lambda: driver.now  # noqa: E731
        self.builder = Builder(cache, 0, clock, MODELS)
        self.cut = Cut(clock)
        self.running = {}
        self.sizes = {}
        self.free = SMS
        self.ends = Counter()
        self.reached = Counter()
        self.began = 0
        self.is_recutting = False
        self.recut(uncut(["a", "b"]))
        self.end(is_wanted=True)

    def start(self, gpulet, model):
        station = self.cut.stations.get(gpulet)
        if station and not station.running and not station.parked:
            self.began += 1
            self.begin(Start(self.began, gpulet, model, "", 2, (self.began,)))

    def run(self, size, model):
        if size <= self.free:
            self.began += 1
            self.free -= size
            self.sizes[self.began] = size
            self.begin(Start(self.began, Carve(0, size), model, "", 1, (self.began,)))

    def begin(self, start):
        try:
            replay = self.cut.start(start)
        except ModelError:
            self.over(start.batch)
            return
        if replay:
            self.running[start.batch] = replay.key.interval
        self.reached["begun" if replay else "waits"] += 1

    def over(self, batch):
        self.ends[batch] += 1
        self.free += self.sizes.pop(batch, 0)

    def finish(self, number):
        if self.running:
            batch = sorted(self.running)[number % len(self.running)]
            del self.running[batch]
            self.over(batch)
            for replay in self.cut.finish(batch):
                self.running[replay.start.batch] = replay.key.interval
                self.reached["follows"] += 1

    def recut(self, plan):
        if not self.is_recutting:
            self.cut.drain(self.builder.build(plan, self.cut.keys))
            self.is_recutting = True

    def end(self, is_wanted):
        if not self.is_recutting or (is_wanted and not self.cut.is_drained):
            return
        self.is_recutting = False
        resumed = self.cut.swap() if is_wanted else self.cut.abort()
        self.reached["swaps" if is_wanted else "aborts"] += 1
        for replay in resumed.replays:
            self.running[replay.start.batch] = replay.key.interval
        for start in resumed.returned:
            self.over(start.batch)

    def check(self):
        assert all(not one.overlaps(other) for one, other in combinations(self.running.values(), 2))

    def settle(self):
        self.end(is_wanted=False)
        while self.running:
            self.finish(0)
        assert self.ends == Counter(range(1, self.began + 1)), "a batch was lost, or ended twice"
        assert self.free == SMS


def play(script):
    machine = Machine()
    for name, *given_ in script:
        getattr(machine, name)(*given_)
        machine.check()
    machine.settle()
    return machine.reached


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=40))
def test_runs_and_gpulets_never_share_sms_and_every_batch_ends_once(script):
    play(script)


def test_busy_sequences_reach_what_they_are_about():
    """Drawn at random: Hypothesis prefers short ones, in which hardly anything has to wait."""
    random = Random(1)
    often = [lambda: ("run", random.choice([8, 16, 24, 32, 64]), random.choice("abc"))] * 10
    often += [lambda: ("finish", random.randrange(10))] * 8 + [lambda: ("end", True)]
    often += [lambda: ("recut", random.choice([uncut("abc"), cut_into([64, 32])]))]
    reached = Counter()
    for _ in range(50):
        reached.update(play([random.choice(often)() for _ in range(30)]))
    assert all(reached[name] >= 10 for name in ("begun", "waits", "follows", "swaps", "aborts")), reached
