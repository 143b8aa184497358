"""Answers to questions: the same ones, and as often right?"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sparsec.errors import InputError
from sparsec.pruning.evaluation.models import Contender, Found
from sparsec.pruning.evaluation.parts import Histogram, Scatter
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import Job, QuestionAnsweringPipeline
from sparsec.serving.runner import Outputs


@dataclass(frozen=True)
class Answer:
    """A part of the context, empty if there is none, and its probability."""

    text: str
    score: float


class QuestionAnswering(Task[Answer, tuple[Answer, Answer]]):
    """The part of a context that answers a question; contexts that are too long in windows."""

    name = "question-answering"
    pipeline = QuestionAnsweringPipeline.task
    agreement: ClassVar[Mapping[str, Metric]] = {
        "span_f1": Metric(
            "span F1", "words that the candidate's answer shares with the reference's"
        ),
        "same_answer": Metric("same answer", "share of the questions with the same answer"),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "f1": Metric("F1", "words that the answer shares with the right one (SQuAD)"),
        "exact_match": Metric("exact match", "share of the questions answered right (SQuAD)"),
    }

    def options(self, found: Found, samples: Sequence[Sample]) -> dict[str, Any]:
        answers = [right_answers(s.label, f"text {i}") for i, s in enumerate(samples, 1)]
        unanswerable = any(found is not None and not any(found) for found in answers)
        return {"version_2_with_negative": unanswerable}

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        for number, sample in enumerate(samples, 1):
            if not sample.pair or not sample.text:
                raise InputError(
                    f"text {number}: a question and a context are needed, as the fields question "
                    f"and context"
                )
        return [replace(s, label=right_answers(s.label, "")) for s in samples]

    def prepare(self, model: Contender, sample: Sample) -> Job:
        inputs = model.pipeline.parse(question=sample.text, context=sample.pair)
        return model.pipeline.prepare(inputs)

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Answer:
        found = model.pipeline.finish(job, outputs).model_dump()
        return Answer(found["answer"], found["score"])

    def pair(self, sample: Sample, reference: Answer, candidate: Answer) -> tuple[Answer, Answer]:
        return reference, candidate

    def compare(self, samples: Sequence[Sample], rows: Sequence[tuple[Answer, Answer]]) -> Findings:
        f1 = [overlap(a.text, b.text) for a, b in rows]
        same = [normalized(a.text) == normalized(b.text) for a, b in rows]
        scores: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
        if samples[0].label is not None:
            right = [sample.label for sample in samples]
            sides = [[answer.text for answer in side] for side in zip(*rows, strict=True)]
            scores = squad(sides[0], right), squad(sides[1], right)
        said = [
            Said(
                _say(row[0]),
                _say(row[1]),
                None if sample.label is None else " | ".join(sample.label) or "no answer",
                f"{sample.text} — {sample.pair}",
            )
            for sample, row in zip(samples, rows, strict=True)
        ]
        certainty = [tuple(answer.score for answer in side) for side in zip(*rows, strict=True)]
        return Findings(
            {"span_f1": float(np.mean(f1)), "same_answer": float(np.mean(same))},
            f1,
            said,
            scores,
            [
                Histogram("Words shared by the two answers", "F1", tuple(f1)),
                Scatter(
                    "Probability of the answer",
                    "reference",
                    "candidate",
                    certainty[0],
                    certainty[1],
                ),
            ],
        )


def _say(answer: Answer) -> str:
    return f"{answer.text or 'no answer'} ({answer.score:.2f})"


def right_answers(label: Any, where: str) -> list[str] | None:
    """The answers that are right: a text, several, or as SQuAD has them; none: no answer.

    Raises:
        InputError: it is something else.
    """
    if label is None:
        return None
    value = label.get("text") if isinstance(label, Mapping) else label
    found = [value] if isinstance(value, str) else value
    if isinstance(found, (list, tuple)):
        texts = [one.get("text") if isinstance(one, Mapping) else one for one in found]
        if all(isinstance(text, str) for text in texts):
            return [text for text in texts if text]
    raise InputError(f"{where}: an answer, or a list of answers, is needed, not {label!r:.80}")


def squad(given: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD's metrics: of several right answers the one that fits best counts."""
    f1, exact = [], []
    for answer, answers in zip(given, right, strict=True):
        choices = answers or [""]
        f1.append(max(overlap(choice, answer) for choice in choices))
        exact.append(any(normalized(choice) == normalized(answer) for choice in choices))
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}


def normalized(text: str) -> str:
    """As SQuAD compares: small letters, no punctuation, no articles, single spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def overlap(right: str, given: str) -> float:
    """F1 of the words, as SQuAD counts them; there is no light library that does."""
    a, b = normalized(right).split(), normalized(given).split()
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))
