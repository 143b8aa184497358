"""Pipelines agree with those of Hugging Face transformers, field by field, on the same weights.

Both of our engines against torch, on tiny random models.  transformers is an optional dependency
(the extra `zoo`); 4.57 is the last line that has question answering.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.encoders import EncoderConfig, Weights
from sparsec import InputError, Pipeline, TooLongError
from sparsec.serving.pipelines import hub
from sparsec.serving.server import json_text
from tests.pipelines_support import NER_LABELS, TEXTS, make

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install .[zoo]")
transformers = pytest.importorskip(
    "transformers", reason="the reference needs transformers: pip install .[zoo]"
)

ENGINES = ("onnxruntime", "sparsec")
BUCKETS = [16, 32]
SCORE = 1e-5

CONTEXTS = [
    "Mary lives in Paris. John was flying from Nairobi to New York in the news.",
    "Café “Zürich” 東京大学 😀😀 is where John works; e\u0301 कि " * 6,
    "acme " * 90 + "😀 New York " + "in the conference " * 20,
]
QUESTIONS = ["Who lives in Paris?", "Where is 東京大学?"]


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


class Case:
    """A model in our form and in that of transformers."""

    def __init__(self, folder: Path, head: str, kind: str, **settings: Any) -> None:
        self.folder = folder
        self.config, self.weights = make(folder, head, kind=kind, seed=1, **settings)
        self.model = reference_model(head, self.config, self.weights, kind, settings)
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        self.tokenizer.model_max_length = BUCKETS[-1]
        if kind != "wordpiece":
            self.tokenizer.model_input_names = ["input_ids", "attention_mask"]

    def reference(self, task: str, **options: Any) -> Callable[..., Any]:
        made: Callable[..., Any] = transformers.pipeline(
            task, model=self.model, tokenizer=self.tokenizer, device="cpu", **options
        )
        return made

    def ours(self, task: str, engine: str, **options: Any) -> Pipeline:
        options = {"sequence_length": BUCKETS, "truncate": True, **options}
        return Pipeline.create(task, self.folder, engine_type=engine, **options)


def reference_model(
    head: str, config: EncoderConfig, weights: Weights, kind: str, settings: dict[str, Any]
) -> Any:
    """The same model as a module of transformers."""
    labels = settings.get("labels") or []
    bert = transformers.BertConfig(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_position,
        type_vocab_size=config.type_vocab,
        layer_norm_eps=config.eps,
        num_labels=len(labels) or 2,
        problem_type=settings.get("problem_type"),
    )
    if labels:
        bert.id2label = dict(enumerate(labels))
        bert.label2id = {label: i for i, label in enumerate(labels)}
    kinds = {
        "token-classification": transformers.BertForTokenClassification,
        "sequence-classification": transformers.BertForSequenceClassification,
        "question-answering": transformers.BertForQuestionAnswering,
        "masked-lm": transformers.BertForMaskedLM,
        "hidden": transformers.BertModel,
    }
    model = kinds[head](bert).eval()
    plain = head == "hidden"
    names = {
        name
        if plain or name.split(".")[0] in ("classifier", "qa_outputs", "cls")
        else f"bert.{name}"
        for name in weights
    }
    state = {
        name: torch.from_numpy(weights[name if name in weights else name.removeprefix("bert.")])
        for name in names
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    allowed = ("pooler", "position_ids", "cls.predictions.decoder", "cls.predictions.bias")
    assert not unexpected
    assert all(any(part in name for part in allowed) for name in missing), missing
    if head == "masked-lm":
        model.tie_weights()
        with torch.no_grad():
            model.cls.predictions.decoder.bias.copy_(
                torch.from_numpy(weights["cls.predictions.decoder.bias"])
            )
    return model


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Case] = {}

    def case(head: str, kind: str = "wordpiece", **settings: Any) -> Case:
        key = f"{head}-{kind}-{len(made)}"
        known = next((c for k, c in made.items() if k == repr((head, kind, settings))), None)
        if known is None:
            known = made[repr((head, kind, settings))] = Case(root / key, head, kind, **settings)
        return known

    return case


# ---- token classification ------------------------------------------------------------------------


def compare_tokens(results: list[Any], expected: list[dict[str, Any]]) -> None:
    def place(start: int, end: int) -> tuple[int, int] | None:
        return (start, end) if start < end else None

    assert [(r.entity, r.word, place(r.start, r.end), r.index) for r in results] == [
        (
            e.get("entity", e.get("entity_group")),
            e["word"],
            place(e["start"], e["end"]),
            e.get("index"),
        )
        for e in expected
    ]
    assert [r.score for r in results] == pytest.approx(
        [float(e["score"]) for e in expected], abs=SCORE
    )
    assert all(
        r.is_grouped == ("entity_group" in e) for r, e in zip(results, expected, strict=True)
    )


class Reference(transformers.TokenClassificationPipeline):  # type: ignore[misc]
    """transformers' pipeline with our places and words.

    White space belongs to no token.  Words are the tokenizer's, parted by any white space; with
    words given, those.
    """

    def gather_pre_entities(self, sentence: str, *args: Any, **options: Any) -> list[Any]:
        entities: list[Any] = super().gather_pre_entities(sentence, *args, **options)
        given = options.get("word_ids")
        if given is None:
            whole = self.tokenizer(sentence, return_offsets_mapping=True)
            words = zip(whole["offset_mapping"], whole.word_ids(), strict=True)
            numbers = {place: number for place, number in words if number is not None}
        before = None
        for entity in entities:
            start, end = entity["start"], entity["end"]
            number = given[entity["index"]] if given else numbers[start, end]
            covered = sentence[start:end]
            visible = [i for i in range(start, end) if not sentence[i].isspace()]
            if entity["word"] == "▁" and not covered.isspace():
                visible, end = [], start  # not in the text
            if entity["word"] == "Ġ" and start == end and sentence[end - 1 : end].strip():
                end -= 1  # the same; transformers takes the first letter for a space
            entity["start"] = visible[0] if visible else end
            entity["end"] = visible[-1] + 1 if visible else end
            parts = before is None or number != before[0]
            if not given and not parts:
                parts = bool(re.search(r"\s", sentence[before[1] : entity["start"]]))
            if entity["word"] == covered:
                entity["word"] = covered.strip()
            entity["is_subword"] = not parts
            line_break = not visible and covered.strip(" ")
            before = number, start if line_break else entity["end"]
        return entities

    def group_sub_entities(self, entities: list[Any]) -> Any:
        group = super().group_sub_entities(entities)
        seen = [entity for entity in entities if entity["start"] < entity["end"]]
        if not seen:
            return {**group, "entity_group": "O", "start": -1}
        return {**group, "start": seen[0]["start"], "end": seen[-1]["end"]}

    def group_entities(self, entities: list[Any]) -> list[Any]:
        return [group for group in super().group_entities(entities) if group["start"] >= 0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram"])
def test_token_classification(cases: Callable[..., Case], kind: str, engine: str) -> None:
    case = cases("token-classification", kind, labels=NER_LABELS)
    for strategy in ("none", "simple", "first", "average", "max"):
        for ignored in (None, []):
            options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
            ours = case.ours("ner", engine, **options)
            theirs = case.reference("ner", pipeline_class=Reference, **options)
            got = ours(TEXTS).predictions
            assert sum(map(len, got)) > 20
            for text, results in zip(TEXTS, got, strict=True):
                compare_tokens(results, theirs(text))


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_token_classification_as_it_is(cases: Callable[..., Case], kind: str) -> None:
    """Without anything in which we differ: spaces only, tokenizers that know where they are."""
    case = cases("token-classification", kind, labels=NER_LABELS)
    for strategy in ("none", *(("simple", "first", "max") if kind == "wordpiece" else ())):
        options = {"aggregation_strategy": strategy, "ignore_labels": []}
        ours = case.ours("ner", "onnxruntime", **options)
        theirs = case.reference("ner", **options)
        for text in TEXTS[:2]:
            compare_tokens(ours(text).predictions[0], theirs(text))


@pytest.mark.parametrize("engine", ENGINES)
def test_token_classification_of_words(cases: Callable[..., Case], engine: str) -> None:
    case = cases("token-classification", labels=NER_LABELS)
    words = [["Mary", "is", "flying", "😀", "Café", "東京", "x-y", "ǆ"], ["New", "York"]]
    options = {"aggregation_strategy": "first", "ignore_labels": []}
    ours = case.ours("ner", engine, **options)
    theirs = case.reference("ner", pipeline_class=Reference, **options)
    for one, results in zip(words, ours(inputs=words).predictions, strict=True):
        compare_tokens(results, theirs(one, is_split_into_words=True)[0])
    alone = ours(inputs=words[0], is_split_into_words=True).predictions
    assert alone == ours(inputs=words).predictions[:1]


@pytest.mark.parametrize("engine", ENGINES)
def test_long_text_in_windows(cases: Callable[..., Case], engine: str) -> None:
    case = cases("token-classification", labels=NER_LABELS)
    text = " ".join(text for text in TEXTS if text.strip())
    for strategy in ("simple", "first", "average", "max"):
        options = {"aggregation_strategy": strategy, "stride": 7}
        ours = case.ours("ner", engine, **options)
        theirs = case.reference("ner", pipeline_class=Reference, **options)
        compare_tokens(ours(text).predictions[0], theirs(text))


# ---- question answering --------------------------------------------------------------------------


def best_answer(
    theirs: Any,
    question: str,
    context: str,
    length: int,
    longest: int,
    negative: bool,
    **options: Any,
) -> tuple[float, int, int]:
    """(score, start, end) from the logits of transformers' windows, by the definition."""
    sample = theirs.create_sample(question=question, context=context)
    windows = []
    for inputs in theirs.preprocess(sample, max_seq_len=length, **options):
        with torch.no_grad():
            output = theirs.forward(inputs)
        inside = [i for i, s in enumerate(output["encoding"].sequence_ids) if s == 1]
        # Odds against the class token, which stands first.
        start, end = (
            (output[name][0] - output[name][0, 0]).double().exp().numpy()[inside]
            for name in ("start", "end")
        )
        offsets = [output["encoding"].offsets[i] for i in inside]
        windows.append((start, end, offsets))
    totals = [1 + max(window[k].sum() for window in windows) for k in (0, 1)]

    # Words by character: which run without white space, and which of the tokenizer's words.
    whole = theirs.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    number = {
        i: word
        for (a, b), word in zip(whole["offset_mapping"], whole.word_ids(), strict=True)
        for i in range(a, b)
    }
    visible = [i for i in number if not context[i].isspace()]
    keys = {i: (len(context[: i + 1].split()), number[i]) for i in visible}
    words: dict[tuple[int, int], list[int]] = {}
    for i in visible:
        words.setdefault(keys[i], []).append(i)
    found: dict[tuple[int, int], float] = {}
    for start, end, offsets in windows:
        spans = [
            (start[i] * end[j], i, j)
            for i in range(len(start))
            for j in range(i, min(i + longest, len(start)))
        ]
        here: dict[tuple[int, int], float] = {}
        for score, i, j in sorted(spans, reverse=True)[:12]:
            place = []
            for k, last in ((i, False), (j, True)):
                seen = [c for c in range(*offsets[k]) if c in keys]
                if not seen:  # a space of its own: that before the next word, or the last of all
                    seen = [c for c in visible if c >= offsets[k][0]] or visible[-1:]
                word = words[keys[seen[0]]]
                place.append(max(word) + 1 if last else min(word))
            here[place[0], place[1]] = here.get((place[0], place[1]), 0.0) + score
        for key, score in here.items():
            found[key] = max(found.get(key, 0.0), score / totals[0] / totals[1])
    (a, b), score = max(found.items(), key=lambda item: item[1])
    nothing = 1 / totals[0] / totals[1]
    return (nothing, 0, 0) if negative and nothing > score else (score, a, b)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "unigram"])
