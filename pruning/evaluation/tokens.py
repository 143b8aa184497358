"""Labels of tokens, compared word by word: names and places, parts of speech.

A word has the label of its first token.  Words are those of the texts where they came split, else
those of the reference's tokenizer; a candidate with another tokenizer answers for the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.pruning.evaluation.classification import kl, label_scores
from sparsec.pruning.evaluation.labels import class_index, shared_labels
from sparsec.pruning.evaluation.models import Contender
from sparsec.pruning.evaluation.parts import Bars, Matrix, Plot
from sparsec.pruning.evaluation.task import Findings, Metric, Said, Task
from sparsec.pruning.evaluation.texts import Sample
from sparsec.serving.pipelines import Job, TokenClassificationPipeline
from sparsec.serving.pipelines.labels import OUTSIDE, Label, parse
from sparsec.serving.runner import Outputs
from sparsec.serving.text import Place, places

STRIDE = 64
"""Tokens by which the parts of a long text overlap, at most half of one."""

MOST_LABELS = 24

Numbers = NDArray[np.int64]
"""Labels of the words of a text."""

Span = tuple[int, int]
"""Where a word starts and ends in its text."""

Entity = tuple[int, int, int, str]
"""Its text, its first word, the word behind its last one, its kind."""


@dataclass
class TokenJob(Job):
    """A text in windows.

    Attributes:
        places: of all tokens.
        windows: of each item, the index of its first token in the text, and which of its tokens
            are the text's.
    """

    places: list[Place] = field(default_factory=list)
    windows: list[tuple[int, list[int]]] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """What a model says of the tokens of a text.

    Attributes:
        places: of the tokens.
        logs: ``[tokens, labels]``, logarithms of probabilities, in the reference's order.
    """

    places: list[Place]
    logs: NDArray[np.float64]


@dataclass(frozen=True)
class Words:
    """The words of a text, and what the models say of each: ``[words, labels]``."""

    spans: tuple[Span, ...]
    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]


class Tokens(Task[Answer, Words]):
    """A label for each token."""

    name = "token-classification"
    pipeline = TokenClassificationPipeline.task
    agreement: ClassVar[Mapping[str, Metric]] = {
        "entity_agreement": Metric("entity F1", "the candidate's entities against the reference's"),
        "word_agreement": Metric("same label", "share of the words with the same label"),
        "kl_mean": Metric("KL divergence", "of the candidate's probabilities, mean", lower=True),
    }
    scores: ClassVar[Mapping[str, Metric]] = {
        "entity_f1": Metric("entity F1", "of whole entities, micro"),
        "word_accuracy": Metric("word accuracy", "share of the words with the right label"),
        "macro_f1": Metric("macro F1", "F1 of each label of words, averaged"),
    }

    def __init__(self) -> None:
        self._names: list[str] = []
        self._labels: list[Label] = []
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)
        self._candidate: Contender | None = None
        self._warnings: list[str] = []

    @property
    def has_entities(self) -> bool:
        """Whether labels are those of entities; parts of speech have none."""
        return any(label.prefix or label.name == OUTSIDE for label in self._labels)

    def settle(
        self, reference: Contender, candidate: Contender, samples: Sequence[Sample]
    ) -> Sequence[Sample]:
        self._names, self._order, said = shared_labels(reference, candidate)
        self._labels = parse(self._names)
        self._candidate = candidate
        self._warnings += said
        return [self._settled(sample, f"text {i}") for i, sample in enumerate(samples, 1)]

    def _settled(self, sample: Sample, where: str) -> Sample:
        """With words, if the label is one of words; checked."""
        if sample.pair is not None:
            raise InputError(f"{where} is a pair: tokens of single texts have labels")
        label = sample.label
        if label is None:
            return sample
        if isinstance(label, str):
            label = label.split()
        if not isinstance(label, (list, tuple)):
            raise InputError(f"{where}: a list of labels of words, or of entities, is needed")
        if all(isinstance(one, Mapping) for one in label) and sample.words is None:
            return replace(sample, label=[self._entity(one, sample, where) for one in label])
        words = sample.words if sample.words is not None else tuple(sample.text.split())
        if len(words) != len(label):
            raise InputError(f"{where} has {len(label)} labels for {len(words)} words")
        numbers = [class_index(one, self._names, where) for one in label]
        return replace(sample, text=" ".join(words), words=words, label=numbers)

    def _entity(
        self, entity: Mapping[str, Any], sample: Sample, where: str
    ) -> tuple[int, int, str]:
        kinds = {label.entity for label in self._labels}
        kind = next((entity[k] for k in ("label", "entity", "entity_group") if k in entity), None)
        start, end = entity.get("start"), entity.get("end")
        if not isinstance(start, int) or not isinstance(end, int) or kind is None:
            raise InputError(f"{where}: an entity needs start, end and label, not {entity!r:.80}")
        if not 0 <= start < end <= len(sample.text):
            raise InputError(f"{where}: no entity can be at {start} to {end}, outside of the text")
        if kind not in kinds:
            raise InputError(
                f"{where}: the models have no entity {kind!r}; they have {', '.join(sorted(kinds))}"
            )
        return start, end, str(kind)

    def prepare(self, model: Contender, sample: Sample) -> Job:
        text = model.text
        starts: list[int] | None = None
        if sample.words is None:
            encoding = text.encode(sample.text)
        else:
            encoding = text.encode_words(sample.words)
            starts = [start for start, _ in _spans_of_words(sample.words)]
        job = TokenJob(places=places(encoding, sample.text, starts))
        room = model.max_length - text.special_tokens()
        for first, piece in text.windows(encoding, room, min(STRIDE, room // 2)):
            joined = text.join(piece)
            own = [i for i, which in enumerate(joined.sequence_ids) if which is not None]
            job.windows.append((first, own))
            job.items.append(text.features(joined))
        return job

    def read(self, model: Contender, sample: Sample, job: Job, outputs: list[Outputs]) -> Answer:
        from scipy.special import log_softmax

        assert isinstance(job, TokenJob)
        name = model.pipeline.reads[0]
        order = self._order if model is self._candidate else np.arange(len(self._names))
        count = len(job.places)
        logs = np.zeros((count, len(order)))
        depth = np.full(count, -1)
        for (first, own), output in zip(job.windows, outputs, strict=True):
            found = log_softmax(output[name].astype(np.float64)[own], axis=-1)[:, order]
            # Of the windows that see a token the one that sees most around it decides.
            before, after = np.arange(len(own)), np.arange(len(own))[::-1]
            if first == 0:
                before = before + count
            if first + len(own) == count:
                after = after + count
            seen = np.minimum(before, after)
            part = slice(first, first + len(own))
            better = seen > depth[part]
            logs[part][better] = found[better]
            depth[part][better] = seen[better]
        return Answer(job.places, logs)

    def pair(self, sample: Sample, reference: Answer, candidate: Answer) -> Words:
        if sample.words is not None:
            spans = _spans_of_words(sample.words)
        else:
            spans = _spans_of_tokens(reference.places)
        return Words(
            tuple(spans), *(self._of_words(spans, answer) for answer in (reference, candidate))
        )

    def _of_words(self, spans: Sequence[Span], answer: Answer) -> NDArray[np.float64]:
        """The answer for the first token of each word."""
        outside = self._names.index(OUTSIDE) if OUTSIDE in self._names else 0
        # What a tokenizer makes no token of is no entity.
        nothing = np.full(len(self._names), -30.0)
        nothing[outside] = 0.0
        rows = []
        token = 0
        for start, end in spans:
            while token < len(answer.places) and (
                answer.places[token].end <= max(start, answer.places[token].start)
            ):
                token += 1
            there = token < len(answer.places) and answer.places[token].start < end
            rows.append(answer.logs[token] if there else nothing)
        return np.stack(rows) if rows else np.zeros((0, len(self._names)))

    def compare(self, samples: Sequence[Sample], rows: Sequence[Words]) -> Findings:
        best = [[getattr(row, side).argmax(axis=1) for row in rows] for side in _SIDES]
        if not sum(map(len, best[0])):
            raise InputError("the texts have no words")
        right: list[Numbers] | None = None
        if samples[0].label is not None:
            right = [self._right(s, row) for s, row in zip(samples, rows, strict=True)]
        scores: tuple[dict[str, float], dict[str, float]] = ({}, {})
        if right is not None:
            scores = self._scores(right, best[0]), self._scores(right, best[1])
        said = [
            Said(
                self._say(sample, row, best[0][i]),
                self._say(sample, row, best[1][i]),
                None if right is None else self._say(sample, row, right[i]),
            )
            for i, (sample, row) in enumerate(zip(samples, rows, strict=True))
        ]
        return Findings(
            self._agreement(rows, best),
            [_alike(row) for row in rows],
            said,
            scores,
            self._plots(best, right),
            self._warnings,
        )

    def _agreement(
        self, rows: Sequence[Words], best: Sequence[Sequence[Numbers]]
    ) -> dict[str, float]:
        logs = [np.concatenate([getattr(row, side) for row in rows]) for side in _SIDES]
        found = {}
        if self.has_entities:
            found["entity_agreement"] = entity_f1(*(map(self._tags, side) for side in best))
        one, two = (np.concatenate(side) for side in best)
        found["word_agreement"] = float((one == two).mean())
        found["kl_mean"] = float(kl(logs[0], logs[1]).mean())
        return found

    def _scores(self, right: Sequence[Numbers], given: Sequence[Numbers]) -> dict[str, float]:
        of_words = label_scores(np.concatenate(right), np.concatenate(given))
        if not self.has_entities:
            return {"word_accuracy": of_words["accuracy"], "macro_f1": of_words["macro_f1"]}
        f1 = entity_f1(map(self._tags, right), map(self._tags, given))
        return {"entity_f1": f1, "word_accuracy": of_words["accuracy"]}

    def _plots(
        self, best: Sequence[Sequence[Numbers]], right: Sequence[Numbers] | None
    ) -> list[Plot]:
        if not self.has_entities:
            if len(self._names) > MOST_LABELS:
                return []
            return [self._matrix([np.concatenate(side) for side in best])]
        tags = {who: list(map(self._tags, side)) for who, side in zip(_SIDES, best, strict=True)}
        title = "F1 against the reference's entities"
        plots: list[Plot] = [by_kind(title, {"candidate": tags["candidate"]}, tags["reference"])]
        if right is not None:
            plots.append(by_kind("F1 against the labels", tags, list(map(self._tags, right))))
        return plots

    def _tags(self, numbers: Numbers) -> list[str]:
        """Labels of words as B-, I- and O, whatever scheme the model has."""
        tags = []
        last: Label | None = None
        for number in numbers:
            label = self._labels[number]
            if label.name == OUTSIDE:
                tags.append(OUTSIDE)
            else:
                goes_on = last is not None and label.continues(last)
                tags.append(f"{'I' if goes_on else 'B'}-{label.entity}")
            last = label
        return tags

    def _right(self, sample: Sample, row: Words) -> Numbers:
        """The labels as numbers, one a word."""
        if sample.words is not None:
            return np.array(sample.label, np.int64)
        outside = self._names.index(OUTSIDE) if OUTSIDE in self._names else 0
        numbers = np.full(len(row.spans), outside)
        for start, end, kind in sample.label:
            inside = [i for i, span in enumerate(row.spans) if span[0] < end and span[1] > start]
            for place, i in enumerate(inside):
                numbers[i] = self._number(kind, first=place == 0)
        return numbers

    def _number(self, kind: str, first: bool) -> int:
        """The label of a word of an entity."""
        fitting = [i for i, label in enumerate(self._labels) if label.entity == kind]
        wanted = "BSU" if first else "IEL"
        return next((i for i in fitting if self._labels[i].prefix in tuple(wanted)), fitting[0])

    def _say(self, sample: Sample, row: Words, numbers: Numbers) -> str:
        """The entities, or every word with its label."""
        if not self.has_entities:
            named = zip(row.spans, numbers, strict=True)
            return " ".join(f"{sample.text[slice(*span)]}/{self._names[n]}" for span, n in named)
        found: list[list[Any]] = []
        for span, tag in zip(row.spans, self._tags(numbers), strict=True):
            if tag.startswith("I-"):
                found[-1][2] = span[1]
            elif tag != OUTSIDE:
                found.append([tag[2:], *span])
        return (
            "; ".join(f"{kind}: {sample.text[start:end]}" for kind, start, end in found) or "none"
        )

    def _matrix(self, flat: Sequence[NDArray[np.int64]]) -> Matrix:
        from sklearn.metrics import confusion_matrix

        table = confusion_matrix(*flat, labels=range(len(self._names)))
        counts = tuple(tuple(row) for row in table.tolist())
        return Matrix("Labels of the two models, words", tuple(self._names), counts)


_SIDES = ("reference", "candidate")


def _spans_of_words(words: Sequence[str]) -> list[Span]:
    """Where the words are in their join by spaces."""
    ends = np.cumsum([len(word) + 1 for word in words])
    return [(int(end) - 1 - len(word), int(end) - 1) for end, word in zip(ends, words, strict=True)]


def _spans_of_tokens(found: Sequence[Place]) -> list[Span]:
    """Where the words are that tokens belong to."""
    spans: list[list[int]] = []
    for place in found:
        if place.start >= place.end:
            continue
        if place.head or not spans:
            spans.append([place.start, place.end])
        else:
            spans[-1][1] = max(spans[-1][1], place.end)
    return [(start, end) for start, end in spans]


def _alike(row: Words) -> float:
    """How much of the probability of a text's labels the two models share."""
    if not row.spans:
        return 1.0
    return float(np.minimum(np.exp(row.reference), np.exp(row.candidate)).sum(axis=1).mean())


