"""Embeddings: which output of a model they are, where its layers are not known, and odd numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import sparsec
from sparsec import Pipeline
from sparsec.errors import ModelError
from sparsec.serving.pipelines import EmbeddingExtractionPipeline, TextClassificationPipeline
from tests.frontend_support import model_proto, node
from tests.pipelines_support import word_piece
from tests.test_pipelines import Scripted, build

TABLE = np.random.default_rng(0).standard_normal((160, 4)).astype(np.float32)
KINDS = {
    "ids": ([node("Add", "input_ids one", "OUT")], TensorProto.INT64, 2),
    "tokens": ([node("Gather", "table input_ids", "OUT")], TensorProto.FLOAT, 3),
    "twice": (
        [node("Gather", "table input_ids", "again"), node("Mul", "again two", "OUT")],
        TensorProto.FLOAT, 3,
    ),
    "pooled": (
        [
            node("Gather", "table input_ids", "third"),
            node("ReduceMean", "third", "OUT", axes=[1], keepdims=0),
        ],
        TensorProto.FLOAT, 2,
    ),
}  # fmt: skip


def write(folder: Path, outputs: dict[str, str]) -> Path:
    """A model without layers; outputs by name are of a kind of the above."""
    nodes, infos = [], []
    for name, kind in outputs.items():
        made, element, rank = KINDS[kind]
        for proto in made:
            new = type(proto).FromString(proto.SerializeToString())
            new.output[:] = [name if text == "OUT" else text for text in proto.output]
            nodes.append(new)
        infos.append((name, element, [0] * rank))
    constants = {"table": TABLE, "one": np.array(1), "two": np.array(2, np.float32)}
    inputs = [("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    proto = model_proto(nodes, inputs, infos, constants)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    word_piece(folder / "tokenizer.json")
    return folder


def embed(path: Path, engine: str = "onnxruntime", **options: Any) -> tuple[str, np.ndarray]:
    options = {"sequence_length": [8], "extraction_strategy": "reduce_mean", **options}
    with Pipeline.create("embedding", path, engine_type=engine, **options) as pipeline:
        (ids,) = [i.arrays["input_ids"] for i in pipeline.prepare(pipeline.parse("Mary is")).items]
        want = TABLE[ids].mean(axis=0)
        factor = np.asarray(pipeline("Mary is").embeddings[0]) / want
        assert np.allclose(factor, factor[0], rtol=1e-4)
        return pipeline._output, factor[0]


CHOICES: list[tuple[dict[str, str], int | str | None, str]] = [
    ({"input_echo": "ids", "x": "tokens"}, None, "x"),
    ({"input_echo": "ids", "x": "pooled"}, None, "x"),
    ({"output_0": "tokens", "output_1": "pooled"}, None, "output_0"),
    ({"output_0": "pooled", "output_1": "tokens"}, None, "output_1"),
    ({"a": "tokens", "b": "twice", "last_hidden_state": "tokens"}, None, "last_hidden_state"),
    ({"a": "tokens", "sentence_embedding": "pooled"}, None, "sentence_embedding"),
    ({"token_embeddings": "tokens", "sentence_embedding": "pooled"}, None, "token_embeddings"),
    ({"a": "twice", "b": "pooled"}, "b", "b"),
    ({"a": "twice", "b": "tokens"}, "b", "b"),
    ({"ids": "ids", "pooled": "pooled", "x": "tokens"}, -1, "x"),
    ({"a": "twice", "last_hidden_state": "tokens"}, -1, "last_hidden_state"),
]


@pytest.mark.parametrize(("outputs", "layer", "want"), CHOICES)
def test_the_output_is_chosen(
    tmp_path: Path, outputs: dict[str, str], layer: int | str | None, want: str
) -> None:
    """Numbers, not ids; by the usual names, then by rank; in files without layers."""
    name, factor = embed(write(tmp_path, outputs), emb_extraction_layer=layer)
    assert name == want
    assert factor == pytest.approx(1, abs=1e-4)


def test_by_our_engine_and_of_an_artifact(tmp_path: Path) -> None:
    write(tmp_path, {"ids": "ids", "a": "twice", "last_hidden_state": "tokens", "p": "pooled"})
    artifact = sparsec.compile(tmp_path, buckets=[4], output=tmp_path / "a.sparsec").path
    for path, options in ((tmp_path, {"sequence_length": [4]}), (artifact, {"sequence_length": 4})):
        for layer, factor in ((-1, 1), (None, 1), ("a", 2), ("p", 1)):
            name, found = embed(path, "sparsec", emb_extraction_layer=layer, **options)
            assert name == (layer if isinstance(layer, str) else "last_hidden_state")
            assert found == pytest.approx(factor, abs=1e-4)
    with pytest.raises(ModelError, match=r"gives ids.*cannot be cut at layer 0"):
        embed(artifact, "sparsec", emb_extraction_layer=0, sequence_length=4)


def test_the_choice_is_said_to_be_open(tmp_path: Path) -> None:
    write(tmp_path, {"ids": "ids", "a": "tokens", "b": "twice"})
    for layer in (None, -1):
        message = r"several outputs .*: a float32\[batch, sequence, 4\], b float32\[.*; name one"
        with pytest.raises(ModelError, match=message):
            embed(tmp_path, emb_extraction_layer=layer)
    write(tmp_path, {"ids": "ids"})
    with pytest.raises(ModelError, match=r"no output of the model can be embeddings: ids int64"):
        embed(tmp_path, emb_extraction_layer=None)
    with pytest.raises(ModelError, match="no encoder layers were found"):
        embed(tmp_path)


def test_scores_are_no_ids(tmp_path: Path) -> None:
    """Classification too takes the output with numbers, of the right rank."""
    write(tmp_path, {"label": "ids", "a": "tokens", "b": "pooled"})
    with Pipeline.create("sentiment", tmp_path, engine_type="onnxruntime") as pipeline:
        assert pipeline._output == "b"


@pytest.mark.parametrize("name", ["modernbert", "deberta-v2"])
def test_the_default_layer_of_other_encoders(tmp_path: Path, name: str) -> None:
    """The same from the file and from an artifact, and longer than the configuration says."""
    pytest.importorskip("transformers", reason="the models need torch: pip install .[zoo]")
    from tests.zoo.architectures import BY_NAME
    from tests.zoo.exports import BY_NAME as EXPORTERS
    from tests.zoo.exports import export

    architecture = BY_NAME[name]
    options = {**architecture.options, "vocab_size": 160, "max_position_embeddings": 8}
    architecture = replace(architecture, options=options)
    export(architecture, EXPORTERS["ts14-eager"], tmp_path / "model.onnx")
    word_piece(tmp_path / "tokenizer.json")
    kind = {"model_type": name, "max_position_embeddings": 8, "position_biased_input": False}
    (tmp_path / "config.json").write_text(json.dumps(kind))
    artifact = sparsec.compile(tmp_path, buckets=[16], output=tmp_path / "a.sparsec").path
    found = []
    for path, engine in ((tmp_path, "onnxruntime"), (artifact, "sparsec")):
        with Pipeline.create(
            "embedding", path, engine_type=engine, sequence_length=16, return_numpy=True
        ) as pipeline:
            found.append(pipeline("Mary is flying from Nairobi to New York.").embeddings[0])
    assert found[0].shape[0] > 8
    assert found[1] == pytest.approx(found[0], abs=1e-4)


# ---- odd numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-20, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("strategy", ["per_token", "reduce_mean", "reduce_max", "cls_token"])
def test_length_one_or_zero(tmp_path: Path, scale: float, strategy: str) -> None:
    """No vector is too long or too short to be normalized, and zero stays zero."""
    path = word_piece(tmp_path / "tokenizer.json")
    vector = np.array([1, 2, 2, 0.5], np.float32) * np.float32(scale)
    runner = Scripted(lambda ids: [vector] * len(ids), ("last_hidden_state",))
    pipeline = build(
        EmbeddingExtractionPipeline, path, runner, extraction_strategy=strategy, normalize=True
    )
    found = np.asarray(pipeline("Mary is").embeddings[0])
    length = np.linalg.norm(found, axis=-1)
    if scale:
        assert length == pytest.approx(1, abs=1e-3 if scale < 1e-38 else 1e-6)
    else:
        assert not found.any()


@pytest.mark.parametrize(
    ("logits", "labels", "scores"),
    [
        ([1.0, np.inf, 0.0], ["b"], [1.0]),
        ([np.inf, np.inf, 0.0], ["a", "b", "c"], [0.5, 0.5, 0.0]),
        ([-np.inf, 0.0, 0.0], ["b", "c", "a"], [0.5, 0.5, 0.0]),
        ([0.0, np.nan, 1.0], None, [np.nan] * 3),
    ],
)
def test_softmax_of_infinity(
    tmp_path: Path, logits: list[float], labels: list[str] | None, scores: list[float]
) -> None:
    path = word_piece(tmp_path / "tokenizer.json")
    config = {"labels": ["a", "b", "c"]}
    runner = Scripted(lambda ids: logits)
    made = build(TextClassificationPipeline, path, runner, config, top_k=None)("Mary")
    assert made.scores[0][: len(scores)] == pytest.approx(scores, nan_ok=True)
    assert labels is None or made.labels[0][: len(labels)] == labels


def test_sigmoid_of_anything(tmp_path: Path) -> None:
    """Far out too, and NaN comes last."""
    path = word_piece(tmp_path / "tokenizer.json")
    config = {"labels": ["a", "b", "c", "d"], "problem_type": "multi_label_classification"}
    runner = Scripted(lambda ids: [np.nan, -1000.0, 1000.0, -50.0])
    made = build(TextClassificationPipeline, path, runner, config, top_k=None)("Mary")
    assert made.labels[0] == ["c", "d", "b", "a"]
    assert made.scores[0][:3] == pytest.approx([1.0, np.exp(-50.0), 0.0], rel=1e-6)
    assert np.isnan(made.scores[0][3])
