"""Traces: what a collector gets of a request, and nothing at all without one."""

from __future__ import annotations

import gzip
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import pytest

from sparsec.serving.server import tracing
from tests.server_support import Server, TextModels, endpoint

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP collector that keeps what it gets.  A context manager.

    Attributes:
        url: for OTEL_EXPORTER_OTLP_ENDPOINT.
        spans: (attributes of the resource, span).
    """

    def __init__(self) -> None:
        module = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
            reason="needs opentelemetry: pip install '.[otel]'",
        )
        self.spans: list[tuple[dict[str, Any], Any]] = []
        kept = self.spans

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                for row in module.ExportTraceServiceRequest.FromString(body).resource_spans:
                    resource = attributes(row.resource)
                    kept.extend((resource, s) for scope in row.scope_spans for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def wait(self, count: int) -> list[Any]:
        """So many spans, those that ended first before others."""
        limit = time.monotonic() + 60
        while len(self.spans) < count and time.monotonic() < limit:
            time.sleep(0.05)
        assert len(self.spans) == count, [span.name for _, span in self.spans]
        return [span for _, span in self.spans]

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def attributes(row: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in row.attributes}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield


def test_spans_of_a_request(text_models: TextModels, tmp_path: Path, quick: None) -> None:
    config = {"endpoints": [endpoint(text_models, "token-classification", name="ner")]}
    flags = ["--grpc-port", "0"]
    grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install '.[grpc]'")
    with Collector() as collector:
        flags += ["--otlp-endpoint", collector.url]
        with Server(tmp_path, config, *flags) as server:
            parent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "my-id"}
            answer = httpx.post(
                server.url + "/predict", json={"inputs": ["Mary", "John"]}, headers=parent
            )
            assert answer.status_code == 200
            queue, infer, request = sorted(
                collector.wait(3), key=lambda span: ("queue", "infer").index(span.name)
                if span.name in ("queue", "infer") else 2
            )  # fmt: skip
            assert request.name == "POST /predict" and request.kind == 2  # a server's
            assert request.trace_id.hex() == TRACE and request.parent_span_id.hex() == PARENT
            known = attributes(request)
            assert known["http.response.status_code"] == 200 and known["http.route"] == "/predict"
            assert known["sparsec.endpoint"] == "ner" and known["sparsec.request_id"] == "my-id"
            for span in (queue, infer):
                assert span.trace_id == request.trace_id
                assert span.parent_span_id == request.span_id
                assert attributes(span)["sparsec.sequences"] == 2
            assert attributes(infer)["sparsec.batch_size"] == 2
            assert (
                request.start_time_unix_nano
                <= queue.start_time_unix_nano
                <= queue.end_time_unix_nano
                == infer.start_time_unix_nano
                < infer.end_time_unix_nano
                <= request.end_time_unix_nano
            )
            (resource, _) = collector.spans[0]
            assert resource["service.name"] == "sparsec"
            # What fails has a span without those; probes have none at all.
            collector.spans.clear()
            for path in ("/ready", "/health", "/metrics"):
                assert httpx.get(server.url + path).status_code == 200
            httpx.post(server.url + "/predict", json={"x": 1})
            (failed,) = collector.wait(1)
            assert attributes(failed)["error.type"] == "invalid_input" and not failed.parent_span_id
            collector.spans.clear()
            from tests.test_server_grpc import address, calls, ner

            with grpc.insecure_channel(address(server)) as channel:
                calls(channel, "ModelInfer")(
                    ner("Mary"), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-01"),)
                )
            spans = {span.name: span for span in collector.wait(3)}
            request = spans["inference.GRPCInferenceService/ModelInfer"]
            assert request.trace_id.hex() == TRACE and request.parent_span_id.hex() == PARENT
            assert attributes(request)["rpc.grpc.status_code"] == 0
            assert spans["infer"].parent_span_id == request.span_id
            # The last ones are sent at the end.
            collector.spans.clear()
            httpx.get(server.url + "/v1/models")
            assert server.stop() == 0
            assert [span.name for span in collector.wait(1)] == ["GET /v1/models"]


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "a"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, False),
    ],
)
def test_what_turns_traces_on(variables: dict[str, str], on: bool) -> None:
    assert tracing.asked_for(variables) is on


def test_nothing_is_imported_without() -> None:
    code = (
        "import sys; from sparsec.serving.server import worker, tracing; tracing.tracing.start(); "
        "print([n for n in sys.modules if n.startswith(('opentelemetry', 'grpc'))])"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
