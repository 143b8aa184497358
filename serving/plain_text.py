"""A shorter way through BERT's normalizer, which takes half of the time of tokenizing.

Of a text of printable ASCII it only makes small letters: there is nothing to clean, no accent, no
Chinese character.  What is left is done by Python in a hundredth of the time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer


@dataclass(frozen=True)
class PlainText:
    """The tokenizer of texts of printable ASCII.

    Attributes:
        tokenizer: without the normalizer.
        lower: whether that makes small letters.
        marks: what added tokens begin with: a text that has one of these may have such a token,
            which is looked for before the normalizer has its turn.
    """

    tokenizer: Tokenizer
    lower: bool
    marks: str

    @classmethod
    def of(cls, whole: Mapping[str, Any]) -> PlainText | None:
        """The shorter way for a tokenizer; None where there is none.

        Args:
            whole: the tokenizer, as its file has it.
        """
        normalizer = whole.get("normalizer") or {}
        added = [token["content"] for token in whole.get("added_tokens", ())]
        marks = "".join({content[:1] for content in added})
        # Letters may be made small or lose accents: only other characters stay what they are.
        safe = marks.isascii() and marks.isprintable() and not any(c.isalnum() for c in marks)
        if normalizer.get("type") != "BertNormalizer" or not safe or " " in marks:
            return None
        made = Tokenizer.from_str(json.dumps({**whole, "normalizer": None}))
        return cls(made, bool(normalizer.get("lowercase", True)), marks)

    def form(self, text: str) -> str | None:
        """The text as the tokenizer takes it; None if it has to go the long way."""
        if not (text.isascii() and text.isprintable()):
            return None
        if any(mark in text for mark in self.marks):
            return None
        return text.lower() if self.lower else text
