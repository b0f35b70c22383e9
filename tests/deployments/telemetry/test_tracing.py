"""Spans of the stages: below the request's span, as long as measured; nothing without one."""

import http.server
import threading

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from deployments.telemetry import tracing
from pipeline.errors import ImageFault
from pipeline.types import EncodedImage

ANSWERS = [EncodedImage(b"{}", {"fetch": 1.0, "decode": 4.0, "detect": 20.0}), ImageFault(1, "image_not_decodable", "no")]


@pytest.fixture
def spans(monkeypatch):
    """What a provider of our own exports."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    yield exporter
    provider.shutdown()


def test_stages_lie_below_their_image_and_the_request(spans):
    """End to end, each with its measured time; a fault has its code."""
    with trace.get_tracer("test").start_as_current_span("request") as request:
        tracing.record_stages(ANSWERS)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert list(found) == ["fetch", "decode", "detect", "image 0", "image 1", "request"]
    assert found["image 0"].parent.span_id == request.get_span_context().span_id
    assert found["detect"].parent.span_id == found["image 0"].context.span_id
    assert found["decode"].end_time - found["decode"].start_time == pytest.approx(4e6)
    assert found["decode"].start_time == found["fetch"].end_time
    assert found["image 1"].attributes["error.type"] == "image_not_decodable"


def test_nothing_is_recorded_without_a_request_that_is_traced(spans):
    token = otel_context.attach(otel_context.Context())
    tracing.record_stages(ANSWERS)
    otel_context.detach(token)
    assert not spans.get_finished_spans()


def test_the_exporter_sends_to_the_collector(monkeypatch):
    """Over HTTP, to the address in the environment."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install -e '.[tracing]'")
    bodies = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        (processor,) = tracing.otlp_exporter()
        provider = TracerProvider()
        provider.add_span_processor(processor)
        provider.get_tracer("test").start_span("a stage").end()
        provider.shutdown()
        server.shutdown()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    assert b"a stage" in body