@pytest.mark.parametrize(
    "options", [{}, {"doc_stride": 3}, {"max_answer_len": 2}, {"version_2_with_negative": True}]
)
def test_question_answering(
    cases: Callable[..., Case],
    kind: str,
    engine: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = cases("question-answering", kind)
    # Bytes need more tokens.
    length = 32 if kind == "wordpiece" else 96
    buckets = [16, length]
    monkeypatch.setattr(case.tokenizer, "model_max_length", length)
    ours = case.ours("qa", engine, sequence_length=buckets, **options)
    theirs = case.reference("question-answering")
    stride = {k: v for k, v in options.items() if k == "doc_stride"}
    for question in QUESTIONS:
        for context in CONTEXTS:
            got = ours(question=question, context=context)
            score, start, end = best_answer(
                theirs, question, context, length, options.get("max_answer_len", 15),
                "version_2_with_negative" in options, **stride,
            )  # fmt: skip
            assert (got.start, got.end) == (start, end)
            assert got.score == pytest.approx(score, abs=SCORE)
            assert got.answer == context[got.start : got.end]


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
@pytest.mark.parametrize("negative", [False, True])
def test_question_answering_as_it_is(
    cases: Callable[..., Case], kind: str, negative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anything in which we differ: one window, and no text twice."""
    case = cases("question-answering", kind)
    length = 96
    monkeypatch.setattr(case.tokenizer, "model_max_length", length)
    options = {"version_2_with_negative": negative}
    ours = case.ours("qa", "onnxruntime", sequence_length=length, **options)
    theirs = case.reference("question-answering")
    for question in QUESTIONS:
        for context in ("Mary lives in Paris, John at 東京", "flying 😀 from Nairobi (to) 1 news"):
            got = ours(question=question, context=context)
            want = theirs(
                question=question, context=context, max_seq_len=length,
                handle_impossible_answer=negative,
            )  # fmt: skip
            assert (got.answer, got.start, got.end) == (want["answer"], want["start"], want["end"])
            assert got.score == pytest.approx(want["score"], abs=SCORE)


# ---- settings of the tokenizer ----------------------------------------------------------------


def with_settings(case: Case, folder: Path, **settings: Any) -> Any:
    """A copy of a model's folder with other settings; returns transformers' tokenizer of it.

    The class is always named: without, transformers guesses it from the name of the folder.
    """
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    shutil.copytree(case.folder, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_max_length": 9},
        {"model_max_length": 9, "truncation_side": "left"},
        {"model_max_length": 12, "truncation_side": "left", "padding_side": "left"},
        {"model_max_length": 32, "do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    ],
)
def test_settings_of_the_tokenizer(
    cases: Callable[..., Case], tmp_path: Path, settings: dict[str, Any]
) -> None:
    case = cases("sequence-classification", labels=["no", "yes"])
    tokenizer = with_settings(case, tmp_path / "classify", **settings)
    options: dict[str, Any] = {"engine_type": "onnxruntime", "truncate": True}
    theirs = transformers.pipeline(
        "text-classification", model=case.model, tokenizer=tokenizer, device="cpu", top_k=None
    )
    with Pipeline.create("text-classification", tmp_path / "classify", **options) as ours:
        for given in (*TEXTS, [TEXTS[0], TEXTS[1]], ["x", TEXTS[1]]):
            pair = isinstance(given, list)
            got = ours(sequences=[given])
            want = theirs(
                {"text": given[0], "text_pair": given[1]} if pair else [given], truncation=True
            )
            want = want if pair else want[0]
            assert got.labels[0] == want[0]["label"]
            assert got.scores[0] == pytest.approx(want[0]["score"], abs=SCORE)

    case = cases("token-classification", labels=NER_LABELS)
    tokenizer = with_settings(case, tmp_path / "ner", **settings)
    for stride in (None, 3):
        more = {"aggregation_strategy": "simple", "stride": stride, "ignore_labels": []}
        reference = transformers.pipeline(
            "ner", model=case.model, tokenizer=tokenizer, device="cpu", pipeline_class=Reference,
            **more,
        )  # fmt: skip
        with Pipeline.create("ner", tmp_path / "ner", **options, **more) as ours:
            for text in TEXTS[:2] if tokenizer.padding_side == "left" else TEXTS:
                # Padding on the left moves transformers' positions; alone there is none.
                if stride is None or tokenizer.padding_side == "right":
                    compare_tokens(ours(text).predictions[0], reference(text))


def test_a_given_length_counts_instead_of_the_settings(
    cases: Callable[..., Case], tmp_path: Path
) -> None:
    case = cases("sequence-classification", labels=["no", "yes"])
    with_settings(case, tmp_path / "m", model_max_length=9)
    for given, want in ((None, 9), (16, 16), ([8, 32], 32)):
        with Pipeline.create(
            "text-classification", tmp_path / "m", engine_type="onnxruntime", sequence_length=given
        ) as ours:
            assert ours.max_length == want


def test_question_behind_the_context(cases: Callable[..., Case], tmp_path: Path) -> None:
    """Where padding is on the left, as transformers orders the two."""
    case = cases("question-answering")
    tokenizer = with_settings(case, tmp_path / "qa", padding_side="left", model_max_length=32)
    # transformers' pipeline takes answers from the question then: its order is what we compare.
    options: dict[str, Any] = {"engine_type": "onnxruntime"}
    context = "Mary lives in Paris, John at acme"
    with Pipeline.create("qa", tmp_path / "qa", **options) as ours:
        job = ours.prepare(ours.parse(question="Where is Mary?", context=context))
        (item,) = job.items
        want = tokenizer(context, "Where is Mary?")
        assert item.arrays["input_ids"].tolist() == want["input_ids"]
        assert item.arrays["token_type_ids"].tolist() == want["token_type_ids"]
        row = np.zeros(item.length)
        row[want.tokens().index("paris")] = row[want.tokens().index("where")] = 30
        answer = ours.finish(job, [dict.fromkeys(ours.runner.output_names, row)])
        assert (answer.answer, answer.start) == ("Paris", context.index("Paris"))


# ---- text classification -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_text_classification(cases: Callable[..., Case], engine: str, problem: str | None) -> None:
    settings = {"problem_type": problem} if problem else {}
    case = cases("sequence-classification", labels=["bad", "so so", "good"], **settings)
    theirs = case.reference("text-classification", top_k=None)
    want = [theirs([text], truncation=True)[0] for text in TEXTS]
    everything = case.ours("sentiment-analysis", engine, return_all_scores=True)(TEXTS)
    assert everything.labels == [[row["label"] for row in rows] for rows in want]
    for got, rows in zip(everything.scores, want, strict=True):
        assert got == pytest.approx([row["score"] for row in rows], abs=SCORE)
    best = case.ours("text_classification", engine)(TEXTS)
    assert best.labels == [rows[0]["label"] for rows in want]
    assert best.scores == pytest.approx([rows[0]["score"] for rows in want], abs=SCORE)
    two = case.ours("text_classification", engine, top_k=2)(TEXTS)
    assert two.labels == [labels[:2] for labels in everything.labels]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_pairs(cases: Callable[..., Case], kind: str, engine: str) -> None:
    """Truncation takes from the longer one, as the tokenizer's own does."""
    case = cases("sequence-classification", kind, labels=["no", "yes"])
    pairs = [[a, b] for a in TEXTS for b in (TEXTS[0], TEXTS[5], "x", "Mary " * 50)]
    got = case.ours("text-classification", engine)(sequences=pairs)
    theirs = case.reference("text-classification", top_k=None)
    for (a, b), label, score in zip(pairs, got.labels, got.scores, strict=True):
        want = theirs({"text": a, "text_pair": b}, truncation=True)
        assert (label, score) == (want[0]["label"], pytest.approx(want[0]["score"], abs=SCORE))


# ---- zero-shot -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "names",
    [["contradiction", "neutral", "entailment"], ["ENTAILMENT", "neutral", "contradiction"]],
)
def test_zero_shot(cases: Callable[..., Case], engine: str, names: list[str]) -> None:
    case = cases("sequence-classification", labels=names)
    theirs = case.reference("zero-shot-classification")
    labels = ["sport", "news", "東京", "good weather"]
    ours = case.ours("zero-shot-text-classification", engine)
    long = "John works at acme. " * 30
    for text in (TEXTS[0], TEXTS[6], long):
        for several in (False, True):
            for chosen in (labels, labels[:1], "sport, news"):
                template = "In this text, {} is what matters"
                got = ours(
                    sequences=text, labels=chosen, hypothesis_template=template, multi_class=several
                )
                want = theirs(text, chosen, hypothesis_template=template, multi_label=several)
                assert (got.sequences, got.labels) == (want["sequence"], want["labels"])
                assert got.scores == pytest.approx(want["scores"], abs=SCORE)


# ---- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("head", ["hidden", "masked-lm", "question-answering"])
def test_embeddings(cases: Callable[..., Case], engine: str, head: str) -> None:
    case = cases(head)
    base = case.model if head == "hidden" else case.model.bert
    for layer in (-1, 0, 1, -2):
        got = case.ours("embedding", engine, emb_extraction_layer=layer)(TEXTS).embeddings
        for text, vectors in zip(TEXTS, got, strict=True):
            tokens = case.tokenizer(text, truncation=True, return_tensors="pt")
            with torch.no_grad():
                states = base(**tokens, output_hidden_states=True).hidden_states[1:]
            assert torch.tensor(vectors) == pytest.approx(states[layer][0].numpy(), abs=SCORE)


@pytest.mark.parametrize("engine", ENGINES)
def test_pooled_embeddings(cases: Callable[..., Case], engine: str) -> None:
    case = cases("hidden")
    theirs = case.reference("feature-extraction", tokenize_kwargs={"truncation": True})
    ways = {
        "reduce_mean": lambda x: x.mean(0),
        "reduce_max": lambda x: x.max(0).values,
        "cls_token": lambda x: x[0],
    }
    states = [torch.tensor(theirs(text)[0]) for text in TEXTS]
    for strategy, pool in ways.items():
        for normalize in (False, True):
            ours = case.ours(
                "embedding_extraction", engine, extraction_strategy=strategy, normalize=normalize
            )
            for vector, state in zip(ours(TEXTS).embeddings, states, strict=True):
                want = pool(state)
                want = want / want.norm() if normalize else want
                assert vector == pytest.approx(want.tolist(), abs=SCORE)


# ---- fill-mask -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_fill_mask(cases: Callable[..., Case], kind: str, engine: str) -> None:
    case = cases("masked-lm", kind)
    mask = case.tokenizer.mask_token
    texts = [
        f"Mary is {mask} to New York.",
        f"{mask}",
        f"東京 {mask} 😀 and {mask}, {mask}!",
        f"Café, isn't {mask} good ? (e\u0301)",
    ]
    theirs = case.reference("fill-mask", top_k=4)
    got = case.ours("fill-mask", engine, top_k=4)(texts).model_dump()["predictions"]

    def compare(ours: Any, want: Any) -> None:
        assert len(ours) == len(want)
        for one, other in zip(ours, want, strict=True):
            if isinstance(one, list):
                compare(one, other)
            else:
                assert one == {**other, "score": pytest.approx(other["score"], abs=SCORE)}

    for text, rows in zip(texts, got, strict=True):
        compare(rows, theirs(text))


# ---- Hugging Face's JSON -------------------------------------------------------------------------


def hub_answer(pipeline: Pipeline, inputs: Any, **parameters: Any) -> Any:
    """What a server answers to ``{"inputs", "parameters"}``."""
    request = hub.read(pipeline, {"inputs": inputs, "parameters": parameters})
    varied = pipeline.varied(**request.options)
    answer = request.answer([varied(one) for one in request.inputs])
    return json.loads(json_text.dumps(answer))


def alike(got: Any, want: Any) -> None:
    """Equal, numbers nearly, in lists and objects too."""
    if isinstance(want, dict):
        assert set(got) == set(want)
        for name, value in want.items():
            alike(got[name], value)
    elif isinstance(want, list):
        assert isinstance(got, list) and len(got) == len(want)
        for mine, value in zip(got, want, strict=True):
            alike(mine, value)
    elif isinstance(want, (int, str)) or want is None:
        assert got == want
    else:
        np.testing.assert_allclose(got, want, atol=5e-5)


def test_hugging_faces_json_of_texts(cases: Callable[..., Case]) -> None:
    case = cases("sequence-classification", "wordpiece", labels=["bad", "fair", "good"])
    reference = case.reference("text-classification")
    with case.ours("text-classification", "onnxruntime") as ours:
        for parameters in (
            {}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"},
            {"function_to_apply": "softmax", "top_k": 1},
        ):  # fmt: skip
            asked = {"top_k": None, **parameters}
            for given in (TEXTS[0], TEXTS[:3]):
                # The service has a list for a single text as well.
                want = reference([given] if isinstance(given, str) else given, **asked)
                alike(hub_answer(ours, given, **parameters), want)
        pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
        alike(hub_answer(ours, [pair, pair]), reference([pair, pair], top_k=None))
        alike(hub_answer(ours, pair), reference(pair, top_k=None))
        with pytest.raises(InputError, match="text_pair, not texts"):
            hub_answer(ours, {"texts": "a"})
        with pytest.raises(InputError, match="candidates is not known here; there are truncate"):
            hub_answer(ours, "a", candidates=3)
        with pytest.raises(InputError, match="function_to_apply"):
            hub_answer(ours, "a", function_to_apply="tanh")


def test_hugging_faces_json_of_tokens(cases: Callable[..., Case]) -> None:
    case = cases("token-classification", "wordpiece", labels=NER_LABELS)
    reference = case.reference("token-classification")
    with case.ours("token-classification", "onnxruntime") as ours:
        for parameters in (
            {}, {"aggregation_strategy": "none"}, {"aggregation_strategy": "max"},
            {"ignore_labels": ["PER"]}, {"aggregation_strategy": "none", "ignore_labels": []},
        ):  # fmt: skip
            asked = {"aggregation_strategy": "simple", **parameters}
            for given in (TEXTS[0], TEXTS[:2]):
                alike(hub_answer(ours, given, **parameters), reference(given, **asked))
    with case.ours("ner", "onnxruntime", aggregation_strategy="none") as ours:
        alike(hub_answer(ours, TEXTS[0]), reference(TEXTS[0], aggregation_strategy="none"))


def test_hugging_faces_json_of_questions(cases: Callable[..., Case]) -> None:
    case = cases("question-answering", "wordpiece")
    reference = case.reference("question-answering")
    given = {"question": QUESTIONS[0], "context": CONTEXTS[0][:60]}
    with case.ours("question-answering", "onnxruntime") as ours:
        # What this task answers is compared above; here, what a request may change.
        alike(hub_answer(ours, given), reference(given))
        alike(hub_answer(ours, [given, given], align_to_words=True), [reference(given)] * 2)
        short = hub_answer(ours, given, max_answer_len=1)
        alike(short, reference(given, max_answer_len=1))
        three = hub_answer(ours, given, top_k=3)
        want = reference(given, top_k=3)
        assert len(three) == 3 and three[0] == hub_answer(ours, given)
        assert [row["score"] for row in three] == sorted(
            (row["score"] for row in three), reverse=True
        )
        alike(three[0], want[0])
        windows = ours.varied(max_seq_len=16, doc_stride=2)
        assert max(item.length for item in windows.prepare(windows.parse(**given)).items) <= 16
        with pytest.raises(InputError, match="align_to_words can only be True"):
            hub_answer(ours, given, align_to_words=False)
        with pytest.raises(InputError, match="question"):
            hub_answer(ours, "a")


def test_hugging_faces_json_of_labels(cases: Callable[..., Case]) -> None:
    names = ["contradiction", "neutral", "entailment"]
    case = cases("sequence-classification", "wordpiece", labels=names)
    reference = case.reference("zero-shot-classification")
    labels = ["news", "sport", "New York"]
    with case.ours("zero-shot-text-classification", "onnxruntime") as ours:
        for parameters in ({}, {"multi_label": True}, {"hypothesis_template": "Is it {}?"}):
            for given in (TEXTS[0], TEXTS[:2]):
                asked = {"candidate_labels": labels, **parameters}
                alike(hub_answer(ours, given, **asked), reference(given, **asked))
    mine = {"labels": labels, "hypothesis_template": "about {}"}
    with case.ours("zero-shot", "onnxruntime", **mine) as ours:
        want = reference(TEXTS[0], labels, hypothesis_template="about {}")
        alike(hub_answer(ours, TEXTS[0]), want)
    settings = {"hypothesis_template": "about {}"}
    with case.ours("zero-shot", "onnxruntime", labels=labels, model_config=settings) as ours:
        alike(hub_answer(ours, TEXTS[0]), want)


def test_hugging_faces_json_of_masks(cases: Callable[..., Case]) -> None:
    case = cases("masked-lm", "wordpiece")
    reference = case.reference("fill-mask")
    one, two = "[MASK] lives in Paris .", "[MASK] lives in [MASK] ."
    with case.ours("fill-mask", "onnxruntime") as ours:
        for parameters in (
            {}, {"top_k": 2}, {"targets": ["Mary", "John", "Mary"]},
            {"targets": "Paris", "top_k": 3},
        ):  # fmt: skip
            for given in (one, [one, one], two):
                alike(hub_answer(ours, given, **parameters), reference(given, **parameters))
        with pytest.raises(InputError, match="targets"):
            hub_answer(ours, one, targets=[])


def test_hugging_faces_json_of_vectors(cases: Callable[..., Case]) -> None:
    case = cases("hidden", "wordpiece")
    reference = case.reference("feature-extraction")
    with case.ours("embedding", "onnxruntime", emb_extraction_layer=None) as ours:
        want = reference(TEXTS[0])
        alike(np.array(hub_answer(ours, TEXTS[0])), np.array(want))
        for got, row in zip(hub_answer(ours, TEXTS[:2]), reference(TEXTS[:2]), strict=True):
            alike(np.array(got), np.array(row[0]))
        # Cut or refused, as a request says.
        for value in (True, "longest_first"):
            hub_answer(ours, TEXTS[0] * 9, truncation=value, padding=True)
        for name, value in (("truncation", False), ("truncate", False)):
            with pytest.raises(TooLongError):
                hub_answer(ours, TEXTS[0] * 9, **{name: value})
        hub_answer(ours, TEXTS[0], truncation_direction="Right")
        with pytest.raises(InputError, match="cuts right"):
            hub_answer(ours, TEXTS[0], truncation_direction="left")
    with case.ours("sentence-embedding", "onnxruntime") as ours:
        vectors = ours(TEXTS[:3]).embeddings
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        given = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:3]}
        alike(hub_answer(ours, given), unit[1:] @ unit[0])
        alike(hub_answer(ours, TEXTS[0], normalize=True)[0], unit[0])
        with pytest.raises(InputError, match="source_sentence"):
            hub_answer(ours, {"source_sentence": TEXTS[0]})


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_compared_as_squad_does(seed: int) -> None:
    """What `sparsec evaluate` counts for question answering."""
    pytest.importorskip("scipy", reason="evaluation needs it")
    from transformers.data.metrics import squad_metrics

    from sparsec.pruning.evaluation.answers import overlap, squad

    rng = np.random.default_rng(seed)
    parts = ["the", "a", "Cat", "cat.", "hat,", "in", "1990", "—", "an", "Thé", "U.S."]
    for _ in range(50):
        right, mine = (" ".join(rng.choice(parts, rng.integers(0, 5))) for _ in range(2))
        assert overlap(right, mine) == pytest.approx(squad_metrics.compute_f1(right, mine))
        exact = squad([mine], [[right]])["exact_match"]
        assert exact == squad_metrics.compute_exact(right, mine)
