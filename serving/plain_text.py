"""A shorter way through BERT's tokenizer for texts of printable ASCII.

Of such a text the normalizer only makes small letters: there is nothing to clean, no accent, no
Chinese character.  What stands between two spaces is cut into tokens without a look at the rest, so
that each such word is tokenized once and remembered.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
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
        # Of each word its tokens, an id a character: all of them are in one place of memory.
        self._words: dict[str, str] = {}
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
        if max(made.get_vocab().values(), default=0) > sys.maxunicode:
            return None
        return cls(made, bool(normalizer.get("lowercase", True)), marks)

    def forms(self, texts: Sequence[str]) -> list[str | None]:
        """Each text as the tokenizer takes it; None if it has to go the long way."""
        # Most have nothing but what is plain: all are looked at in one go.
        if self._is_plain("".join(texts)):
            return [text.lower() for text in texts] if self._lower else list(texts)
        return [
            (text.lower() if self._lower else text) if self._is_plain(text) else None
            for text in texts
        ]

    def _is_plain(self, text: str) -> bool:
        return (
            text.isascii() and text.isprintable() and not any(mark in text for mark in self._marks)
        )

    def ids(self, forms: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The tokens of texts, without special ones.

        Args:
            forms: texts as :meth:`forms` gives them.

        Returns:
            The ids of all texts, one behind the other, and how many each has.
        """
        rows = [form.split() for form in forms]
        known = self._words
        try:
            found = _looked_up(known, rows)
        except KeyError:
            self._learn(known, list({word for row in rows for word in row if word not in known}))
            found = _looked_up(known, rows)
        codes = "".join(found).encode("utf-32-le", "surrogatepass")
        flat = np.frombuffer(codes, "<u4").astype(np.int64)
        return flat, np.fromiter(map(len, found), np.int64, len(found))

    def _learn(self, known: dict[str, str], new: list[str]) -> None:
        """Add words to those that are remembered."""
        found = self.tokenizer.encode_batch(new, add_special_tokens=False)
        codes = ("".join(map(chr, one.ids)) for one in found)
        known.update(zip(new, codes, strict=True))
        self._room -= sum(map(len, new)) + _WORD * len(new)
        if self._room < 0:
            # Whoever is at it goes on with the one that there is.
            self._words, self._room = {}, ROOM


def _looked_up(known: Mapping[str, str], rows: Sequence[Sequence[str]]) -> list[str]:
    """
    Raises:
        KeyError: a word is not among those that are remembered.
    """
    return ["".join(map(known.__getitem__, row)) for row in rows]
