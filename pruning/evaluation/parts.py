"""What an evaluation is made of: plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Union

from pydantic import BeforeValidator, PlainSerializer

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""A float that JSON has null for where it is none."""


@dataclass(frozen=True)
class Latency:
    """Time of one text at a time, padding and all that belongs to a call included.

    Attributes:
        median_ms: for each text the median of its runs, averaged over the texts.
        fastest_ms: the same of the fastest tenth of its runs.
        turns: how often each text ran.
        tokens: length of each text that was timed.
        medians_ms: the median of each.
    """

    median_ms: float
    fastest_ms: float
    turns: int
    tokens: tuple[int, ...]
    medians_ms: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """One of the two models.

    Attributes:
        path: as it was given.
        engine: what ran it.
        file_bytes: size of the .onnx file with its external data; None: it came as an artifact.
        artifact_bytes: size of the compiled folder; None: it was not compiled.
        buckets: sequence lengths that it runs at.
        latency: None: not measured.
        scores: metrics against the labels; empty without labels.
        nonfinite: texts for which its outputs have NaN or infinity.
    """

    path: str
    engine: str
    file_bytes: int | None
    artifact_bytes: int | None
    buckets: tuple[int, ...]
    latency: Latency | None
    scores: Mapping[str, Number]
    nonfinite: int


@dataclass(frozen=True)
class Texts:
    """What the models were compared on.

    Attributes:
        source: where the texts came from.
        count: how many.
        labelled: whether they have labels.
        max_length: tokens after which they were cut (or parted, where the task can).
        longer: how many texts are longer.
        shortest, median, longest: tokens, special ones included, before that.
    """

    source: str
    count: int
    labelled: bool
    max_length: int
    longer: int
    shortest: int
    median: int
    longest: int


@dataclass(frozen=True)
class Example:
    """A text on which the two models differ.

    Attributes:
        text: the text.
        reference, candidate: what the models say.
        label: what is right, where that is known.
        agreement: of the two, as in :attr:`Evaluation.per_text`.
    """

    text: str
    reference: str
    candidate: str
    label: str | None
    agreement: float


@dataclass(frozen=True)
class Histogram:
    """How often each value occurs."""

    title: str
    label: str
    values: tuple[float, ...]
    kind: Literal["histogram"] = "histogram"


@dataclass(frozen=True)
class Scatter:
    """Points; both axes have the same scale."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    kind: Literal["scatter"] = "scatter"


@dataclass(frozen=True)
class Matrix:
    """How often the candidate says this where the reference says that: ``counts[that][this]``."""

    title: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    kind: Literal["matrix"] = "matrix"


@dataclass(frozen=True)
class Bars:
    """Values between 0 and 1 by name, of one or several series."""

    title: str
    names: tuple[str, ...]
    series: Mapping[str, tuple[float, ...]]
    kind: Literal["bars"] = "bars"


Plot = Union[Histogram, Scatter, Matrix, Bars]
