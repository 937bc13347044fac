"""Spans of sampled requests, from the messages of simulated runs."""

import subprocess
import sys
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gpulet.application import Application, Stage
from gpulet.config import TracingSection
from gpulet.core.messages import Arrived, Finished, Reason, Reject, Start
from gpulet.core.scheduler import Limits
from gpulet.errors import BadInput
from gpulet.request import Request
from gpulet.tracing import open_tracing
from gpulet.tracing.spans import Spans
from gpulet.units import MS, NEVER, SECOND
from support import SHAPES, World, models_of, requests_of, tiny_plan

BEGAN = 1_700_000_000 * SECOND
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Sender:
    name: str = ""
    protocol: str = "http"
    traceparent: str = ""


class Traced:
    """Spans of a run, in memory."""

    def __init__(self, sample=1.0, senders=None):
        self.exporter = InMemorySpanExporter()
        self.senders = senders or {}
        processor = SimpleSpanProcessor(self.exporter)
        self.spans = Spans(processor, sample, self.sender, lambda name: {"m0": "2"}.get(name, ""), BEGAN, "0")

    def sender(self, request):
        return self.senders.get(request, Sender())

    def watch(self, steps):
        for step in steps:
            self.spans.observe(*step)
        self.spans.close()
        return self

    @property
    def all(self):
        return self.exporter.get_finished_spans()

    def roots(self):
        return [s for s in self.all if s.kind is SpanKind.SERVER]

    def below(self, root):
        children = [s for s in self.all if s.parent and s.parent.span_id == root.context.span_id]
        return sorted(children, key=lambda s: s.start_time)


def ms(span):
    return (span.start_time - BEGAN) / MS, (span.end_time - BEGAN) / MS


def world(count=1, shape="idle picks", **more):
    names = [f"m{n}" for n in range(count)]
    return World(models_of(count), tiny_plan([[(4, names)]], names), SHAPES[shape], **more)


def arrivals(count):
    return [(Arrived(Request(n, "m0", n, NEVER)),) for n in range(1, count + 1)]


def only_arrivals(traced, count):
    """Refused at once, all of them: one span each that is sampled."""
    steps = [(n, events, [Reject(n, Reason.LATE)]) for n, events in enumerate(arrivals(count), 1)]
    return traced.watch(steps).roots()


def test_a_request_is_a_span_with_its_wait_and_its_run_below():
    w = world()
    w.run(requests_of([(0, 0, 1, "", 0, False), (1 * MS, 0, 2, "", 0, False)], models_of(1)))
    traced = Traced(senders={2: Sender("mine", "grpc")}).watch(w.steps)
    first, second = sorted(traced.roots(), key=lambda s: s.start_time)
    starts = [c for _, _, commands in w.steps for c in commands if isinstance(c, Start)]
    ends = [now / MS for now, events, _ in w.steps if any(isinstance(e, Finished) for e in events)]
    assert first.name == second.name == "infer m0"
    assert ms(second) == (1, ends[1])
    queue, compute = traced.below(second)
    assert (queue.name, compute.name) == ("queue", "compute")
    assert ms(queue) == (1, ends[0])
    assert ms(compute) == (ends[0], ends[1])
    assert second.attributes == {
        "gpulet.model": "m0",
        "gpulet.version": "2",
        "gpulet.rows": 2,
        "gpulet.deadline_ms": second.attributes["gpulet.deadline_ms"],
        "gpulet.outcome": "served",
        "gpulet.protocol": "grpc",
        "gpulet.request_id": "mine",
    }
    assert compute.attributes["gpulet.id"] == 0
    assert compute.attributes["gpulet.batch"] == starts[1].batch
    assert compute.attributes["gpulet.batch_rows"] == 2
    assert compute.attributes["gpulet.predicted_ns"] == starts[1].expected
    assert first.resource.attributes["service.name"] == "gpulet"


@pytest.mark.parametrize("sample", [0.0, 0.01, 0.25, 1.0])
def test_the_same_share_of_any_stretch_of_requests_is_sampled(sample):
    found = [s.start_time for s in only_arrivals(Traced(sample), 1000)]
    assert found == [s.start_time for s in only_arrivals(Traced(sample), 1000)]
    for first in range(0, 1000, 200):
        here = sum(first <= start - BEGAN < first + 200 for start in found)
        assert abs(here - 200 * sample) <= 3


