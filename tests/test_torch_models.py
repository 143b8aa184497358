"""Whole models in torch, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import encoders
from examples.encoders import EncoderConfig, Export
from sparsec.compiler.frontend import load_model
from sparsec.errors import InputError
from tests.frontend_support import FLOAT, INT64, node, save
from tests.ort_reference import session

torch = pytest.importorskip("torch")

from sparsec.pruning.engine import TorchModel  # noqa: E402

FORMS = {
    "matmul": Export(),
    "gemm, fused": Export(opset=20, fused=True, linear="gemm"),
}


def _model(folder: Path, config: EncoderConfig, export: Export) -> tuple[encoders.Model, Any]:
    written = encoders.write_random(folder / "model.onnx", config, export=export)
    return written, TorchModel(load_model(written.path))


def _feeds(written: encoders.Model, batch: int, length: int) -> dict[str, np.ndarray]:
    names = [value.name for value in session(written.path).get_inputs()]
    return dict(zip(names, written.batch(batch, length, seed=length), strict=True))


def _tensors(feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("attention", "head"),
    [
        ("eager", "sequence-classification"),
        ("sdpa", "masked-lm"),
        ("distilbert", "token-classification"),
    ],
)
def test_models_give_what_onnx_runtime_gives(
    tmp_path: Path, attention: Any, head: Any, form: str
) -> None:
    config = EncoderConfig(attention=attention, head=head)
    written, model = _model(tmp_path, config, FORMS[form])
    reference = session(written.path)
    for batch, length in ((3, 12), (1, 5)):
        feeds = _feeds(written, batch, length)
        want = reference.run(None, feeds)
        got = model(_tensors(feeds), states=True)
        for value, a in zip(reference.get_outputs(), want, strict=True):
            scale = float(np.abs(a).max())
            b = got.outputs[value.name].detach().numpy()
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * scale)
        assert [tuple(s.shape) for s in got.states] == [(batch, length, 64)] * 2
    assert len(model.layers) == len(config.linears())
    flips = {layer.transposed for layer in model.layers[: len(config.encoder_linears())]}
    assert flips == ({True} if form == "matmul" else {False})
    assert all(layer.bias for layer in model.layers)


def test_tables_that_are_layers_too_are_said(tmp_path: Path) -> None:
    """A masked language model multiplies with the table of its word embeddings."""
    rng = np.random.default_rng(0)
    model = TorchModel(
        save(
            tmp_path,
            [
                node("Gather", "words ids", "x"),
                node("MatMul", "x weight", "h"),
                node("Transpose", "words", "turned", perm=[1, 0]),
                node("MatMul", "h turned", "y"),
            ],
            [("ids", INT64, ["batch", "sequence"])],
            [("y", FLOAT, "bsw")],
            {
                "words": rng.normal(size=(9, 8)).astype(np.float32),
                "weight": rng.normal(size=(8, 8)).astype(np.float32),
            },
        )
    )
    first, second = model.layers
    assert (first.name, first.shared, first.transposed) == ("weight", "", True)
    assert (second.name, second.outputs, second.inputs) == ("words", 9, 8)
    assert second.shared == "Gather_0"
    assert not second.transposed


def test_layers_can_be_watched_and_changed(tmp_path: Path) -> None:
    written, model = _model(tmp_path, EncoderConfig(), Export())
    given = _tensors(_feeds(written, 2, 7))
    plain = model(given)
    query, key = model.layers[:2]
    seen = model(given, keep=[query.name, key.name])
    (x,), (same,) = seen.inputs[query.name], seen.inputs[key.name]
    assert x.shape == (2, 7, 64)
    assert x is same or torch.equal(x, same)
    zero = {query.name: torch.zeros(64, 64)}
    other = model(given, weights=zero)
    (name,) = plain.outputs
    assert not torch.allclose(plain.outputs[name], other.outputs[name])
    half = model(given, on_input=lambda layer, x: x * 0.5 if layer == query.name else x)
    by_hand = model(given, weights={query.name: model.weights[query.name] * 0.5})
    torch.testing.assert_close(half.outputs[name], by_hand.outputs[name])


def test_gradients_reach_every_weight(tmp_path: Path) -> None:
    written, model = _model(tmp_path, EncoderConfig(head="token-classification"), Export())
    outcome = model(_tensors(_feeds(written, 2, 7)))
    outcome.outputs["logits"].square().sum().backward()
    grads = {name: weight.grad for name, weight in model.weights.items()}
    assert not [name for name, g in grads.items() if g is None]
    assert all(bool(torch.isfinite(g).all()) for g in grads.values())
    assert all(bool((grads[layer.name] != 0).any()) for layer in model.layers)


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    written, model = _model(tmp_path, EncoderConfig(), Export(linear="gemm", external_data=True))
    stored = {t.name: t for t in load_model(written.path).proto.graph.initializer}
    loaded = load_model(written.path)
    assert len(model.weights) >= 16
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(weight.detach().numpy(), loaded.array(stored[name]))


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    _, model = _model(tmp_path, EncoderConfig(layers=1), Export())
    with pytest.raises(InputError, match="inputs are missing: the model takes input_ids"):
        model({})
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(InputError, match="attention_mask is missing"):
        model({"input_ids": ids})
    with pytest.raises(InputError, match="several lengths"):
        model({"input_ids": ids, "attention_mask": torch.ones(1, 5, dtype=torch.int64)})


def test_constants_go_where_weights_go(tmp_path: Path) -> None:
    config = EncoderConfig(layers=1, hidden=32, heads=4, intermediate=64, vocab=60)
    _, model = _model(tmp_path, config, Export())
    graph = model.graph(8)
    model.to("meta")
    assert model.graph(8) is graph
    assert {b.device.type for b in graph.buffers()} == {"meta"}
    assert {w.device.type for w in graph.weights.values()} == {"meta"}
