"""/metrics: every name in both formats, Triton's meanings, and the page that lists them."""

import asyncio
import json
import re
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gpulet.api.catalog import Served
from gpulet.api.exposition import expose, make_registry
from gpulet.api.hostuse import HostUse
from gpulet.api.tritonnames import FAILURES
from gpulet.core.messages import Answer, Arrived, Drop, Finished, Reason, Reject, Start
from gpulet.core.metrics import Metrics
from gpulet.core.replan import Demand
from gpulet.core.scheduler import Limits
from gpulet.request import Request
from gpulet.systems import SYSTEMS
from gpulet.units import MS, NEVER, SECOND
from servers import REPOSITORY
from support import World, models_of, tiny_plan

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text()
OPEN = "application/openmetrics-text; version=1.0.0"


class Fleet:
    def __init__(self):
        self.gpulets = {0: SimpleNamespace(id=0, is_up=True)}


class Fold:
    """Two models' metrics, fed by hand; instants in ms."""

    def __init__(self):
        self.models = models_of(2)
        self.metrics = Metrics(["m0", "m1"], tiny_plan([[(4, ["m0", "m1"])]], ["m0", "m1"]))
        self.served = {m.name: Served(m, "3") for m in self.models}
        self.number = 0

    def arrive(self, now, rows=1, model="m0"):
        self.number += 1
        self.metrics.record(now * MS, [Arrived(Request(self.number, model, now * MS, NEVER, rows))], [])
        return self.number

    def start(self, now, batch, *requests, rows=1, model="m0"):
        self.metrics.record(now * MS, [], [Start(batch, 0, model, "", rows, requests)])

    def end(self, now, batch, *requests, copied=0, computed=0):
        self.metrics.record(now * MS, [Finished(batch, copied, computed)], [Answer(batch, requests)])

    def refuse(self, now, command, *events):
        self.metrics.record(now * MS, list(events), [command])

    def registry(self, load_times=None):
        demand = Demand({"m0": 10.0}, {"m0": 12.0})
        return make_registry(self.metrics, self.served, Fleet(), load_times or {}, lambda: demand)

    def value(self, name, **labels):
        return self.registry({"m0": SECOND // 4}).get_sample_value(name, {"model": "m0", "version": "3", **labels})


@pytest.fixture
def two_batches():
    """Requests 1 and 2 (2 + 1 rows) run as one batch from 10 to 18 ms, request 3 alone from 20 to 24 ms."""
    fold = Fold()
    fold.arrive(1, rows=2)
    fold.arrive(4)
    fold.start(10, 1, 1, 2, rows=3)
    fold.end(18, 1, 1, 2, copied=1 * MS, computed=5 * MS)
    fold.arrive(20)
    fold.start(20, 2, 3)
    fold.end(24, 2, 3)
    return fold


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_success", 3),
        ("count", 4),
        ("exec_count", 2),
        ("request_duration_us", 17_000 + 14_000 + 4_000),
        ("queue_duration_us", 9_000 + 6_000),
        ("compute_input_duration_us", 2 * 1_000),
        ("compute_infer_duration_us", 2 * 5_000 + 4_000),
        ("compute_output_duration_us", 2 * 2_000),
        ("queue_duration_histogram_us_count", 3),
        ("compute_infer_duration_histogram_us_count", 3),
        ("compute_infer_duration_histogram_us_sum", 14_000),
        ("first_response_histogram_ms_sum", 35),
    ],
)
def test_requests_rows_and_batches_are_counted_as_triton_does(two_batches, name, value):
    assert two_batches.value(f"nv_inference_{name}") == value


def test_histograms_count_a_batch_once_for_each_of_its_requests(two_batches):
    name = "nv_inference_compute_infer_duration_histogram_us_bucket"
    assert [two_batches.value(name, le=le) for le in ("2000.0", "5000.0", "10000.0", "+Inf")] == [0, 1, 3, 3]


