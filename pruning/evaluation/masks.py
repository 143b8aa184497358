"""Words for gaps: the same ones, and as often those that stood there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.pruning.evaluation.classification import kl
from sparsec.pruning.evaluation.embeddings import shared
from sparsec.pruning.evaluation.models import Contender
from sparsec.pruning.evaluation.parts import Bars, Histogram, Plot
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import FillMaskPipeline, Job
from sparsec.serving.runner import Outputs
from sparsec.serving.text import Text, places

SHARE = 0.15
"""Of the words of a text without a mask, how many are hidden; at least one."""

BEST = 5

Logs = NDArray[np.float32]


@dataclass(frozen=True)
class Gaps:
    """The gaps of a text.

    Attributes:
        reference, candidate: ``[gaps, 5]``, the most likely tokens, best first.
        divergence: ``[gaps]``.
        right: the tokens that stood there; empty where that is not known.
    """

    reference: NDArray[np.int64]
    candidate: NDArray[np.int64]
    divergence: NDArray[np.float64]
    right: tuple[int, ...]


class FillMask(Task[Logs, Gaps]):
    """Tokens in place of masks.  Texts without a mask get some, in place of words that are one
    token; those words are then known to be right.

    Args:
        seed: of the choice of words.
    """

    name = "fill-mask"
    pipeline = FillMaskPipeline.task
    agreement: ClassVar[Mapping[str, Metric]] = {
        "top1_agreement": Metric("same token", "share of the gaps with the same best token"),
        "top5_agreement": Metric("5 best shared", "share of the 5 best tokens that are the same"),
        "kl_mean": Metric("KL divergence", "of the candidate's probabilities, mean", lower=True),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "top1_accuracy": Metric(
            "right token", "share of the gaps where the best token stood there"
        ),
        "top5_accuracy": Metric("among 5 best", "share where it is one of the 5 best"),
    }

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._text: Text | None = None

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        text = self._text = reference.text
        vocabularies = [model.text.tokenizer.get_vocab() for model in (reference, candidate)]
        if vocabularies[0] != vocabularies[1]:
            raise InputError("the outputs do not match: the two models have different vocabularies")
        mask = text.specials["mask"]
        found = []
        for number, sample in enumerate(samples, 1):
            if mask in sample.text:
                found.append(self._labelled(text, sample, f"text {number}"))
            elif sample.label is not None:
                raise InputError(f"text {number} has a label and no {mask}")
            else:
                found.append(self._hidden(text, sample, reference.max_length))
        found = [sample for sample in found if mask in sample.text]
        if not found:
            raise InputError(f"no text has a {mask}, or a word that is one token")
        return found

    def _labelled(self, text: Text, sample: Sample, where: str) -> Sample:
        if sample.label is None:
            return sample
        words = [sample.label] if isinstance(sample.label, str) else list(sample.label)
        numbers = []
        for word in words:
            ids = text.ids(str(word))
            if len(ids) != 1:
                raise InputError(f"{where}: {word!r} is not one token")
            numbers.append(int(ids[0]))
        return replace(sample, label=tuple(numbers))

    def _hidden(self, text: Text, sample: Sample, max_length: int) -> Sample:
        """With some words hidden; as it is where no word can be."""
        encoding = text.encode(sample.text)
        text.cut(encoding, max_length - text.special_tokens())
        where = places(encoding, sample.text)
        unknown = text.special_id("unk")
        alone = [
            i
            for i, place in enumerate(where)
            if place.head
            and place.start < place.end
            and sample.text[place.start : place.end].isalnum()
            and (i + 1 == len(where) or where[i + 1].head)
            and encoding.ids[i] != unknown
        ]
        if not alone:
            return sample
        count = min(len(alone), max(1, round(SHARE * len(where))))
        chosen = np.sort(self._rng.choice(alone, count, replace=False))
        hidden, behind = "", 0
        for i in chosen:
            hidden += sample.text[behind : where[i].start] + text.specials["mask"]
            behind = where[i].end
        hidden += sample.text[behind:]
        return replace(sample, text=hidden, label=tuple(int(encoding.ids[i]) for i in chosen))

    def prepare(self, model: Contender, sample: Sample) -> Job:
        return model.pipeline.prepare(model.pipeline.parse(sample.text))

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Logs:
        from scipy.special import log_softmax

        masks: list[int] = job.masks[0]  # type: ignore[attr-defined]
        found: Logs = log_softmax(outputs[0][model.pipeline.reads[0]][masks], axis=-1)
        return found

    def pair(self, sample: Sample, reference: Logs, candidate: Logs) -> Gaps:
        if reference.shape[1] != candidate.shape[1]:
            raise InputError(
                f"the outputs do not match: the candidate knows {candidate.shape[1]} tokens, the "
                f"reference {reference.shape[1]}"
            )
        both = [
            np.argsort(-side, axis=1, kind="stable")[:, :BEST] for side in (reference, candidate)
        ]
        right = sample.label or ()
        # Where a mask was cut off it is not known which.
        right = right if len(right) == len(reference) else ()
        divergence = kl(reference.astype(np.float64), candidate.astype(np.float64))
        return Gaps(both[0], both[1], divergence, right)

    def compare(self, samples: Sequence[Sample], rows: Sequence[Gaps]) -> Findings:
        reference, candidate = (_joined(rows, side) for side in _SIDES)
        divergence = np.concatenate([row.divergence for row in rows])
        agreement = {
            "top1_agreement": float((reference[:, 0] == candidate[:, 0]).mean()),
            "top5_agreement": shared(reference, candidate),
            "kl_mean": float(divergence.mean()),
        }
        plots: list[Plot] = [
            Histogram("Divergence of a gap's probabilities", "KL", tuple(divergence.tolist()))
        ]
        scores = _accuracies([row for row in rows if row.right])
        if scores[0]:
            titles = tuple(metric.title for metric in self.scores.values())
            series = {who: tuple(s.values()) for who, s in zip(_SIDES, scores, strict=True)}
            plots.insert(0, Bars("Gaps filled with what stood there", titles, series))
        said = [
            Said(
                self._say(row.reference[:, 0]),
                self._say(row.candidate[:, 0]),
                self._say(row.right) if row.right else None,
            )
            for row in rows
        ]
        per_text = [shared(row.reference, row.candidate) for row in rows]
        return Findings(agreement, per_text, said, scores, plots)

    def _say(self, tokens: Sequence[int] | NDArray[np.int64]) -> str:
        assert self._text is not None
        return ", ".join(self._text.decode([int(token)]).strip() for token in tokens)


_SIDES = ("reference", "candidate")


def _joined(rows: Sequence[Gaps], side: str) -> NDArray[np.int64]:
    """``[gaps, 5]`` of one model."""
    return np.concatenate([getattr(row, side) for row in rows])


def _accuracies(known: Sequence[Gaps]) -> tuple[dict[str, float], dict[str, float]]:
    """Of both models, how often what stood there is the best token, or among the best."""
    scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
    if known:
        right = np.concatenate([row.right for row in known])[:, None]
        for found, side in zip(scores, _SIDES, strict=True):
            hits = _joined(known, side) == right
            found["top1_accuracy"] = float(hits[:, 0].mean())
            found["top5_accuracy"] = float(hits.any(axis=1).mean())
    return scores
