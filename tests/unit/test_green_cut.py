"""The life of a gpulet through a re-cut, by hand."""

import pytest

from gpulet.core.messages import Start
from gpulet.device import Device, Mechanism, Size, find_kind
from gpulet.errors import DeviceLost, ModelError, PlanError
from gpulet.executors.cuda.building import Builder, buckets
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.cut import Cut, State
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.layout import Interval, lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.plan import Gpulet, Plan, Turn
from gpulet.units import MS, US


def plan(*spans, model="a", batch=4, processes=1):
    device = Device(0, find_kind("h200-141gb"), Mechanism.GREEN)
    turns = (Turn(model, batch, 1.0, MS),)
    gpulets = [Gpulet(n, 0, Size(b - a, 50.0), a, 10 * MS, turns, processes) for n, (a, b) in enumerate(spans)]
    return Plan((device,), tuple(gpulets))


def floor(*spans):
    driver = FakeCudaDriver()
    pool = ContextPool(driver, lay_out(driver))
    models = {"a": ImaginaryModel(), "b": ImaginaryModel()}
    builder = Builder(GraphCache(pool, ImaginaryRuntime(driver, models), open_ledger(driver)), 0, lambda: driver.now)
    cut = Cut(lambda: driver.now)
    cut.drain(builder.build(plan(*spans), ()))
    cut.swap()
    return driver, builder, cut


def start(batch, on, rows=1, model="a"):
    return Start(batch, on, model, "", rows, (batch,))


@pytest.mark.parametrize(("batch", "expected"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_buckets_are_powers_of_two_up_to_the_batch(batch, expected):
    assert buckets(batch) == expected


def test_a_batch_runs_on_the_smallest_graph_that_takes_it():
    _, _, cut = floor((0, 64))
    assert cut.start(start(1, 0, rows=3)).key.bucket == 4
    cut.finish(1)
    with pytest.raises(ModelError, match="gpulet 0 has no graph of a for 5 rows"):
        cut.start(start(2, 0, rows=5))


def test_gpulets_whose_place_changes_drain_and_the_others_serve_on():
    driver, builder, cut = floor((0, 64), (64, 96), (96, 128))
    cut.start(start(1, 1))
    cut.drain(builder.build(plan((0, 64), (64, 72), (72, 128)), cut.keys))
    states = [cut.stations[g].state for g in range(3)]
    assert states == [State.RUNNING, State.DRAINING, State.PAUSED]
    assert cut.start(start(2, 0)) is not None
    assert cut.start(start(3, 2)) is None
    assert not cut.is_drained
    driver.now += 5 * MS
    cut.finish(1)
    assert cut.is_drained
    resumed = cut.swap()
    assert [(r.start.batch, r.key.interval) for r in resumed.replays] == [(3, Interval(9, 17))]
    assert resumed.returned == ()
    assert resumed.times.build > 4 * MS
    assert 5 * MS <= resumed.times.drain < 6 * MS
    assert resumed.times.swap < 10 * US
    assert cut.stations[0].running.start.batch == 2


def test_a_parked_batch_that_no_gpulet_takes_any_more_is_given_back():
    _, builder, cut = floor((0, 64), (64, 128))
    cut.drain(builder.build(plan((0, 128)), cut.keys))
    assert cut.start(start(1, 1)) is None
    assert cut.start(start(2, 0)) is None
    resumed = cut.swap()
    assert [r.start.batch for r in resumed.replays] == [2]
    assert [s.batch for s in resumed.returned] == [1]


def test_a_re_cut_that_is_given_up_runs_what_was_parked_on_the_old_gpulets():
    _, builder, cut = floor((0, 64), (64, 128))
    cut.start(start(1, 0))
    cut.drain(builder.build(plan((0, 72), (72, 128)), cut.keys))
    cut.start(start(2, 1))
    resumed = cut.abort()
    assert [(r.start.batch, r.key.interval) for r in resumed.replays] == [(2, Interval(8, 17))]
    assert [s.state for s in cut.stations.values()] == [State.RUNNING, State.RUNNING]
    cut.finish(1)
    assert cut.start(start(3, 0)) is not None


def test_a_gpulet_that_keeps_its_place_gets_other_models_without_a_pause():
    _, builder, cut = floor((0, 64))
    cut.start(start(1, 0))
    cut.drain(builder.build(plan((0, 64), model="b"), cut.keys))
    cut.swap()
    assert cut.stations[0].running.key.model == "a"
    assert {key.model for key in cut.keys} == {"a", "b"}
    cut.finish(1)
    assert cut.start(start(2, 0, model="b")) is not None
    assert {key.model for key in cut.keys} == {"b"}


def test_old_graphs_wait_for_the_way_back():
    _, builder, cut = floor((0, 64), (64, 128))
    captured = builder.cache.runtime.calls["capture"]
    for spans in (((0, 32), (32, 128)), ((0, 64), (64, 128))):
        cut.drain(builder.build(plan(*spans), cut.keys))
        cut.swap()
    assert builder.cache.runtime.calls["capture"] == 2 * captured


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (plan((0, 64), (32, 128)), "overlaps"),
        (plan((0, 12)), "do not begin and end with groups"),
        (plan((0, 64), processes=2), "2 processes; a green gpulet runs in its GPU's one process"),
    ],
)
def test_a_plan_that_cannot_be_cut_is_refused_before_anything_is_built(wanted, why):
    driver, builder, cut = floor((0, 64))
    before = driver.calls.copy()
    with pytest.raises(PlanError, match=why):
        builder.build(wanted, cut.keys)
    assert driver.calls == before


def test_a_lost_device_is_left_as_it_is():
    driver, builder, cut = floor((0, 64))
    driver.faults.break_call("sm_ids", DeviceLost("sm_ids: LAUNCH_FAILED (719)"))
    with pytest.raises(DeviceLost, match="719"):
        builder.build(plan((0, 32)), cut.keys)
