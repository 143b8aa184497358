"""Sentences -> token ids -> embeddings: what the scripts of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

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
