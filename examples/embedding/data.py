"""Texts of many kinds, for a model that learns which vectors a larger one gives them.

Any text will do, since the larger model says what is right: sentences of the other examples, lines
of this repository, and both with words put in that nobody has planned.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from examples.fill_mask import data as fill_mask
from examples.ner import data as ner
from examples.nli import data as nli
from examples.qa import data as qa
from examples.sentiment import data as sentiment
from examples.training.data import Example, Task

EXAMPLES = Path(__file__).resolve().parents[1]

PIECES = 6_000

# Texts that no training sees.
HELD_OUT = (
    EXAMPLES / "minilm" / "heldout.txt",
    EXAMPLES.parent / "benchmarks" / "data" / "texts.txt",
)

# Of sentences of templates, lines of the repository, words by chance.
SHARES = (0.5, 0.35, 0.15)
REPLACED = 0.15  # words of a text that become others, in half of the texts
LONGEST = 60  # words

_SENTENCE = re.compile(r"(?<=[.?!:])\s+")
_WORD = re.compile(r"[A-Za-z][a-z]+")


@cache
def lines() -> list[str]:
    """Sentences of what the repository says."""
    own = (EXAMPLES / "minilm" / "calibration.txt").read_text(encoding="utf-8").splitlines()
    pages = [*EXAMPLES.parent.glob("docs/**/*.md"), *EXAMPLES.parent.glob("*.md")]
    for page in sorted(pages):
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for paragraph in re.split(r"\n\s*\n", text):
            if not paragraph.lstrip().startswith(("|", "<")):
                own += _SENTENCE.split(" ".join(re.sub(r"[`*#>\[\]]", "", paragraph).split()))
    return [line for line in own if 2 <= len(line.split()) <= LONGEST]


@cache
def words() -> list[str]:
    """Words that may stand anywhere: the vocabulary's that are words."""
    from examples.minilm.build import find_model
    from examples.training.vocabulary import frequent

    return [w for w in frequent(find_model() / "tokenizer.json", 20_000) if _WORD.fullmatch(w)]


@cache
def held_out_lines() -> list[str]:
    """The lines of `HELD_OUT`."""
    return [line for path in HELD_OUT for line in path.read_text(encoding="utf-8").splitlines()]


def _of_template(rng: np.random.Generator) -> str:
    """A text of another example."""
    others: tuple[Callable[[np.random.Generator, bool], Example], ...] = (
        ner.sample, sentiment.sample, qa.sample, nli.sample, fill_mask.sample,
    )  # fmt: skip
    made = others[int(rng.integers(len(others)))](rng, False)
    return made.pair if made.pair is not None and rng.random() < 0.5 else made.text


def sample(rng: np.random.Generator, held_out: bool) -> Example:
    """A text, sometimes a few in one."""
    if held_out:
        known = held_out_lines()
        return Example(known[int(rng.integers(len(known)))])
    parts: list[str] = []
    for _ in range(int(rng.choice((1, 2, 3), p=(0.75, 0.15, 0.1)))):
        kind = rng.choice(3, p=SHARES)
        if kind == 0:
            parts.append(_of_template(rng))
        elif kind == 1:
            parts.append(lines()[int(rng.integers(len(lines())))])
        else:
            parts.append(" ".join(rng.choice(words(), int(rng.integers(1, 12)))))
    text = " ".join(parts).split()[:LONGEST]
    if rng.random() < 0.5:
        swapped = rng.random(len(text)) < REPLACED
        text = [str(rng.choice(words())) if s else w for w, s in zip(text, swapped, strict=True)]
    return Example(" ".join(text))


TASK = Task(
    folder=EXAMPLES / "models" / "embedding",
    head="hidden",
    labels=(),
    layers=3,
    pieces=PIECES,
    words=(),
    sample=sample,
    steps=1600,
    batch=24,
    sparsity=0.0,
    learning_rate=5e-4,
)
