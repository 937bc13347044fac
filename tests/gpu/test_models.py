"""PyTorch models on a real GPU: `python -m pytest -m gpu tests/gpu`. Without green contexts nothing here can run."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpulet.errors import ModelError
from gpulet.executors.cuda.contexts import ContextPool
from gpulet.executors.cuda.graphs import GraphCache
from gpulet.executors.cuda.layout import lay_out
from gpulet.executors.cuda.ledger import open_ledger
from gpulet.executors.cuda.opening import open_real
from gpulet.executors.cuda.runtime import GraphKey
from gpulet.executors.cuda.sources import ModelSource
from gpulet.units import MIB

pytestmark = pytest.mark.gpu
CASES = {"dense": "", "conv": "", "pair": "128x128", "half": "", "wide": "", "total": ""}
"""Models and their shape classes."""


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    import torch_models  # noqa: PLC0415 (only where there is a GPU)

    files = torch_models.export_for_gpu(tmp_path_factory.mktemp("models"))
    driver, runtime = open_real({name: ModelSource(path) for name, path in files.items()})
    cache = GraphCache(ContextPool(driver, lay_out(driver)), runtime, open_ledger(driver))
    yield driver, cache
    cache.close()
    cache.pool.close()
    driver.close()


def sides(cache):
    """Two disjoint shares: half of the groups, and the others with what is left over."""
    layout = cache.pool.layout
    groups, half = len(layout.groups), len(layout.groups) // 2
    return layout.interval(0, half * layout.group), layout.interval(half * layout.group, (groups - half) * layout.group)


def replayed(driver, graph, rows, inputs):
    driver.wait(graph.replay(rows, [[array.tobytes()] for array in inputs]))
    return [bytes(answered.data) for answered in graph.outputs(rows)]


@pytest.mark.parametrize("model", CASES)
def test_graphs_on_shares_compute_what_the_whole_gpu_does(gpu, model):
    _, cache = gpu
    places = (*sides(cache), cache.pool.layout.everything)
    buckets = (1,) if model == "total" else (32, 1)
    for interval in places:
        for bucket in buckets:
            key = GraphKey(model, bucket, interval, CASES[model])
            cache.build(key)
            cache.check(key)
            assert cache.runtime.need(key).pool > 0


def test_graphs_of_disjoint_shares_run_at_once_and_do_not_mix_their_rows(gpu):
    driver, cache = gpu
    graphs = [cache.build(GraphKey("wide", 32, interval)) for interval in sides(cache)]
    random = np.random.default_rng(5)
    rows = [[random.standard_normal((32, 2048)).astype(np.float16)] for _ in graphs]
    alone = [replayed(driver, graph, 32, row) for graph, row in zip(graphs, rows, strict=True)]

    def often(graph, row, expected):
        driver.enter()
        return all(replayed(driver, graph, 32, row) == expected for _ in range(500))

    with ThreadPoolExecutor(2) as threads:
        assert all(threads.map(often, graphs, rows, alone))


def test_what_serves_is_right_while_others_are_captured(gpu):
    driver, cache = gpu
    left, right = sides(cache)
    graph = cache.build(GraphKey("wide", 32, left))
    row = [np.random.default_rng(6).standard_normal((32, 2048)).astype(np.float16)]
    alone = replayed(driver, graph, 32, row)
    is_over = []

    def serve():
        driver.enter()
        count = 0
        while not is_over:
            assert replayed(driver, graph, 32, row) == alone
            count += 1
        return count

    with ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve)
        try:
            for bucket in (64, 16, 8, 4, 2):
                cache.build(GraphKey("wide", bucket, right))
                cache.check(GraphKey("wide", bucket, right))
        finally:
            is_over.append(True)
        assert served.result() > 0


def test_a_model_that_cannot_be_captured_is_refused_and_the_gpu_serves_on(gpu):
    driver, cache = gpu
    left, _ = sides(cache)
    kept = cache.build(GraphKey("dense", 1, left))
    row = [np.ones((1, 4), np.float32)]
    before = replayed(driver, kept, 1, row)
    for _ in range(2):
        with pytest.raises(ModelError, match="found x 1"):
            cache.build(GraphKey("found", 1, left))
    assert replayed(driver, kept, 1, row) == before
    fresh = GraphKey("dense", 8, left)
    cache.build(fresh)
    cache.check(fresh)


def test_a_share_gives_its_memory_back_with_its_last_graph(gpu):
    import torch  # noqa: PLC0415

    _, cache = gpu
    _, right = sides(cache)
    for key in cache.keys:
        cache.drop(key)
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        key = GraphKey("wide", 256, right)
        cache.build(key)
        cache.drop(key)
    assert torch.cuda.memory_reserved() <= before + 64 * MIB, "what libraries keep"
