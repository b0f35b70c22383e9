"""OpenTelemetry spans of the stages, if Ray Serve's tracing is on (`tracing_config`, see docs/OPERATING.md).

the caller's traceparent ─▶ POST /score (FastAPI) ─▶ image 0 ─▶ fetch, decode, queue, detect, polygonize
                                                            └▶ image 1 ─▶ …
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from pipeline.errors import ImageFault
from pipeline.types import Answer

NAME = "rtmdet-ins-serve"


def record_stages(answers: Sequence[Answer | ImageFault]) -> None:
    """Add a span for each image of the current request, with one child span for each stage.

    The stages run in other processes, in calls that several requests share. So the spans are created here from the measured times, one
    after the other, and end now.
    """
    if not trace.get_current_span().is_recording():
        return
    tracer, now_ns = trace.get_tracer(NAME), time.time_ns()
    for index, answer in enumerate(answers):
        if isinstance(answer, ImageFault):
            tracer.start_span(f"image {index}", attributes={"error.type": answer.code}).end()
            continue
        at_ns = now_ns - int(sum(answer.timings_ms.values()) * 1e6)
        image = tracer.start_span(f"image {index}", start_time=at_ns)
        for stage, ms in answer.timings_ms.items():
            span = tracer.start_span(stage, trace.set_span_in_context(image), start_time=at_ns)
            at_ns += int(ms * 1e6)
            span.end(at_ns)
        image.end(now_ns)


def otlp_exporter() -> list[SpanProcessor]:
    """Exporter to an OpenTelemetry collector: `tracing_config.exporter_import_path: deployments.telemetry.tracing:otlp_exporter`.

    OTEL_EXPORTER_OTLP_ENDPOINT sets its address (default http://localhost:4318). Needs the extra `tracing`.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return [BatchSpanProcessor(OTLPSpanExporter())]
