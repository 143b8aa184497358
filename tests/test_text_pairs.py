"""Pairs of texts: joined and cut as the tokenizer does it, and each text is tokenized once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from sparsec.errors import InputError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import (
    TextClassificationPipeline,
    ZeroShotTextClassificationPipeline,
)
from sparsec.serving.text import Text
from tests.pipelines_support import TEXTS, byte_level, unigram, word_piece
from tests.test_pipelines import Scripted, build

NAMES = ["input_ids", "attention_mask", "token_type_ids"]
BERT = [("[CLS]", 2), ("[SEP]", 3)]
ROBERTA = [("<s>", 0), ("</s>", 2)]

# How tokenizers of different kinds of models join pairs.
JOINERS: dict[str, tuple[Any, Any]] = {
    "bert": (word_piece, None),
    "bert, its own processor": (
        word_piece, processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
    ),
    "roberta": (byte_level, None),
    "xlm-roberta": (unigram, None),
    "deberta-v3": (
        unigram,
        processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ROBERTA),
    ),
    "modernbert": (
        byte_level,
        processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ROBERTA),
        ]),
    ),
    "t5": (unigram, processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", ROBERTA)),
    "xlnet": (
        word_piece,
        processors.TemplateProcessing(
            "$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2", BERT
        ),
    ),
    "second first": (
        word_piece, processors.TemplateProcessing("[CLS] $A", "[CLS] [SEP] $B:1 [SEP]:1 $A", BERT),
    ),
    "nothing between": (word_piece, None),
}  # fmt: skip


@pytest.fixture(params=JOINERS, ids=lambda name: name.replace(" ", "-"))
def text(request: pytest.FixtureRequest, tmp_path: Path) -> Text:
    write, processor = JOINERS[request.param]
    path = write(tmp_path / "tokenizer.json")
    if processor is not None or request.param == "nothing between":
        tokenizer = json.loads(path.read_text())
        tokenizer["post_processor"] = None
        made = Tokenizer.from_str(json.dumps(tokenizer))
        if processor is not None:
            made.post_processor = processor
        made.save(str(path))
    model = ModelFiles(tmp_path, path, {})
    loaded = Text.load(model)
    loaded.check_inputs(NAMES, model)
    return loaded


@pytest.mark.parametrize("strategy", ["only_first", "longest_first"])
def test_as_the_tokenizer_does(text: Text, strategy: str) -> None:
    reference = Tokenizer.from_str(text.tokenizer.to_str())
    others = [TEXTS[5], TEXTS[10], "x", "", "Mary " * 9]
    for length in (7, 12, 16, 33, 200):
        reference.enable_truncation(length, strategy=strategy)
        for one in (*TEXTS, "Mary is flying " * 30):
            for two in others:
                first, second = text.ids(one), text.ids(two)
                room = length - text.special_tokens(pair=True)
                if strategy == "only_first" and room - len(second) < min(len(first), 1):
                    with pytest.raises(InputError, match="leaves no room"):
                        text.pair(first, second, length, only_first=True)
                    continue
                want = reference.encode(one, two)
                got = text.pair(first, second, length, only_first=strategy == "only_first")
                arrays = [got.arrays[name].tolist() for name in NAMES]
                assert arrays == [want.ids, want.attention_mask, want.type_ids], (one, two, length)
                assert got.length == len(want.ids)


class Counting:
    """Counts how often each text is tokenized."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: Counter[str] = Counter()
        encode = Text._encode

        def counted(text: Text, given: Any, *args: Any, **options: Any) -> Any:
            self.seen[str(given)] += 1
            return encode(text, given, *args, **options)

        monkeypatch.setattr(Text, "_encode", counted)


def test_each_text_is_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many labels there are, and however many pairs a text is in."""
    path = word_piece(tmp_path / "tokenizer.json")
    runner = Scripted(lambda ids: np.linspace(0, 1, 3))
    labels = [f"label {i}" for i in range(250)]
    options = {"entailment_index": 2, "contradiction_index": 0, "truncate": True}
    zero_shot = build(ZeroShotTextClassificationPipeline, path, runner, **options)
    texts = ["Mary lives in Paris. " * 5000, "New York"]
    counting = Counting(monkeypatch)
    found = zero_shot(texts, labels=labels)
    assert sorted(found.labels[0]) == sorted(found.labels[1]) == sorted(labels)
    assert len(runner.seen) == 500 and max(map(len, runner.seen)) == 32
    assert all(counting.seen[text] == 1 for text in texts)
    assert sum(counting.seen.values()) <= 2 + 250 + 5

    scripted = Scripted(lambda ids: [0.0, 1.0])
    pairs = build(TextClassificationPipeline, path, scripted, truncate=True)
    counting.seen.clear()
    pairs(sequences=[[texts[0], label] for label in labels] + [[texts[0], texts[0]]])
    assert counting.seen[texts[0]] == 1