def test_a_run_that_takes_longer_inside_than_outside_has_no_negative_part():
    fold = Fold()
    fold.arrive(0)
    fold.start(0, 1, 1)
    fold.end(5, 1, 1, copied=1 * MS, computed=5 * MS)
    parts = [fold.value(f"nv_inference_compute_{part}_duration_us") for part in ("input", "infer", "output")]
    assert parts == [1_000, 4_000, 0]


def test_what_waits_is_pending_and_what_runs_is_not():
    fold = Fold()
    for now in range(5):
        fold.arrive(now)
    fold.start(5, 1, 1, 2, rows=2)
    assert fold.value("nv_inference_pending_request_count") == 3
    fold.end(6, 1, 1, 2)
    assert fold.value("nv_inference_pending_request_count") == 3
    fold.refuse(7, Drop(3, Reason.EXPIRED))
    assert fold.value("nv_inference_pending_request_count") == 2


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_is_counted_by_its_own_name_and_by_tritons(reason):
    fold = Fold()
    request = fold.arrive(0)
    fold.refuse(4, Reject(request, reason))
    registry = fold.registry()
    for other in Reason:
        found = registry.get_sample_value("gpulet_refusals_total", {"model": "m0", "reason": other.name.lower()})
        assert found == (other is reason)
    for theirs in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert fold.value("nv_inference_request_failure", reason=theirs) == (FAILURES[reason] == theirs)


def test_rejected_expired_cancelled_and_failed_are_counted_apart_by_a_real_core():
    models = models_of(2, slo=30 * MS)
    w = World(
        models, tiny_plan([[(4, ["m0", "m1"])]], ["m0", "m1"]), SYSTEMS["dedicated"].dispatcher, Limits(max_queue=3)
    )
    w.executor.poisoned.add(1)
    w.cancel(1 * MS, 2)
    hard = [Request(n, "m0", n * MS // 10, n * MS // 10 + 3 * MS, 1, "", 0, True) for n in range(1, 9)]
    metrics = w.run(hard)
    registry = make_registry(metrics, {m.name: Served(m, "1") for m in models}, w.scheduler.fleet, {})
    outcomes = {
        outcome: registry.get_sample_value("gpulet_requests_total", {"model": "m0", "outcome": outcome})
        for outcome in ("rejected", "expired", "cancelled", "failed")
    }
    assert outcomes["failed"] >= 1
    assert outcomes["cancelled"] == 1
    assert outcomes["expired"] >= 1
    assert outcomes["rejected"] >= 1
    refusals = [s for m in registry.collect() if m.name == "gpulet_refusals" for s in m.samples]
    assert sum(s.value for s in refusals) == sum(outcomes.values())


def test_a_model_that_is_served_no_more_does_not_break_a_scrape(two_batches):
    del two_batches.served["m0"]
    two_batches.served["m9"] = two_batches.served["m1"]
    registry = two_batches.registry({"m0": SECOND})
    seen = {s.labels["model"] for m in registry.collect() if m.name.startswith("nv_inf") for s in m.samples}
    assert seen == {"m1"}


def test_names_that_clients_make_up_are_not_kept():
    fold = Fold()
    for n in range(100):
        fold.refuse(1, Reject(fold.arrive(0, model=f"nobody{n}"), Reason.UNKNOWN_MODEL))
    assert fold.metrics.reasons == {("", Reason.UNKNOWN_MODEL): 100}


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPEN, parse_openmetrics)])
def test_both_formats_parse_and_say_the_same(two_batches, accept, parse):
    registry = two_batches.registry({"m0": SECOND})
    text, kind = asyncio.run(expose(registry, accept))
    assert kind.startswith("application/openmetrics-text" if accept else "text/plain")
    samples = {(s.name, *sorted(s.labels.items())): s.value for m in parse(text.decode()) for s in m.samples}
    wanted = {(s.name, *sorted(s.labels.items())): s.value for m in registry.collect() for s in m.samples}
    del samples[("nv_cpu_utilization",)], wanted[("nv_cpu_utilization",)]
    assert {k: v for k, v in samples.items() if "memory" not in k[0]} == {
        k: v for k, v in wanted.items() if "memory" not in k[0]
    }


