"""Small models with tokenizers for the tests of pipelines; nothing is downloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from examples.encoders import EncoderConfig, Weights, random_weights, write_fp32
from examples.encoders.config import Export

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """mary john is was fly ##ing ##s ##ed from nairobi new york to attend a the conference
    in of who where what when lives lived paris berlin and works at acme . , ? ! - ' ( ) good bad
    movie i this that not very text about sport ##y news weather e ##e cafe 東 京 大 学 😀 ##🎉"""
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

CONFIG = EncoderConfig(
    layers=2, hidden=32, heads=4, intermediate=64, vocab=160, max_position=128, num_labels=5
)
NER_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

# What the tests run: plain, empty, unknown characters, combining ones, several scripts, emoji.
TEXTS = [
    "Mary is flying from Nairobi to New York to attend a conference.",
    "John lived in Berlin, Paris and New York!",
    "",
    " ",
    "Café cafe\u0301 naïve — “Zürich” ﬁve",
    "東京大学 is in 東京 .",
    "😀 flying 😀🎉 from 👨\u200d👩\u200d👧 to Pariſ",
    "हिन्दी text e\u0301e\u0301 and \u202eworks\u202c",
    "Supercalifragilistic 2023-11-21 a-b-c (new)",
    "New\tYork\n\nJohn\u00a0works\u3000at acme",
    "Mary [SEP] works [UNK] at <s>Acme</s> [PAD]",
]


def vocabulary() -> list[str]:
    """Tokens of the WordPiece tokenizer, by id."""
    tokens = [*SPECIALS, *WORDS.split(), *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return list(dict.fromkeys(tokens))


def word_piece(path: Path) -> Path:
    """Write BERT's uncased tokenizer with a small vocabulary."""
    vocab = {token: i for i, token in enumerate(vocabulary())}
    assert len(vocab) <= CONFIG.vocab
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(SPECIALS)
    # Settings that users' files have, and that must not have an effect.
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=64, pad_id=0)
    tokenizer.save(str(path))
    return path


def byte_level(path: Path) -> Path:
    """Write RoBERTa's tokenizer over bytes and a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet]
    merges = [("i", "n"), ("in", "g"), ("Ġ", "t"), ("t", "o"), ("Ġ", "in"), ("N", "e"), ("Ne", "w")]
    tokens += ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens[:5])
    tokenizer.save(str(path))
    return path


def unigram(path: Path) -> Path:
    """Write XLM-RoBERTa's kind of tokenizer: pieces with probabilities, spaces as a character."""
    words = [f"▁{word}" for word in WORDS.split() if not word.startswith("#")]
    letters = ["▁", *LETTERS, *LETTERS.upper()]
    pieces = [*("<s>", "<pad>", "</s>", "<unk>", "<mask>"), *words, "▁New", "ing", *letters]
    vocab = [(piece, -float(i)) for i, piece in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(pieces[:5])
    tokenizer.save(str(path))
    return path


def make(
    folder: Path,
    head: str,
    *,
    seed: int = 0,
    kind: str = "wordpiece",
    poison: dict[str, float] | None = None,
    **settings: Any,
) -> tuple[EncoderConfig, Weights]:
    """Write model.onnx, tokenizer.json, tokenizer_config.json and config.json.

    Args:
        folder: made if it is missing.
        head: as in :class:`EncoderConfig`.
        seed: of the weights.
        kind: ``wordpiece``, ``byte-level`` or ``unigram``, the tokenizer.
        poison: tokens and what their embeddings are filled with, such as NaN.
        settings: further entries of config.json; ``labels`` becomes ``id2label``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labels = settings.pop("labels", None)
    config = CONFIG if kind == "wordpiece" else replace(CONFIG, vocab=300)
    config = replace(config, head=head, num_labels=len(labels) if labels else config.num_labels)
    weights = random_weights(config, seed)
    for name in ("classifier", "qa_outputs"):
        if f"{name}.weight" in weights:
            weights[f"{name}.weight"] *= 3  # so that predictions are not all alike
    for token, value in (poison or {}).items():
        weights["embeddings.word_embeddings.weight"][vocabulary().index(token)] = value
    write_fp32(folder / "model.onnx", config, weights, Export(opset=17))
    if kind == "wordpiece":
        word_piece(folder / "tokenizer.json")
        special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIALS, strict=True))
    else:
        (byte_level if kind == "byte-level" else unigram)(folder / "tokenizer.json")
        names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        special = dict(zip(("cls", "pad", "sep", "unk", "mask"), names, strict=True))
    entries: dict[str, Any] = {f"{key}_token": token for key, token in special.items()}
    if kind != "wordpiece":
        entries["add_prefix_space"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    entries = {"vocab_size": config.vocab, "max_position_embeddings": config.max_position}
    if labels:
        entries["id2label"] = {str(i): label for i, label in enumerate(labels)}
    (folder / "config.json").write_text(json.dumps({**entries, **settings}))
    return config, weights
