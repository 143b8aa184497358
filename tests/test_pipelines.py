"""Pipelines: what they compute from given outputs, by hand; offsets; options; errors; threads."""

from __future__ import annotations

import json
import math
import re
import string
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import BaseModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sparsec import Pipeline
from sparsec.errors import (
    EngineClosedError,
    InputError,
    ModelError,
    NonFiniteError,
    SparsecError,
    TooLongError,
)
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import (
    EmbeddingExtractionPipeline,
    FillMaskPipeline,
    QuestionAnsweringPipeline,
    TextClassificationPipeline,
    TokenClassificationPipeline,
    ZeroShotTextClassificationPipeline,
    base,
    tasks,
)
from sparsec.serving.runner import Features, Outputs, Runner
from sparsec.serving.text import Text
from tests.pipelines_support import NER_LABELS, TEXTS, make, vocabulary, word_piece

IDS = {token: i for i, token in enumerate(vocabulary())}


class Scripted(Runner):
    """Answers with what a function makes of the token ids."""

    def __init__(
        self, script: Any, outputs: Sequence[str] = ("logits",), longest: int = 32
    ) -> None:
        self.script = script
        self.outputs = tuple(outputs)
        self.longest = longest
        self.seen: list[list[int]] = []

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask", "token_type_ids")

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.outputs

    @property
    def buckets(self) -> tuple[int, ...]:
        return (self.longest,)

    def infer(self, items: Sequence[Features]) -> list[Outputs]:
        results = []
        for item in items:
            ids = item.arrays["input_ids"].tolist()
            assert item.length == len(ids) <= self.longest
            assert item.arrays["attention_mask"].tolist() == [1] * len(ids)
            self.seen.append(ids)
            found = self.script(ids)
            found = found if isinstance(found, tuple) else (found,)
            results.append(
                {k: np.asarray(v, np.float32) for k, v in zip(self.outputs, found, strict=True)}
            )
        return results

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_piece(tmp_path_factory.mktemp("text") / "tokenizer.json")


def files(tokenizer: Path, **config: Any) -> ModelFiles:
    if labels := config.pop("labels", None):
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    return ModelFiles(tokenizer.parent, tokenizer, config)


def build(
    kind: type[Any],
    tokenizer: Path,
    runner: Runner,
    config: Any = None,
    truncate: bool = False,
    **options: Any,
) -> Any:
    model = files(tokenizer, **(config or {}))
    made = kind(model, Text.load(model), runner, **options)
    made.truncate = truncate
    return made


def logs(*probabilities: float) -> list[float]:
    """Logits whose softmax is these probabilities."""
    return [math.log(p) for p in probabilities]


# ---- token classification ------------------------------------------------------------------------

# [CLS] mary fly ##ing to new york . [SEP]; "##ing" disagrees with "fly", "york" continues "new".
SENTENCE = "Mary flying to New York."
TOKENS = ["mary", "fly", "##ing", "to", "new", "york", "."]
BY_TOKEN = {
    "mary": (0.1, 0.8, 0.1), "fly": (0.6, 0.2, 0.2), "##ing": (0.05, 0.05, 0.9),
    "to": (0.7, 0.2, 0.1), "new": (0.1, 0.7, 0.2), "york": (0.2, 0.2, 0.6), ".": (0.8, 0.1, 0.1),
}  # fmt: skip


MARY, NEW_YORK = ("X", 0.8, "mary", 0, 4), ("X", 0.65, "new york", 15, 23)


def ner(tokenizer: Path, **options: Any) -> list[tuple[Any, ...]]:
    def script(ids: list[int]) -> list[list[float]]:
        assert [vocabulary()[i] for i in ids] == ["[CLS]", *TOKENS, "[SEP]"]
        return [logs(*BY_TOKEN.get(vocabulary()[i], (0.1, 0.8, 0.1))) for i in ids]

    pipeline = build(
        TokenClassificationPipeline, tokenizer, Scripted(script),
        {"labels": ["O", "B-X", "I-X"]}, **options,
    )  # fmt: skip
    (results,) = pipeline(SENTENCE).predictions
    return [(r.entity, round(r.score, 4), r.word, r.start, r.end, r.index) for r in results]


def test_tokens_as_they_are(tokenizer: Path) -> None:
    assert ner(tokenizer) == [
        ("B-X", 0.8, "mary", 0, 4, 1),
        ("I-X", 0.9, "##ing", 8, 11, 3),
        ("B-X", 0.7, "new", 15, 18, 5),
        ("I-X", 0.6, "york", 19, 23, 6),
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("simple", [MARY, ("X", 0.9, "##ing", 8, 11), NEW_YORK]),
        ("first", [MARY, NEW_YORK]),
        # fly + ##ing: the mean is (.325, .125, .55), the highest is .9: I-X, which joins "mary".
        ("average", [("X", 0.675, "mary flying", 0, 11), NEW_YORK]),
        ("max", [("X", 0.85, "mary flying", 0, 11), NEW_YORK]),
    ],
)  # fmt: skip
def test_groups(tokenizer: Path, strategy: str, expected: list[Any]) -> None:
    assert ner(tokenizer, aggregation_strategy=strategy) == [(*row, None) for row in expected]


def test_ignored_labels(tokenizer: Path) -> None:
    assert {row[0] for row in ner(tokenizer, ignore_labels=[])} == {"O", "B-X", "I-X"}
    assert {row[0] for row in ner(tokenizer, ignore_labels=["B-X"])} == {"O", "I-X"}


ODD = st.text(
    st.sampled_from(
        "aábcé e\u0301 \t\n.-'東京😀👩\u200d🔬ﬁßİǆ\u00ad\u202e\u0000\ufffd한नि MaryNewYork"
    ),
    max_size=60,
) | st.text(max_size=30)


