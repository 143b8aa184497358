"""A smaller vocabulary: the frequent WordPieces, and those that given words are spelt with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

# BERT's vocabulary has letters of all scripts; a text in one that is dropped becomes [UNK].
_KEPT = re.compile(r"(##)?[\x21-\x7e]+")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def frequent(source: Path, size: int) -> list[str]:
    """The most frequent pieces of a WordPiece vocabulary, whose ids are sorted by frequency."""
    vocabulary: dict[str, int] = json.loads(source.read_text("utf-8"))["model"]["vocab"]
    return _plain(vocabulary)[:size]


def _plain(vocabulary: Mapping[str, int]) -> list[str]:
    """The pieces that texts are spelt with here, in order."""
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return [w for w in ordered if _KEPT.fullmatch(w) and not re.fullmatch(r"\[.+\]", w)]


def trim(source: Path, size: int, texts: Iterable[str]) -> tuple[str, list[int]]:
    """Drop rare pieces from a WordPiece vocabulary, whose ids are sorted by frequency.

    Args:
        source: a tokenizer.json.
        size: how many pieces to keep by frequency.
        texts: whatever is needed to spell these words is kept as well.

    Returns:
        (tokenizer, ids): the new tokenizer.json, without padding and truncation, and the old id of
        each of its pieces.

    Raises:
        ValueError: `size` is so small that some words could no longer be spelt.
    """
    whole = Tokenizer.from_file(str(source))
    whole.no_truncation()
    whole.no_padding()
    needed = {i for e in whole.encode_batch(list(texts), add_special_tokens=False) for i in e.ids}
    raw = json.loads(whole.to_str())
    vocabulary: dict[str, int] = raw["model"]["vocab"]
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    usual = set(_plain(vocabulary)[:size]) | set(_SPECIAL)
    kept = [w for w in ordered if w in usual or vocabulary[w] in needed]
    ids = [vocabulary[w] for w in kept]
    renumbered = {w: i for i, w in enumerate(kept)}
    raw["model"]["vocab"] = renumbered
    for token in raw["added_tokens"]:
        token["id"] = renumbered[token["content"]]
    for token in raw["post_processor"]["special_tokens"].values():
        token["ids"] = [renumbered[t] for t in token["tokens"]]
    letters = {f"{p}{c}" for p in ("", "##") for c in "abcdefghijklmnopqrstuvwxyz0123456789"}
    if not letters <= set(kept):
        raise ValueError(
            f"{size} pieces are too few to keep single letters: words have no spelling"
        )
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")), ids
