"""Sentences with words to be found again: facts from tables, cloze texts, and any other sentences.

A block of `facts.txt` has names of columns, templates, and rows after `>` (a dash: not known).
A slot in capitals, `{CAPITAL}`, may be asked for, `{capital}` only stands there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from examples.minilm.text import HERE as MINILM
from examples.minilm.text import read_lines
from examples.ner import data as ner
from examples.nli import data as nli
from examples.sentiment import data as sentiment
from examples.training.data import Example, Task
from examples.training.templates import Grammar, Span, alternatives, read_lists, split

HERE = Path(__file__).resolve().parent
LISTS = read_lists(HERE / "phrases.txt")

# Shares of examples: facts, cloze texts, sentences of the other examples and of examples/minilm.
SHARES = (0.68, 0.12, 0.2)
HELD_OUT = 4  # one in so many sentences
MASKED = 0.15  # share of a sentence's words
LONGEST = 100  # characters of a sentence that is no fact


@dataclass(frozen=True)
class Fact:
    """A sentence's template and what its slots are filled with."""

    template: str
    values: tuple[tuple[str, str], ...]


@cache
def tables(held_out: bool) -> list[list[Fact]]:
    """All rows in all templates of one half: held out are sentences, facts are known by heart."""
    result = []
    for block in (HERE / "facts.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        head, *lines = block.split("\n")
        columns = alternatives(head)
        facts = []
        templates = [line for line in lines if not line.startswith("> ")]
        for line in lines[len(templates) :]:
            cells = zip(columns, alternatives(line.removeprefix("> ")), strict=True)
            row = {column: value for column, value in cells if value != "-"}
            for template in split(templates, held_out, HELD_OUT):
                if {s.lower() for s in re.findall(r"\{(\w+)\}", template)} <= set(row):
                    facts.append(Fact(template, tuple(row.items())))
        result.append(facts)
    return result


@cache
def plain_lines() -> list[str]:
    """The sentences that examples/minilm is calibrated with."""
    return read_lines(MINILM / "calibration.txt")


@cache
def cloze() -> Grammar:
    """The lists of the cloze texts; what may be asked for is in capitals."""
    return Grammar({name: items for name, items in LISTS.items() if name.isupper()}, {})


@cache
def shares(held_out: bool) -> np.ndarray:
    """How often each table is used: large ones more often, but not by their size."""
    sizes = np.sqrt([len(facts) for facts in tables(held_out)])
    return sizes / sizes.sum()


def _pick(items: list[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def from_fact(rng: np.random.Generator, held_out: bool) -> Example:
    """A fact, one word of which is to be found."""
    chances = shares(held_out)
    choices = tables(held_out)[int(rng.choice(len(chances), p=chances))]
    fact = choices[int(rng.integers(len(choices)))]
    values = {column: [value] for column, value in fact.values}
    asked = {column.upper(): value for column, value in values.items()}
    made = Grammar(asked, values).expand(fact.template, rng)
    return Example(made.text, spans=(made.spans[int(rng.integers(len(made.spans)))],))


def from_text(text: str, rng: np.random.Generator) -> Example:
    """Any text, some words of which are to be found, at least one."""
    words = [Span(m.start(), m.end(), "word") for m in re.finditer(r"\w+", text)]
    chosen = rng.random(len(words)) < MASKED
    chosen[int(rng.integers(len(words)))] = True
    return Example(text, spans=tuple(w for w, use in zip(words, chosen, strict=True) if use))


def other_text(rng: np.random.Generator) -> str:
    """A sentence that is no fact, and not long."""
    text = ""
    while not 0 < len(text) <= LONGEST:
        kind = int(rng.integers(4))
        if kind == 3:
            text = _pick(plain_lines(), rng)
        else:
            text = (ner.sample, sentiment.sample, nli.sample)[kind](rng, False).text
    return text


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A sentence with words to be found."""
    kind = 0 if held_out else rng.choice(3, p=SHARES)
    if kind == 2:
        return from_text(other_text(rng), rng)
    if kind == 1:
        made = cloze().expand(_pick(LISTS["cloze"], rng), rng)
        return Example(made.text, spans=tuple(made.spans))
    return from_fact(rng, held_out)


def words() -> tuple[str, ...]:
    """Everything that facts and cloze texts say."""
    texts = [(HERE / name).read_text(encoding="utf-8") for name in ("facts.txt", "phrases.txt")]
    return tuple(re.findall(r"\w+", " ".join(texts)))


TASK = Task(
    folder=HERE.parent / "models" / "fill_mask",
    head="masked-lm",
    labels=(),
    layers=4,
    pieces=8_000,
    words=words(),
    sample=sample,
    learning_rate=3e-4,
    sparsity=0.5,
    steps=560,
)
