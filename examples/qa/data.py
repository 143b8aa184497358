"""Passages of facts, and questions about one of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from examples.ner import data as ner
from examples.training.data import Example, Task
from examples.training.templates import Grammar, Span, Text, read_lists, split
from examples.training.words import ALL_NAMES, entities

HERE = Path(__file__).resolve().parent
LISTS = read_lists(HERE / "phrases.txt")

# Lists of the other examples, and what they are called in facts.
_SHARED = ("job", "nationality", "purpose", "month")
_NAMES = {"town": "city", "brand": "company"}


@cache
def facts(held_out: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """(sentence, [(question, slot of the answer)]) of one half.

    Slots that differ in a final digit are filled from the same list.
    """
    result = []
    text = (HERE / "facts.txt").read_text(encoding="utf-8").strip()
    blocks = {b[0]: b[1:] for b in (block.split("\n") for block in text.split("\n\n"))}
    for sentence in split(list(blocks), held_out):
        pairs = [question.split(" -> ") for question in blocks[sentence]]
        result.append((sentence, [(question, slot) for question, slot in pairs]))
    return result


@cache
def grammar(held_out: bool) -> Grammar:
    """The lists of one half; slots of facts are entities, so that answers can be found."""
    names = entities(held_out)
    slots = {**names, **LISTS, **{name: ner.LISTS[name] for name in _SHARED}}
    slots |= {ours: names[theirs] for ours, theirs in _NAMES.items()}
    # What people say may not depend on lists that are no part of the fact.
    slots["claim"] = [claim for claim in ner.LISTS["claim"] if "{" not in claim]
    slots["weekday"] = ner.LISTS["day"]
    return Grammar({**{f"{name}2": items for name, items in slots.items()}, **slots}, slots)


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A question about one fact of a passage."""
    lists, choices = grammar(held_out), facts(held_out)
    plain = ner.plain_sentences(held_out)
    count = int(rng.integers(1, 5))
    asked = int(rng.integers(count))
    passage, seen = Text(), set[str]()
    question, answer = "", Span(0, 0, "")
    for i in range(count):
        sentence, questions = choices[int(rng.integers(len(choices)))]
        while sentence.startswith("My ") and "I" in seen:  # only one person speaks
            sentence, questions = choices[int(rng.integers(len(choices)))]
        made = lists.expand(sentence, rng)
        names = {made.text[s.start : s.end] for s in made.spans}
        while names & seen:  # a question about two facts would have two answers
            made = lists.expand(sentence, rng)
            names = {made.text[s.start : s.end] for s in made.spans}
        seen |= names | ({"I"} if sentence.startswith("My ") else set())
        made.text = made.text[0].upper() + made.text[1:]
        if passage.text:
            passage.text += " "
        shift = len(passage.text)
        if i == asked:
            wanted, slot = questions[int(rng.integers(len(questions)))]
            given = {s.slot: made.text[s.start : s.end] for s in made.spans}
            question = lists.expand(wanted, rng, given).text
            found = next(s for s in made.spans if s.slot == slot)
            answer = Span(found.start + shift, found.end + shift, slot)
        passage.add(made)
        if rng.random() < 0.2:
            passage.text += " " + plain[int(rng.integers(len(plain)))]
    if rng.random() < 0.3:  # as people type
        question = question.removesuffix("?").lower()
    return Example(question, passage.text, (answer,))


TASK = Task(
    folder=Path(__file__).resolve().parents[1] / "models" / "qa",
    head="question-answering",
    labels=("LABEL_0", "LABEL_1"),
    layers=4,
    pieces=5_000,
    words=ALL_NAMES,
    sample=sample,
    steps=900,
    minutes=20.0,
    sparsity=0.5,
    batch=16,
)