@pytest.mark.parametrize(
    ("traceparent", "sample", "count"),
    [
        (f"00-{TRACE}-{PARENT}-01", 0.0, 1),
        (f"00-{TRACE}-{PARENT}-00", 1.0, 0),
        ("nonsense", 0.0, 0),
        ("nonsense", 1.0, 1),
        ("", 0.0, 0),
    ],
)
def test_a_client_that_traces_decides_for_its_requests(traceparent, sample, count):
    traced = Traced(sample, {1: Sender(traceparent=traceparent)})
    roots = only_arrivals(traced, 1)
    assert len(roots) == count
    if TRACE in traceparent and roots:
        assert f"{roots[0].context.trace_id:032x}" == TRACE
        assert f"{roots[0].parent.span_id:016x}" == PARENT


def test_what_is_refused_says_why():
    (root,) = only_arrivals(traced := Traced(), 1)
    assert root.attributes["gpulet.outcome"] == "rejected"
    assert root.attributes["gpulet.reason"] == "late"
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "predicted late")
    assert not traced.below(root)


def test_a_request_that_is_given_up_has_waited_and_a_failed_one_has_run():
    w = world()
    w.executor.poisoned.add(1)
    w.cancel(2 * MS, 2)
    w.run(requests_of([(0, 0, 4, "", 0, False), (1 * MS, 0, 1, "", 0, False)], models_of(1)))
    traced = Traced().watch(w.steps)
    ends = {root.attributes["gpulet.outcome"]: root for root in traced.roots()}
    assert set(ends) == {"failed", "cancelled"}
    assert ends["cancelled"].status.status_code is StatusCode.UNSET
    assert [(s.name, ms(s)) for s in traced.below(ends["cancelled"])] == [("queue", (1, 2))]
    assert [s.name for s in traced.below(ends["failed"])] == ["queue", "compute"]
    assert traced.below(ends["failed"])[1].status.description == "its run failed"


def test_a_workers_death_is_a_run_that_failed_and_the_retry_waits_and_runs_again():
    w = world()
    w.kill(1 * MS, 0, 1 * MS)
    w.run(requests_of([(0, 0, 1, "", 0, False)], models_of(1)))
    traced = Traced().watch(w.steps)
    (root,) = traced.roots()
    assert root.attributes["gpulet.outcome"] == "served"
    children = traced.below(root)
    assert [(s.name, s.status.status_code is StatusCode.ERROR) for s in children] == [
        ("queue", False),
        ("compute", True),
        ("queue", False),
        ("compute", False),
    ]
    assert [ms(s) for s in children[1:3]] == [(0, 1), (1, 2)]
    assert children[-1].end_time == root.end_time


def test_stages_of_an_application_are_below_its_request():
    application = Application("app", NEVER // 2, (Stage("m0", "m0"), Stage("last", "m1", ("m0",))))
    w = world(2, applications=(application,))
    w.run([Request(1, "app", 0, NEVER // 2)])
    traced = Traced().watch(w.steps)
    (root,) = traced.roots()
    assert root.name == "infer app"
    stages = traced.below(root)
    assert [(s.name, s.attributes["gpulet.stage"]) for s in stages] == [("infer m0", "m0"), ("infer m1", "last")]
    assert [[s.name for s in traced.below(stage)] for stage in stages] == [["queue", "compute"]] * 2
    assert stages[-1].end_time == root.end_time


@pytest.mark.parametrize("shape", SHAPES)
def test_every_request_of_every_shape_ends_its_spans(shape):
    w = world(2, shape=shape, limits=Limits(max_queue=4))
    w.kill(3 * MS, 0, 2 * MS)
    w.cancel(2 * MS, 3)
    models = list(w.scheduler.fleet.models.values())
    w.run(requests_of([(n * MS // 4, n % 2, 1 + n % 2, "", 0, n % 3 == 0) for n in range(60)], models))
    traced = Traced().watch(w.steps)
    assert len(traced.roots()) == 60
    for root in traced.roots():
        children = traced.below(root)
        assert all(root.start_time <= s.start_time <= s.end_time <= root.end_time for s in children)
        if root.attributes["gpulet.outcome"] in {"served", "late"}:
            waits = sum(s.end_time - s.start_time for s in children)
            assert waits == root.end_time - root.start_time


def test_tracing_without_its_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(
        BadInput, match=r"\[tracing\] endpoint = 'http://x:4317' needs the extra otel: pip install 'gpulet"
    ):
        open_tracing(TracingSection(endpoint="http://x:4317"), Traced().sender, str, 0)


@pytest.mark.slow
def test_a_server_that_traces_nothing_imports_nothing_for_it():
    program = (
        "import sys; import gpulet.serving as s; from gpulet.config import TracingSection as T;"
        "assert s.open_tracing(T(), print, str, 0) is None;"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
