"""Labels as what a model's outputs are to be: numbers by output, for each sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.pruning.evaluation.answers import right_answers
from sparsec.pruning.evaluation.labels import class_index
from sparsec.pruning.evaluation.texts import Sample
from sparsec.pruning.training.losses import IGNORE
from sparsec.serving.text import Text

Targets = Mapping[str, Any]


def targets(
    task: str, sample: Sample, where: str, text: Text, max_length: int,
    outputs: Sequence[str], names: Sequence[str],
) -> Targets:  # fmt: skip
    """What a sample's label says of the outputs; empty if it has none.

    Args:
        task: as :mod:`sparsec.pruning.evaluation.tasks` names it.
        where: what messages call the sample.
        text: the tokenizer.
        max_length: tokens after which texts are cut.
        outputs: the model's, in order.
        names: of its labels.

    Raises:
        InputError: the label is not one of the model's, or the task's texts have none.
    """
    label = sample.label
    if label is None:
        return {}
    if task == "text-classification":
        return {outputs[0]: class_index(label, names, where)}
    if task == "multi-label-classification":
        chosen = label if isinstance(label, (list, tuple)) else [label]
        row = np.zeros(len(names), np.float32)
        row[[class_index(one, names, where) for one in chosen]] = 1
        return {outputs[0]: row}
    if task == "regression":
        return {outputs[0]: _number(label, where)}
    if task == "token-classification":
        return {outputs[0]: _of_tokens(sample, where, text, max_length, names)}
    if task == "question-answering":
        return _of_answer(sample, where, text, max_length, outputs)
    raise InputError(
        f"{where} has a label: for {task} training takes none; leave {argument('labels')} out"
    )


def _number(label: Any, where: str) -> NDArray[np.float32]:
    try:
        return np.array([float(label)], np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{where}: a number is needed, not {label!r:.80}") from None


def _of_tokens(
    sample: Sample, where: str, text: Text, max_length: int, names: Sequence[str]
) -> NDArray[np.int64]:
    """The label of each word at its first token; nothing elsewhere: so they are read."""
    label = sample.label.split() if isinstance(sample.label, str) else sample.label
    if not isinstance(label, (list, tuple)) or any(isinstance(one, Mapping) for one in label):
        raise InputError(f"{where}: training takes a list of labels, one for each word")
    words = sample.words or tuple(sample.text.split())
    if len(words) != len(label):
        raise InputError(f"{where} has {len(label)} labels for {len(words)} words")
    numbers = [class_index(one, names, where) for one in label]
    encoding = text.fit(text.encode_words(words), max_length)
    made = np.full(len(encoding.ids), IGNORE, np.int64)
    last: int | None = None
    for i, word in enumerate(encoding.word_ids):
        special = encoding.special_tokens_mask[i]
        if word is not None and not special and word != last:
            made[i] = numbers[word]
            last = word
    return made


def _of_answer(
    sample: Sample, where: str, text: Text, max_length: int, outputs: Sequence[str]
) -> Targets:
    """First and last token of the answer; the first token of all where there is none."""
    answers = right_answers(sample.label, where)
    question, context = text.encode(sample.text), text.encode(sample.pair or "")
    span = _answer_tokens(context, sample.pair or "", answers or [])
    if answers and span is None:
        return dict.fromkeys(outputs[:2], IGNORE)
    start, end = (0, 0) if span is None else span
    if span is not None:
        room = max_length - text.special_tokens(pair=True)
        if len(question) + len(context) > room:  # where it is cut, it cannot be pointed at
            return dict.fromkeys(outputs[:2], IGNORE)
        joined = text.join(question, context)
        first = next(i for i, s in enumerate(joined.sequence_ids) if s == 1)
        start, end = first + start, first + end
    return {outputs[0]: start, outputs[1]: end}


def _answer_tokens(context: Encoding, text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """First and last token of the first answer that the context has."""
    for answer in answers:
        at = text.find(answer)
        if at < 0:
            continue
        inside = [
            i
            for i, (start, end) in enumerate(context.offsets)
            if start < at + len(answer) and end > at and end > start
        ]
        if inside:
            return inside[0], inside[-1]
    return None
