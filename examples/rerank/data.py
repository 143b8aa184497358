"""Queries, and documents that answer them or only look as if they did.

Queries are questions about a fact (of `examples/qa`), names of topics (of `examples/nli`), and
words of a text, as they are typed into a search box (texts of `examples/embedding`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from examples.embedding import data as embedding
from examples.ner import data as ner
from examples.nli import data as nli
from examples.qa import data as qa
from examples.training.data import Example, Task
from examples.training.templates import Text, read_lists, split

HERE = Path(__file__).resolve().parent
LISTS = read_lists(HERE / "phrases.txt")

# Of questions, topics, words.
SHARES = (0.6, 0.2, 0.2)
RIGHT = 0.4  # share of examples in which the document answers the query
ASKED_WORDS = (1, 5)  # of a query that is made of words
LONGEST = 24  # words of a document of the repository's own texts

_CHOICE = re.compile(r"\(([^()|]*)\|[^()]*\)")
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{3,}")
# Words that say nothing about a text.
_EVERYWHERE = frozenset(LISTS["everywhere"])


@dataclass(frozen=True)
class Query:
    """What is looked for, with what answers it and what does not.

    Attributes:
        text: the query.
        right: a document that answers it.
        wrong: documents that do not, the most misleading first.
    """

    text: str
    right: str
    wrong: tuple[str, ...]


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def _sentence(made: Text) -> str:
    return made.text[0].upper() + made.text[1:]


def _kind(question: str) -> str:
    """A question without its choices and the names of its slots: equal ones ask for the same."""
    while _CHOICE.search(question):
        question = _CHOICE.sub(r"\1", question)
    return _SLOT.sub("{}", question)


def question(rng: np.random.Generator, held_out: bool, wrong: int) -> Query:
    """A question about one fact; wrong ones are other facts of the same names, and the like."""
    lists, facts = qa.grammar(held_out), qa.facts(held_out)
    named: list[tuple[str, str]] = []
    while not named:  # a question without a name has an answer in every text of its kind
        sentence, questions = facts[int(rng.integers(len(facts)))]
        named = [pair for pair in questions if "{" in pair[0]]
    asked, slot = named[int(rng.integers(len(named)))]
    made = lists.expand(sentence, rng)
    given = {s.slot: made.text[s.start : s.end] for s in made.spans}
    text = lists.expand(asked, rng, given).text
    names = {given[name] for name in _SLOT.findall(asked)}
    kinds = {_kind(one) for one, _ in questions}
    found: list[str] = []
    while len(found) < wrong:
        same = rng.random() < 0.4
        other, others = (sentence, questions) if same else facts[int(rng.integers(len(facts)))]
        alike = same or kinds & {_kind(one) for one, _ in others}
        known = {name: value for name, value in given.items() if name != slot}
        if alike:  # the same may be said of somebody else only
            keep = sorted(known.keys() - set(_SLOT.findall(asked)))
            known = {name: known[name] for name in keep if rng.random() < 0.5}
        elif rng.random() < 0.3:
            known = {}
        document = _sentence(lists.expand(other, rng, known))
        if not (alike and any(name in document for name in names)):
            found.append(document)
    return Query(text, _sentence(made), tuple(found))


def topic(rng: np.random.Generator, held_out: bool, wrong: int) -> Query:
    """The name of a topic; wrong texts are about others."""
    topics = nli.topics(held_out)
    chosen = topics[int(rng.integers(len(topics)))]
    label = _pick(chosen.labels, rng) if chosen.labels else chosen.things[0]
    others = [t for t in topics if not set(t.labels) & set(chosen.labels)]
    text = _pick(split(LISTS["queries"], held_out), rng).replace("{}", label)
    found = [
        nli.sentence(others[int(rng.integers(len(others)))], rng, held_out) for _ in range(wrong)
    ]
    return Query(text, nli.sentence(chosen, rng, held_out), tuple(found))


@dataclass(frozen=True)
class Line:
    """A text, and the words in it that say what it is about, in small letters."""

    text: str
    words: tuple[str, ...]


@cache
def _lines(held_out: bool) -> tuple[list[Line], dict[str, list[Line]]]:
    """Texts, and those of each word."""
    made = []
    for text in embedding.held_out_lines() if held_out else embedding.lines():
        found = [word.lower() for word in _WORD.findall(text)]
        own = tuple(dict.fromkeys(word for word in found if word not in _EVERYWHERE))
        if len(own) >= ASKED_WORDS[1] and len(text.split()) <= LONGEST:
            made.append(Line(text, own))
    by_word: dict[str, list[Line]] = {}
    for line in made:
        for word in line.words:
            by_word.setdefault(word, []).append(line)
    return made, by_word


def words(rng: np.random.Generator, held_out: bool, wrong: int) -> Query:
    """Some words of a text; half of the wrong texts have one of them."""
    lines, by_word = _lines(held_out)
    line = lines[int(rng.integers(len(lines)))]
    count = int(rng.integers(*ASKED_WORDS))
    asked = [line.words[int(i)] for i in rng.permutation(len(line.words))[:count]]
    found: list[str] = []
    near = by_word[asked[0]] if count > 1 else []
    while len(found) < wrong:
        others = near if near and rng.random() < 0.5 else lines
        other = others[int(rng.integers(len(others)))]
        if not set(asked) <= set(other.words):
            found.append(other.text)
        elif others is near:
            near = []
    return Query(" ".join(asked), line.text, tuple(found))


KINDS: dict[str, Callable[[np.random.Generator, bool, int], Query]] = {
    "question": question,
    "topic": topic,
    "words": words,
}


def query(rng: np.random.Generator, held_out: bool, kind: str, wrong: int) -> Query:
    """A query of a kind, as people type it, and so many documents that do not answer it."""
    made = KINDS[kind](rng, held_out, wrong)
    text = made.text
    if rng.random() < 0.3:
        text = text.removesuffix("?").lower()
    plain = ner.plain_sentences(held_out)

    def longer(document: str) -> str:
        if rng.random() < 0.7:
            return document
        parts = [document, _pick(plain, rng)]
        return " ".join(parts if rng.random() < 0.5 else reversed(parts))

    return Query(text, longer(made.right), tuple(longer(one) for one in made.wrong))


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A query and a document that answers it, or does not."""
    right = bool(rng.random() < RIGHT)
    made = query(rng, held_out, str(rng.choice(list(KINDS), p=SHARES)), 0 if right else 1)
    return Example(made.text, made.right if right else made.wrong[0], label=int(right))


TASK = Task(
    folder=HERE.parent / "models" / "rerank",
    head="sequence-classification",
    labels=("LABEL_0",),
    layers=3,
    pieces=3_000,
    words=(),
    sample=sample,
    steps=900,
    batch=36,
    sparsity=0.0,
    learning_rate=3e-4,
)