@given(text=ODD, stride=st.none() | st.integers(0, 9), data=st.data())
def test_offsets_are_inside_the_text(text: str, stride: int | None, data: Any) -> None:
    """In order, inside the text, and the token's own characters where it is known."""
    draw = np.random.default_rng(data.draw(st.integers(0, 9)))
    pipeline = build(
        TokenClassificationPipeline, _tokenizer(),
        Scripted(lambda ids: draw.standard_normal((len(ids), 3)), longest=12),
        {"labels": ["O", "B-X", "I-X"]}, truncate=True, ignore_labels=[], stride=stride,
        aggregation_strategy="none" if stride is None else "max",
    )  # fmt: skip
    (results,) = pipeline(text).predictions
    assert all(0 <= r.start <= r.end <= len(text) for r in results)
    assert [r.start for r in results] == sorted(r.start for r in results)
    for r in results:
        if stride is None and r.word.isascii() and r.word.isalnum():
            assert len(r.word) <= max(1, r.end - r.start)


_FOLDER: list[Path] = []


def _tokenizer() -> Path:
    """A tokenizer for tests that hypothesis runs, which cannot have fixtures of their own."""
    if not _FOLDER:
        import tempfile

        _FOLDER.append(word_piece(Path(tempfile.mkdtemp()) / "tokenizer.json"))
    return _FOLDER[0]


def test_windows_cover_the_text(tokenizer: Path) -> None:
    runner = Scripted(lambda ids: [logs(0.2, 0.8)] * len(ids), longest=10)
    pipeline = build(
        TokenClassificationPipeline, tokenizer, runner, {"labels": ["O", "Y"]},
        aggregation_strategy="simple", stride=3,
    )  # fmt: skip
    words = [f"{a}" for a in "abcdefghijklmnopqrstuvwxyz"]
    (results,) = pipeline(" ".join(words)).predictions
    # 26 tokens in windows of 8, each starting with the last 3 of the one before.
    assert [len(ids) for ids in runner.seen] == [10, 10, 10, 10, 8]
    assert (results[0].start, results[-1].end) == (0, 51)


def test_words_that_are_split_already(tokenizer: Path) -> None:
    pipeline = build(
        TokenClassificationPipeline, tokenizer, Scripted(lambda ids: [logs(0.2, 0.8)] * len(ids)),
        {"labels": ["O", "Y"]},
    )  # fmt: skip
    words = ["Mary", "flying", "東京"]
    (results,) = pipeline(inputs=words, is_split_into_words=True).predictions
    joined = " ".join(words)
    assert [joined[r.start : r.end] for r in results] == ["Mary", "fly", "ing", "東", "京"]
    assert pipeline(inputs=[words]).predictions == [results]
    assert len(pipeline(words).predictions) == 3
    with pytest.raises(InputError, match="list of words"):
        pipeline(inputs="Mary", is_split_into_words=True)


WHITE = [" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "  ", " \n ", "\n\n"]


def bare_bpe(path: Path, spaces: str) -> Path:
    """Write a tokenizer of single letters that parts no words: SentencePiece's BPE as Llama's."""
    letters = ["<unk>", "▁", "\n", *string.ascii_letters, *".:,'"]
    made = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(letters)}, [], unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        if spaces == "prepend"
        else [normalizers.Replace(" ", "▁")]
    )
    made.save(str(path))
    return path


def metaspace(path: Path, scheme: str, split: bool, words: bool) -> Path:
    """Write a tokenizer of the kind of ALBERT, DeBERTa-v3 and XLM-R."""
    pieces = ["<unk>", *("▁Mary", "▁Paris", "▁Berlin", "Contact", "▁Contact"), "▁"]
    pieces += string.ascii_letters + ".:,'"
    vocab = [(piece, -1.0 if len(piece) > 1 else -9.0) for piece in dict.fromkeys(pieces)]
    made = Tokenizer(models.Unigram(vocab, unk_id=0))
    made.normalizer = normalizers.NFC()
    spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    made.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces]) if words else spaces
    )
    made.save(str(path))
    return path


def bytes_(path: Path, prefix: bool, trim: bool) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("M", "a"), ("r", "y"), ("Ma", "ry"), ("Ġ", "Mary"), ("Ġ", "P")]
    vocab = {t: i for i, t in enumerate([*alphabet, *map("".join, merges)])}
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    made.save(str(path))
    return path


KINDS: dict[str, Any] = {
    "wordpiece": word_piece,
    **{
        f"metaspace-{scheme}-{split}-{words}": partial(
            metaspace, scheme=scheme, split=split, words=words
        )
        for scheme in ("always", "first", "never")
        for split in (True, False)
        for words in (True, False)
    },
    **{
        f"bytes-{prefix}-{trim}": partial(bytes_, prefix=prefix, trim=trim)
        for prefix in (True, False)
        for trim in (True, False)
    },
    "bpe-prepend": partial(bare_bpe, spaces="prepend"),
    "bpe": partial(bare_bpe, spaces="plain"),
}


