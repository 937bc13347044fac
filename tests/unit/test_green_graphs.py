"""The ledger and the cache of graphs on the imaginary GPU."""

import pytest

from gpulet.errors import DeviceError, DeviceFull, ModelError, PlanError, Unproven
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.fake import FakeCudaDriver
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.imaginary import ImaginaryModel, ImaginaryRuntime
from gpulet.executors.cuda.layout import Interval, lay_out
from gpulet.executors.cuda.ledger import SHARE_BYTES, MemoryLedger, open_ledger, total
from gpulet.executors.cuda.runtime import GraphKey, Need
from gpulet.units import GIB, MIB

LEFT, RIGHT = Interval(0, 8), Interval(8, 17)
MODELS = {
    "small": ImaginaryModel(),
    "large": ImaginaryModel(weights=3000 * MIB),
    "odd": ImaginaryModel(error=0.5),
    "nan": ImaginaryModel(error=float("nan")),
}


def cache(memory=8 * GIB):
    driver = FakeCudaDriver(memory=memory)
    pool = ContextPool(driver, lay_out(driver))
    return driver, GraphCache(pool, ImaginaryRuntime(driver, MODELS), open_ledger(driver))


def test_weights_are_charged_once_pools_by_share_and_buffers_by_graph():
    ledger = MemoryLedger(GIB)
    keys = [GraphKey("a", 1, LEFT), GraphKey("a", 8, LEFT), GraphKey("a", 8, RIGHT), GraphKey("b", 8, RIGHT)]
    needs = dict(zip(keys, (Need(100, 1, 10), Need(100, 8, 80), Need(100, 8, 80), Need(200, 2, 20)), strict=True))
    bill = {charge.what: charge.size for charge in ledger.bill(needs)}
    assert bill == {
        "share [0, 8)": SHARE_BYTES + 80,
        "share [8, 17)": SHARE_BYTES + 80,
        "weights of b": 200,
        "weights of a": 100,
        "buffers of a x 1 on [0, 8)": 1,
        "buffers of a x 8 on [0, 8)": 8,
        "buffers of a x 8 on [8, 17)": 8,
        "buffers of b x 8 on [8, 17)": 2,
    }
    assert total(ledger.bill(needs)) == sum(bill.values())
    assert ledger.can_fit(needs)


def test_what_does_not_fit_is_refused_by_name_and_numbers():
    ledger = MemoryLedger(1000 * MIB)
    needs = {GraphKey("large", 1, LEFT): Need(3000 * MIB, MIB, 50 * MIB)}
    words = (
        r"GPU memory: 3119.0 MiB asked of 1000.0: weights of large 3000.0, share \[0, 8\) 118.0, buffers of large x 1"
    )
    with pytest.raises(PlanError, match=words):
        ledger.fit(needs)


def test_a_ledger_counts_what_others_use_and_keeps_headroom():
    driver = FakeCudaDriver(memory=100 * GIB)
    driver.used = 10 * GIB
    assert open_ledger(driver).capacity == 85 * GIB


def test_weights_are_loaded_once_and_unloaded_with_the_last_graph():
    driver, graphs = cache()
    before = driver.used
    keys = [GraphKey("small", 1, LEFT), GraphKey("small", 4, LEFT), GraphKey("small", 4, RIGHT)]
    for key in keys:
        graphs.build(key)
        graphs.check(key)
        assert graphs.build(key) is graphs.graph(key)
    assert graphs.runtime.calls == {"load": 1, "capture": 3, "error": 3}
    assert set(graphs.signatures) == {"small"}
    graphs.close()
    assert (driver.live, driver.used, graphs.signatures) == (0, before, {})


def test_room_is_made_from_what_is_least_recently_wanted_and_kept_by_nobody():
    driver, graphs = cache()
    old = [GraphKey("large", 1, LEFT), GraphKey("small", 1, LEFT), GraphKey("small", 2, LEFT)]
    for key in old:
        graphs.build(key)
    wanted = GraphKey("odd", 88, RIGHT)
    graphs.make_room([wanted], [old[0]])
    assert graphs.keys == (old[0],)
    graphs.build(wanted)
    assert driver.memory().free > 0.05 * driver.memory().total


def test_room_is_made_no_further_than_it_must_be():
    _, graphs = cache()
    old = [GraphKey("large", 1, LEFT), GraphKey("small", 1, LEFT), GraphKey("small", 2, LEFT)]
    for key in old:
        graphs.build(key)
    graphs.make_room([GraphKey("odd", 90, RIGHT)], [])
    assert graphs.keys == (*old[1:],)


def test_nothing_is_given_up_for_what_does_not_fit_anyway():
    _, graphs = cache()
    old = GraphKey("small", 1, LEFT)
    graphs.build(old)
    with pytest.raises(PlanError, match="weights of large"):
        graphs.make_room([GraphKey("large", 100, RIGHT)], [])
    assert graphs.keys == (old,)


@pytest.mark.parametrize("name", ["odd", "nan"])
def test_a_graph_that_computes_something_else_is_unproven(name):
    _, graphs = cache()
    key = GraphKey(name, 4, LEFT)
    graphs.build(key)
    with pytest.raises(Unproven, match=rf"graph {name} x 4 on \[0, 8\) is (0.5|nan) off the whole GPU's result"):
        graphs.check(key)


def test_a_capture_that_fails_leaves_no_weights_behind():
    driver, graphs = cache()
    graphs.build(GraphKey("small", 1, LEFT))
    driver.faults.break_call("make_mark", DeviceFull("make_mark: OUT_OF_MEMORY (2)"))
    with pytest.raises(DeviceError):
        graphs.build(GraphKey("large", 1, LEFT))
    assert set(graphs.signatures) == {"small"}
    graphs.close()
    assert (driver.live, driver.used) == (0, 0)


def test_a_capture_without_memory_takes_nothing():
    driver, graphs = cache()
    driver.used = 7 * GIB
    with pytest.raises(DeviceFull, match="imaginary runtime: 3145728000 bytes asked"):
        graphs.build(GraphKey("large", 1, LEFT))
    assert (driver.live, driver.used) == (0, 7 * GIB)


def test_a_model_that_does_not_load_leaves_the_others():
    _, graphs = cache()
    graphs.build(GraphKey("small", 1, LEFT))
    with pytest.raises(ModelError, match="unknown"):
        graphs.build(GraphKey("unknown", 1, LEFT))
    assert graphs.keys == (GraphKey("small", 1, LEFT),)
