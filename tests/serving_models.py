"""Small random text models for tests of the server: an encoder with a head, compiled for 16 and 64
tokens with portable C, and a WordPiece tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import sparsec
from examples.encoders import EncoderConfig, Head, write_random

WORDS = (  # noqa: SIM905
    "mary john flies flying from to nairobi lima new york paris is the of capital a conference "
    "attend who where when good bad film this text about sports politics ##s ##ing ##ed . , ?"
).split()

HEADS: dict[str, tuple[Head, int, dict[str, Any]]] = {
    "token-classification": (
        "token-classification",
        3,
        {"id2label": {"0": "O", "1": "B-PER", "2": "B-LOC"}},
    ),
    "question-answering": ("question-answering", 2, {}),
    "text-classification": (
        "sequence-classification",
        2,
        {"id2label": {"0": "negative", "1": "positive"}},
    ),
    "zero-shot-text-classification": (
        "sequence-classification",
        3,
        {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}},
    ),
    "embedding-extraction": ("hidden", 2, {}),
}


def tokenizer() -> Tokenizer:
    """WordPiece over single characters and a few words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)]
    pieces = dict.fromkeys([*specials, *WORDS, *letters, *(f"##{x}" for x in letters)])
    vocab = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return made


def make(folder: Path, task: str, buckets: tuple[int, ...] = (16, 64), **size: Any) -> Path:
    """An artifact for a task."""
    head, labels, config = HEADS[task]
    folder.mkdir(parents=True, exist_ok=True)
    text = tokenizer()
    shape = EncoderConfig(
        head=head, num_labels=labels, vocab=text.get_vocab_size(), max_position=512,
        **{"layers": 1, **size},
    )  # fmt: skip
    write_random(folder / "model.onnx", shape, "fp32", sparsity=0.5)
    text.save(str(folder / "tokenizer.json"))
    settings = {"vocab_size": shape.vocab, "max_position_embeddings": 512, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    artifact = sparsec.compile(folder, buckets=buckets, output=folder / "model.sparsec")
    return Path(artifact.path)
