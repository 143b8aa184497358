"""What the models of examples/models are trained on, and the training script itself."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="examples need tokenizers")
pytest.importorskip("safetensors", reason="examples need safetensors")

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from examples.embedding import data as embedding
from examples.fill_mask import data as fill_mask
from examples.ner import data as ner
from examples.nli import data as nli
from examples.qa import data as qa
from examples.rerank import data as rerank
from examples.sentiment import data as sentiment
from examples.training.data import IGNORE, Example, Task, as_row, batches, collate, score
from examples.training.templates import Grammar, Span, Text, read_lists, split
from examples.training.vocabulary import trim
from examples.training.words import ALL_NAMES, entities, invented
from sparsec.serving.sentence import Normalize, SentenceSettings

TASKS = {
    "ner": ner.TASK,
    "sentiment": sentiment.TASK,
    "qa": qa.TASK,
    "nli": nli.TASK,
    "fill_mask": fill_mask.TASK,
    "rerank": rerank.TASK,
}

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="training needs torch")


def examples(task: Task, held_out: bool, count: int = 300, seed: int = 5) -> list[Example]:
    rng = np.random.default_rng(seed)
    return [task.sample(rng, held_out) for _ in range(count)]


def test_templates_nest_and_remember_what_filled_them() -> None:
    grammar = Grammar({"X": ["{a} {a}"]}, {"a": ["b", "b"], "c": ["(c|c) and {X}"]})
    made = grammar.expand("(a|a (b|b)|a) {c}, {X}", np.random.default_rng(0), {"X": "see"})
    assert re.fullmatch(r"a( b)? c and see, see", made.text)
    assert [made.text[s.start : s.end] for s in made.spans] == ["see", "see"]
    made = grammar.expand("{X}!", np.random.default_rng(0))
    assert made == Text("b b!", [Span(0, 3, "X")])
    with pytest.raises(KeyError):
        grammar.expand("{unknown}", np.random.default_rng(0))


def test_lists_are_read_from_text(tmp_path: Path) -> None:
    path = tmp_path / "lists.txt"
    path.write_text("[a]\nx | y z\n2* (p|q) r\n\n[b+]\n(| one| two)\n", encoding="utf-8")
    assert read_lists(path) == {"a": ["x", "y z", "(p|q) r", "(p|q) r"], "b+": ["(| one| two)"]}


def test_articles_fit_what_follows() -> None:
    grammar = Grammar({"X": ["apple"], "Y": ["pear"]}, {})
    made = grammar.expand("a {X}, a {Y}, data {X}", np.random.default_rng(0))
    assert made.text == "an apple, a pear, data apple"
    assert [made.text[s.start : s.end] for s in made.spans] == ["apple", "pear", "apple"]


def test_halves_are_disjoint_and_complete() -> None:
    lists = [ner.LISTS["with_names"], ner.LISTS["without_names"], sentiment.LISTS["templates"]]
    for items in (*lists, list(ALL_NAMES)):
        train, test = split(items, False), split(items, True)
        assert not set(train) & set(test) and sorted(train + test) == sorted(items)
        assert 0.05 < len(test) / len(items) < 0.35
    train, test = ({sentence for sentence, _ in qa.facts(held_out)} for held_out in (False, True))
    assert len(train) > 35 and len(test) > 5 and not train & test


def test_names_of_the_two_halves_are_disjoint() -> None:
    train, test = entities(False), entities(True)
    for name in train:
        if name not in ("end", "initial"):  # what companies are called by, and letters
            assert not set(train[name]) & set(test[name]), name
    everything = {n for names in train.values() for n in names}
    assert not everything & {"Mary", "Nairobi", "New York"}


def test_slots_that_may_be_asked_for_are_in_their_sentence() -> None:
    for held_out in (False, True):
        for sentence, questions in qa.facts(held_out):
            slots = set(re.findall(r"\{(\w+)\}", sentence))
            for question, answer in questions:
                assert {answer, *re.findall(r"\{(\w+)\}", question)} <= slots


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_examples_are_repeatable_and_well_formed(name: str, held_out: bool) -> None:
    task = TASKS[name]
    made = examples(task, held_out)
    assert made == examples(task, held_out)
    assert made != examples(task, held_out, seed=6)
    for e in made:
        assert not re.search(r"[{}()|]|  ", e.text.replace("(", "", 1).replace(")", "", 1)), e.text
        assert e.text == e.text.strip()
        where = e.text if e.pair is None else e.pair
        for span in e.spans:
            inside = where[span.start : span.end]
            assert inside and inside == inside.strip()
        assert all(a.end <= b.start for a, b in zip(e.spans, e.spans[1:], strict=False))


def test_examples_of_the_two_halves_share_no_text() -> None:
    for task in TASKS.values():
        train = {(e.text, e.pair) for e in examples(task, False, 2000)}
        shared = train & {(e.text, e.pair) for e in examples(task, True, 500)}
        # Very short opinions can be built from words of both halves; passages never.
        assert len(shared) <= 1, shared


def test_answers_are_the_only_ones() -> None:
    for held_out in (False, True):
        for e in examples(qa.TASK, held_out):
            assert e.pair is not None and len(e.spans) == 1
            answer = e.pair[e.spans[0].start : e.spans[0].end]
            assert answer and answer.lower() not in ("", e.text.lower())


def test_ner_names_have_known_labels() -> None:
    labels = {label[2:] for label in ner.LABELS if label != "O"}
    counts = dict.fromkeys(labels, 0)
    empty = 0
    for e in examples(ner.TASK, False, 1000):
        empty += not e.spans
        for span in e.spans:
            counts[span.slot] += 1
    assert min(counts.values()) > 100 and 100 < empty < 400


def test_words_between_names_may_change_but_names_do_not() -> None:
    rng = np.random.default_rng(0)
    text = "The government of Kenya thanked Mary Jones and her colleagues for their support"
    spans = [Span(18, 23, "LOC"), Span(32, 42, "PER")]
    changed = set()
    for _ in range(20):
        got, moved = ner.with_other_words(text, spans, rng)
        assert [got[s.start : s.end] for s in moved] == ["Kenya", "Mary Jones"]
        changed.add(got)
    assert len(changed) > 10


def test_opinions_are_balanced() -> None:
    for held_out in (False, True):
        share = np.mean([e.label for e in examples(sentiment.TASK, held_out, 1000)])
        assert 0.44 < share < 0.56


def test_labels_of_held_out_topics_are_new() -> None:
    train, test = nli.topics(False), nli.topics(True)
    assert len(train) > 80 and len(test) > 12
    for topic in (*train, *test):
        assert topic.labels and len(topic.things) > 2 and len(topic.sentences) > 2, topic
    labels = [{label for t in half for label in t.labels} for half in (train, test)]
    assert not labels[0] & labels[1]
    for half in (nli.generic, nli.hypotheses):
        assert half(True) and not set(half(False)) & set(half(True))


def test_a_label_alone_does_not_tell_whether_it_is_true() -> None:
    for held_out in (False, True):
        made = examples(nli.TASK, held_out, 3000)
        assert 0.47 < np.mean([e.label for e in made]) < 0.53
        for label in ("sport", "science") if not held_out else ("travel", "cats"):
            pattern = re.compile(rf"\b{label}\b")
            asked = [e.label for e in made if e.pair and pattern.search(e.pair)]
            assert len(asked) > 30 and 0.25 < np.mean(asked) < 0.75, (label, np.mean(asked))


@pytest.mark.parametrize("held_out", [False, True])
def test_the_right_document_alone_answers(held_out: bool) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        made = rerank.words(rng, held_out, 3)
        asked = set(made.text.split())
        has = [
            asked <= set(re.findall(r"[a-z][a-z-]{3,}", d.lower()))
            for d in (made.right, *made.wrong)
        ]
        assert has == [True, False, False, False], made
        made = rerank.topic(rng, held_out, 3)
        assert made.right not in made.wrong
        made = rerank.question(rng, held_out, 9)
        assert made.right not in made.wrong
        # Who is asked about is in the text that answers; one of the same form is about another.
        names = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+", made.text)
        assert all(name in made.right for name in names), made
        form = re.sub(r"[A-Z]\S*|\d\S*", "", made.right).split()
        for wrong in made.wrong:
            if names and re.sub(r"[A-Z]\S*|\d\S*", "", wrong).split() == form:
                assert not all(re.search(rf"\b{name}\b", wrong) for name in names), made


def test_facts_are_known_in_other_sentences() -> None:
    halves = [fill_mask.tables(held_out) for held_out in (False, True)]
    assert all(all(tables) for tables in halves)  # each table has sentences of both
    train, test = ([fact for table in tables for fact in table] for tables in halves)
    assert not {f.template for f in train} & {f.template for f in test}
    assert {f.values for f in test} <= {f.values for f in train}
    asked = {e.text[s.start : s.end] for e in examples(fill_mask.TASK, True) for s in e.spans}
    assert len(asked) > 50
    for held_out in (False, True):
        for e in examples(fill_mask.TASK, held_out):
            assert e.spans and all(s.start < s.end for s in e.spans)


def test_invented_names_differ() -> None:
    words = [invented(i) for i in range(400)]
    assert len(set(words)) > 380 and all(w.isalpha() and w[0].isupper() for w in words)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A WordPiece tokenizer as BERT has it, whose vocabulary is letters and a few words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'\"&-:$%()", *letters]
    pieces += [f"##{c}" for c in letters] + ["the", "mary", "é", "##ing", "rare", "##ly"]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def test_trimmed_vocabulary(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    old = tokenizer.get_vocab()
    text, ids = trim(path, len(old) - 9, ["rarely"])
    small = Tokenizer.from_str(text)
    new = small.get_vocab()
    assert sorted(new.values()) == list(range(len(new))) == list(range(len(ids)))
    assert all(old[piece] == ids[i] for piece, i in new.items())
    assert {"rare", "##ly", "mary"} <= set(new) and "é" not in new and "##ing" not in new
    for line in ("the mary", "rarely", "it is 7!", "é"):
        pieces = small.encode(line).tokens
        assert pieces[0] == "[CLS]" and pieces[-1] == "[SEP]"
        assert "[UNK]" not in pieces  # accents are stripped before
        assert [ids[i] for i in small.encode(line).ids] == tokenizer.encode(line).ids
    with pytest.raises(ValueError, match="single letters"):
        trim(path, 20, [])
    assert json.loads(text)["padding"] is None and json.loads(text)["truncation"] is None


def test_targets(tokenizer: Tokenizer) -> None:
    made = Example("Mary is in Rome.", spans=(Span(0, 4, "PER"), Span(11, 15, "LOC")))
    batch = collate(ner.TASK, tokenizer, [made, Example("the")])
    got = [ner.LABELS[t] if t != IGNORE else "" for t in batch.targets[0]]
    assert got == ["", "B-PER", "O", "O", "O", "O", "B-LOC", "I-LOC", "I-LOC", "I-LOC", "O", ""]
    assert batch.mask.sum(1).tolist() == [12, 3] and (batch.targets[1, 3:] == IGNORE).all()

    asked = Example("the?", "Mary, the 7 in Rome", (Span(15, 19, "city"),))
    batch = collate(qa.TASK, tokenizer, [asked])
    first, last = batch.targets[0]
    tokens = tokenizer.encode("the?", "Mary, the 7 in Rome").tokens
    assert "".join(tokens[first : last + 1]).replace("##", "") == "rome"
    assert batch.types[0, first] == 1

    hidden = Example("Mary is in Rome.", spans=(Span(0, 4, "PER"), Span(11, 15, "LOC")))
    batch = collate(fill_mask.TASK, tokenizer, [hidden])
    tokens = tokenizer.encode(hidden.text)
    asked = [1, *range(6, 10)]
    assert np.flatnonzero(batch.targets[0] != IGNORE).tolist() == asked
    assert (batch.ids[0][asked] == tokenizer.token_to_id("[MASK]")).all()
    whole = np.where(batch.targets[0] == IGNORE, batch.ids[0], batch.targets[0])
    assert whole.tolist() == tokens.ids

    batch = collate(sentiment.TASK, tokenizer, [Example("the", label=1), Example("mary")])
    assert batch.targets.tolist() == [[1], [0]]


@pytest.mark.parametrize("task", [sentiment.TASK, embedding.TASK], ids=lambda t: t.folder.name)
def test_batches_depend_on_the_seed_only(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    # The vocabulary is that of a package.
    monkeypatch.setattr(embedding, "words", lambda: ["acorn", "brook", "cedar"])
    a, b = (batches(task, (1, 2), 3) for _ in range(2))
    assert [len(examples) for examples in a] == [task.batch] * 3
    assert a == b
    assert a[0] != batches(task, (1, 3), 3)[0]


def test_texts_to_judge_vectors_by_are_not_trained_on() -> None:
    held_out = set(embedding.held_out_lines())
    assert len(held_out) > 300
    assert not held_out & set(embedding.lines())
    rng = np.random.default_rng(0)
    assert all(embedding.sample(rng, True).text in held_out for _ in range(9))


def test_score_counts_rows_and_examples() -> None:
    want = np.array([[1, 2, IGNORE], [0, 0, 0]])
    got = np.array([[1, 2, 9], [0, 1, 0]])
    assert score([got], [want]) == (4 / 5, 1 / 2)


@needs_torch
def test_torch_computes_what_is_written() -> None:
    """The torch encoder against the numpy reference."""
    import torch

    from examples.encoders import EncoderConfig, forward, random_batch, random_weights
    from examples.training.model import Encoder

    heads = {
        "token-classification": 5,
        "sequence-classification": 2,
        "question-answering": 2,
        "masked-lm": 0,
    }
    for head, labels in heads.items():
        config = EncoderConfig(layers=2, hidden=32, heads=4, intermediate=64, vocab=60,
                               head=head, num_labels=labels)  # fmt: skip
        weights = random_weights(config, seed=1)
        model = Encoder(config, weights).eval()
        batch = random_batch(config, 3, 12, seed=2)
        with torch.no_grad():
            a = model(*[torch.from_numpy(x) for x in batch])[1].numpy()
        outputs, real = forward(config, weights, *batch), batch[1] != 0
        b = outputs[0] if outputs[0].ndim == 3 else outputs[0][:, None]
        if head == "question-answering":  # padding can't be an answer
            b = np.stack(outputs, axis=1)
            a, b = a.transpose(0, 2, 1)[real], b.transpose(0, 2, 1)[real]
        elif head in ("token-classification", "masked-lm"):
            a, b = a[real], b[real]
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
        exported = model.export()
        assert all(np.array_equal(exported[name], weights[name]) for name in weights)


@needs_torch
def test_new_heads() -> None:
    from examples.encoders import EncoderConfig, random_weights
    from examples.training.model import Encoder, with_head

    body = random_weights(EncoderConfig(layers=1, hidden=32, heads=4, intermediate=64, vocab=60))
    config = EncoderConfig(
        layers=1, hidden=32, heads=4, intermediate=64, vocab=60, head="masked-lm"
    )
    made = with_head(config, body, seed=1)
    assert set(made) == set(config.parameter_shapes())
    assert all(made[name] is value for name, value in body.items())
    words, decoder = "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    assert np.array_equal(made[decoder], made[words])
    assert (made["cls.predictions.transform.LayerNorm.weight"] == 1).all()
    model = Encoder(config, made)
    learnt = {name for name in made if model.parameter(name).requires_grad}
    assert not {words, decoder} & learnt  # the two stay one table
    assert {"cls.predictions.transform.dense.weight", "cls.predictions.decoder.bias"} <= learnt


def _train_a_little(name: str, tmp_path: Path) -> tuple[Path, Path]:
    """A task's script with one layer and few steps, stopped once: (model, state)."""
    pytest.importorskip("onnxruntime", reason="training reports with ONNX Runtime")
    from importlib import metadata

    from examples.minilm import build
    from examples.training import train

    try:
        metadata.distribution(build.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{build.PACKAGE} is not installed (examples/minilm/requirements.txt)")
    import onnx

    task, kind = embedding.TASK, train.Trainer
    if name == "embedding":
        from examples.embedding.train import Distiller as kind
    else:
        task = TASKS[name]
    if name == "rerank":
        from examples.rerank.train import Reranker as kind
    task = dataclasses.replace(task, layers=1, pieces=5000, batch=4, sparsity=0.75)
    output, state = tmp_path / "model", tmp_path / "state"
    arguments = ["--state", str(state), "--output", str(output), "--threads", "1"]
    arguments += ["--steps", "3", "--minutes", "0"]
    assert train.main(task, [*arguments, "--seconds", "0"], kind) == train.AGAIN

    class Killed(kind):
        def one(self, batch: Any) -> None:
            if self.step == 2:
                raise KeyboardInterrupt
            super().one(batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "SAVE_EVERY", 1)
        train.main(task, [*arguments, "--seconds", "600"], Killed)
    import torch

    assert torch.load(state / train.STATE)["step"] == 2
    assert train.main(task, [*arguments, "--seconds", "600"], kind) == 0
    onnx.checker.check_model(str(output / "model.onnx"))
    config = json.loads((output / "config.json").read_text())
    vocabulary = Tokenizer.from_file(str(output / "tokenizer.json")).get_vocab_size()
    assert config["vocab_size"] == vocabulary
    assert len(config.get("id2label", ())) == len(task.labels)
    return output, state


@needs_torch
@pytest.mark.parametrize("name", [*TASKS, "embedding"])
def test_training_runs_stops_and_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from examples.training import train

    seen: dict[str, Any] = {}

    def sparsify(dense: Path, *, output: Path, **options: Any) -> None:
        shutil.copytree(dense, output)
        seen.update(options)

    monkeypatch.setattr(train.sparsec, "sparsify", sparsify)
    monkeypatch.setattr(train, "TEXTS", 80)
    monkeypatch.setattr(train, "HELD_OUT_BATCHES", 2)
    monkeypatch.setattr("examples.rerank.train.QUERIES", 2)
    monkeypatch.setattr(
        "examples.embedding.train.held_out_lines", lambda: ["A door.", "Rain", "Why?"]
    )
    output, _ = _train_a_little(name, tmp_path)
    assert len(seen["texts"]) == 80 and seen["dialect"] == "sparseml"
    if name == "embedding":
        assert seen["form"] == "int8"
        settings = SentenceSettings.load(output)
        assert settings.pooling.modes == ("mean",) and settings.steps == (Normalize(),)
    elif name == "rerank":
        assert seen["form"] == "int8"
    else:
        assert (seen["sparsity"], seen["minutes"]) == (0.75, 0)


@needs_torch
@pytest.mark.slow
def test_training_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.training import train

    monkeypatch.setattr(train, "TEXTS", 80)
    _, state = _train_a_little("sentiment", tmp_path)
    report = json.loads((state / "sparse" / "report.json").read_text())
    assert report["sparsity"] == pytest.approx(0.75, abs=0.01)


def test_tables_become_bytes(tmp_path: Path) -> None:
    import onnxruntime

    from examples.encoders import EncoderConfig, write_random
    from examples.training.tables import round_tables

    config = EncoderConfig(layers=1, vocab=30)
    path = tmp_path / "model.onnx"
    write_random(path, config)
    size = path.stat().st_size
    ids = np.arange(24).reshape(2, 12)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids % 2}
    before = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    round_tables(path, [f"{name}.weight" for name in config.tables()])
    after = onnxruntime.InferenceSession(path).run(None, inputs)[0]
    assert path.stat().st_size < size - 2.5 * config.hidden * (30 + config.max_position)
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()


def test_rows_are_what_sparsify_reads(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    for name, task in TASKS.items():
        row = as_row(task, tokenizer, task.sample(rng, False))
        pair = {"text", "text_pair"}
        fields = {"qa": {"question", "context"}, "nli": pair, "rerank": pair}
        assert set(row) == fields.get(name, {"text"})
    hidden = Example("Mary is in Rome.", spans=(Span(0, 4, "PER"), Span(11, 15, "LOC")))
    row = as_row(fill_mask.TASK, tokenizer, hidden)
    assert row == {"text": "[MASK] is in [MASK] [MASK] [MASK] [MASK]."}
