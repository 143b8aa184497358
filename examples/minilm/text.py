"""Sentences -> token ids -> embeddings: what the scripts of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from examples.encoders.reference import Batch

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = HERE / "out"
MAX_TOKENS = 128

Run = Callable[[list[np.ndarray]], list[np.ndarray]]


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer without padding, cutting texts after MAX_TOKENS tokens."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def batches_of_equal_length(rows: Sequence[Sequence[int]], size: int = 64) -> list[Batch]:
    """Token ids in batches without any padding: (input_ids, attention_mask, token_type_ids)."""
    by_length: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    result = []
    for _, same in sorted(by_length.items()):
        for start in range(0, len(same), size):
            ids = np.array(same[start : start + size], np.int64)
            result.append((ids, np.ones_like(ids), np.zeros_like(ids)))
    return result


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def with_other_words(
    tokenizer: Tokenizer, rows: Sequence[Sequence[int]], share: float, seed: int
) -> list[list[int]]:
    """Copies of token ids in which a share of the tokens, chosen at random, is any other word.

    A text of a few hundred sentences has a small part of the vocabulary; this shows the rest of it.
    """
    rng = np.random.default_rng(seed)
    vocabulary = tokenizer.get_vocab()
    words = np.array(sorted(i for w, i in vocabulary.items() if w.isalpha() and w.isascii()))
    special = {vocabulary["[CLS]"], vocabulary["[SEP]"]}
    result = []
    for row in rows:
        # The vocabulary is sorted by frequency: squaring prefers the frequent words.
        others = words[(len(words) * rng.random(len(row)) ** 2).astype(np.int64)]
        swap = rng.random(len(row)) < share
        pairs = zip(row, others.tolist(), swap, strict=True)
        result.append([o if s and i not in special else i for i, o, s in pairs])
    return result


def padded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    """[input_ids, attention_mask, token_type_ids], int64 [texts, longest]."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return [ids, mask, np.zeros_like(ids)]


def pool(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the real tokens, then unit length: [B, S, C] and [B, S] -> [B, C]."""
    weights = mask[:, :, None].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def embed(run: Run, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Sentence embeddings [texts, C]; `run` computes the last hidden state first."""
    inputs = padded(tokenizer, texts)
    return pool(run(inputs)[0], inputs[1])


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
