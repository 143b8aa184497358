"""Texts about a topic, and hypotheses that name that topic or another one.

`topics.txt` has a block for each topic: its labels, after a colon what it is about, and sentences.
A label that several topics have is true of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from examples.training.data import Example, Task
from examples.training.templates import Grammar, alternatives, read_lists, split

HERE = Path(__file__).resolve().parent
LABELS = ("not_entailment", "entailment")
LISTS = read_lists(HERE / "phrases.txt")

SENTENCES = 0.65  # share of texts made of a topic's own sentence; others name a thing
TWO_TOPICS = 0.1
FILLER = 0.25  # share of texts with a sentence that says nothing


@dataclass(frozen=True)
class Topic:
    """What a text can be about.

    Attributes:
        labels: names of the topic.
        things: what generic sentences can mention.
        sentences: templates that need no slots.
    """

    labels: tuple[str, ...]
    things: tuple[str, ...]
    sentences: tuple[str, ...]


@cache
def all_topics() -> list[Topic]:
    """The topics of both halves."""
    result = []
    for block in (HERE / "topics.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        labels, things, *sentences = block.split("\n")
        result.append(
            Topic(
                tuple(alternatives(labels)),
                tuple(alternatives(things.removeprefix(":"))),
                tuple(sentences),
            )
        )
    return result


@cache
def topics(held_out: bool) -> list[Topic]:
    """The topics of one half; labels of held-out topics that others have are left out."""
    known = {t.labels[0]: t for t in all_topics()}
    chosen = [known[name] for name in split(list(known), held_out)]
    if not held_out:
        return chosen
    trained = {label for t in topics(False) for label in t.labels}
    new = [tuple(label for label in t.labels if label not in trained) for t in chosen]
    pairs = zip(new, chosen, strict=True)
    return [Topic(labels, t.things, t.sentences) for labels, t in pairs]


@cache
def generic(held_out: bool) -> list[str]:
    """Sentences of one half that say something about {thing}."""
    return split(LISTS["generic"], held_out, 3)


@cache
def hypotheses(held_out: bool) -> list[str]:
    """Hypotheses of one half, with {} for the label."""
    return split(LISTS["hypotheses"], held_out)


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _expand(template: str, rng: np.random.Generator, lists: Mapping[str, Sequence[str]]) -> str:
    """A filled template, without the spaces that empty alternatives leave."""
    text = " ".join(Grammar({}, lists).expand(template, rng).text.split())
    return text.replace(" .", ".").replace(" ?", "?")


def sentence(topic: Topic, rng: np.random.Generator, held_out: bool) -> str:
    """One sentence about a topic."""
    things = {"thing": topic.things, "thing2": topic.things}
    capitals = [thing[0].upper() + thing[1:] for thing in topic.things]
    own = rng.random() < SENTENCES
    template = _pick(topic.sentences if own else generic(held_out), rng)
    return _expand(template, rng, {**things, "Thing": capitals})


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A text and a hypothesis, which is true half of the time."""
    choices = topics(held_out)
    count = 2 if rng.random() < TWO_TOPICS else 1
    picked = [choices[int(i)] for i in rng.choice(len(choices), count, replace=False)]
    parts = [sentence(topic, rng, held_out) for topic in picked]
    if rng.random() < FILLER:
        filler = _expand(_pick(LISTS["filler"], rng), rng, {})
        parts.insert(int(rng.integers(len(parts) + 1)), filler)
    text = " ".join(parts)
    if rng.random() < 0.2:  # as people type
        text = text.rstrip(".?!").lower()
    true = {label for topic in picked for label in topic.labels}
    entailed = bool(rng.random() < 0.5)
    # A label is as often wrong as it is right, so that it says nothing by itself.
    label = _pick(choices[int(rng.integers(len(choices)))].labels, rng)
    if entailed:
        label = _pick(picked[0].labels, rng)
    while not entailed and label in true:
        label = _pick(choices[int(rng.integers(len(choices)))].labels, rng)
    return Example(text, _pick(hypotheses(held_out), rng).replace("{}", label), label=int(entailed))


TASK = Task(
    folder=HERE.parent / "models" / "nli",
    head="sequence-classification",
    labels=LABELS,
    layers=4,
    pieces=10_000,
    words=tuple(text for t in all_topics() for text in (*t.labels, *t.things, *t.sentences)),
    sample=sample,
    sparsity=0.5,
    steps=450,
)
