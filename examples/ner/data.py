"""Sentences with people, places and organizations, and sentences without any."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

from examples.minilm.text import HERE as MINILM
from examples.minilm.text import read_lines
from examples.training.data import Example, Task
from examples.training.templates import Grammar, Span, read_lists, split
from examples.training.words import ALL_NAMES, entities

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")

# The first three letters of the slots of names are their label.
SLOTS = ("PER", "PERF", "PERL", "LOC", "LOCC", "LOCN", "LOCT", "ORG", "ORGI")
LISTS = read_lists(Path(__file__).resolve().parent / "phrases.txt")

# Shares of examples: with names, without, and plain sentences of examples/minilm without names.
SHARES = (0.70, 0.18, 0.12)
OTHER_WORDS = 0.3  # of the sentences get some words that make no sense, so that names count too


@cache
def plain_sentences(held_out: bool) -> list[str]:
    """Lines of examples/minilm/calibration.txt in which only the first word is capitalized."""
    lines = read_lines(MINILM / "calibration.txt")
    words = {w for line in lines for w in re.findall(r"\b[a-z]+", line)}
    names = {part.lower() for name in ALL_NAMES for part in name.split()}
    common = words - names
    kept = []
    for line in lines:
        first, *rest = re.findall(r"[\w']+", line)
        capitals = [w for w in rest if w[0].isupper() and w != "I"]
        if not capitals and first.lower() in common and not names & {w.lower() for w in rest}:
            kept.append(line)
    return split(kept, held_out)


@cache
def grammar(held_out: bool) -> Grammar:
    """The lists of one half."""
    slots = {slot: LISTS[slot] for slot in SLOTS}
    return Grammar(slots, {**LISTS, **entities(held_out)})


@cache
def templates(held_out: bool) -> tuple[list[str], list[str]]:
    """Templates with and without names, of one half."""
    return split(LISTS["with_names"], held_out), split(LISTS["without_names"], held_out)


@cache
def common_words() -> list[str]:
    """Words that are never part of a name, to put in place of others."""
    text = " ".join(item for items in LISTS.values() for item in items)
    names = {part.lower() for name in ALL_NAMES for part in name.split()}
    found = set(re.findall(r"(?<![{\w])[a-z]{3,}(?![}\w])", text))
    return sorted(found - names)


def with_other_words(
    text: str, spans: list[Span], rng: np.random.Generator
) -> tuple[str, list[Span]]:
    """Replace some words between the entities, and move the entities accordingly."""
    words, share = common_words(), 0.4 * rng.random()
    result, moved, end = "", [], 0

    def other(found: re.Match[str]) -> str:
        return words[int(rng.integers(len(words)))] if rng.random() < share else found[0]

    for span in spans:
        result += re.sub(r"\b[a-z]{4,}\b", other, text[end : span.start])
        name = text[span.start : span.end]
        moved.append(Span(len(result), len(result) + len(name), span.slot))
        result, end = result + name, span.end
    return result + re.sub(r"\b[a-z]{4,}\b", other, text[end:]), moved


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """One sentence, sometimes two."""
    named, unnamed = templates(held_out)
    kind = rng.choice(3, p=SHARES)
    if kind == 2:
        lines = plain_sentences(held_out)
        return Example(lines[int(rng.integers(len(lines)))])
    choices = unnamed if kind else named
    made = grammar(held_out).expand(choices[int(rng.integers(len(choices)))], rng)
    if rng.random() < 0.1:
        made.text += " "
        made.add(grammar(held_out).expand(named[int(rng.integers(len(named)))], rng))
    text, spans = made.text, made.spans
    if not held_out and rng.random() < OTHER_WORDS:
        text, spans = with_other_words(text, spans, rng)
    if rng.random() < 0.15:  # without the full stop
        text = text.removesuffix(".")
    # Case says nothing to the tokenizer: the sentence's first letter stays as it is.
    return Example(text, spans=tuple(Span(s.start, s.end, s.slot[:3]) for s in spans))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "ner",
    head="token-classification",
    labels=LABELS,
    layers=3,
    pieces=18_000,
    words=ALL_NAMES,
    sample=sample,
    steps=800,
)
