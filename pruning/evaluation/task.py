"""What all tasks share: how a model's answer to a text is got, and how two models' are compared."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from sparsec.pruning.evaluation.models import Contender, Found
from sparsec.pruning.evaluation.parts import Plot
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import Job, Pipeline
from sparsec.serving.runner import Outputs

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Metric:
    """A figure that a task gives.

    Attributes:
        title: what tables call it.
        about: what it is, in some words.
        lower: whether less is better.
    """

    title: str
    about: str
    lower: bool = False


@dataclass(frozen=True)
class Said:
    """A text's answers in words.

    Attributes:
        reference, candidate: of the models.
        label: what is right; None: not known.
        text: what to show for the text; None: the text.
    """

    reference: str
    candidate: str
    label: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Findings:
    """How two models compare on the texts for which both give numbers.

    Attributes:
        agreement: metrics of the candidate against the reference.
        scores: metrics of (reference, candidate) against the labels; empty without labels.
        per_text: agreement on each text, 1: entirely.
        said: of each text, the answers in words.
        plots: what is to be seen.
        warnings: what is to be said.
    """

    agreement: Mapping[str, float]
    per_text: Sequence[float]
    said: Sequence[Said]
    scores: tuple[Mapping[str, float], Mapping[str, float]] = field(
        default_factory=lambda: ({}, {})
    )
    plots: Sequence[Plot] = ()
    warnings: Sequence[str] = ()


class Task(abc.ABC, Generic[P, R]):
    """Something that two models are compared as.

    `P` is one model's answer to a text, `R` what is kept of two answers.

    Attributes:
        name: what users call it.
        agreement, scores: the metrics, by name; of the two models, and of each with labels.
        pipeline: the task of the pipeline that makes sequences of texts, or its class.
    """

    name: ClassVar[str]
    agreement: ClassVar[Mapping[str, Metric]]
    scores: ClassVar[Mapping[str, Metric]] = {}
    pipeline: ClassVar[str | type[Pipeline]]

    def options(self, found: Found, samples: Sequence[Sample]) -> dict[str, Any]:
        """Options of the pipeline."""
        return {}

    @abc.abstractmethod
    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        """Check that the models and the labels go together.

        Returns:
            The samples to run, changed where the task has to.

        Raises:
            InputError: the outputs differ in what they mean, or the labels do not fit.
        """

    @abc.abstractmethod
    def prepare(self, model: Contender, sample: Sample) -> Job:
        """The sequences of a text."""

    @abc.abstractmethod
    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> P:
        """A model's answer, made of the outputs of the sequences."""

    @abc.abstractmethod
    def pair(self, sample: Sample, reference: P, candidate: P) -> R:
        """What is kept of two answers."""

    @abc.abstractmethod
    def compare(self, samples: Sequence[Sample], rows: Sequence[R]) -> Findings:
        """Compare the models, judged by what was kept of every text; there is at least one."""
