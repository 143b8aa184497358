"""What /metrics tells.  With several workers, prometheus_client adds up their files in
``PROMETHEUS_MULTIPROC_DIR``, which has to be set before this is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["CONTENT_TYPE_LATEST", "ModelMetrics", "RequestMetrics", "render"]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (8, 16, 32, 64, 128, 256, 384, 512, 1024, 4096)
CHARACTERS = (16, 64, 256, 1024, 4096, 16384, 65536)
SCORES = tuple(i / 10 for i in range(1, 11))

REQUESTS = Counter("sparsec_requests", "Requests by status", ["endpoint", "status"])
ERRORS = Counter("sparsec_errors", "Requests that failed, by reason", ["endpoint", "code"])
LATENCY = Histogram(
    "sparsec_request_seconds", "Time from a request's last byte to its response",
    ["endpoint"], buckets=SECONDS,
)  # fmt: skip
IN_FLIGHT = Gauge(
    "sparsec_requests_in_flight", "Requests being answered", multiprocess_mode="livesum"
)
QUEUE = Gauge("sparsec_queue_items", "Sequences that wait", ["model"], multiprocess_mode="livesum")
DROPPED = Counter("sparsec_dropped_items", "Sequences cancelled before they ran", ["model"])
BATCHES = Histogram("sparsec_batch_size", "Sequences that ran together", ["model"], buckets=SIZES)
BATCH_SECONDS = Histogram(
    "sparsec_batch_seconds", "Time that a batch ran", ["model"], buckets=SECONDS
)
COMPUTED = Counter("sparsec_tokens", "Tokens computed: real ones, and padding", ["model", "kind"])
NONFINITE = Counter(
    "sparsec_nonfinite_requests",
    "Requests for which the model gave NaN or infinity, whatever on_nonfinite says but ignore",
    ["endpoint"],
)
TRUNCATED = Counter("sparsec_truncated_texts", "Texts that were cut to fit", ["endpoint"])
SERVED = Gauge(
    "sparsec_served_models", "Workers that serve a model of this content at this endpoint",
    ["endpoint", "model", "hash"], multiprocess_mode="livesum",
)  # fmt: skip

INPUT_CHARACTERS = Histogram(
    "sparsec_input_characters", "Length of each text (data_logging)",
    ["endpoint"], buckets=CHARACTERS,
)  # fmt: skip
INPUT_TOKENS = Histogram(
    "sparsec_input_tokens", "Length of each sequence (data_logging)",
    ["endpoint"], buckets=TOKENS,
)  # fmt: skip
LABELS = Counter("sparsec_labels", "Predicted labels (data_logging)", ["endpoint", "label"])
PREDICTED = Histogram(
    "sparsec_score", "Scores of predictions (data_logging)", ["endpoint"], buckets=SCORES
)


class RequestMetrics:
    """The metrics of one endpoint's requests, found once."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._latency = LATENCY.labels(endpoint)
        self._nonfinite = NONFINITE.labels(endpoint) if endpoint else None
        self._truncated = TRUNCATED.labels(endpoint) if endpoint else None
        self._statuses: dict[int, Any] = {}

    def done(self, status: int, code: str, seconds: float) -> None:
        """A request was answered; `code` is empty if it went well."""
        counter = self._statuses.get(status)
        if counter is None:
            counter = self._statuses[status] = REQUESTS.labels(self._endpoint, str(status))
        counter.inc()
        if code:
            ERRORS.labels(self._endpoint, code).inc()
        self._latency.observe(seconds)

    def nonfinite(self) -> None:
        """The model gave NaN or infinity."""
        if self._nonfinite is not None:
            self._nonfinite.inc()

    def truncated(self, texts: int) -> None:
        """So many texts of a request were cut."""
        if self._truncated is not None and texts:
            self._truncated.inc(texts)


class ModelMetrics:
    """The metrics of one model's queue: the observer of a ModelQueue."""

    def __init__(self, model: str) -> None:
        self._queue = QUEUE.labels(model)
        self._dropped = DROPPED.labels(model)
        self._batches = BATCHES.labels(model)
        self._seconds = BATCH_SECONDS.labels(model)
        self._real = COMPUTED.labels(model, "real")
        self._padding = COMPUTED.labels(model, "padding")

    def waiting(self, items: int) -> None:
        self._queue.set(items)

    def dropped(self, items: int) -> None:
        self._dropped.inc(items)

    def batch(self, lengths: Sequence[int], padding: int, seconds: float) -> None:
        self._batches.observe(len(lengths))
        self._seconds.observe(seconds)
        self._real.inc(sum(lengths))
        self._padding.inc(padding)


def render() -> bytes:
    """Everything, of all workers, in Prometheus' text form."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
