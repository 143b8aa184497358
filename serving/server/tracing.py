"""Traces for OpenTelemetry: a span for each request, and in it how long its sequences waited and
how long the model ran.

Off unless the standard variables ask for it, which a worker's environment has: then, and only then,
OpenTelemetry is imported (the extra `otel`).

Sources: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables, the
semantic conventions of HTTP and RPC, and https://www.w3.org/TR/trace-context.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsec import __version__
from sparsec.errors import InputError

if TYPE_CHECKING:
    from sparsec.serving.server.batching import Timing

logger = logging.getLogger("sparsec.server")

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

# What probes and Prometheus ask for again and again.
UNSEEN = frozenset(["/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"])

# Seconds for what is left at the end.
FLUSH = 2.0


def asked_for(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard variables turn traces on."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return any(environment.get(name) for name in _ENDPOINTS)


def missing() -> str:
    """What has to be installed; "" if it is."""
    try:
        found = importlib.util.find_spec("opentelemetry.sdk")
    except ModuleNotFoundError:
        found = None
    return "" if found else "traces need opentelemetry-sdk: pip install 'sparsec[otel]'"


class Span:
    """A request's span; this one is none, for when traces are off."""

    def done(self, failed: bool, attributes: Mapping[str, Any], name: str = "") -> None:
        """How it ended, what is known of it, and what it is called now that more is."""


class _Real(Span):
    def __init__(self, span: Any) -> None:
        self._span = span

    def done(self, failed: bool, attributes: Mapping[str, Any], name: str = "") -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(dict(attributes))
        if name:
            self._span.update_name(name)
        if failed:
            self._span.set_status(StatusCode.ERROR)


_NOTHING = Span()


class Tracing:
    """What makes spans, or nothing.

    Attributes:
        on: whether it makes any.
    """

    def __init__(self) -> None:
        self._provider: Any = None
        self._tracer: Any = None

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def start(self) -> None:
        """Make spans from now on, if the environment asks for them.

        Raises:
            InputError: an exporter is named that is not installed.
        """
        if not asked_for():
            return
        if lacking := missing():
            # The variables may be meant for everything that runs there.
            logger.warning("%s", lacking)
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        attributes: dict[str, Any] = {"service.version": __version__, "process.pid": os.getpid()}
        named = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in named:
            attributes["service.name"] = "sparsec"
        self._provider = TracerProvider(resource=Resource.create(attributes))
        for exporter in _exporters():
            self._provider.add_span_processor(BatchSpanProcessor(exporter()))
        self._tracer = self._provider.get_tracer("sparsec", __version__)

    def stop(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.force_flush(int(FLUSH * 1000))
            self._tracer = None

    @contextlib.contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """A request's span, inside of the client's that its headers name, if any."""
        if self._tracer is None:
            yield _NOTHING
            return
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind

        around = propagate.extract({key.lower(): value for key, value in headers.items()})
        with self._tracer.start_as_current_span(name, context=around, kind=SpanKind.SERVER) as span:
            yield _Real(span)

    def ran(self, endpoint: str, sequences: int, timing: Timing) -> None:
        """Spans of what a request waited for and of the model's run, inside of the request's."""
        if self._tracer is None:
            return
        for name, start, end in (
            ("queue", timing.queued, timing.began),
            ("infer", timing.began, timing.ended),
        ):
            span = self._tracer.start_span(name, start_time=start)
            span.set_attribute("sparsec.endpoint", endpoint)
            span.set_attribute("sparsec.sequences", sequences)
            if name == "infer":
                span.set_attribute("sparsec.batch_size", timing.largest)
            span.end(end_time=end)


def _exporters() -> Iterator[Callable[[], Any]]:
    for given in (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(","):
        name = given.strip().lower()
        if name == "otlp":
            protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
                "OTEL_EXPORTER_OTLP_PROTOCOL"
            )
            name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
        found = importlib.metadata.entry_points(group="opentelemetry_traces_exporter", name=name)
        if not found:
            package = f"opentelemetry-exporter-{name.replace('_', '-')}"
            raise InputError(f"traces: there is no exporter {given}: pip install {package}")
        yield next(iter(found)).load()


# The worker's.
tracing = Tracing()
