"""A shorter way through BERT's tokenizer for texts of printable ASCII.

Of such a text the normalizer only makes small letters: there is nothing to clean, no accent, no
Chinese character.  What stands between two spaces is cut into tokens without a look at the rest, so
that each such word is tokenized once and remembered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

# Characters of the words that are remembered, where a word counts for some more: 30 MB or so.
ROOM = 1 << 21
_WORD = 16


class PlainText:
    """The tokenizer of texts of printable ASCII.

    Args:
        tokenizer: without the normalizer.
        lower: whether that makes small letters.
        marks: what added tokens begin with: a text that has one of these may have such a token,
            which is looked for before the normalizer has its turn.
    """

    def __init__(self, tokenizer: Tokenizer, lower: bool, marks: str) -> None:
        self.tokenizer = tokenizer
        self._lower = lower
        self._marks = marks
        self._words: dict[str, list[int]] = {}
        self._room = ROOM

    @classmethod
    def of(cls, whole: Mapping[str, Any]) -> PlainText | None:
        """The shorter way for a tokenizer; None where there is none.

        Args:
            whole: the tokenizer, as its file has it.
        """
        normalizer = whole.get("normalizer") or {}
        parts = [normalizer, whole.get("pre_tokenizer") or {}, whole.get("model") or {}]
        kinds = [part.get("type") for part in parts]
        added = [token["content"] for token in whole.get("added_tokens", ())]
        marks = "".join({content[:1] for content in added})
        # Letters may be made small or lose accents: only other characters stay what they are.
        safe = marks.isascii() and marks.isprintable() and not any(c.isalnum() for c in marks)
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"] or not safe or " " in marks:
            return None
        made = Tokenizer.from_str(json.dumps({**whole, "normalizer": None}))
        return cls(made, bool(normalizer.get("lowercase", True)), marks)

    def form(self, text: str) -> str | None:
        """The text as the tokenizer takes it; None if it has to go the long way."""
        if not (text.isascii() and text.isprintable()):
            return None
        if any(mark in text for mark in self._marks):
            return None
        return text.lower() if self._lower else text

    def ids(self, forms: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens of each text, without special ones.

        Args:
            forms: texts as :meth:`form` gives them.
        """
        rows = [form.split() for form in forms]
        known = self._words
        try:
            return self._looked_up(known, rows)
        except KeyError:
            self._learn(known, list({word for row in rows for word in row if word not in known}))
        return self._looked_up(known, rows)

    @staticmethod
    def _looked_up(known: dict[str, list[int]], rows: list[list[str]]) -> list[list[int]]:
        """
        Raises:
            KeyError: a word is not among those that are remembered.
        """
        return [list(chain.from_iterable(map(known.__getitem__, row))) for row in rows]

    def _learn(self, known: dict[str, list[int]], new: list[str]) -> None:
        """Add words to those that are remembered."""
        found = self.tokenizer.encode_batch(new, add_special_tokens=False)
        known.update((word, one.ids) for word, one in zip(new, found, strict=True))
        self._room -= sum(map(len, new)) + _WORD * len(new)
        if self._room < 0:
            # Whoever is at it goes on with the one that there is.
            self._words, self._room = {}, ROOM