class Plain(Scripted):
    """Of a model with token ids and a mask only, of any vocabulary."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("input_ids", "attention_mask")


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_parts_words_and_is_in_no_offset(kind: str, tmp_path: Path) -> None:
    file = KINDS[kind](tmp_path / "tokenizer.json")
    draw = np.random.default_rng(0)
    runner = Plain(lambda ids: draw.standard_normal((len(ids), 2)), longest=512)
    words = ["Contact:", "Mary", "Paris", "Berlin"]
    made = {
        strategy: build(
            TokenClassificationPipeline, file, runner, {"labels": ["B-X", "B-Y"]},
            aggregation_strategy=strategy, ignore_labels=[],
        )
        for strategy in ("none", "simple", "first", "average", "max")
    }  # fmt: skip
    for white in WHITE:
        for before, behind in (("", ""), (white, white)):
            text = before + white.join(words) + behind
            places = [(m.start(), m.end()) for m in re.finditer(r"[^\s]+", text)]
            for strategy, pipeline in made.items():
                (results,) = pipeline(text).predictions
                shown = [r for r in results if r.start < r.end]
                assert all(text[r.start : r.end].strip() == text[r.start : r.end] for r in results)
                assert "".join(dict.fromkeys(words)) == "".join(
                    text[i] for i in sorted({i for r in shown for i in range(r.start, r.end)})
                )
                if strategy in ("first", "average", "max"):
                    found = [(r.start, r.end) for r in results]
                    # The tokenizer may part more: "Contact" and ":".
                    assert set(places[1:]) <= set(found)
                    assert found[-3:] == places[1:]
            for word, (start, end) in zip(words[1:], places[1:], strict=True):
                answer = _answer_at(file, text, start, end)
                assert (answer.answer, answer.start, answer.end) == (word, start, end)


def _answer_at(file: Path, text: str, start: int, end: int) -> Any:
    """The answer if the model points at the last tokens of a range of characters."""
    shown = Text.load(files(file)).encode(text)
    inside = [i for i, (a, b) in enumerate(shown.offsets) if a < end and b > start]

    def script(ids: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        row = np.zeros(len(ids))
        specials = len(ids) - len(shown) - len(question)
        first = len(question) + specials - (1 if specials else 0)
        row[first + inside[-1]] = 30.0
        return row, row

    question = Text.load(files(file)).encode("Mary")
    runner = Plain(script, ("start", "end"), longest=512)
    return build(QuestionAnsweringPipeline, file, runner)(question="Mary", context=text)


def test_given_words_are_words(tokenizer: Path) -> None:
    """Those that came split get one label each, whatever is inside."""
    draw = np.random.default_rng(0)
    pipeline = build(
        TokenClassificationPipeline, tokenizer,
        Scripted(lambda ids: draw.standard_normal((len(ids), 2))), {"labels": ["B-X", "B-Y"]},
        aggregation_strategy="max", ignore_labels=[],
    )  # fmt: skip
    words = ["Mary", "x-y", "東京", "New York", "flying."]
    (results,) = pipeline(inputs=words, is_split_into_words=True).predictions
    joined = " ".join(words)
    assert [joined[r.start : r.end] for r in results] == words


IOB = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
BIOES = [*IOB, "E-LOC", "S-LOC", "E-PER", "S-PER"]
BILOU = [*IOB, "L-LOC", "U-LOC", "L-PER", "U-PER"]


@pytest.mark.parametrize(
    ("labels", "tags", "groups"),
    [
        (["O", "e-mail", "ZIP-CODE"], "e-mail e-mail O ZIP-CODE", ["e-mail 0 1", "ZIP-CODE 3 3"]),
        (["O", "B-e-mail", "I-e-mail"], "B-e-mail I-e-mail O", ["e-mail 0 1"]),
        (["O", "B-O", "I-O"], "B-O I-O O B-O O I-O", ["O 0 1", "O 3 3", "O 5 5"]),
        (["B-O", "I-O"], "B-O I-O I-O B-O", ["O 0 2", "O 3 3"]),
        (IOB, "B-LOC I-LOC B-LOC O I-PER I-LOC", ["LOC 0 1", "LOC 2 2", "PER 4 4", "LOC 5 5"]),
        # No letter of another scheme is a prefix in this one.
        ([*IOB, "S-BAHN", "E-MAIL", "U-BAHN"], "S-BAHN S-BAHN E-MAIL U-BAHN",
         ["S-BAHN 0 1", "E-MAIL 2 2", "U-BAHN 3 3"]),
        (BIOES, "B-LOC I-LOC E-LOC I-LOC S-LOC S-LOC B-PER E-PER E-PER",
         ["LOC 0 2", "LOC 3 3", "LOC 4 4", "LOC 5 5", "PER 6 7", "PER 8 8"]),
        (BILOU, "B-LOC L-LOC U-LOC U-LOC U-PER", ["LOC 0 1", "LOC 2 2", "LOC 3 3", "PER 4 4"]),
        ([*BILOU, "S-BAHN"], "S-BAHN S-BAHN U-LOC", ["S-BAHN 0 1", "LOC 2 2"]),
        (["O", "B-", "I-", "-", "B"], "B- B- I- - B", ["B- 0 1", "I- 2 2", "- 3 3", "B 4 4"]),
        (["LABEL_0", "LABEL_1"], "LABEL_0 LABEL_0 LABEL_1", ["LABEL_0 0 1", "LABEL_1 2 2"]),
        (["b-per", "i-per"], "b-per i-per", ["b-per 0 0", "i-per 1 1"]),
    ],
)  # fmt: skip
def test_only_prefixes_are_prefixes(
    tokenizer: Path, labels: list[str], tags: str, groups: list[str]
) -> None:
    numbers = [labels.index(tag) for tag in tags.split()]

    def script(ids: list[int]) -> NDArray[Any]:
        return np.eye(len(labels))[[0, *numbers, 0]] * 9

    pipeline = build(
        TokenClassificationPipeline, tokenizer, Scripted(script), {"labels": labels},
        aggregation_strategy="simple",
    )  # fmt: skip
    (results,) = pipeline(" ".join("x" * len(numbers))).predictions
    assert [f"{r.entity} {r.start // 2} {(r.end - 1) // 2}" for r in results] == groups


@pytest.mark.parametrize("ignored", [["LOC"], ["O", "LOC"]])
def test_ignored_groups(tokenizer: Path, ignored: list[str]) -> None:
    def script(ids: list[int]) -> NDArray[Any]:
        return np.eye(5)[[0, 1, 2, 0, 3, 0]] * 9

    pipeline = build(
        TokenClassificationPipeline, tokenizer, Scripted(script), {"labels": IOB},
        aggregation_strategy="simple", ignore_labels=ignored,
    )  # fmt: skip
    (results,) = pipeline("x x x x").predictions
    assert [r.entity for r in results] == (["PER"] if "O" in ignored else ["O", "PER"])


# ---- question answering --------------------------------------------------------------------------


def qa(tokenizer: Path, start: dict[str, float], end: dict[str, float], **options: Any) -> Any:
    def script(ids: list[int]) -> tuple[list[float], list[float]]:
        names = [vocabulary()[i] for i in ids]
        return [start.get(n, -9.0) for n in names], [end.get(n, -9.0) for n in names]

    runner = Scripted(script, ("start_logits", "end_logits"), options.pop("longest", 32))
    return build(QuestionAnsweringPipeline, tokenizer, runner, **options), runner


def test_answer_is_a_part_of_the_context(tokenizer: Path) -> None:
    pipeline, _ = qa(tokenizer, {"new": 9.0}, {"york": 9.0})
    context = "😀 Máry is from  New York, not Paris"
    answer = pipeline(question="Where is Mary from?", context=context)
    assert answer.answer == "New York" == context[answer.start : answer.end]
    assert answer.start == context.index("New")
    assert 0.99 < answer.score <= 1


def test_answers_are_whole_words(tokenizer: Path) -> None:
    pipeline, _ = qa(tokenizer, {"##ing": 9.0}, {"##ing": 9.0})
    assert pipeline(question="who", context="Mary is flying.").answer == "flying"


def test_answer_is_not_in_the_question_nor_backwards_nor_too_long(tokenizer: Path) -> None:
    pipeline, _ = qa(tokenizer, {"mary": 9.0, "paris": 5.0}, {"mary": 9.0, "paris": 5.0})
    assert pipeline(question="mary", context="she lives in paris").answer == "paris"
    pipeline, _ = qa(tokenizer, {"york": 9.0, "new": 3.0}, {"new": 9.0, "york": 3.0})
    assert pipeline(question="where", context="new york").answer in ("new", "york")
    pipeline, _ = qa(tokenizer, {"mary": 9.0}, {"york": 9.0, "is": 4.0}, max_answer_length=4)
    assert pipeline(question="?", context="mary is from new york").answer == "mary is"


@pytest.mark.parametrize("stride", [None, 1, 5])
def test_long_context_is_windowed(tokenizer: Path, stride: int | None) -> None:
    pipeline, runner = qa(
        tokenizer, {"東": 9.0}, {"京": 9.0}, longest=16, doc_stride=stride
    )  # fmt: skip
    context = "😀 the movie e\u0301 " * 20 + "東京 is good. " + "acme! " * 20
    answer = pipeline(question="where is it", context=context)
    assert answer.answer == "東京" == context[answer.start : answer.end]
    assert len(runner.seen) > 8 and max(map(len, runner.seen)) == 16
    limited, runner = qa(tokenizer, {"東": 9.0}, {"京": 9.0}, longest=16, num_spans=2)
    assert limited(question="where is it", context=context).answer != "東京"
    assert len(runner.seen) == 2


def test_no_answer(tokenizer: Path) -> None:
    pipeline, _ = qa(
        tokenizer, {"[CLS]": 9.0}, {"[CLS]": 9.0}, version_2_with_negative=True
    )  # fmt: skip
    nothing = pipeline(question="who", context="mary")
    assert (nothing.answer, nothing.start, nothing.end) == ("", 0, 0)
    assert nothing.score > 0.99


FILLER = "the conference in berlin was good . " * 9


@pytest.mark.parametrize("size", [8_500, 57_000])
@pytest.mark.parametrize("null", [-9.0, 4.0])
def test_one_sentence_among_many_weak_ones(tokenizer: Path, size: int, null: float) -> None:
    """A weak answer in every window neither adds up nor is certain where nothing is beside it."""
    scores = {"paris": 9.0, "berlin": 3.0, "[CLS]": null}
    pipeline, runner = qa(tokenizer, scores, scores, longest=64)
    filler = FILLER * (size // len(FILLER))
    for at in (0, size // 3, len(filler)):
        at = filler.rfind(".", 0, at) + 1 or 0
        context = f"{filler[:at]} mary lives in paris . {filler[at:]}"
        answer = pipeline(question="where is mary", context=context)
        assert (answer.answer, answer.start) == ("paris", context.index("paris"))
        assert 0.9 < answer.score <= 1
    assert len(runner.seen) > size // 400


def test_score_is_that_of_the_own_window(tokenizer: Path) -> None:
    scores = {"paris": 2.0, "berlin": 1.0, "[CLS]": 0.0}
    alone, _ = qa(tokenizer, scores, scores, longest=16)
    many, runner = qa(tokenizer, scores, scores, longest=16, doc_stride=6)
    # No window has both.
    context = "paris " + "x " * 40 + "berlin"
    want = alone(question="where", context="paris x x x x x x x x x x x")
    assert many(question="where", context=context) == want.model_copy(
        update={"score": pytest.approx(want.score)}
    )
    assert len(runner.seen) > 5


@pytest.mark.parametrize("stride", [2, 3, 5, 8])
def test_answer_on_the_edge_of_windows(tokenizer: Path, stride: int) -> None:
    """Seen in several windows it counts once; a word that an edge cuts is whole."""
    start, end = {"new": 9.0}, {"york": 9.0}
    pipeline, _ = qa(tokenizer, start, end, longest=16, doc_stride=stride)
    flying, _ = qa(tokenizer, {"fly": 9.0}, {"fly": 9.0}, longest=16, doc_stride=stride)
    for before in range(30):
        context = "x " * before + "New York" + " y" * 30
        answer = pipeline(question="where", context=context)
        assert (answer.answer, answer.start) == ("New York", 2 * before)
        assert 0.9 < answer.score <= 1
        context = "x " * before + "flying" + " y" * 30
        answer = flying(question="where", context=context)
        assert (answer.answer, answer.start, answer.end) == ("flying", 2 * before, 2 * before + 6)


def test_equal_texts_are_answers_of_their_own(tokenizer: Path) -> None:
    """By place, not by text; of equals the first."""
    scores = {"paris": 5.0, "[CLS]": 0.0}
    pipeline, _ = qa(tokenizer, scores, scores, longest=16)
    context = "x x paris " + "x " * 30 + "Paris " + "x " * 30 + "paris"
    answer = pipeline(question="where", context=context)
    assert (answer.answer, answer.start) == ("paris", 4)
    once = pipeline(question="where", context="x x paris")
    assert answer.score == pytest.approx(once.score, rel=0.05)
    # In one window each has its share.
    twice = pipeline(question="where", context="paris is not Paris")
    assert (twice.start, twice.end) == (0, 5) and 0.2 < twice.score < 0.3

    # The same text again where the model is surer of it.
    def script(ids: list[int]) -> tuple[list[float], list[float]]:
        row = [0.0] * len(ids)
        if IDS["news"] in ids and IDS["paris"] in ids:
            row[ids.index(IDS["paris"])] = 8.0
        elif IDS["paris"] in ids:
            row[ids.index(IDS["paris"])] = 5.0
        return row, row

    runner = Scripted(script, ("start_logits", "end_logits"), 16)
    pipeline = build(QuestionAnsweringPipeline, tokenizer, runner)
    context = "paris " + "x " * 30 + "news paris " + "x " * 30 + "paris"
    assert pipeline(question="where", context=context).start == context.index("news") + 5


def test_nothing_in_all_windows(tokenizer: Path) -> None:
    """No answer is the answer only if no window has one."""
    scores = {"[CLS]": 4.0, "paris": 6.0}
    pipeline, _ = qa(tokenizer, scores, scores, longest=16, version_2_with_negative=True)
    assert pipeline(question="where", context="x " * 60).answer == ""
    found = pipeline(question="where", context="x " * 30 + "paris " + "x " * 30)
    assert found.answer == "paris" and found.score > 0.7


def test_question_answering_rejects(tokenizer: Path) -> None:
    pipeline, _ = qa(tokenizer, {}, {}, longest=8)
    with pytest.raises(InputError, match="no room for the context"):
        pipeline(question="who is in the conference in paris", context="mary")
    for bad in ({"question": ""}, {"context": ""}):
        with pytest.raises(InputError, match="at least 1 character"):
            pipeline(**{"question": "who", "context": "mary", **bad})
    long, _ = qa(tokenizer, {}, {}, longest=16, doc_stride=12)
    with pytest.raises(InputError, match="cannot overlap"):
        long(question="who", context="mary " * 40)
    with pytest.raises(InputError, match="max_answer_len must be at least 1"):
        qa(tokenizer, {}, {}, max_answer_len=0)
    with pytest.raises(InputError, match="start_logits and end_logits"):
        build(QuestionAnsweringPipeline, tokenizer, Scripted(None))


@given(context=ODD.filter(bool), seed=st.integers(0, 99))
def test_answers_are_in_the_context(context: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    runner = Scripted(
        lambda ids: (draw.standard_normal(len(ids)), draw.standard_normal(len(ids))),
        ("start", "end"), longest=14,
    )  # fmt: skip
    answer = build(QuestionAnsweringPipeline, _tokenizer(), runner)(question="who", context=context)
    assert answer.answer == context[answer.start : answer.end]
    assert 0 <= answer.score <= 1 + 1e-9


# ---- text classification -------------------------------------------------------------------------


def test_softmax_sigmoid_and_regression(tokenizer: Path) -> None:
    def classify(config: Any, **options: Any) -> Any:
        names = {"labels": ["a", "b", "c"], **config}
        runner = Scripted(lambda ids: [0.0, math.log(3), math.log(4)])
        made = build(TextClassificationPipeline, tokenizer, runner, names, **options)
        return made("mary", "john").model_dump()

    assert classify({}) == {"labels": ["c", "c"], "scores": pytest.approx([0.5, 0.5])}
    two = classify({}, top_k=2)
    assert two["labels"] == [["c", "b"]] * 2
    assert two["scores"][0] == pytest.approx([4 / 8, 3 / 8])
    several = classify({"problem_type": "multi_label_classification"}, return_all_scores=True)
    assert several["labels"][0] == ["c", "b", "a"]
    assert several["scores"][0] == pytest.approx([4 / 5, 3 / 4, 1 / 2])
    assert classify({"problem_type": "regression"})["scores"] == pytest.approx([math.log(4)] * 2)


def test_one_label_is_a_sigmoid(tokenizer: Path) -> None:
    runner = Scripted(lambda ids: [math.log(3)])
    assert build(TextClassificationPipeline, tokenizer, runner)("x").scores == pytest.approx([0.75])


def test_pairs_and_their_truncation(tokenizer: Path) -> None:
    runner = Scripted(lambda ids: [0.0, 1.0], longest=11)
    pipeline = build(TextClassificationPipeline, tokenizer, runner, truncate=True)
    ten = "a b c d e f g h i j"
    pipeline(sequences=[[ten, "x"], ["x", ten], [ten, ten], ["x", "y"], ["x"]])
    names = [" ".join(vocabulary()[i][0].replace("[", "|") for i in ids) for ids in runner.seen]
    assert names == [
        "| a b c d e f g | x |",
        "| x | a b c d e f g |",
        "| a b c d | a b c d |",
        "| x | y |",
        "| x |",
    ]
    with pytest.raises(InputError, match=r"sequences\.0: a text or a pair"):
        pipeline(sequences=[["a", "b", "c"]])


NLI = ["contradiction", "neutral", "entailment"]
LONG = "a b c d e f g h i j k l"


@pytest.mark.parametrize(
    ("kind", "given", "where", "tokens"),
    [
        (TextClassificationPipeline, {"sequences": ["a", LONG]}, "sequences.1", 14),
        (TextClassificationPipeline, {"sequences": [[LONG, "x"]]}, "sequences.0", 16),
        (TokenClassificationPipeline, {"inputs": [LONG]}, "inputs.0", 14),
        (EmbeddingExtractionPipeline, {"inputs": ["a", LONG]}, "inputs.1", 14),
        (FillMaskPipeline, {"inputs": f"[MASK] {LONG}"}, "inputs.0", 15),
        (
            ZeroShotTextClassificationPipeline,
            {"sequences": [LONG], "labels": ["x"], "hypothesis_template": "{}"},
            "sequences.0",
            16,
        ),
    ],
)
def test_no_text_is_cut_without_a_word(
    tokenizer: Path, kind: type[Any], given: dict[str, Any], where: str, tokens: int
) -> None:
    """An error; cut and counted where the pipeline, or the call, says so."""
    runner = Scripted(lambda ids: [[0.0, 1.0, 2.0]] * len(ids), longest=9)
    zero_shot = kind is ZeroShotTextClassificationPipeline
    options = {"entailment_index": 2, "contradiction_index": 0} if zero_shot else {}
    pipeline = build(kind, tokenizer, runner, **options)
    message = f"^{re.escape(where)}: the text has {tokens} tokens and 9 fit: truncate=True cuts it"
    for more in ({}, {"truncate": None}, {"truncate": False}):
        with pytest.raises(TooLongError, match=message):
            pipeline.prepare(pipeline.parse(**given, **more))
    job = pipeline.prepare(pipeline.parse(**given, truncate=True))
    assert job.cut == 1 and max(item.length for item in job.items) == 9
    pipeline.truncate = True
    assert pipeline.prepare(pipeline.parse(**given)).cut == 1
    with pytest.raises(TooLongError):
        pipeline.prepare(pipeline.parse(**given, truncate=False))


def test_questions_that_are_too_long(tokenizer: Path) -> None:
    runner = Scripted(lambda ids: [0.0] * len(ids), longest=32, outputs=("start", "end"))
    given = {"question": "who " * 30, "context": "Mary lives in Paris"}
    pipeline = build(QuestionAnsweringPipeline, tokenizer, runner)
    said = "30 tokens leaves no room for the context in 32: {} cuts it"
    with pytest.raises(TooLongError, match=said.format("truncate=True")):
        pipeline.prepare(pipeline.parse(**given))
    with pytest.raises(TooLongError, match=said.format("a smaller max_question_len")):
        pipeline.prepare(pipeline.parse(**given, truncate=True))
    pipeline = build(QuestionAnsweringPipeline, tokenizer, runner, max_question_len=8)
    job = pipeline.prepare(pipeline.parse(**given))
    assert job.cut == 1 and job.items[0].length == 8 + 3 + 4
    assert pipeline.prepare(pipeline.parse(**{**given, "question": "who"})).cut == 0


# ---- zero-shot, fill-mask ------------------------------------------------------------------------


def test_zero_shot_by_hand(tokenizer: Path) -> None:
    class Known(Scripted):
        @property
        def output_shapes(self) -> dict[str, tuple[int | str, ...]]:
            return {"logits": ("batch", 3)}

    def script(ids: list[int]) -> list[float]:
        return [math.log(1.0), 5.0, math.log(3.0 if IDS["sport"] in ids else 1.0)]

    def made(**options: Any) -> Any:
        kind = ZeroShotTextClassificationPipeline
        return build(kind, tokenizer, Known(script), {"labels": NLI}, **options)

    got = made()(sequences="text", labels=["news", "sport"])
    assert (got.sequences, got.labels) == ("text", ["sport", "news"])
    assert got.scores == pytest.approx([3 / 4, 1 / 4])
    many = made(multi_class=True, labels="news, sport")(["a", "b"])
    assert many.labels == [["sport", "news"]] * 2
    assert many.scores[1] == pytest.approx([3 / 4, 1 / 2])
    one = made(model_config={"hypothesis_template": "It is {}"})("a", labels="sport")
    assert one.scores == pytest.approx([3 / 4])
    with pytest.raises(InputError, match="give them once"):
        made(labels=["x"])("a", labels=["y"])
    with pytest.raises(InputError, match="needed by the call"):
        made()("a")
    for template in ("nothing", "{:>99999999}", "{0.__class__}"):
        with pytest.raises(InputError, match=r"must have \{\}"):
            made(hypothesis_template=template)
    with pytest.raises(InputError, match="model_config has wrong"):
        made(model_config={"wrong": 1})
    with pytest.raises(InputError, match="must differ"):
        made(contradiction_index=2)
    names = {"labels": ["LABEL_0", "LABEL_1", "LABEL_2"]}
    with pytest.raises(ModelError, match="give entailment_index "):
        build(ZeroShotTextClassificationPipeline, tokenizer, Known(script), names)


def test_fill_mask_by_hand(tokenizer: Path) -> None:
    def script(ids: list[int]) -> list[list[float]]:
        row = np.full(len(IDS), -50.0)
        row[IDS["paris"]], row[IDS["berlin"]] = math.log(3), 0.0
        return [row.tolist()] * len(ids)

    pipeline = build(FillMaskPipeline, tokenizer, Scripted(script), top_k=2)
    one, several = pipeline(["Mary lives in [MASK].", "[MASK] and [MASK]"]).model_dump()[
        "predictions"
    ]
    assert one[0] == {
        "score": pytest.approx(0.75), "token": IDS["paris"], "token_str": "paris",
        "sequence": "mary lives in paris.",
    }  # fmt: skip
    assert [row["token_str"] for row in one] == ["paris", "berlin"]
    assert [[row["token_str"] for row in mask] for mask in several] == [["paris", "berlin"]] * 2
    assert several[1][0]["sequence"] == "[CLS] [MASK] and paris [SEP]"
    with pytest.raises(TooLongError, match=r"inputs\.0: the text has 43 tokens and 32 fit"):
        pipeline("Mary " * 40 + "[MASK]")
    with pytest.raises(InputError, match=r"no \[MASK\] in the first 32 tokens"):
        pipeline(inputs="Mary " * 40 + "[MASK]", truncate=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_outputs_that_are_no_numbers(tokenizer: Path, bad: float) -> None:
    """Every task answers without a crash or a numpy warning, and is sure of nothing that is NaN."""
    every = build(
        TokenClassificationPipeline, tokenizer, Scripted(lambda ids: [[bad, 0.0, bad]] * len(ids)),
        {"labels": ["A", "B", "C"]}, aggregation_strategy="average",
    )  # fmt: skip
    words = every("Mary lives").predictions[0]
    assert words and all(math.isnan(r.score) == math.isnan(bad) for r in words)

    def answers(ids: list[int]) -> tuple[list[float], list[float]]:
        return [bad] * len(ids), [bad] * len(ids)

    runner = Scripted(answers, ("start_logits", "end_logits"))
    answer = build(QuestionAnsweringPipeline, tokenizer, runner)(question="who", context="Mary is")
    assert not answer.score > 0 or not math.isnan(bad)
    runner = Scripted(lambda ids: [[bad] * 9] * len(ids))
    tokens = build(FillMaskPipeline, tokenizer, runner)("[MASK]").predictions[0]
    assert len(tokens) == 5
    assert all(
        t.score == (pytest.approx(1 / 9) if bad > 0 else pytest.approx(math.nan, nan_ok=True))
        for t in tokens
    )
    runner = Scripted(lambda ids: [0.0, 0.0, bad if IDS["sport"] in ids else 1.0])
    zero_shot = build(
        ZeroShotTextClassificationPipeline, tokenizer, runner, entailment_index=2,
        contradiction_index=0, multi_class=True,
    )  # fmt: skip
    found = zero_shot("text", labels=["news", "sport", "good"])
    assert found.labels.index("sport") == (0 if bad > 0 else 2)
    assert found.scores[found.labels.index("good")] == pytest.approx(1 / (1 + math.exp(-1)))


# ---- options and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("token-classification", ["token_classification", "ner", "NER"]),
        ("question-answering", ["question_answering", "qa"]),
        ("text-classification", ["text_classification", "sentiment-analysis"]),
        ("text-classification", ["sentiment_analysis", "sentiment"]),
        ("zero-shot-text-classification", ["zero_shot_text_classification"]),
        ("transformers_embedding_extraction", ["embedding_extraction", "Embedding-Extraction"]),
        ("transformers_embedding_extraction", ["embedding", "transformers-embedding-extraction"]),
        ("fill-mask", ["fill_mask"]),
    ],
)  # fmt: skip
def test_names_of_tasks(task: str, names: list[str]) -> None:
    for name in (task, *names):
        assert base.find(name).task == task
    assert list(tasks()) == sorted(tasks())


@pytest.fixture(scope="module")
def ner_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ner")
    make(folder, "token-classification", labels=NER_LABELS)
    return folder


def create(folder: Path, task: str = "ner", **options: Any) -> Pipeline:
    options = {"engine_type": "onnxruntime", "sequence_length": [16, 32], **options}
    return Pipeline.create(task, folder, **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "speech"}, InputError, "unknown task 'speech'; there are fill-mask, question"),
        ({"engine_type": "tensorrt"}, InputError, "one of sparsec, onnxruntime, not 'tensorrt'"),
        ({"aggregation": "max"}, InputError, "no option 'aggregation'; it has aggreg"),
        ({"scheduler": "x"}, InputError, "scheduler is an argument of DeepSparse only"),
        ({"aggregation_strategy": "best"}, InputError, "none, simple, first, average, max"),
        ({"stride": 3}, InputError, "other than none"),
        ({"batch_size": 0}, InputError, "batch_size: Input should be greater than 0"),
        ({"batch_size": "x"}, InputError, "batch_size: Input should be a valid integer"),
        ({"num_cores": 0}, InputError, "num_cores: Input should be greater than 0"),
        ({"task": 3}, InputError, "unknown task 3"),
        ({"model_path": 3}, InputError, "model_path: "),
        ({"tokenizer": 3}, InputError, "tokenizer: "),
        ({"config": []}, InputError, "config: "),
        ({"zoo_dir": 3}, InputError, "zoo_dir: "),
        ({"stride": "x"}, InputError, "stride: Input should be a valid integer"),
        ({"ignore_labels": "O"}, InputError, "ignore_labels: "),
        ({"sequence_length": []}, InputError, "a number of tokens or a list"),
        ({"sequence_length": [16, 0]}, InputError, "a number of tokens or a list"),
        ({"sequence_length": 512}, InputError, "positions for 128 tokens"),
        ({"config": {"id2label": {"0": "O"}}}, ModelError, "names 1 labels .* 5 outputs"),
        ({"tokenizer": "nowhere"}, ModelError, "no tokenizer.json"),
        ({"task": "qa"}, InputError, "start_logits and end_logits"),
        ({"task": "text-classification"}, ModelError, "not what this task needs: rank 2"),
    ],
)  # fmt: skip
def test_wrong_options(
    ner_model: Path, options: dict[str, Any], error: type[SparsecError], message: str
) -> None:
    options = {"task": "ner", "model_path": ner_model, "engine_type": "onnxruntime", **options}
    with pytest.raises(error, match=message):
        Pipeline.create(**options)


POISONED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "token-classification": (
        "token-classification", {"labels": NER_LABELS}, {"inputs": ["mary", "bad"]},
    ),
    "question-answering": (
        "question-answering", {}, {"question": "who", "context": "mary is bad"},
    ),
    "text-classification": (
        "sequence-classification", {"labels": ["no", "yes"]}, {"sequences": ["mary", "bad"]},
    ),
    "zero-shot-text-classification": (
        "sequence-classification", {"labels": ["contradiction", "neutral", "entailment"]},
        {"sequences": ["mary", "bad"], "labels": ["sport", "news"]},
    ),
    "embedding": ("hidden", {}, {"inputs": ["mary", "bad"]}),
    "sentence-embedding": ("hidden", {}, {"inputs": ["mary", "bad"]}),
    "fill-mask": ("masked-lm", {}, {"inputs": ["[MASK] is mary", "[MASK] is bad"]}),
}  # fmt: skip


@pytest.mark.parametrize("task", POISONED)
@pytest.mark.parametrize("engine", ["sparsec", "onnxruntime"])
def test_outputs_that_are_not_finite(
    task: str, engine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head, settings, body = POISONED[task]
    make(tmp_path, head, poison={"bad": float("nan"), "movie": float("inf")}, **settings)
    good, infinite = (
        json.loads(json.dumps(body).replace("bad", word)) for word in ("mary", "movie")
    )
    with Pipeline.create(task, tmp_path, engine_type=engine, sequence_length=16) as pipeline:
        # Its decoder is the table of embeddings: NaN is in every answer.
        tied = task == "fill-mask"
        pipeline(good)
        assert bool(caplog.records) == tied
        for bad in (body, infinite):
            caplog.clear()
            pipeline(bad)
            (record,) = caplog.records
            assert (record.levelname, record.name) == ("WARNING", "sparsec")
            assert "NaN and" in record.getMessage() and pipeline.task in record.getMessage()
        caplog.clear()
        pipeline.on_nonfinite = "ignore"
        pipeline(body)
        pipeline.on_nonfinite = "error"
        if not tied:
            pipeline(good)
        with pytest.raises(NonFiniteError, match=r"has [1-9]\d* NaN and 0 infinite values in [12]"):
            pipeline(body)
        assert not caplog.records
    with pytest.raises(InputError, match="on_nonfinite: Input should be 'warn', 'error' or"):
        Pipeline.create(task, tmp_path, on_nonfinite="raise")


@pytest.mark.parametrize("number", [np.int64, np.int32, np.uint8, np.array])
def test_numbers_of_numpy(ner_model: Path, number: Any) -> None:
    """As good as Python's, in every option; and yes and no are no numbers."""
    options = {"batch_size": number(2), "num_cores": number(1), "stride": number(3)}
    for length in (number(16), [number(16), 32], (number(32), number(16)), np.array([16, 32])):
        strategy = {"aggregation_strategy": np.str_("max"), **options}
        with create(ner_model, sequence_length=length, **strategy) as pipeline:
            assert set(pipeline.runner.buckets) <= {16, 32}
            assert all(type(n) is int for n in (*pipeline.runner.buckets, pipeline.stride))
    with create(ner_model, "embedding", emb_extraction_layer=number(0)) as pipeline:
        assert pipeline("Mary").embeddings
    assert base.check_options(TextClassificationPipeline, {"top_k": number(2)}) == {"top_k": 2}
    for task, name in (
        ("qa", "doc_stride"), ("qa", "n_best_size"), ("fill-mask", "top_k"), ("ner", "batch_size"),
        ("ner", "sequence_length"), ("ner", "num_cores"), ("embedding", "emb_extraction_layer"),
        ("zero-shot", "entailment_index"), ("ner", "tokenizer"), ("ner", "aggregation_strategy"),
    ):  # fmt: skip
        for value in (True, np.True_):
            with pytest.raises(InputError, match=name):
                create(ner_model, task, **{name: value})
    assert base.check_options(TextClassificationPipeline, {"return_all_scores": np.True_}) == {
        "return_all_scores": True
    }


