"""Spans from the core's messages: `infer MODEL` from arrival to answer, with a child for each wait and each run.

A request is sampled by its client, where it sent a W3C `traceparent`, else by its number: the same share of any stretch of
requests. A worker's death ends a run; the next wait and run are children again. Stages of applications are children of theirs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gpulet.core.counts import OUTCOMES
from gpulet.core.messages import (
    Answer,
    Arrived,
    BatchId,
    Carve,
    Command,
    Drop,
    Event,
    Fail,
    Finished,
    Gather,
    GpuletDown,
    Reason,
    Reject,
    RequestId,
    Spawn,
    Start,
)
from gpulet.drivers.gather import Client
from gpulet.plan import GpuletId
from gpulet.request import Request
from gpulet.units import MS, Instant

_SPREAD = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: multiples of it, modulo 2^64, lie evenly however many are taken (Fibonacci hashing)."""
_WHOLE = 1 << 64
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(slots=True)
class _Open:
    """A sampled request: its span, since when it waits, and the run that it is in."""

    request: Request
    span: Span
    context: Context
    since: Instant
    start: Start | None = None


class Spans:
    """Observes every step. `began_at` is the driver's instant 0 in Unix nanoseconds."""

    def __init__(
        self,
        processor: SpanProcessor,
        sample: float,
        client_of: Callable[[RequestId], Client],
        version_of: Callable[[str], str],
        began_at: Instant,
        release: str,
    ) -> None:
        ours = Resource({"service.name": "gpulet", "service.version": release})
        resource = ours.merge(OTELResourceDetector().detect())  # OTEL_SERVICE_NAME says more
        self._provider = TracerProvider(ParentBased(ALWAYS_ON), resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("gpulet", release)
        self._below = round(sample * _WHOLE)
        self._client_of = client_of
        self._version_of = version_of
        self._began_at = began_at
        self._open: dict[RequestId, _Open] = {}

    def observe(self, now: Instant, events: Sequence[Event], commands: Sequence[Command]) -> None:
        """Begin and end spans."""
        finished: dict[BatchId, Finished] = {}
        for event in events:
            match event:
                case Arrived():
                    self._arrive(event.request)
                case Finished():
                    finished[event.batch] = event
                case GpuletDown():
                    self._lose(now, event.gpulet)
                case _:
                    pass
        if self._open:
            for command in commands:
                self._follow(now, command, finished)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _follow(self, now: Instant, command: Command, finished: Mapping[BatchId, Finished]) -> None:
        match command:
            case Start():
                for traced in self._traced(command.requests):
                    self._start(now, traced, command)
            case Answer():
                self._answer(now, command, finished[command.batch])
            case Gather():
                self._conclude(now, self._traced((command.request,)))
            case Reject() | Drop() | Fail():
                self._refuse(now, command.request, command.reason)
            case Spawn():
                self._spawn(command)
            case _:
                pass

    def _traced(self, requests: Sequence[RequestId]) -> list[_Open]:
        return [self._open[request] for request in requests if request in self._open]

    def _arrive(self, request: Request) -> None:
        client = self._client_of(request.id)
        parent = (
            _PROPAGATOR.extract({"traceparent": client.traceparent}, Context()) if client.traceparent else Context()
        )
        is_root = not get_current_span(parent).get_span_context().is_valid  # what is no traceparent asks for nothing
        if is_root and request.id * _SPREAD % _WHOLE >= self._below:
            return
        attributes = {"gpulet.protocol": client.protocol, "gpulet.request_id": client.name}
        self._begin(request, parent, SpanKind.SERVER, {name: value for name, value in attributes.items() if value})

    def _spawn(self, command: Spawn) -> None:
        application = self._open.get(command.application)
        if application:
            self._begin(command.request, application.context, SpanKind.INTERNAL, {"gpulet.stage": command.stage})

    def _begin(self, request: Request, parent: Context, kind: SpanKind, more: Mapping[str, str]) -> None:
        attributes: dict[str, str | int | float] = {
            "gpulet.model": request.model,
            "gpulet.version": self._version_of(request.model),
            "gpulet.rows": request.rows,
            "gpulet.deadline_ms": (request.deadline - request.arrival) / MS,
            **more,
        }
        span = self._tracer.start_span(
            f"infer {request.model}", parent, kind, attributes, start_time=self._began_at + request.arrival
        )
        if span.is_recording():
            self._open[request.id] = _Open(request, span, set_span_in_context(span, Context()), request.arrival)

    def _start(self, now: Instant, traced: _Open, start: Start) -> None:
        self._end_wait(now, traced)
        traced.start = start

    def _end_wait(self, now: Instant, traced: _Open) -> None:
        self._child("queue", traced).end(self._began_at + now)
        traced.since = now

    def _end_run(self, now: Instant, traced: _Open, finished: Finished, error: str = "") -> None:
        start = traced.start
        assert start, "a run that ends has begun"
        span = self._child("compute", traced)
        span.set_attributes(_place(start))
        span.set_attribute("gpulet.batch", start.batch)
        span.set_attribute("gpulet.batch_rows", start.rows)
        span.set_attribute("gpulet.predicted_ns", start.expected)
        span.set_attribute("gpulet.copied_ns", finished.copied)
        span.set_attribute("gpulet.computed_ns", finished.computed)
        if error:
            span.set_status(StatusCode.ERROR, error)
        span.end(self._began_at + now)
        traced.since, traced.start = now, None

    def _child(self, name: str, traced: _Open) -> Span:
        return self._tracer.start_span(name, traced.context, start_time=self._began_at + traced.since)

    def _answer(self, now: Instant, answer: Answer, finished: Finished) -> None:
        answered = self._traced(answer.requests)
        for traced in answered:
            self._end_run(now, traced, finished)
        self._conclude(now, answered)

    def _conclude(self, now: Instant, answered: Iterable[_Open]) -> None:
        for traced in answered:
            traced.span.set_attribute("gpulet.outcome", "late" if now > traced.request.deadline else "served")
            self._end(now, traced)

    def _refuse(self, now: Instant, request: RequestId, reason: Reason) -> None:
        traced = self._open.get(request)
        if traced is None:
            return
        if traced.start:
            self._end_run(now, traced, Finished(0), str(reason))
        elif now > traced.since:
            self._end_wait(now, traced)
        traced.span.set_attributes({"gpulet.outcome": OUTCOMES[reason], "gpulet.reason": reason.name.lower()})
        if OUTCOMES[reason] != "cancelled":
            traced.span.set_status(StatusCode.ERROR, str(reason))
        self._end(now, traced)

    def _end(self, now: Instant, traced: _Open) -> None:
        traced.span.end(self._began_at + now)
        del self._open[traced.request.id]

    def _lose(self, now: Instant, gpulet: GpuletId) -> None:
        for traced in self._open.values():
            if traced.start and traced.start.on == gpulet:
                self._end_run(now, traced, Finished(0), str(Reason.WORKER_LOST))


def _place(start: Start) -> Mapping[str, int]:
    if isinstance(start.on, Carve):
        return {"gpulet.device": start.on.device, "gpulet.sms": start.on.size}
    return {"gpulet.id": start.on}
