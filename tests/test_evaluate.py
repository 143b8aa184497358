"""Comparing models: the metrics, the texts, every task, the command and its page.

ONNX Runtime runs most models here: what is tested is the comparison, and nothing need be compiled.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import sparsec
from sparsec.cli import main
from sparsec.errors import InputError, ModelError

for _package in ("onnxruntime", "sklearn", "scipy", "tokenizers"):
    pytest.importorskip(_package, reason="evaluation needs it")

from sparsec.pruning.evaluation import Evaluation, timing  # noqa: E402
from sparsec.pruning.evaluation.answers import overlap, right_answers, squad  # noqa: E402
from sparsec.pruning.evaluation.classification import correlations, kl, label_scores  # noqa: E402
from sparsec.pruning.evaluation.embeddings import cosine, neighbours, shared, similarities  # noqa: E402
from sparsec.pruning.evaluation.page import render  # noqa: E402
from sparsec.pruning.evaluation.raw import Raw, alike  # noqa: E402
from sparsec.pruning.evaluation.tasks import NAMES, metric, named  # noqa: E402
from sparsec.pruning.evaluation.texts import Fields, Sample, read  # noqa: E402
from sparsec.pruning.evaluation.tokens import by_kind, entities, entity_f1  # noqa: E402
from sparsec.serving.pipelines import tasks as pipeline_tasks  # noqa: E402
from tests.pipelines_support import NER_LABELS, make  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "examples" / "models"

WORDS = "mary john flying from nairobi to new york attend a conference paris berlin works good bad"


def sentences(count: int, seed: int = 0, length: int = 8) -> list[str]:
    """Different texts of words that the tests' tokenizer knows."""
    rng = np.random.default_rng(seed)
    words = WORDS.split()
    return [" ".join(rng.choice(words, rng.integers(3, length))) + f" {i}" for i in range(count)]


TEXTS = sentences(66)

ORT: dict[str, Any] = {"engine": "onnxruntime", "reference_engine": "onnxruntime", "seconds": 0}


# ---- metrics against what one would count by hand ------------------------------------------------


def rows(seed: int, count: int = 12, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width))


def test_cosine_and_similarities() -> None:
    a, b = rows(0), rows(1)
    wanted = [x @ y / math.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    assert cosine(a, b) == pytest.approx(wanted)
    assert cosine(a, a).tolist() == [1.0] * len(a)
    assert cosine(a, -2 * a) == pytest.approx([-1.0] * len(a))
    zero = np.zeros_like(a)
    assert cosine(zero, zero).tolist() == cosine(a, zero).tolist() == [0.0] * len(a)
    pairs = [cosine(a[i : i + 1], a[j : j + 1])[0] for i, j in itertools.combinations(range(12), 2)]
    assert similarities(a) == pytest.approx(pairs)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_neighbours(count: int) -> None:
    a, b = rows(2, count), rows(3, count)
    found = neighbours(a), neighbours(b)
    shares = []
    for i in range(count):
        near = []
        for side in (a, b):
            others = [j for j in range(count) if j != i]
            others.sort(key=lambda j: -cosine(side[i : i + 1], side[j : j + 1])[0])
            near.append(others[:10])
        assert found[0][i].tolist() == near[0] and found[1][i].tolist() == near[1]
        shares.append(len({*near[0]} & {*near[1]}) / max(len(near[0]), 1))
    if count == 1:
        assert math.isnan(shared(*found))
    else:
        assert shared(*found) == pytest.approx(np.mean(shares))
        assert shared(found[0], found[0]) == 1.0


def test_kl() -> None:
    p = np.array([[0.5, 0.25, 0.25], [1 / 3] * 3])
    q = np.array([[0.25, 0.5, 0.25], [0.8, 0.1, 0.1]])
    wanted = [
        sum(a * math.log(a / b) for a, b in zip(*pair, strict=True))
        for pair in zip(p, q, strict=True)
    ]
    assert kl(np.log(p), np.log(q)) == pytest.approx(wanted)
    # Logarithms of what no float holds.
    assert kl(np.array([[0.0, -1000.0]]), np.array([[-1000.0, 0.0]])) == pytest.approx([1000.0])
    assert kl(np.log(p), np.log(p)).tolist() == [0.0, 0.0]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=30)
def test_accuracy_and_macro_f1(pairs: list[tuple[int, int]]) -> None:
    right, given_ = (np.array(side) for side in zip(*pairs, strict=True))
    f1 = []
    for label in {*right.tolist(), *given_.tolist()}:
        hit = sum(a == b == label for a, b in pairs)
        seen = sum(a == label for a, _ in pairs) + sum(b == label for _, b in pairs)
        f1.append(2 * hit / seen)
    found = label_scores(right, given_)
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert found["macro_f1"] == pytest.approx(np.mean(f1))


