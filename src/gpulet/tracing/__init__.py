"""OpenTelemetry spans of sampled requests: the door. Without an endpoint nothing of OpenTelemetry is imported."""

from collections.abc import Callable

from gpulet import __version__
from gpulet.config import TracingSection
from gpulet.core.messages import RequestId
from gpulet.drivers.gather import Client
from gpulet.errors import BadInput
from gpulet.tracing.port import Tracing
from gpulet.units import Instant

_EXPORT_S = 2.0
"""A collector that is away for longer loses spans, never requests; the server's end waits for it, too."""


def open_tracing(
    section: TracingSection,
    client_of: Callable[[RequestId], Client],
    version_of: Callable[[str], str],
    began_at: Instant,
) -> Tracing | None:
    """Spans to the section's endpoint, if it has one; raises `BadInput` where the extra is not installed.

    `began_at` is the driver's instant 0 in Unix nanoseconds.
    """
    if not section.endpoint:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (an extra)
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 (as above)

        from gpulet.tracing.spans import Spans  # noqa: PLC0415 (as above)
    except ImportError:
        msg = f"[tracing] endpoint = {section.endpoint!r} needs the extra otel: pip install 'gpulet[otel]'"
        raise BadInput(msg) from None
    exporter = OTLPSpanExporter(section.endpoint, timeout=_EXPORT_S)
    return Spans(BatchSpanProcessor(exporter), section.sample, client_of, version_of, began_at, __version__)
