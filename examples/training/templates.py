"""Sentences from templates: `{slot}` is filled from a list, `(a|b|)` is one of its alternatives.

    Grammar({"PER": people}, {"verb": ["met", "(called|phoned) up"]}).expand("{PER} {verb} me", rng)

Both nest. What fills an entity's slot is remembered with its place in the text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_INNERMOST = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")


_SECTION = re.compile(r"\[(\S+)\]")
_REPEATED = re.compile(r"(\d+)\* (.*)")


def read_lists(path: Path) -> dict[str, list[str]]:
    """Lists from a text file.

    A list begins with its name, ``[name]``.  Its items end at a bar or at the end of the line; bars
    in parentheses belong to the item.  ``3* item`` is three of it.
    """
    lists: dict[str, list[str]] = {}
    items: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := _SECTION.fullmatch(line):
            items = lists.setdefault(found[1], [])
        elif line:
            for item in alternatives(line):
                repeated = _REPEATED.fullmatch(item)
                items += [repeated[2]] * int(repeated[1]) if repeated else [item]
    return lists


def alternatives(line: str) -> list[str]:
    """What is between the bars of a line that are not in parentheses, without outer spaces."""
    parts, depth = [""], 0
    for character in line:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def is_held_out(item: str, one_in: int) -> bool:
    """Whether an item of a list is kept for testing; a property of its spelling alone."""
    return zlib.crc32(item.encode()) % one_in == 0


def split(items: Sequence[str], held_out: bool, one_in: int = 6) -> list[str]:
    """The items that are kept for testing, or those that are not."""
    return [item for item in items if is_held_out(item, one_in) == held_out]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a text and what filled them: the slot's name."""

    start: int
    end: int
    slot: str


@dataclass
class Text:
    """A text under construction and its entities."""

    text: str = ""
    spans: list[Span] = field(default_factory=list)

    def add(self, other: Text) -> None:
        """Append another text; an article before it becomes `an` where it must."""
        if re.search(r"\b[aA] $", self.text) and other.text[:1].lower() in tuple("aeiou"):
            self.text = self.text[:-1] + "n "
        shift = len(self.text)
        self.text += other.text
        self.spans += [Span(s.start + shift, s.end + shift, s.slot) for s in other.spans]


@dataclass(frozen=True)
class Grammar:
    """What slots are filled with.

    Attributes:
        entities: lists whose items become spans, named after their slot.
        phrases: all other lists; their items may have slots themselves.
    """

    entities: Mapping[str, Sequence[str]]
    phrases: Mapping[str, Sequence[str]]

    def expand(
        self, template: str, rng: np.random.Generator, given: Mapping[str, str] | None = None
    ) -> Text:
        """Fill a template.

        Args:
            given: texts for certain slots, which become spans.

        Raises:
            KeyError: a slot that has no list.
        """
        while found := _INNERMOST.search(template):
            choice = _pick(found[1].split("|"), rng)
            template = template[: found.start()] + choice + template[found.end() :]
        result, end = Text(), 0
        for found in _SLOT.finditer(template):
            result.text += template[end : found.start()]
            result.add(self._fill(found[1], rng, given or {}))
            end = found.end()
        result.text += template[end:]
        return result

    def _fill(self, slot: str, rng: np.random.Generator, given: Mapping[str, str]) -> Text:
        if slot in given:
            return Text(given[slot], [Span(0, len(given[slot]), slot)])
        if slot in self.entities:
            # An entity may be put together from phrases: "{first} {last}".
            text = self.expand(_pick(self.entities[slot], rng), rng).text
            return Text(text, [Span(0, len(text), slot)])
        return self.expand(_pick(self.phrases[slot], rng), rng, given)


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]