def spans(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Every part of a text that is an entity: one kind, one beginning, and nothing goes on."""

    def begins(i: int) -> bool:
        return tags[i][0] == "B" or i == 0 or tags[i - 1][1:] != tags[i][1:]

    def whole(a: int, b: int) -> bool:
        one_kind = "O" not in tags[a:b] and len({tag[2:] for tag in tags[a:b]}) == 1
        ends = b == len(tags) or begins(b)
        return one_kind and ends and [i for i in range(a, b) if begins(i)] == [a]

    parts = itertools.combinations(range(len(tags) + 1), 2)
    return {(a, b, tags[a][2:]) for a, b in parts if whole(a, b)}


def tagged(length: int) -> st.SearchStrategy[list[str]]:
    """Any tags: entities that begin with I-, or go on as another kind, one of them called O."""
    tags = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "PER-A", "O") for prefix in "BI")]
    return st.lists(st.sampled_from(tags), min_size=length, max_size=length)


@given(st.lists(st.integers(0, 9).flatmap(lambda n: st.tuples(tagged(n), tagged(n))), max_size=6))
@settings(max_examples=300)
def test_entity_f1(pairs: list[tuple[list[str], list[str]]]) -> None:
    right, given_ = [one for one, _ in pairs], [two for _, two in pairs]
    sets = [
        {(text, *span) for text, tags in enumerate(side) for span in spans(tags)}
        for side in (right, given_)
    ]
    assert [entities(right), entities(given_)] == sets
    total = len(sets[0]) + len(sets[1])
    assert entity_f1(right, given_) == (2 * len(sets[0] & sets[1]) / total if total else 1.0)
    bars = by_kind("x", {"it": given_}, right)
    assert list(bars.names) == sorted({span[3] for span in sets[0]})
    for kind, value in zip(bars.names, bars.series["it"], strict=True):
        of = [{e for e in side if e[3] == kind} for side in sets]
        assert value == 2 * len(of[0] & of[1]) / (len(of[0]) + len(of[1]))


@pytest.mark.parametrize(
    ("right", "given_", "wanted"),
    [
        # The examples of seqeval's page, and what conlleval says of tags that are none of BIO's.
        (["O O O B-MISC I-MISC I-MISC O", "B-PER I-PER O"],
         ["O O B-MISC I-MISC I-MISC I-MISC O", "B-PER I-PER O"], 1 / 2),
        (["O O B-MISC I-MISC B-MISC O O", "B-PER I-PER O"],
         ["O O B-MISC I-MISC B-MISC I-MISC O", "B-PER I-PER O"], 2 / 3),
        (["B-PER I-PER O"], ["I-PER I-PER O"], 1.0),
        (["B-PER I-PER B-LOC"], ["B-PER I-PER I-LOC"], 1.0),
        (["B-PER I-PER"], ["B-PER B-PER"], 0.0),
        (["B-PER I-PER"], ["B-PER I-LOC"], 0.0),
        (["O", "O"], ["O", "O"], 1.0),
        (["O O"], ["B-PER O"], 0.0),
        (["B-PER", "I-PER"], ["B-PER", "B-PER"], 1.0),
    ],
)  # fmt: skip
def test_entity_f1_by_hand(right: list[str], given_: list[str], wanted: float) -> None:
    sides = [[text.split() for text in side] for side in (right, given_)]
    assert entity_f1(*sides) == wanted


def test_squad() -> None:
    assert overlap("The cat's hat!", "cats hat") == 1.0
    assert overlap("the red hat", "red coat") == pytest.approx(0.5)
    assert overlap("", "") == 1.0 and overlap("", "a hat") == 0.0 and overlap("hat", "") == 0.0
    assert overlap("x x y", "x y y") == pytest.approx(2 / 3)
    found = squad(["in Paris", "", "1990"], [["Paris", "in Paris."], [], ["1991"]])
    assert found == {"f1": pytest.approx(2 / 3), "exact_match": pytest.approx(2 / 3)}
    for label in (
        "Paris",
        ["Paris"],
        {"text": ["Paris"], "answer_start": [3]},
        [{"text": "Paris"}],
    ):
        assert right_answers(label, "") == ["Paris"]
    assert right_answers("", "") == right_answers({"text": []}, "") == []


def test_correlations_and_whole_outputs() -> None:
    a, b = rows(4)[:, 0], rows(5)[:, 0]
    ranks = [np.argsort(np.argsort(side)) for side in (a, b)]
    wanted = np.corrcoef(a, b)[0, 1], np.corrcoef(*ranks)[0, 1]
    assert correlations(a, b) == pytest.approx(wanted)
    assert all(map(math.isnan, correlations(a, np.zeros_like(a))))
    one, two = rows(6), rows(7)
    flat = [side.ravel() for side in (one, two)]
    norm = np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])
    assert alike(one, two) == pytest.approx((flat[0] @ flat[1] / norm, np.abs(one - two).max()))
    assert alike(np.zeros(3), np.zeros(3)) == (1.0, 0.0)


# ---- reading texts -------------------------------------------------------------------------------


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n\n  \ntwo\u2028three\n{no json\n".encode())
    assert [sample.text for sample in read(path)] == ["one", "two\u2028three", "{no json"]
    assert [sample.text for sample in read(path, limit=2)] == ["one", "two\u2028three"]
    (tmp_path / "labels.txt").write_text("A\nB\nC\n")
    assert [sample.label for sample in read(path, tmp_path / "labels.txt")] == ["A", "B", "C"]
    assert read(["a", ("b", "c"), {"text": "d"}]) == (Sample("a"), Sample("b", "c"), Sample("d"))
    assert [sample.label for sample in read(["a", "b"], labels=[1, 0])] == [1, 0]


JSON_ROWS: list[tuple[dict[str, Any], Sample]] = [
    ({"text": "a", "label": 1, "id": 7}, Sample("a", label=1)),
    ({"sentence": "a"}, Sample("a")),
    ({"sentence1": "a", "sentence2": "b", "label": "x"}, Sample("a", "b", label="x")),
    ({"premise": "a", "hypothesis": "b"}, Sample("a", "b")),
    ({"text": "a", "text_pair": "b"}, Sample("a", "b")),
    ({"sequences": ["a", "b"]}, Sample("a", "b")),
    (
        {"question": "q", "context": "c", "answers": {"text": ["x"]}},
        Sample("q", "c", label={"text": ["x"]}),
    ),
    (
        {"tokens": ["a", "b"], "ner_tags": [0, 1]},
        Sample("a b", words=("a", "b"), label=[0, 1]),
    ),
    (
        {"words": ["a", "b", "c"], "tags": ["O"] * 3},
        Sample("a b c", words=("a", "b", "c"), label=["O"] * 3),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("row", "wanted"), JSON_ROWS)
def test_rows_of_fields(row: dict[str, Any], wanted: Sample, tmp_path: Path) -> None:
    assert read([row]) == (wanted,)
    path = tmp_path / "texts"  # no ending: what is in it says what it is
    path.write_text(json.dumps(row) + "\n")
    assert read(path) == (wanted,)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs it")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([{"body": f"text {i}", "kind": i % 2} for i in range(3)])
    parquet.write_table(table, tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", fields=Fields(("body",), "kind"))
    assert found == tuple(Sample(f"text {i}", label=i % 2) for i in range(3))
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(InputError, match=r"cannot read .*bad\.parquet"):
        read(tmp_path / "bad.parquet")


BAD_TEXTS: list[tuple[bytes, dict[str, Any], str]] = [
    (b"", {}, "has no text: 64 or more are wanted"),
    (b" \n\n", {}, "has no text"),
    (b"a\n\xe9t\xe9\n", {}, "is not UTF-8: line 2 has the byte 0xe9"),
    (b'{"text": "a"}\n{"text"\n', {}, "line 2: not JSON"),
    (b'{"txt": "a"}\n', {}, "line 1 has no text: a field text, sentence or tokens"),
    (b'{"text": 5}\n', {}, "a text or a pair of texts is needed"),
    (b'{"tokens": ["a", ""]}\n', {}, "none of them empty"),
    (b'{"text": "a", "label": 1}\n{"text": "b"}\n', {}, "1 of 2 texts have a label"),
    (b'{"text": "a"}\n', {"fields": Fields(("body",))}, "has no field body; it has text"),
    (b'{"text": "a"}\n', {"fields": Fields(None, "kind")}, "has no field kind"),
    (b"a\nb\n", {"labels": ["x"]}, "labels has 1 labels for 2 texts"),
]


@pytest.mark.parametrize(("data", "options", "message"), BAD_TEXTS)
def test_bad_texts(data: bytes, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_bytes(data)
    with pytest.raises(InputError, match=re.escape(message)):
        read(path, **options)


# ---- the tasks -----------------------------------------------------------------------------------

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("hidden", {}),
    "text-classification": ("sequence-classification", {"labels": ["bad", "good", "other"]}),
    "multi-label-classification": (
        "sequence-classification",
        {"labels": ["a", "b", "c"], "problem_type": "multi_label_classification"},
    ),
    "regression": ("sequence-classification", {"labels": ["x"], "problem_type": "regression"}),
    "token-classification": ("token-classification", {"labels": NER_LABELS}),
    "question-answering": ("question-answering", {}),
    "fill-mask": ("masked-lm", {}),
    "outputs": ("hidden", {}),
}


class Models:
    """Small random models by task, and copies that are worse.  Made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, task: str, **changes: Any) -> Path:
        name = "-".join([task, *(f"{k}" for k in changes), str(abs(hash(str(changes))) % 10**8)])
        folder = self._folder / name
        if not folder.exists():
            head, entries = HEADS[task]
            make(folder, head, **{**entries, **changes})
        return folder

    def damaged(self, task: str, noise: float = 1.0) -> Path:
        """A copy whose weights are a bit wrong."""
        folder = self._folder / f"{task}-damaged"
        if not folder.exists():
            shutil.copytree(self(task), folder)
            damage(folder / "model.onnx", noise)
        return folder


