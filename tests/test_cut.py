"""Cutting models at an encoder layer: found by structure, in every form, with every head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from examples.encoders import EncoderConfig, forward, write_random
from examples.encoders.config import HEADS, Export
from sparsec import cache
from sparsec.compiler.cut import cut, encoder_layers, tensor_of
from sparsec.compiler.frontend import load_model
from sparsec.errors import InputError, ModelError
from tests.frontend_support import model_proto, node
from tests.ort_reference import session

SMALL = EncoderConfig(layers=3, hidden=32, heads=4, intermediate=64, vocab=100, max_position=64)

EXPORTS = {
    "plain": (SMALL, Export()),
    "fused": (SMALL, Export(opset=20, fused=True)),
    "sdpa": (dataclasses.replace(SMALL, attention="sdpa"), Export(opset=17)),
    "distilbert": (
        dataclasses.replace(SMALL, attention="distilbert", type_vocab=0),
        Export(opset=12),
    ),
    "fixed": (SMALL, Export(length=16)),
    "external": (SMALL, Export(external_data=True)),
    "gemm": (SMALL, Export(linear="gemm")),
}


@pytest.mark.parametrize("form", ["fp32", "sparseml", "qdq"])
@pytest.mark.parametrize("export", EXPORTS)
def test_layers_are_found(tmp_path: Path, form: str, export: str) -> None:
    """The cut model is that of fewer layers, with the same weights."""
    config, options = EXPORTS[export]
    made = write_random(tmp_path / "model.onnx", config, form, options, seed=3)
    loaded = load_model(made.path)
    layers = encoder_layers(loaded)
    assert len(layers) == 3
    inputs = made.batch(2, 16)
    for count, tensor in enumerate(layers, 1):
        path = tmp_path / f"cut{count}.onnx"
        cut(loaded, tensor, path)
        onnx.checker.check_model(str(path), full_check=True)
        run = session(path)
        (got,) = run.run(None, dict(zip([i.name for i in run.get_inputs()], inputs, strict=True)))
        fewer = dataclasses.replace(config, layers=count)
        (want,) = forward(fewer, made.weights, *inputs, quantized=made.quantized)
        assert np.abs(got - want).max() < 1e-4 * np.abs(want).max() + (
            0 if form == "fp32" else 0.05 * np.abs(want).max()
        )


@pytest.mark.parametrize("head", HEADS)
def test_heads_go(tmp_path: Path, head: str) -> None:
    config = dataclasses.replace(SMALL, head=head, layers=2)
    made = write_random(tmp_path / "model.onnx", config, "fp32")
    loaded = load_model(made.path)
    last = encoder_layers(loaded)[-1]
    cut(loaded, last, tmp_path / "cut.onnx")
    graph = onnx.load(tmp_path / "cut.onnx").graph
    heads = ("pooler", "classif", "qa_", "predictions")
    assert not any(word in node.name for node in graph.node for word in heads)
    assert [dim.dim_param for dim in graph.output[0].type.tensor_type.shape.dim[:2]] == [
        "batch", "sequence",
    ]  # fmt: skip
    names = {name for n in graph.node for name in n.input}
    assert {t.name for t in graph.initializer} <= names


def test_the_cache_keeps_what_was_cut(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, head="token-classification", layers=2)
    made = write_random(tmp_path / "model.onnx", config, "fp32")
    first = cache.cut(made.path, -1)
    written = first.stat().st_mtime_ns
    assert cache.cut(tmp_path, 1) == first and first.stat().st_mtime_ns == written
    assert cache.cut(made.path, 0) != first
    name = load_model(made.path).proto.graph.node[5].name
    assert cache.cut(made.path, name).is_file()
    for layer in (2, -3):
        with pytest.raises(InputError, match="has 2 layers"):
            cache.cut(made.path, layer)
    with pytest.raises(InputError, match="neither a node nor a tensor"):
        cache.cut(made.path, "nowhere")
    hidden = write_random(tmp_path / "hidden.onnx", dataclasses.replace(SMALL, layers=2), "fp32")
    cutting = cache.cut(hidden.path, -1)
    assert onnx.load(cutting).graph.output[0].name == encoder_layers(load_model(hidden.path))[-1]


def test_nothing_to_cut(tmp_path: Path) -> None:
    """A model that gives just that layer is taken as it is."""
    made = write_random(tmp_path / "model.onnx", SMALL, "fp32", Export(opset=17, fused=True))
    model = onnx.load(made.path)
    last = encoder_layers(load_model(made.path))[-1]
    del model.graph.output[1:]
    for n in model.graph.node:
        n.output[:] = ["result" if name == last else name for name in n.output]
        n.input[:] = ["result" if name == last else name for name in n.input]
    keep = [n for n in model.graph.node if "result" not in n.input]
    del model.graph.node[:]
    model.graph.node.extend(keep)
    model.graph.output[0].name = "result"
    onnx.save(model, made.path)
    assert cache.cut(made.path, -1) == made.path


def test_other_models_are_refused(tmp_path: Path) -> None:
    """No attention; attention without a residual; two encoders side by side."""
    weights = np.eye(8, dtype=np.float32)
    bare = [
        node("MatMul", "x w", "s"),
        node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p w", "y"),
    ]
    beside = [
        n
        for k in "12"
        for n in (
            node("MatMul", f"x w{k}", f"s{k}"),
            node("Softmax", f"s{k}", f"p{k}", axis=-1),
            node("MatMul", f"p{k} w", f"a{k}"),
            node("Add", f"a{k} s{k}", f"r{k}"),
        )
    ]
    beside.append(node("Concat", "r1 r2", "y", axis=-1))
    for nodes in (bare, beside, [node("MatMul", "x w", "y")]):
        path = tmp_path / "model.onnx"
        proto = model_proto(
            nodes,
            [("x", TensorProto.FLOAT, ["batch", "sequence", 8])],
            [("y", TensorProto.FLOAT, [0, 0, 0])],
            {"w": weights, "w1": 2 * weights, "w2": 3 * weights},
        )
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="no encoder layers were found"):
            encoder_layers(load_model(path))
    assert tensor_of(load_model(path), "y") == "y"


# Encoders that BERT's pattern does not fit, with heads to cut off.
OTHERS = {
    "modernbert": "ModernBertForMaskedLM",
    "deberta": "DebertaForTokenClassification",
    "deberta-v2": "DebertaV2ForSequenceClassification",
    "deberta-v2-conv": "DebertaV2ForMaskedLM",
    "mobilebert": "MobileBertForTokenClassification",
    "nomic-bert": None,
}


# With one layer nothing shows what these two have behind its sums.
ALONE = [(name, 1) for name in OTHERS if name not in ("mobilebert", "deberta-v2-conv")]


@pytest.mark.parametrize(("name", "layers"), [*((name, None) for name in OTHERS), *ALONE])
def test_other_encoders(tmp_path: Path, name: str, layers: int | None) -> None:
    """Norms before the residual or behind, none at all, a convolution between layers: each layer is
    what transformers calls its hidden state, and the last one what it calls the last."""
    torch = pytest.importorskip("torch", reason="the reference needs torch: pip install .[zoo]")
    pytest.importorskip("transformers", reason="the reference needs it: pip install .[zoo]")
    from tests.zoo.architectures import BY_NAME
    from tests.zoo.exports import BY_NAME as EXPORTERS
    from tests.zoo.exports import export as write

    model = OTHERS[name]
    architecture = BY_NAME[name]
    options = dict(architecture.options)
    if layers is not None:
        options["num_hidden_layers"] = layers
    architecture = dataclasses.replace(
        architecture, model=model or architecture.model, options=options
    )
    path = write(architecture, EXPORTERS["ts14-eager"], tmp_path / "model.onnx")
    feed = architecture.feed(2, 11, ragged=False)
    network = architecture.build("eager").network
    base = getattr(network, network.base_model_prefix) if model else network
    with torch.no_grad():
        inputs = {key: torch.from_numpy(value) for key, value in feed.items()}
        if model:
            out = base(**inputs, output_hidden_states=True)
            want = [*out.hidden_states[1:-1], out.last_hidden_state]
        else:
            want = [base(**inputs)[0]]
    loaded = load_model(path)
    found = encoder_layers(loaded)
    assert len(found) == options["num_hidden_layers"]
    for tensor, state in zip(found[-len(want) :], want, strict=True):
        cut(loaded, tensor, tmp_path / "cut.onnx")
        run = session(tmp_path / "cut.onnx")
        names = [i.name for i in run.get_inputs()]
        (got,) = run.run(None, {key: feed[key] for key in names})
        assert got == pytest.approx(state.numpy(), abs=2e-4, rel=1e-4)