def entities(side: Iterable[Sequence[str]]) -> set[Entity]:
    """Those that the tags of the words of some texts make, as conlleval counts them.

    Args:
        side: of each text, its tags: B-, I- and O.  What goes on with no entity of its kind begins
            one, whatever its prefix is.
    """
    found = set()
    for text, tags in enumerate(side):
        start, kind = 0, ""
        for i, tag in enumerate([*tags, OUTSIDE]):
            if kind and tag == f"I-{kind}":
                continue
            if kind:
                found.add((text, start, i, kind))
            start, kind = i, "" if tag == OUTSIDE else tag[2:]
    return found


def entity_f1(right: Iterable[Sequence[str]], given: Iterable[Sequence[str]]) -> float:
    """Micro F1 of whole entities; 1 where neither side has one."""
    return _f1(entities(right), entities(given))


def _f1(right: set[Entity], given: set[Entity]) -> float:
    total = len(right) + len(given)
    return 2 * len(right & given) / total if total else 1.0


def by_kind(
    title: str, series: Mapping[str, Sequence[list[str]]], right: Sequence[list[str]]
) -> Bars:
    """F1 of each kind of entity that there is on the right side."""
    sides = {name: _of_kinds(given) for name, given in series.items()}
    wanted = _of_kinds(right)
    kinds = tuple(sorted(wanted))
    return Bars(
        title,
        kinds,
        {
            name: tuple(_f1(wanted[kind], found.get(kind, set())) for kind in kinds)
            for name, found in sides.items()
        },
    )


def _of_kinds(side: Iterable[Sequence[str]]) -> dict[str, set[Entity]]:
    """The entities of each kind."""
    found: dict[str, set[Entity]] = {}
    for entity in entities(side):
        found.setdefault(entity[-1], set()).add(entity)
    return found
