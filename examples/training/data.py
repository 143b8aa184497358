"""Examples of a task -> batches of token ids and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer

from examples.encoders.config import Head
from examples.training.templates import Span

IGNORE = -100  # what torch's cross entropy leaves out


@dataclass(frozen=True)
class Example:
    """A text and what is right for it.

    Attributes:
        text, pair: the text, or question and passage.
        spans: entities in `text`, words of it to be found, or the answer in `pair` (the first).
        label: number of the text's label.
    """

    text: str
    pair: str | None = None
    spans: tuple[Span, ...] = ()
    label: int = 0


@dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        folder: where the model is written.
        labels: of id2label.
        layers: how many of MiniLM's six layers are used.
        pieces: how many of its WordPieces are kept by frequency.
        words: texts that must not become harder to spell by that.
        sample: (random numbers, held out) -> an example.  Held-out ones have templates and names
            that others never have.
        steps: of training in float.
        minutes: of training while it is pruned and rounded.
        batch: examples in a step.
        sparsity: share of the encoder's 4-blocks that are pruned.
    """

    folder: Path
    head: Head
    labels: tuple[str, ...]
    layers: int
    pieces: int
    words: tuple[str, ...]
    sample: Callable[[np.random.Generator, bool], Example]
    steps: int
    minutes: float = 10.0
    batch: int = 48
    sparsity: float = 0.75
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class Batch:
    """int64 ids, mask, types [B, S] and targets [B, rows] (see `Encoder.forward`)."""

    ids: np.ndarray
    mask: np.ndarray
    types: np.ndarray
    targets: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the model reads, in its order."""
        return self.ids, self.mask, self.types


def token_labels(encoding: Encoding, spans: Sequence[Span], labels: Sequence[str]) -> list[int]:
    """The label of each token: B- on the first of an entity, I- on the others, O elsewhere."""
    result = []
    previous: Span | None = None
    for (start, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True):
        if special:
            result.append(IGNORE)
            continue
        inside = next((s for s in spans if s.start <= start and end <= s.end), None)
        if inside is None:
            result.append(labels.index("O"))
        else:
            result.append(labels.index(f"{'I' if inside is previous else 'B'}-{inside.slot}"))
        previous = inside
    return result


def answer_tokens(encoding: Encoding, answer: Span) -> list[int]:
    """First and last token of an answer in the second text."""
    tokens = [
        i
        for i, (sequence, (start, end)) in enumerate(
            zip(encoding.sequence_ids, encoding.offsets, strict=True)
        )
        if sequence == 1 and answer.start <= start and end <= answer.end
    ]
    return [tokens[0], tokens[-1]]


def hide(encoding: Encoding, spans: Sequence[Span], ids: np.ndarray, mask: int) -> list[int]:
    """Put the mask token on tokens in `spans`; returns their ids, and IGNORE for all others."""
    result = []
    for i, (start, end) in enumerate(encoding.offsets):
        hidden = start < end and any(s.start <= start and end <= s.end for s in spans)
        result.append(encoding.ids[i] if hidden else IGNORE)
        if hidden:
            ids[i] = mask
    return result


def collate(task: Task, tokenizer: Tokenizer, examples: Sequence[Example]) -> Batch:
    """Tokenize examples and pad them to the longest."""
    inputs = [e.text if e.pair is None else (e.text, e.pair) for e in examples]
    encodings = tokenizer.encode_batch(inputs)
    length = max(len(e.ids) for e in encodings)
    shape = (len(examples), length)
    ids, mask, types = (np.zeros(shape, np.int64) for _ in range(3))
    for i, encoding in enumerate(encodings):
        n = len(encoding.ids)
        ids[i, :n], mask[i, :n], types[i, :n] = encoding.ids, 1, encoding.type_ids
    pairs = zip(encodings, examples, strict=True)
    if task.head == "token-classification":
        targets = np.full(shape, IGNORE, np.int64)
        for i, (encoding, example) in enumerate(pairs):
            labels = token_labels(encoding, example.spans, task.labels)
            targets[i, : len(labels)] = labels
    elif task.head == "masked-lm":
        targets = np.full(shape, IGNORE, np.int64)
        mask_id = tokenizer.token_to_id("[MASK]")
        for i, (encoding, example) in enumerate(pairs):
            targets[i, : len(encoding)] = hide(encoding, example.spans, ids[i], mask_id)
    elif task.head == "question-answering":
        targets = np.array([answer_tokens(encoding, e.spans[0]) for encoding, e in pairs])
    else:
        targets = np.array([[e.label] for e in examples])
    return Batch(ids, mask, types, targets)


def as_row(task: Task, tokenizer: Tokenizer, example: Example) -> dict[str, str]:
    """An example as a line of JSON lines that `sparsec.sparsify` reads, without what is right."""
    if task.head == "question-answering":
        return {"question": example.text, "context": example.pair or ""}
    if example.pair is not None:
        return {"text": example.text, "text_pair": example.pair}
    if task.head != "masked-lm":
        return {"text": example.text}
    text = example.text
    for span in sorted(example.spans, key=lambda span: -span.start):
        hidden = tokenizer.encode(text[span.start : span.end], add_special_tokens=False)
        gap = " ".join(["[MASK]"] * len(hidden.ids))
        text = f"{text[: span.start]}{gap}{text[span.end :]}"
    return {"text": text}


def batches(
    task: Task, seed: Sequence[int], count: int, held_out: bool = False
) -> list[list[Example]]:
    """The examples of `count` batches, of similar length in each, in random order."""
    rng = np.random.default_rng(list(seed))
    examples = [task.sample(rng, held_out) for _ in range(count * task.batch)]
    examples.sort(key=lambda e: len(e.text) + len(e.pair or ""))
    parts = [examples[i * task.batch : (i + 1) * task.batch] for i in range(count)]
    return [parts[i] for i in rng.permutation(count)]


def score(results: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> tuple[float, float]:
    """Shares of rows and of whole examples that are right.

    Args:
        results: chosen classes [B, rows] of each batch.
        targets: the right ones, or IGNORE.
    """
    rows = right = whole = examples = 0
    for got, want in zip(results, targets, strict=True):
        counted = want != IGNORE
        hit = (got == want) | ~counted
        rows += int(counted.sum())
        right += int((hit & counted).sum())
        whole += int(hit.all(axis=1).sum())
        examples += len(want)
    return right / rows, whole / examples