def test_calls(ner_model: Path) -> None:
    """All ways to pass the same texts."""
    with create(ner_model) as pipeline:
        want = pipeline(TEXTS[:2])
        schema = pipeline.input_schema
        assert pipeline(*TEXTS[:2]) == pipeline(inputs=TEXTS[:2]) == want
        assert pipeline({"inputs": TEXTS[:2]}) == pipeline(sequences=TEXTS[:2]) == want
        assert pipeline(schema(inputs=TEXTS[:2])) == want
        assert json.loads(want.model_dump_json()) == want.model_dump()
        assert pipeline([]).predictions == []
        for bad in ({"inputs": 3}, {"text": "x"}, {}, {"inputs": "x", "extra": 1}):
            with pytest.raises(InputError, match=r"token-classification: \w+.*: "):
                pipeline(bad)
        with pytest.raises(InputError, match="given twice"):
            pipeline("x", inputs="y")
        assert "16, 32" in repr(pipeline)
    with pytest.raises(EngineClosedError):
        pipeline("x")


def test_half_a_character(ner_model: Path) -> None:
    """Lone surrogates, as broken JSON has them, are no text."""
    with create(ner_model) as pipeline:
        for bad in ("a \ud800 b", "long " * 9999 + "\ud800", [["a", "\udfff"]]):
            with pytest.raises(InputError, match="not valid Unicode"):
                pipeline(inputs=bad)