def damage(path: Path, noise: float) -> None:
    """Add noise to float matrices and lose some weights of integer ones."""
    proto = onnx.load(path)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim != 2:
            continue
        if weights.dtype == np.float32:
            weights = (
                weights
                + rng.standard_normal(weights.shape).astype(np.float32) * weights.std() * noise
            )
        elif weights.dtype in (np.uint8, np.int8) and "embed" not in tensor.name:
            zero = 128 if weights.dtype == np.uint8 else 0
            weights = np.where(rng.random(weights.shape) < noise, weights.dtype.type(zero), weights)
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(proto, path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def texts_for(task: str) -> list[Any]:
    if task == "question-answering":
        return [{"question": "who lives in paris", "context": text} for text in TEXTS]
    return list(TEXTS)


def best(found: Evaluation) -> dict[str, float]:
    """What every metric is for two models that are the same."""
    return {name: 0.0 if metric(found.task, name).lower else 1.0 for name in found.agreement}


@pytest.mark.parametrize("task", NAMES)
def test_a_model_agrees_with_itself(task: str, models: Models) -> None:
    model = models(task)
    found = sparsec.evaluate(model, against=model, texts=texts_for(task), task=task, **ORT)
    assert found.task == task and found.texts.count == len(TEXTS) and not found.warnings
    assert found.agreement == pytest.approx(best(found), abs=1e-9)
    assert found.per_text == pytest.approx([1.0] * len(TEXTS), abs=1e-9)
    assert found.examples == ()
    assert found.candidate.scores == found.reference.scores
    assert found.candidate.file_bytes == (model / "model.onnx").stat().st_size
    assert found.candidate.artifact_bytes is None and found.speedup is None


@pytest.mark.parametrize("task", NAMES)
def test_a_damaged_copy(task: str, models: Models) -> None:
    texts = texts_for(task)
    found = sparsec.evaluate(
        models.damaged(task), against=models(task), texts=texts, task=task, **ORT
    )
    ideal = best(found)
    for name, value in found.agreement.items():
        assert value > 1e-6 if ideal[name] == 0 else value < 0.9999, name
    assert 0 < len(found.examples) <= 10
    lowest = [example.agreement for example in found.examples]
    assert lowest == sorted(lowest) and lowest[0] == min(found.per_text)
    assert found.plots
    page = render(found)
    assert page.count("<svg") == page.count("</svg>") >= 2 and "#00000" not in page


@pytest.mark.parametrize("task", [name for name in NAMES if name != "outputs"])
def test_the_task_comes_from_the_model(task: str, models: Models) -> None:
    model = models(task)
    texts = texts_for(task)[:4]
    found = sparsec.evaluate(model, against=model, texts=texts, **ORT)
    assert found.task == task
    assert found.warnings[0].startswith("4 texts are few") and "64 or more" in found.warnings[0]


def test_names_of_tasks() -> None:
    for kind in pipeline_tasks().values():
        if kind.task in ("rerank", "sparse-embedding", "token-count"):
            continue
        for name in (kind.task, *kind.aliases):
            assert named(name) in NAMES
    assert named("Token_Classification") == "token-classification"
    with pytest.raises(InputError, match=r"unknown task 'chat'; there are embeddings, "):
        named("chat")


def test_the_references_own_answers_as_labels(models: Models) -> None:
    """Then the reference's score is 1, and the candidate's is what it agrees in."""
    reference, candidate = models("text-classification"), models.damaged("text-classification")
    with sparsec.Pipeline.create(
        "text-classification", reference, engine_type="onnxruntime"
    ) as pipeline:
        labels = pipeline(TEXTS).labels
    found = sparsec.evaluate(candidate, against=reference, texts=TEXTS, labels=labels, **ORT)
    assert found.texts.labelled
    assert found.reference.scores == {"accuracy": 1.0, "macro_f1": 1.0}
    assert found.candidate.scores["accuracy"] == found.agreement["agreement"] < 1
    assert found.metrics()["accuracy_kept"] == found.candidate.scores["accuracy"]
    assert all(example.label for example in found.examples)
    counts = Counter(labels)
    matrix = next(plot for plot in found.plots if plot.kind == "matrix")
    assert [sum(row) for row in matrix.counts] == [counts[name] for name in matrix.labels]


def test_entities_as_labels(models: Models) -> None:
    """Words, entities by their place, and plain lines of tags are the same labels."""
    reference, candidate = models("token-classification"), models.damaged("token-classification")
    with sparsec.Pipeline.create(
        "ner", reference, engine_type="onnxruntime", aggregation_strategy="first"
    ) as pipeline:
        predictions = pipeline(TEXTS).predictions
    spans = [
        [{"start": r.start, "end": r.end, "label": r.entity} for r in row] for row in predictions
    ]
    as_spans = [{"text": t, "entities": e} for t, e in zip(TEXTS, spans, strict=True)]
    tags = []
    for text, row in zip(TEXTS, spans, strict=True):
        starts = np.cumsum([0, *(len(word) + 1 for word in text.split())])[:-1]
        row_tags = ["O"] * len(starts)
        for entity in row:
            for i, start in enumerate(starts):
                if entity["start"] <= start < entity["end"]:
                    first = start == entity["start"]
                    row_tags[i] = f"{'B' if first else 'I'}-{entity['label']}"
        tags.append(row_tags)
    as_words = [{"tokens": t.split(), "ner_tags": g} for t, g in zip(TEXTS, tags, strict=True)]
    numbers = [[NER_LABELS.index(tag) for tag in row] for row in tags]
    as_numbers = [{"tokens": t.split(), "labels": g} for t, g in zip(TEXTS, numbers, strict=True)]
    lines = [" ".join(row) for row in tags]
    scores = []
    for texts, labels in ((as_spans, None), (as_words, None), (as_numbers, None), (TEXTS, lines)):
        found = sparsec.evaluate(candidate, against=reference, texts=texts, labels=labels, **ORT)
        assert found.reference.scores["entity_f1"] == 1.0
        assert found.candidate.scores["entity_f1"] == found.agreement["entity_agreement"]
        scores.append(found.candidate.scores)
    assert scores[0] == scores[1] == scores[2] == scores[3]


def test_parts_of_speech(models: Models) -> None:
    model = models("token-classification", labels=["DET", "NOUN", "VERB", "ADP", "ADJ"])
    texts = [{"tokens": t.split(), "pos_tags": ["NOUN"] * len(t.split())} for t in TEXTS]
    found = sparsec.evaluate(model, against=model, texts=texts, **ORT)
    assert set(found.agreement) == {"word_agreement", "kl_mean"}
    assert set(found.candidate.scores) == {"word_accuracy", "macro_f1"}
    assert next(iter(found.plots)).kind == "matrix"


def test_long_texts_are_read_in_windows(models: Models) -> None:
    """Every word of a text is seen, and short texts do not change."""
    model = models("token-classification")
    long = " ".join(sentences(30, 3))
    found = sparsec.evaluate(
        model, against=model, texts=[long, *TEXTS], max_length=16, task="ner", **ORT
    )
    assert found.texts.longer >= 1 and found.texts.max_length == 16
    assert found.agreement["word_agreement"] == 1.0
    assert "are read in parts" in str(found)
    pair = {"question": "who", "context": long}
    model = models("question-answering")
    found = sparsec.evaluate(model, against=model, texts=[pair] * 3, max_length=32, **ORT)
    assert found.agreement["same_answer"] == 1.0 and found.texts.longer == 3
    model = models("text-classification")
    found = sparsec.evaluate(model, against=model, texts=[long, *TEXTS], max_length=16, **ORT)
    assert f"{found.texts.longer} above 16 are cut" in str(found)


def test_windows_cover_a_text_once(models: Models) -> None:
    """With windows as long as the text the answers are those of one pass."""
    from sparsec.pruning.evaluation.models import Contender, find
    from sparsec.pruning.evaluation.tokens import Tokens

    found = find(str(models("token-classification")), "onnxruntime")
    sample = Sample(" ".join(WORDS.split() * 2))
    for length in (128, 24):
        with Contender(found, Tokens.pipeline, {}, [64], length) as model:
            task = Tokens()
            task.settle(model, model, [sample])
            job = task.prepare(model, sample)
            answer = task.read(model, sample, job, model.run(job.items))
            assert len(job.items) == (1 if length == 128 else 3)
            assert answer.logs.shape == (len(job.places), len(NER_LABELS))
            assert np.exp(answer.logs).sum(axis=1) == pytest.approx(1.0)


def test_pairs_with_similarities(models: Models) -> None:
    model = models("embeddings")
    texts = [(a, b) for a, b in itertools.pairwise(TEXTS)]
    found = sparsec.evaluate(model, against=model, texts=texts, **ORT)
    assert found.texts.count == 65 and found.agreement["cosine_mean"] == 1.0
    with sparsec.Pipeline.create(
        "embedding", model, engine_type="onnxruntime", extraction_strategy="reduce_mean",
        emb_extraction_layer=None, return_numpy=True,
    ) as pipeline:  # fmt: skip
        vectors = [np.stack(pipeline(list(pair)).embeddings).astype(np.float64) for pair in texts]
    labels = [float(cosine(v[:1], v[1:])[0]) for v in vectors]
    found = sparsec.evaluate(model, against=model, texts=texts, labels=labels, **ORT)
    assert found.candidate.scores["similarity_spearman"] == pytest.approx(1.0)
    folder = models("embeddings", seed=0, note="cls")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    by_cls = sparsec.evaluate(folder, against=folder, texts=texts, labels=labels, **ORT)
    assert by_cls.candidate.scores["similarity_spearman"] < 0.999
    given_ = sparsec.evaluate(
        model, against=model, texts=texts, labels=labels, pooling="cls", **ORT
    )
    assert given_.candidate.scores == by_cls.candidate.scores


def test_masks(models: Models) -> None:
    """Words are hidden the same way each time, or as the texts say."""
    model = models("fill-mask")
    one, two = (sparsec.evaluate(model, against=model, texts=TEXTS, **ORT) for _ in range(2))
    other = sparsec.evaluate(model, against=model, texts=TEXTS, seed=1, **ORT)
    assert one.candidate.scores == two.candidate.scores != other.candidate.scores
    texts = ["mary is flying to [MASK]", "[MASK] is flying"] * 2
    found = sparsec.evaluate(model, against=model, texts=texts, labels=["paris", "mary"] * 2, **ORT)
    assert 0 <= found.candidate.scores["top1_accuracy"] <= found.candidate.scores["top5_accuracy"]
    with pytest.raises(InputError, match="'supercalifragilistic' is not one token"):
        sparsec.evaluate(
            model, against=model, texts=texts[:1], labels=["supercalifragilistic"], **ORT
        )
    found = sparsec.evaluate(model, against=model, texts=["…", *TEXTS], **ORT)
    assert "1 texts are left out: they have no gap" in found.warnings


def test_labels_in_another_order(models: Models) -> None:
    """Names say which output is which."""
    reference = models("text-classification")
    candidate = models("text-classification", labels=["good", "other", "bad"])
    path = candidate / "model.onnx"
    proto = onnx.load(reference / "model.onnx")
    for tensor in proto.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if "classifier" in tensor.name and "out_proj" not in tensor.name and 3 in weights.shape:
            axis = weights.shape.index(3)
            tensor.CopyFrom(numpy_helper.from_array(weights.take([1, 2, 0], axis), tensor.name))
    onnx.save(proto, path)
    found = sparsec.evaluate(candidate, against=reference, texts=TEXTS, **ORT)
    assert found.agreement["agreement"] == 1.0
    (candidate / "config.json").write_text(json.dumps({"vocab_size": 160}))
    found = sparsec.evaluate(candidate, against=reference, texts=TEXTS, **ORT)
    assert any("does not name its labels" in warning for warning in found.warnings)
    assert found.agreement["agreement"] < 1.0


def test_nan(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = models("text-classification")
    candidate = models("text-classification", poison={"mary": math.nan})
    hit = [("mary" in text) for text in TEXTS]
    found = sparsec.evaluate(candidate, against=reference, texts=TEXTS, **ORT)
    assert found.candidate.nonfinite == sum(hit) > 0 == found.reference.nonfinite
    assert [math.isnan(value) for value in found.per_text] == hit
    assert found.agreement["agreement"] == 1.0  # of the others
    assert any(
        f"the candidate gives NaN or infinity for {sum(hit)} of 66 texts" in w
        for w in found.warnings
    )
    assert "texts with NaN" in str(found) and "NaN" in render(found)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    again = Evaluation.from_json(values)
    assert again.to_json() == values and str(again) == str(found)
    # No gate holds for a model that fails on some texts.
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    command = [
        "evaluate", candidate, "--against", reference, "--texts", path, "-e", "onnxruntime",
        "--reference-engine", "onnxruntime", "-t", "0",
    ]  # fmt: skip
    assert main([*map(str, command)]) == 0
    assert main([*map(str, command), "--at-least", "agreement=0.5"]) == 1
    assert "missed: the candidate gives NaN or infinity" in capsys.readouterr().err
    all_nan = models("text-classification", poison={"[CLS]": math.nan})
    found = sparsec.evaluate(all_nan, against=reference, texts=TEXTS, **ORT)
    assert all(map(math.isnan, found.agreement.values())) and "no number" in str(found)
    assert render(found)


# ---- what cannot be compared ---------------------------------------------------------------------


def test_models_that_do_not_match(models: Models, tmp_path: Path) -> None:
    def compare(candidate: Path | str, reference: Path | str, **options: Any) -> None:
        sparsec.evaluate(candidate, against=reference, **{"texts": TEXTS[:3], **ORT, **options})

    two = models("text-classification", labels=["bad", "good"])
    other = models("text-classification", labels=["x", "y", "z"])
    reference = models("text-classification")
    with pytest.raises(InputError, match=r"candidate has 2 labels \(bad, good\), the reference 3"):
        compare(two, reference)
    with pytest.raises(InputError, match="the candidate's labels are x, y, z"):
        compare(other, reference)
    with pytest.raises(InputError, match=r"the models have no label 'fine'; they have bad, good"):
        compare(reference, reference, labels=["fine"] * 3)
    with pytest.raises(InputError, match="text 1 has 1 labels for"):
        compare(models("token-classification"), models("token-classification"), labels=["O"] * 3)
    with pytest.raises(InputError, match="labels for embeddings are similarities"):
        compare(models("embeddings"), models("embeddings"), labels=["x"] * 3)
    with pytest.raises(InputError, match="a question and a context are needed"):
        compare(models("question-answering"), models("question-answering"))
    with pytest.raises(InputError, match=r"the outputs do not match: the candidate has .*start"):
        compare(models("question-answering"), models("embeddings"), task="outputs")
    with pytest.raises(InputError, match="start_logits and end_logits"):
        compare(reference, reference, task="qa", texts=texts_for("question-answering"))
    with pytest.raises(InputError, match="no number, and the model gives numbers"):
        compare(models("regression"), models("regression"), labels=["x"] * 3)
    with pytest.raises(InputError, match="max_length=500 is too long: the models take 128"):
        compare(reference, reference, max_length=500)
    with pytest.raises(InputError, match="pooling is for embeddings"):
        compare(reference, reference, pooling="cls")
    with pytest.raises(InputError, match="engine must be one of sparsec, onnxruntime"):
        compare(reference, reference, engine="openvino")
    with pytest.raises(InputError, match="seconds must be a number"):
        compare(reference, reference, seconds=-1)
    with pytest.raises(ModelError, match="does not exist"):
        compare(tmp_path / "none", reference)
    with pytest.raises(ModelError, match="no tokenizer"):
        shutil.copy(reference / "model.onnx", tmp_path)
        compare(reference, tmp_path / "model.onnx")


def test_a_bare_file_has_the_references_tokenizer(models: Models, tmp_path: Path) -> None:
    reference = models("text-classification")
    shutil.copy(reference / "model.onnx", tmp_path / "pruned.onnx")
    found = sparsec.evaluate(tmp_path / "pruned.onnx", against=reference, texts=TEXTS, **ORT)
    assert found.agreement["agreement"] == 1.0 and not found.warnings


# ---- time ----------------------------------------------------------------------------------------


def test_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PAUSE", 0)
    calls: list[str] = []
    sides = [[lambda n=f"{who}{i}": calls.append(n) for i in range(3)] for who in "ab"]
    found = timing.measure(sides, [4, 5, 6], 0)
    turn = ["a0", "a0", "a1", "a2", "b0", "b0", "b1", "b2"]  # the first of each is not timed
    assert calls == turn * timing.TURNS
    assert [latency.turns for latency in found] == [5, 5] and found[0].tokens == (4, 5, 6)
    table = timing._latency(np.array([[1.0, 2, 9], [3, 4, 5]]), [1, 2])
    assert (table.median_ms, table.medians_ms) == (3.0, (2.0, 4.0))
    assert table.fastest_ms == pytest.approx((1.2 + 3.2) / 2)
    assert timing.disturbed([table, table]) == ""  # 3.0 is not 1.5 times 2.2
    wild = timing._latency(np.array([[1.0, 2, 9]]), [1])
    assert "a median is 1.7 times the fastest tenth" in timing.disturbed([table, wild])


def test_texts_to_time() -> None:
    lengths = list(range(200, 0, -1))
    assert timing.choose(lengths, 100, 1e-3) == sorted(
        set(timing.choose(lengths, 100, 1e-3)), reverse=True
    )
    assert len(timing.choose(lengths, 100, 1e-3)) == timing.MOST
    assert len(timing.choose(lengths, 20, 0.1)) == 10
    assert [lengths[i] for i in timing.choose(lengths, 1, 9)] == [26, 76, 126, 176]
    assert timing.choose([7], 5, 1) == [0]


# ---- the examples' models ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sentiment", "ner", "qa", "fill_mask", "nli"])
def test_examples_models(name: str, tmp_path: Path) -> None:
    """Each agrees with itself; two with a damaged copy less."""
    model = MODELS / name
    if not (model / "model.onnx").exists():
        pytest.skip(f"examples/models/{name} is not made")
    texts: list[Any] = [
        "Mary is flying from Nairobi to New York to attend a conference.",
        "The soup was cold and the waiter was rude.",
        "I did not expect much, but this book is wonderful.",
        "Anna Berg lives in Paris and works for the Red Cross.",
    ]
    if name == "qa":
        texts = [{"question": "Where does she live?", "context": text} for text in texts]
    if name == "nli":
        texts = [(text, "This text is about travel") for text in texts]
    same = sparsec.evaluate(model, against=model, texts=texts, **ORT)
    assert same.agreement == pytest.approx(best(same), abs=1e-9)
    if name not in ("sentiment", "qa"):
        return
    copy = Path(shutil.copytree(model, tmp_path / name))
    damage(copy / "model.onnx", 0.4)
    worse = sparsec.evaluate(copy, against=model, texts=texts, **ORT)
    assert min(worse.per_text) < 0.99
    assert worse.examples and worse.examples[0].agreement == min(worse.per_text)


# ---- the command ---------------------------------------------------------------------------------


def test_command(models: Models, tmp_path: Path) -> None:
    """As a process, from another folder: compiled against ONNX Runtime, all forms of output."""
    reference = models("text-classification")
    elsewhere = tmp_path / "some where"
    elsewhere.mkdir()
    (elsewhere / "texts.txt").write_text("\n".join(TEXTS))
    (elsewhere / "json.py").write_text("raise ImportError('from the working directory')")

    def run(*arguments: str, code: int = 0, stdin: str | None = None) -> tuple[str, str]:
        command = [sys.executable, "-m", "sparsec", "evaluate", str(reference), "--against"]
        done = subprocess.run(
            [*command, str(reference), "--reference-engine", "onnxruntime", *arguments],
            cwd=elsewhere, capture_output=True, text=True, env=os.environ, input=stdin,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    out, err = run(
        "--texts", "texts.txt", "-t", "0.2", "--report", "out/report", "-x", "out/it.json",
        "--at-least", "agreement=99%", "--at-most", "kl_mean=0.01", "--at-least", "speedup=0.0001",
        "-v",
    )  # fmt: skip
    assert "66 of 66" not in err and "measuring" in err
    assert out.startswith("text-classification: 66 texts of 6 to ")
    assert re.search(r"^engine +sparsec +onnxruntime$", out, re.M)
    assert re.search(r"^artifact +[\d.]+ [KM]iB +-$", out, re.M)
    assert re.search(r"^ms a text, median +[\d.]+ +[\d.]+ +[\d.]+ x as fast$", out, re.M)
    assert re.search(r"^same label +1\.0000 +share of the texts", out, re.M)
    exported = json.loads((elsewhere / "out" / "it.json").read_text())
    found = Evaluation.from_json(exported)
    assert found.to_json() == exported and found.speedup == pytest.approx(
        found.reference.latency.median_ms / found.candidate.latency.median_ms  # type: ignore[union-attr]
    )
    assert found.candidate.buckets and found.reference.buckets == ()
    page = (elsewhere / "out" / "report" / "index.html").read_text()
    assert page.count("<svg") == 3 and "Time of one text" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page) and "http" not in re.sub(
        r'xmlns(:\w+)?="[^"]*"', "", page
    )

    quick = ("-e", "onnxruntime", "--texts", "-", "-t", "0", "--json")
    out, err = run(*quick, "--at-most", "agreement=0.5", stdin="\n".join(TEXTS), code=1)
    assert json.loads(out)["texts"]["source"] == "-"
    assert "missed: agreement is 1, at most 0.5 is wanted" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--texts", "none.txt"], 8, "cannot read none.txt"),
        (["--texts", "empty.txt"], 8, "empty.txt has no text"),
        (["--texts", "texts.txt", "--task", "chat"], 8, "unknown task 'chat'"),
        (["--texts", "texts.txt", "--labels", "empty.txt"], 8, "has 0 labels for 66 texts"),
        (["--texts", "texts.txt", "--at-least", "beauty=1"], 8, "there is no metric 'beauty'"),
        (["--texts", "texts.txt", "--at-least", "cosine_mean=1", "-t", "0"], 8, "no cosine_mean"),
        (["--texts", "texts.txt", "--at-least", "speedup=1", "-t", "0"], 8, "there is no speedup"),
        (["--texts", "texts.txt", "-x", "."], 8, "cannot write ."),
        (["--texts", "texts.txt", "--report", "texts.txt"], 8, "cannot write"),
        (["--texts", "texts.txt", "--at-least", "agreement"], 2, "is not like cosine_mean=0.97"),
        (["--texts", "texts.txt", "--at-least", "agreement=nan"], 2, "is not like"),
        ([], 2, "--texts"),
    ],
)  # fmt: skip
def test_bad_commands(
    arguments: list[str],
    code: int,
    message: str,
    models: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(TEXTS))
    Path("empty.txt").write_text("\n")
    model = str(models("text-classification"))
    ort = ["-e", "onnxruntime", "--reference-engine", "onnxruntime"]
    try:
        got: Any = main(["evaluate", model, "--against", model, *ort, *arguments])
    except SystemExit as stop:
        got = stop.code
    assert got == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_artifact(models: Models, tmp_path: Path) -> None:
    """Compiled for fewer tokens than the texts have: both models then read as much as it can."""
    reference = models("text-classification")
    artifact = sparsec.compile(
        reference, buckets=[8], output=tmp_path / "it.sparsec", target="generic"
    )
    options = {**ORT, "engine": "sparsec"}
    found = sparsec.evaluate(artifact.path, against=reference, texts=TEXTS, **options)
    assert found.candidate.file_bytes is None and found.candidate.artifact_bytes
    assert found.candidate.buckets == (8,) and found.texts.max_length == 8
    assert found.texts.longer > 0 and found.agreement["agreement"] == 1.0
    with pytest.raises(InputError, match="ONNX Runtime cannot run it"):
        sparsec.evaluate(artifact.path, against=reference, texts=TEXTS, **ORT)


