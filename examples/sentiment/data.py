"""Opinions, for and against.

Every template is written for one side and used for both: `{good}` is a good word where the label is
positive and a bad one where it is negative, and `{bad}` the other way round.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from examples.training.data import Example, Task
from examples.training.templates import Grammar, read_lists, split

LABELS = ("negative", "positive")

LISTS = read_lists(Path(__file__).resolve().parent / "phrases.txt")

# Slots that depend on the label, and the lists for the positive and the negative one.
SIDES = {
    "good": ("good+", "good-"),
    "bad": ("good-", "good+"),
    "love": ("love+", "love-"),
    "joy": ("joy+", "joy-"),
    "end": ("end+", "end-"),
    "adverb": ("adverb+", "adverb-"),
    "feeling": ("feeling+", "feeling-"),
    "more": ("more+", "more-"),
    "like": ("like+", "like-"),
    "dislike": ("like-", "like+"),
}
SHORT = 12  # lists up to here are not divided: both halves have all of them


@cache
def grammar(held_out: bool, positive: bool) -> Grammar:
    """The lists of one half for one label."""
    sides = {}
    for slot, lists in SIDES.items():
        words = LISTS[lists[0 if positive else 1]]
        sides[slot] = split(words, held_out) if len(words) > SHORT else words
    return Grammar({}, {**LISTS, **sides})


@cache
def templates(held_out: bool) -> list[str]:
    """The templates of one half."""
    return split(LISTS["templates"], held_out)


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """One opinion, sometimes of two sentences."""
    positive = bool(rng.random() < 0.5)
    lists, choices = grammar(held_out, positive), templates(held_out)
    count = 2 if rng.random() < 0.2 else 1
    picked = [choices[int(rng.integers(len(choices)))] for _ in range(count)]
    text = " ".join(" ".join(lists.expand(t, rng).text.split()) for t in picked)
    return Example(text, label=int(positive))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "sentiment",
    head="sequence-classification",
    labels=LABELS,
    layers=3,
    pieces=7_000,
    words=tuple(item for name, items in LISTS.items() if name[-1] in "+-" for item in items),
    sample=sample,
    steps=500,
)
