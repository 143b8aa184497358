"""`data_logging`: statistics of what goes in and comes out, to /metrics or to a JSON-lines file.

Texts are not written unless the configuration asks for them.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from sparsec.errors import InputError
from sparsec.serving.pipelines import Pipeline
from sparsec.serving.runner import Features
from sparsec.serving.server import json_text, metrics
from sparsec.serving.server.config import DataLogging


class DataLog:
    """Records statistics of one endpoint's requests.

    Args:
        endpoint: its name.
        pipeline: which fields of its predictions are labels and scores.
        config: what is recorded and where.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, endpoint: str, pipeline: Pipeline, config: DataLogging) -> None:
        self.endpoint = endpoint
        self._labels, self._scores = pipeline.label_fields, pipeline.score_fields
        self.config = config
        self._seen = 0
        self._file: int | None = None
        if config.file:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            try:
                self._file = os.open(config.file, flags, 0o600)
            except OSError as error:
                raise InputError(
                    f"{endpoint}: cannot write data_logging.file {config.file}: {error.strerror}"
                ) from error

    def record(
        self, request_id: str, inputs: BaseModel, items: list[Features], result: BaseModel
    ) -> None:
        """One request's inputs, sequences and prediction."""
        self._seen += 1
        if self._seen % self.config.frequency:
            return
        wanted = self.config.statistics
        given, answer = inputs.model_dump(), result.model_dump()
        found: dict[str, Any] = {}
        if "input_characters" in wanted:
            found["input_characters"] = [len(text) for text in texts(given)]
        if "input_tokens" in wanted:
            found["input_tokens"] = [item.length for item in items]
        if "label_counts" in wanted:
            found["label_counts"] = dict(Counter(labels(answer, self._labels)))
        if "score_histogram" in wanted:
            found["scores"] = list(scores(answer, self._scores))
        if self._file is None:
            self._to_metrics(found)
            return
        if "scores" in found:
            found["score_histogram"] = histogram(found.pop("scores"))
        if self.config.text:
            found |= {"inputs": given, "outputs": answer}
        line = {"time": time.time(), "endpoint": self.endpoint, "request_id": request_id, **found}
        # One write: lines of several workers do not mix.
        os.write(self._file, json_text.dumps(line) + b"\n")

    def _to_metrics(self, found: dict[str, Any]) -> None:
        for length in found.get("input_characters", ()):
            metrics.INPUT_CHARACTERS.labels(self.endpoint).observe(length)
        for length in found.get("input_tokens", ()):
            metrics.INPUT_TOKENS.labels(self.endpoint).observe(length)
        for label, count in found.get("label_counts", {}).items():
            metrics.LABELS.labels(self.endpoint, label).inc(count)
        for score in found.get("scores", ()):
            metrics.PREDICTED.labels(self.endpoint).observe(score)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def texts(value: Any) -> Iterator[str]:
    """Every string in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts(item)


def labels(value: Any, names: Sequence[str]) -> Iterator[str]:
    """Predicted labels in a dumped prediction, which has them in the fields of these names."""
    return (str(item) for item in _under(value, names) if isinstance(item, str))


def scores(value: Any, names: Sequence[str]) -> Iterator[float]:
    """Scores in a dumped prediction, which has them in the fields of these names."""
    return (float(item) for item in _under(value, names) if isinstance(item, (int, float)))


def _under(value: Any, names: Sequence[str], inside: bool = False) -> Iterator[Any]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _under(item, names, inside or key in names)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _under(item, names, inside)
    elif inside:
        yield value


def histogram(values: list[float]) -> dict[str, int]:
    """Counts of values up to each bound of ``metrics.SCORES`` and above the one before."""
    counts = {f"{bound:g}": 0 for bound in metrics.SCORES}
    for value in values:
        bound = next((b for b in metrics.SCORES if value <= b), metrics.SCORES[-1])
        counts[f"{bound:g}"] += 1
    return {bound: count for bound, count in counts.items() if count}