def test_what_is_shown_is_escaped(models: Models) -> None:
    texts = [f"mary <script>alert({i})</script> \x1b[31m {t}" for i, t in enumerate(TEXTS)]
    found = sparsec.evaluate(
        models.damaged("text-classification"), against=models("text-classification"), texts=texts,
        **ORT,
    )  # fmt: skip
    assert "<script>" not in render(found) and "&lt;script&gt;" in render(found)
    assert "\x1b" not in str(found)


def test_a_pipeline_of_a_class_that_is_not_registered(models: Models) -> None:
    """What outputs are compared with; a spawned process can have it too."""
    options = {"engine_type": "onnxruntime", "sequence_length": 16}
    with sparsec.Pipeline.create(Raw.pipeline, models("outputs"), **options) as pipeline:
        assert Raw.name not in pipeline_tasks()
        with pickle.loads(pickle.dumps(pipeline)) as again:
            assert type(again) is type(pipeline) is Raw.pipeline
            assert again.runner.buckets == (16,)
        (answer,) = pipeline("a text").outputs
        assert sorted(answer) == sorted(pipeline.runner.output_names)
        assert pipeline([["a text", "another"]]).outputs != [answer]
    with pytest.raises(InputError, match="unknown task"):
        sparsec.Pipeline.create(int, models("outputs"))  # type: ignore[arg-type]


def test_what_json_is_no_evaluation() -> None:
    with pytest.raises(InputError, match="this is no evaluation"):
        Evaluation.from_json({"task": "x"})
