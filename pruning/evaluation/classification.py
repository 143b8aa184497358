"""Labels of texts: the same ones, as certain, and as often right?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.pruning.evaluation.labels import class_index, shared_labels
from sparsec.pruning.evaluation.models import Contender, Found
from sparsec.pruning.evaluation.parts import Histogram, Matrix, Plot, Scatter
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import Job, TextClassificationPipeline
from sparsec.serving.runner import Outputs

Logits = NDArray[np.float64]
Rows = Sequence[tuple[Logits, Logits]]

MOST_LABELS = 30
"""Labels that a table of who says what may have."""


class _Heads(Task[Logits, tuple[Logits, Logits]]):
    """What the kinds of classification share: an output per label, of texts or of pairs."""

    pipeline = TextClassificationPipeline.task

    def __init__(self) -> None:
        self._names: list[str] = []
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        self._candidate: Contender | None = None
        self.warnings: list[str] = []

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        self._names, order, said = shared_labels(reference, candidate)
        self._order, self._candidate = order, candidate
        self.warnings += said
        return samples

    def prepare(self, model: Contender, sample: Sample) -> Job:
        return Job([model.features(sample.text, sample.pair)])

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Logits:
        logits = outputs[0][model.pipeline.reads[0]].astype(np.float64)
        return logits[self._order] if model is self._candidate else logits

    def pair(self, sample: Sample, reference: Logits, candidate: Logits) -> tuple[Logits, Logits]:
        return reference, candidate


class Classification(_Heads):
    """One label for each text."""

    name = "text-classification"
    agreement: ClassVar[Mapping[str, Metric]] = {
        "agreement": Metric("same label", "share of the texts with the same best label"),
        "kl_mean": Metric("KL divergence", "of the candidate's probabilities, mean", lower=True),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy", "share of the texts with the right label"),
        "macro_f1": Metric("macro F1", "F1 of each label, averaged"),
    }

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        super().settle(reference, candidate, samples)
        for number, sample in enumerate(samples, 1):
            if sample.label is not None:
                class_index(sample.label, self._names, f"text {number}")
        return samples

    def compare(self, samples: Sequence[Sample], rows: Rows) -> Findings:
        from scipy.special import log_softmax

        logs = [log_softmax(np.stack(side), axis=1) for side in zip(*rows, strict=True)]
        best = [side.argmax(axis=1) for side in logs]
        chances = [np.exp(side) for side in logs]
        divergence = kl(logs[0], logs[1])
        labels = [_index(sample, self._names) for sample in samples]
        known = np.array([-1 if label is None else label for label in labels])
        scores: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {})
        if (known >= 0).all():
            scores = label_scores(known, best[0]), label_scores(known, best[1])
        return Findings(
            {
                "agreement": float((best[0] == best[1]).mean()),
                "kl_mean": float(divergence.mean()),
            },
            np.minimum(*chances).sum(axis=1).tolist(),
            [
                Said(self._say(chances[0][i]), self._say(chances[1][i]), self._name(labels[i]))
                for i in range(len(rows))
            ],
            scores,
            self._plots(chances, best),
            self.warnings,
        )

    def _say(self, chances: Logits) -> str:
        best = int(chances.argmax())
        return f"{self._names[best]} ({chances[best]:.2f})"

    def _name(self, label: int | None) -> str | None:
        return None if label is None else self._names[label]

    def _plots(self, chances: Sequence[Logits], best: Sequence[NDArray[np.int64]]) -> list[Plot]:
        from sklearn.metrics import confusion_matrix

        plots: list[Plot] = []
        count = len(self._names)
        if count <= MOST_LABELS:
            table = confusion_matrix(*best, labels=range(count))
            rows = tuple(tuple(row) for row in table.tolist())
            plots.append(Matrix("Labels of the two models", tuple(self._names), rows))
        index = np.arange(len(best[0]))
        of = [tuple(np.round(side[index, best[0]], 4).tolist()) for side in chances]
        title = "Probability of the reference's label"
        return [*plots, Scatter(title, "reference", "candidate", of[0], of[1])]


class MultiLabel(_Heads):
    """Any number of labels for each text; those of probability above one half."""

    name = "multi-label-classification"
    agreement: ClassVar[Mapping[str, Metric]] = {
        "agreement": Metric("same labels", "share of the texts with exactly the same labels"),
        "label_agreement": Metric("F1", "of the candidate's labels against the reference's, micro"),
        "kl_mean": Metric("KL divergence", "of the candidate's probabilities, mean", lower=True),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "accuracy": Metric("accuracy", "share of the texts with exactly the right labels"),
        "micro_f1": Metric("micro F1", "of all labels together"),
        "macro_f1": Metric("macro F1", "F1 of each label, averaged"),
    }

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        super().settle(reference, candidate, samples)
        for number, sample in enumerate(samples, 1):
            if sample.label is not None:
                self._indices(sample.label, f"text {number}")
        return samples

    def _indices(self, label: Any, where: str) -> list[int]:
        labels = label if isinstance(label, (list, tuple)) else [label]
        return [class_index(one, self._names, where) for one in labels]

    def compare(self, samples: Sequence[Sample], rows: Rows) -> Findings:
        from scipy.special import expit, log_expit
        from sklearn.metrics import f1_score

        logits = [np.stack(side) for side in zip(*rows, strict=True)]
        chances = [expit(side) for side in logits]
        sets = [side > 0.5 for side in chances]
        # Each label is a choice between two.
        logs = [np.stack([log_expit(side), log_expit(-side)], -1) for side in logits]
        divergence = kl(logs[0], logs[1]).mean(axis=1)
        scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
        right = np.zeros_like(sets[0])
        labelled = samples[0].label is not None
        if labelled:
            for row, sample in zip(right, samples, strict=True):
                row[self._indices(sample.label, "")] = True
            for found, side in zip(scores, sets, strict=True):
                found["accuracy"] = float((right == side).all(axis=1).mean())
                for how in ("micro", "macro"):
                    f1 = f1_score(right, side, average=how, zero_division=1.0)
                    found[f"{how}_f1"] = float(f1)
        return Findings(
            {
                "agreement": float((sets[0] == sets[1]).all(axis=1).mean()),
                "label_agreement": float(f1_score(*sets, average="micro", zero_division=1.0)),
                "kl_mean": float(divergence.mean()),
            },
            (1 - np.abs(chances[0] - chances[1]).mean(axis=1)).tolist(),
            [
                Said(
                    self._say(sets[0][i]),
                    self._say(sets[1][i]),
                    self._say(right[i]) if labelled else None,
                )
                for i in range(len(rows))
            ],
            scores,
            [Histogram("Divergence of a text's probabilities", "KL", tuple(divergence.tolist()))],
            self.warnings,
        )

    def _say(self, chosen: NDArray[np.bool_]) -> str:
        return ", ".join(self._names[i] for i in np.flatnonzero(chosen)) or "none"


class Regression(_Heads):
    """One number for each text or pair, such as a similarity or a relevance."""

    name = "regression"
    agreement: ClassVar[Mapping[str, Metric]] = {
        "pearson": Metric("Pearson", "correlation of the two models' numbers"),
        "spearman": Metric("Spearman", "do the numbers rank alike?"),
        "difference_mean": Metric("difference, mean", "of the two numbers of a text", lower=True),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "label_pearson": Metric("Pearson", "correlation with the labels"),
        "label_spearman": Metric("Spearman", "do the numbers rank as the labels do?"),
    }

    def options(self, found: Found, samples: Sequence[Sample]) -> dict[str, Any]:
        for number, sample in enumerate(samples, 1):
            try:
                float(0 if sample.label is None else sample.label)
            except (TypeError, ValueError):
                raise InputError(
                    f"text {number}: the label {sample.label!r} is no number, and the model gives "
                    f"numbers"
                ) from None
        return {}

    def compare(self, samples: Sequence[Sample], rows: Rows) -> Findings:
        reference, candidate = (np.concatenate(side) for side in zip(*rows, strict=True))
        difference = np.abs(reference - candidate)
        spread = float(np.ptp(reference)) or 1.0
        scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
        if samples[0].label is not None:
            labels = np.array([float(sample.label) for sample in samples])
            for found, side in zip(scores, (reference, candidate), strict=True):
                found["label_pearson"], found["label_spearman"] = correlations(labels, side)
        pearson, spearman = correlations(reference, candidate)
        numbers = [tuple(side.tolist()) for side in (reference, candidate)]
        return Findings(
            {
                "pearson": pearson,
                "spearman": spearman,
                "difference_mean": float(difference.mean()),
            },
            np.maximum(0.0, 1 - difference / spread).tolist(),
            [
                Said(f"{a:.3f}", f"{b:.3f}", None if s.label is None else f"{float(s.label):g}")
                for a, b, s in zip(reference, candidate, samples, strict=True)
            ],
            scores,
            [
                Scatter(
                    "Numbers of the two models", "reference", "candidate", numbers[0], numbers[1]
                )
            ],
            self.warnings,
        )


def _index(sample: Sample, names: Sequence[str]) -> int | None:
    return None if sample.label is None else class_index(sample.label, names, "")


def kl(reference: NDArray[Any], candidate: NDArray[Any]) -> NDArray[np.float64]:
    """KL divergence of the candidate from the reference, both logarithms of probabilities over the
    last axis."""
    # Not of probabilities: those may be too small for a number, which logarithms never are.
    terms = np.exp(reference) * (reference - candidate)
    found: NDArray[np.float64] = np.maximum(terms.sum(axis=-1), 0.0)
    return found


def label_scores(right: NDArray[Any], given: NDArray[Any]) -> dict[str, float]:
    """Accuracy and macro F1."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(right, given)),
        "macro_f1": float(f1_score(right, given, average="macro")),
    }


def correlations(one: NDArray[Any], two: NDArray[Any]) -> tuple[float, float]:
    """(Pearson's, Spearman's); NaN where one side is all alike."""
    from scipy.stats import pearsonr, spearmanr

    if len(one) < 2 or not np.ptp(one) or not np.ptp(two):
        return float("nan"), float("nan")
    return float(pearsonr(one, two).statistic), float(spearmanr(one, two).statistic)
