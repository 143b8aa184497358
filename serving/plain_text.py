"""A shorter way through BERT's tokenizer for texts of printable ASCII.

Of such a text the normalizer only makes small letters: there is nothing to clean, no accent, no
Chinese character.  What stands between two spaces is cut into tokens without a look at the rest, so
that each such word is tokenized once and remembered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from sparsec.serving._words import Words

# Characters of the words that are remembered, where a word counts for some more: 10 MB or so.
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
        self._words = Words(lower, marks)
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

    def ids(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The tokens of those texts that need not go the long way, without special ones.

        Returns:
            The ids of all of them, one behind the other; how many each has; and which of `texts`
            they are, bool ``[len(texts)]``.
        """
        texts, known = list(texts), self._words
        ids, lengths, plain, missing = known.look_up(texts)
        if missing:
            self._learn(known, list(dict.fromkeys(missing)))
            ids, lengths, plain, missing = known.look_up(texts)
            assert not missing
        return ids, lengths, plain

    def _learn(self, known: Words, new: list[str]) -> None:
        """Add words to those that are remembered."""
        found = encode_batch(self.tokenizer, new)
        known.add(new, [one.ids for one in found])
        self._room -= sum(map(len, new)) + _WORD * len(new)
        if self._room < 0:
            # Whoever is at it goes on with the one that there is.
            self._words, self._room = Words(self._lower, self._marks), ROOM


def encode_batch(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """The tokens of texts, without special ones, and perhaps without where they are in the text:
    the newer of the library's functions leaves that out."""
    encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
    found: list[Encoding] = encode(texts, add_special_tokens=False)
    return found
