"""Vectors and scores equal those of the package sentence-transformers, value by value, whatever the
model's folder says; on tiny random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec import (
    CrossEncoder,
    InputError,
    ModelError,
    NonFiniteError,
    Pipeline,
    SentenceTransformer,
)
from sparsec.serving.sentence import Normalize, Pooling, SentenceSettings
from tests.pipelines_support import TEXTS, make
from tests.test_pipelines_transformers import reference_model

torch = pytest.importorskip("torch", reason="the reference needs torch: pip install .[zoo]")
transformers = pytest.importorskip("transformers", reason="pip install .[zoo]")
reference = pytest.importorskip("sentence_transformers", reason="pip install .[zoo]")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")

LENGTH = 32  # tokens that the models take
SHORT = [text for text in TEXTS if text.strip()]
PROMPTS = {"query": "where is ", "document": "John: "}
_POOLING = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens",
            "weightedmean_tokens", "lasttoken")  # fmt: skip


def save(root: Path, head: str, **settings: Any) -> Path:
    """A model in our form and in that of transformers, in one folder."""
    config, weights = make(root, head, seed=3, **settings)
    model = reference_model(head, config, weights, "wordpiece", settings)
    model.save_pretrained(root)
    tokenizer = json.loads((root / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LENGTH}
    (root / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return root


def describe(
    folder: Path, modes: tuple[str, ...], *steps: str, include_prompt: bool = True, **more: Any
) -> None:
    """Write the files of sentence-transformers."""
    names = ["Transformer", "Pooling", *steps]
    rows = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": LENGTH, "do_lower_case": more.pop("lower", False)})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": PROMPTS, "default_prompt_name": None, **more})
    )
    pooling = {f"pooling_mode_{name}": name in modes for name in _POOLING}
    width = 32 * len(modes)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **pooling, "include_prompt": include_prompt})
    )
    for i, name in enumerate(steps, 2):
        (folder / f"{i}_{name}").mkdir(exist_ok=True)
        torch.manual_seed(i)
        if name == "Dense":
            module = modules.Dense(width, 24, activation_function=torch.nn.Tanh())
        elif name == "LayerNorm":
            module = modules.LayerNorm(width)
            torch.nn.init.normal_(module.norm.weight)
            torch.nn.init.normal_(module.norm.bias)
        else:
            module = modules.Normalize()
        module.save(str(folder / f"{i}_{name}"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("encoder") / "m", "hidden")


@pytest.fixture
def model(encoder: Path, tmp_path: Path) -> Callable[..., Path]:
    def made(*modes: str, **options: Any) -> Path:
        folder = tmp_path / "m"
        shutil.copytree(encoder, folder)
        describe(folder, modes, *options.pop("steps", ()), **options)
        return folder

    return made


def theirs(folder: Path) -> Any:
    return reference.SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("modes", "steps"),
    [
        (("mean_tokens",), ("Normalize",)),
        (("cls_token",), ()),
        (("max_tokens",), ("Dense", "Normalize")),
        (("mean_sqrt_len_tokens",), ("LayerNorm",)),
        (("weightedmean_tokens",), ()),
        (("lasttoken",), ("Normalize",)),
        (_POOLING, ("Dense",)),
    ],
)
def test_what_the_folder_says_is_obeyed(
    model: Callable[..., Path], modes: tuple[str, ...], steps: tuple[str, ...]
) -> None:
    folder = model(*modes, steps=steps)
    want = theirs(folder)
    with SentenceTransformer(folder, engine_type="onnxruntime") as ours:
        assert ours.max_seq_length == want.max_seq_length == LENGTH
        got = ours.encode(SHORT[:6], batch_size=4)
        np.testing.assert_allclose(got, want.encode(SHORT[:6]), atol=2e-6)
        assert got.dtype == np.float32
        for name in (*PROMPTS, None):
            np.testing.assert_allclose(
                ours.encode(SHORT[0], prompt_name=name),
                want.encode(SHORT[0], prompt_name=name),
                atol=2e-6,
            )


def test_compiled_and_as_an_artifact(model: Callable[..., Path], tmp_path: Path) -> None:
    """The artifact holds all that is needed."""
    folder = model("mean_tokens", steps=("Dense", "Normalize"), include_prompt=False, lower=True)
    want = theirs(folder)
    artifact = sparsec.compile(folder / "model.onnx", buckets=[LENGTH], output=tmp_path / "a")
    shutil.rmtree(folder)
    with SentenceTransformer(artifact.path) as ours:
        for options in ({}, {"prompt_name": "query"}, {"prompt": "in NEW york "}):
            np.testing.assert_allclose(
                ours.encode(SHORT[:3], **options), want.encode(SHORT[:3], **options), atol=2e-6
            )


def test_options_of_encode(model: Callable[..., Path]) -> None:
    folder = model("mean_tokens", default_prompt_name="document", similarity_fn_name="dot")
    want = theirs(folder)
    with SentenceTransformer(folder, engine_type="onnxruntime") as ours:
        texts = SHORT[:4]
        for options in (
            {"normalize_embeddings": True},
            {"truncate_dim": 8},
            {"truncate_dim": 8, "normalize_embeddings": True},
            {"prompt": ""},
        ):
            np.testing.assert_allclose(
                ours.encode(texts, **options), want.encode(texts, **options), atol=2e-6
            )
        np.testing.assert_allclose(ours.encode_query(texts), want.encode_query(texts), atol=2e-6)
        np.testing.assert_allclose(
            ours.encode_document(texts), want.encode_document(texts), atol=2e-6
        )
        one, two = ours.encode(texts), ours.encode(SHORT[4:6])
        assert ours.similarity_fn_name == "dot"
        np.testing.assert_allclose(
            ours.similarity(one, two), want.similarity(one, two).numpy(), rtol=1e-5
        )
        assert torch.is_tensor(ours.encode(texts, convert_to_tensor=True))
        assert isinstance(ours.encode(texts, convert_to_numpy=False), list)
        assert ours.encode([]).shape[0] == 0
        assert ours.get_sentence_embedding_dimension() == 32
        with pytest.raises(InputError, match="no prompt 'x'; there are query, document"):
            ours.encode("a", prompt_name="x")
        with pytest.raises(InputError, match="32 elements"):
            ours.encode("a", truncate_dim=33)
        for wrong in (5, None):
            with pytest.raises(InputError, match=f"a text or several, not {wrong}"):
                ours.encode(wrong)
        with pytest.raises(InputError, match=r"sentences\.1 is no text"):
            ours.encode(["a", 3])
    for kind in ("cosine", "euclidean", "manhattan"):
        with SentenceTransformer(
            folder, engine_type="onnxruntime", similarity_fn_name=kind, truncate_dim=8
        ) as ours:
            want.similarity_fn_name = kind
            np.testing.assert_allclose(
                ours.similarity(one, two), want.similarity(one, two).numpy(), rtol=2e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                ours.similarity_pairwise(one[:2], two),
                want.similarity_pairwise(one[:2], two).numpy(),
                rtol=2e-5,
                atol=1e-6,
            )
            assert ours.encode("a").shape == (8,)


def test_long_texts(model: Callable[..., Path]) -> None:
    """An error, or cut as sentence-transformers cuts them."""
    folder = model("mean_tokens")
    long = "Mary lives in Paris . " * 9
    ours = SentenceTransformer(folder, engine_type="onnxruntime")
    with ours, pytest.raises(sparsec.TooLongError, match=r"inputs\.1: the text has 47 tokens"):
        ours.encode(["short", long])
    with SentenceTransformer(folder, engine_type="onnxruntime", truncate=True) as ours:
        np.testing.assert_allclose(ours.encode(long), theirs(folder).encode(long), atol=2e-6)


def test_the_old_task_obeys_the_folder_too(model: Callable[..., Path], encoder: Path) -> None:
    folder = model("cls_token", steps=("Normalize",))
    with Pipeline.create("embedding", folder, engine_type="onnxruntime") as ours:
        got = ours(SHORT[:2]).embeddings
        assert isinstance(got[0], list)
        np.testing.assert_allclose(got, theirs(folder).encode(SHORT[:2]), atol=2e-6)
    with Pipeline.create("embedding", encoder, engine_type="onnxruntime") as ours:
        assert len(ours("Mary").embeddings[0]) == 3  # without files, a vector for each token


@pytest.mark.parametrize(
    "modes", ["cls", "max", "mean", "mean_sqrt_len_tokens", ["lasttoken", "mean"]]
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_state_that_is_no_number_goes_unseen(
    encoder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    modes: Any, value: float,
) -> None:  # fmt: skip
    """Wherever it is, and whatever of the vector is kept; sums that are too large are none."""
    with Pipeline.create("sentence-embedding", encoder, engine_type="onnxruntime") as ours:
        pooling = Pooling((modes,) if isinstance(modes, str) else tuple(modes))
        run = ours.runner.infer

        def changed(items: Any) -> Any:
            outputs = run(items)
            outputs[1][ours._output][1, 7] = placed  # type: ignore[attr-defined]
            return outputs

        monkeypatch.setattr(ours.runner, "infer", changed)
        for steps in ((), (Normalize(),)):
            ours.settings = SentenceSettings(pooling=pooling, steps=steps)  # type: ignore[attr-defined]
            for call in ({}, {"dimensions": 5}):
                placed = value
                ours.on_nonfinite = "warn"
                ours(inputs=SHORT[:3], **call)
                ours.on_nonfinite = "error"
                with pytest.raises(NonFiniteError, match="in 1 of 3 sequences"):
                    ours(inputs=SHORT[:3], **call)
                placed = np.float32(3e38)
                ours(inputs=SHORT[:3], **call)
        assert len(caplog.records) == 4


def test_without_files_the_mean(encoder: Path) -> None:
    with Pipeline.create("sentence-embedding", encoder, engine_type="onnxruntime") as ours:
        got = ours(SHORT[:3])
        want = theirs(encoder).encode(SHORT[:3])
        np.testing.assert_allclose(got.embeddings, want, atol=2e-6)
        assert got.model_dump()["embeddings"][0][0] == pytest.approx(float(want[0, 0]), abs=2e-6)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("modules.json", "{", "is damaged"),
        ("modules.json", '[{"type": "x.Transformer", "path": "../a"}]', "not the name of a folder"),
        ("modules.json", '[{"type": "x.StaticEmbedding", "path": ""}]', "must be a Transformer"),
        (
            "modules.json",
            '[{"type": "x.Transformer", "path": ""}, {"type": "x.LSTM", "path": "1"}]',
            "kind LSTM are not known",
        ),
        ("1_Pooling/config.json", '{"pooling_mode": "median"}', "pooling must be one or several"),
        ("sentence_bert_config.json", '{"max_seq_length": "x"}', "max_seq_length must be"),
        ("config_sentence_transformers.json", '{"prompts": []}', None),
        ("config_sentence_transformers.json", '{"prompts": {"a": 1}}', "prompts must map"),
        (
            "config_sentence_transformers.json",
            '{"default_prompt_name": "a"}',
            "default_prompt_name is 'a', and prompts has none",
        ),
        ("config_sentence_transformers.json", '{"similarity_fn_name": "x"}', "similarity_fn_name"),
    ],
)
def test_damaged_files(
    model: Callable[..., Path], file: str, text: str, message: str | None
) -> None:
    folder = model("mean_tokens")
    (folder / file).write_text(text)
    if message is None:
        SentenceTransformer(folder, engine_type="onnxruntime").close()
        return
    with pytest.raises(ModelError, match=message):
        SentenceTransformer(folder, engine_type="onnxruntime")


# ---- cross encoders ------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [1, 3])
def test_cross_encoders(tmp_path: Path, labels: int) -> None:
    names = [f"LABEL_{i}" for i in range(labels)]
    folder = save(tmp_path / "m", "sequence-classification", labels=names)
    want = reference.CrossEncoder(str(folder), device="cpu")
    pairs = [(SHORT[0], SHORT[1]), ("Mary ", " in Paris"), ("", "acme"), (SHORT[1], SHORT[0] * 2)]
    with CrossEncoder(folder, engine_type="onnxruntime", truncate=True) as ours:
        np.testing.assert_allclose(ours.predict(pairs), want.predict(pairs), atol=2e-6)
        np.testing.assert_allclose(ours.predict(pairs[0]), want.predict(pairs[0]), atol=2e-6)
        np.testing.assert_allclose(
            ours.predict(pairs, apply_softmax=labels > 1, batch_size=3),
            want.predict(pairs, apply_softmax=labels > 1),
            atol=2e-6,
        )
        documents = ["Mary lives in Berlin", "sport", "John was flying to New York"]
        if labels == 1:
            got = ours.rank("Where is John?", documents, top_k=2, return_documents=True)
            rows = want.rank("Where is John?", documents, top_k=2, return_documents=True)
            assert [row["corpus_id"] for row in got] == [row["corpus_id"] for row in rows]
            assert [row["text"] for row in got] == [row["text"] for row in rows]
            scores = [float(row["score"]) for row in rows]
            assert [row["score"] for row in got] == pytest.approx(scores, abs=2e-6)
            assert ours.rank("x", []) == []
        else:
            with pytest.raises(ModelError, match="3 labels"):
                ours.rank("x", documents)
        for wrong in ("ab", 5, None):
            with pytest.raises(InputError, match=f"pairs of texts, not {wrong!r}"):
                ours.predict(wrong)
        with pytest.raises(InputError, match=r"sentences\.1: a pair of texts is needed, not 5"):
            ours.predict([["a", "b"], 5])
        with pytest.raises(InputError, match=r"sentences\.0: a pair"):
            ours.predict([("a", "b", "c")])
    ours = CrossEncoder(folder, engine_type="onnxruntime")
    with ours, pytest.raises(sparsec.TooLongError, match=r"sequences\.0"):
        ours.predict((SHORT[0] * 2, SHORT[1]))


def test_the_activation_of_a_cross_encoder(tmp_path: Path) -> None:
    said = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    folder = save(tmp_path / "m", "sequence-classification", labels=["x"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **said}))
    want = reference.CrossEncoder(str(folder), device="cpu").predict([("a", "b")])
    with CrossEncoder(folder, engine_type="onnxruntime") as ours:
        np.testing.assert_allclose(ours.predict([("a", "b")]), want, atol=2e-6)
    (folder / "config.json").write_text(
        json.dumps({**config, "sbert_ce_default_activation_function": "torch.nn.GELU"})
    )
    with pytest.raises(ModelError, match="GELU is not known"):
        CrossEncoder(folder, engine_type="onnxruntime")


# ---- sparse vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["max", "sum"])
def test_splade(tmp_path: Path, strategy: str) -> None:
    folder = save(tmp_path / "m", "masked-lm")
    rows = [
        {"idx": 0, "name": "0", "path": "",
         "type": "sentence_transformers.sparse_encoder.models.MLMTransformer"},
        {"idx": 1, "name": "1", "path": "1_SpladePooling",
         "type": "sentence_transformers.sparse_encoder.models.SpladePooling"},
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "config_sentence_transformers.json").write_text('{"model_type": "SparseEncoder"}')
    (folder / "1_SpladePooling").mkdir()
    (folder / "1_SpladePooling" / "config.json").write_text(
        json.dumps({"pooling_strategy": strategy, "activation_function": "relu",
                    "embedding_dimension": 160})
    )  # fmt: skip
    want = reference.SparseEncoder(str(folder), device="cpu").encode(SHORT[:3]).to_dense().numpy()
    with Pipeline.create("sparse-embedding", folder, engine_type="onnxruntime") as ours:
        for row, vector in zip(ours(SHORT[:3]).embeddings, want, strict=True):
            got = np.zeros(len(vector), np.float32)
            got[row.indices] = row.values
            np.testing.assert_allclose(got, vector, rtol=2e-5, atol=2e-6)
            assert row.values == sorted(row.values, reverse=True)
            assert len(row.tokens) == len(row.indices)
    with Pipeline.create("splade", folder, engine_type="onnxruntime", top_k=3) as ours:
        assert len(ours("Mary").embeddings[0].values) == 3