def test_a_scrape_lets_others_run_between_families(two_batches):
    registry = two_batches.registry()
    turns = []

    async def scrape():
        async def work():
            while True:
                turns.append(len(turns))
                await asyncio.sleep(0)

        working = asyncio.create_task(work())
        await expose(registry, "")
        working.cancel()

    asyncio.run(scrape())
    assert len(turns) >= len(list(registry.collect()))


def test_the_page_lists_every_name_that_is_exported_and_no_other(two_batches):
    rows = dict(re.findall(r"^\| `((?:gpulet|nv)_\w+)` \| (\*\*no\*\*)?", PAGE, re.MULTILINE))
    listed = {name for name, is_left_out in rows.items() if not is_left_out}
    exported = {m.name + "_total" * (m.type == "counter") for m in two_batches.registry({"m0": SECOND}).collect()}
    assert listed == exported


def test_the_page_knows_every_metric_of_triton():
    """The list of core's `src/metrics.cc`, and the histograms that are to come there."""
    phases = ("request", "queue", "compute_input", "compute_infer", "compute_output")
    inference = ["request_success", "request_failure", "count", "exec_count", "pending_request_count"]
    inference += [
        f"{phase}_{end}" for phase in phases for end in ("duration_us", "duration_histogram_us", "summary_us")
    ]
    names = {f"nv_inference_{name}" for name in [*inference, "first_response_histogram_ms"]}
    names |= {f"nv_pinned_memory_pool_{which}_bytes" for which in ("total", "used")}
    names |= {f"nv_cache_num_{which}_per_model" for which in ("hits", "misses")}
    names |= {f"nv_cache_{which}_{kind}_per_model" for which in ("hit", "miss") for kind in ("duration", "summary")}
    names |= {f"nv_gpu_{which}" for which in ("utilization", "power_usage", "power_limit")}
    names |= {f"nv_{unit}_memory_{which}_bytes" for unit in ("gpu", "cpu") for which in ("total", "used")}
    names |= {"nv_energy_consumption", "nv_cpu_utilization", "nv_model_load_duration_secs"}
    assert names == set(re.findall(r"^\| `(nv_\w+)` \|", PAGE, re.MULTILINE))


def test_cpu_use_is_of_the_time_between_two_scrapes(tmp_path):
    def tick(user, idle):
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 {user} 0\ncpu0 1 2 3\n")

    def scraped():
        return {m.name: m.samples[0].value for m in host.collect()}

    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  400 kB\nHugePages_Total: 0\n")
    tick(100, 100)
    host = HostUse(tmp_path)
    tick(130, 110)
    assert scraped()["nv_cpu_utilization"] == 0.75
    assert scraped()["nv_cpu_utilization"] == 0.75
    tick(130, 120)
    assert scraped()["nv_cpu_utilization"] == 0
    assert scraped()["nv_cpu_memory_used_bytes"] == 600 * 1024


def test_a_machine_without_proc_exports_nothing_of_itself(tmp_path):
    assert not list(HostUse(tmp_path).collect())


def test_the_dashboard_asks_for_nothing_that_is_not_exported(two_batches):
    exported = {s.name for m in two_batches.registry({"m0": SECOND}).collect() for s in m.samples}
    text = (REPOSITORY / "docs" / "grafana" / "gpulet.json").read_text()
    dashboard = json.loads(text)
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 20
    used = set(re.findall(r"\b(?:gpulet|nv)_\w+", " ".join(asked)))
    assert used <= exported
    assert "gpulet_slo_seconds" in used
    sources = re.findall(r'"uid": "(.*?)"', text)
    assert set(sources) == {"gpulet", "${datasource}"}