def test_labels_without_names(ner_model: Path) -> None:
    with create(ner_model, config={}, ignore_labels=[], truncate=True) as pipeline:
        found = {r.entity for row in pipeline(TEXTS).predictions for r in row}
        assert found <= {f"LABEL_{i}" for i in range(5)} and len(found) > 1


@pytest.mark.parametrize("engine", ["onnxruntime", "sparsec"])
def test_threads_share_a_pipeline(ner_model: Path, engine: str) -> None:
    """Texts of all lengths at once, and the tokenizer's settings stay as they are."""
    with create(ner_model, engine_type=engine, aggregation_strategy="max", stride=4) as pipeline:
        before = pipeline.text.tokenizer.to_str()
        texts = [" ".join(TEXTS[:k])[: 7 * k] for k in range(1, 9)] * 6
        alone = [pipeline(text) for text in texts[:8]] * 6
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(pipeline, texts))
        assert together == alone
        assert pipeline.text.tokenizer.to_str() == before
        assert pipeline.text.tokenizer.truncation is None


def test_a_task_of_ones_own(ner_model: Path) -> None:
    class CountInput(BaseModel):
        text: str

    class CountOutput(BaseModel):
        tokens: int

    @Pipeline.register("count-tokens", task_aliases=["count"])
    class Count(Pipeline):
        input_schema = CountInput
        output_schema = CountOutput

        def __init__(self, *args: Any, extra: int = 0) -> None:
            super().__init__(*args)
            self.extra = extra

        def prepare(self, inputs: BaseModel) -> base.Job:
            assert isinstance(inputs, CountInput)
            encoding = self.text.fit(self.text.encode(inputs.text), self.max_length)
            return base.Job([self.text.features(encoding)])

        def finish(self, job: base.Job, outputs: list[Outputs]) -> CountOutput:
            (logits,) = (output["logits"] for output in outputs)
            return CountOutput(tokens=len(logits) + self.extra)

    try:
        with create(ner_model, "Count_Tokens", extra=10) as pipeline:
            assert pipeline("Mary is flying").tokens == 16
        with pytest.raises(InputError, match="'ner' belongs to TokenClassificationPipeline"):
            Pipeline.register("other", task_aliases=["ner"])(Count)
        Pipeline.register(Count)
    finally:
        for name in ("count-tokens", "count"):
            base._tasks.pop(name, None)


def test_pipelines_are_imported_when_used() -> None:
    code = (
        "import sys, sparsec; assert 'tokenizers' not in sys.modules; "
        "sys.modules['tokenizers'] = None\n"
        "try: sparsec.Pipeline\n"
        "except sparsec.SparsecError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sparsec[text]'" in done.stdout
