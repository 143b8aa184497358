"""The generated encoders are valid ONNX and compute what their numpy reference computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from examples.encoders import (
    EncoderConfig,
    Export,
    Model,
    forward,
    measured_sparsity,
    prune,
    random_batch,
    random_weights,
    write,
    write_random,
)
from examples.encoders.config import HEADS
from examples.encoders.quantization import asymmetric, quantize_weight, symmetric_u8
from examples.encoders.reference import erf
from tests.ort_reference import session

SMALL = EncoderConfig(
    layers=2, hidden=32, heads=4, intermediate=64, vocab=100, max_position=160, num_labels=3
)
SHAPES = [(1, 1), (3, 7), (1, 16), (2, 128)]


def run(model: Model, inputs: list[np.ndarray], optimize: bool = False) -> list[np.ndarray]:
    s = session(model.path, optimize)
    return s.run(None, dict(zip([i.name for i in s.get_inputs()], inputs, strict=True)))


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Largest difference relative to the largest value."""
    assert [g.shape for g in got] == [w.shape for w in want]
    assert all(np.isfinite(g).all() for g in got)
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def check(model: Model, bound: float, shapes: list[tuple[int, int]]) -> None:
    onnx.checker.check_model(str(model.path), full_check=True)
    for batch, length in shapes:
        inputs = model.batch(batch, length)
        assert error(run(model, inputs), model.reference(*inputs)) < bound, (batch, length)


EXPORTS = {
    "opset11": (SMALL, Export(opset=11)),
    "opset13": (SMALL, Export(opset=13)),
    "fused17": (SMALL, Export(opset=17, fused=True)),
    "fused20": (SMALL, Export(opset=20, fused=True)),
    "lowest-mask": (
        EncoderConfig(**{**SMALL.__dict__, "mask_value": float(np.finfo(np.float32).min)}),
        Export(),
    ),
    "sdpa": (EncoderConfig(**{**SMALL.__dict__, "attention": "sdpa"}), Export(opset=17)),
    "sdpa21": (
        EncoderConfig(**{**SMALL.__dict__, "attention": "sdpa"}),
        Export(opset=21, fused=True),
    ),
    "distilbert": (
        EncoderConfig(**{**SMALL.__dict__, "attention": "distilbert", "type_vocab": 0}),
        Export(opset=12),
    ),
    "buffered-types": (SMALL, Export(token_type_input=False)),
    "external": (SMALL, Export(external_data=True)),
}


@pytest.mark.parametrize("form", ["fp32", "sparseml", "qdq"])
@pytest.mark.parametrize("export", EXPORTS)
def test_every_export_agrees_with_numpy(tmp_path: Path, form: str, export: str) -> None:
    config, how = EXPORTS[export]
    model = write_random(tmp_path / "m.onnx", config, form, how, sparsity=0.5)
    # An 8-bit value that sits on a rounding boundary may fall either way, hence the wider bound.
    check(model, 1e-4 if form == "fp32" else 0.03, SHAPES)


@pytest.mark.parametrize("form", ["fp32", "sparseml", "qdq"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_agrees_with_numpy(tmp_path: Path, form: str, head: str) -> None:
    config = EncoderConfig(**{**SMALL.__dict__, "head": head})
    model = write_random(tmp_path / "m.onnx", config, form, sparsity=0.5)
    check(model, 1e-4 if form == "fp32" else 0.03, [(1, 1), (3, 16)])


SPARSEML = {
    "per-channel": (Export(), {"per_channel": True}),
    "qlinear": (Export(matmul_attention="qlinear"), {}),
    "own-inputs": (Export(share_inputs=False), {}),
    "float-attention": (Export(), {"attention": False}),
    "float-bias": (Export(), {"integer_bias": False}),
    "float-tables": (Export(), {"tables": False}),
}
QDQ = {
    "per-channel": (Export(opset=13), {"per_channel": True}),
    "s8": (Export(), {"activation": "s8"}),
    "float-attention": (Export(), {"attention": False}),
    "gemm": (Export(linear="gemm"), {"per_channel": True}),
    "gemm-int32-bias": (Export(linear="gemm"), {"per_channel": True, "integer_bias": True}),
    "int32-bias": (Export(), {"integer_bias": True}),
    "weight-nodes": (Export(quantize_weight_nodes=True), {"per_channel": True}),
    "tables": (Export(), {"tables": True}),
}


@pytest.mark.parametrize("option", SPARSEML)
def test_sparseml_options(tmp_path: Path, option: str) -> None:
    export, quantization = SPARSEML[option]
    model = write_random(tmp_path / "m.onnx", SMALL, "sparseml", export, **quantization)
    check(model, 0.03, [(1, 1), (3, 16)])


@pytest.mark.parametrize("option", QDQ)
def test_qdq_options(tmp_path: Path, option: str) -> None:
    export, quantization = QDQ[option]
    model = write_random(tmp_path / "m.onnx", SMALL, "qdq", export, **quantization)
    check(model, 0.03, [(1, 1), (3, 16)])


@pytest.mark.parametrize("form", ["fp32", "sparseml", "qdq"])
def test_fixed_axes(tmp_path: Path, form: str) -> None:
    export = Export(length=16, fixed_batch=2, linear="matmul")
    model = write_random(tmp_path / "m.onnx", SMALL, form, export)
    check(model, 1e-4 if form == "fp32" else 0.03, [(2, 16)])
    fixed = write_random(tmp_path / "n.onnx", SMALL, form, Export(length=16))
    check(fixed, 1e-4 if form == "fp32" else 0.03, [(1, 16), (3, 16)])
    assert not {"Shape"} & {n.op_type for n in onnx.load(model.path).graph.node}


@pytest.mark.parametrize("form", ["sparseml", "qdq"])
def test_quantized_stays_close_to_float(tmp_path: Path, form: str) -> None:
    model = write_random(tmp_path / "m.onnx", SMALL, form, sparsity=0.5)
    inputs = model.batch(3, 16)
    exact = forward(model.config, model.weights, *inputs)
    (got,), (want,) = model.reference(*inputs), exact
    assert 0 < np.sqrt(np.square(got - want).mean() / np.square(want).mean()) < 0.1


def test_sparseml_is_written_as_published(tmp_path: Path) -> None:
    model = write_random(tmp_path / "m.onnx", SMALL, "sparseml", sparsity=0.75)
    graph = onnx.load(model.path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made = {o: n for n in graph.node for o in n.output}
    users = {o: [n for n in graph.node if o in n.input] for n in graph.node for o in n.output}
    linear = [n for n in graph.node if n.op_type == "MatMulInteger" and n.input[1] in arrays]
    assert len(linear) == 6 * SMALL.layers
    for node in linear:
        weight = arrays[node.input[1]]
        assert made[node.input[0]].op_type == "QuantizeLinear"
        assert weight.dtype == np.uint8 and arrays[node.input[3]] == 128
        blocks = weight.reshape(-1, 4, weight.shape[1])
        assert np.mean((blocks == 128).all(axis=1)) >= 0.75
        add = users[node.output[0]][0]
        assert add.op_type == "Add" and arrays[add.input[1]].dtype == np.int32
        assert users[add.output[0]][0].op_type == "Cast"
    products = [n for n in graph.node if n.op_type == "MatMulInteger" and n not in linear]
    assert len(products) == 2 * SMALL.layers
    assert all(arrays[n.input[3]] == 128 for n in products)
    query = [n for n in linear if "/self/" in n.name]
    assert len({n.input[0] for n in query}) == SMALL.layers  # Q, K and V share a QuantizeLinear


def test_prune_zeroes_the_smallest_blocks() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    pruned = prune(weight, 0.5, block=4)
    kept = pruned.reshape(6, 4, 4).any(-1)
    norms = np.square(weight.reshape(6, 4, 4)).sum(-1)
    assert kept.sum() == 12
    assert norms[kept].min() > norms[~kept].max()
    assert np.array_equal(pruned.reshape(6, 4, 4)[kept], weight.reshape(6, 4, 4)[kept])
    assert measured_sparsity(pruned, 4) == 0.5
    assert measured_sparsity(prune(weight, 0.25, block=1), 1) == 0.25
    assert np.array_equal(prune(weight, 0.0), weight)
    assert not prune(weight, 1.0).any()


def test_random_weights_keep_activations_in_range() -> None:
    config = EncoderConfig(layers=12, hidden=64, heads=4, intermediate=128, vocab=50)
    seen: dict[str, float] = {}
    for sparsity in (0.0, 0.9):
        weights = random_weights(config, seed=1, sparsity=sparsity)
        forward(
            config,
            weights,
            *random_batch(config, 2, 16),
            observe=lambda key, x: seen.update({key: float(x.std())}),
        )
        stds = [v for k, v in seen.items() if not k.endswith("probs")]
        assert min(stds) > 0.1 and max(stds) < 10


def test_quantization_parameters() -> None:
    p = asymmetric(-1.0, 3.0)
    assert (p.quantize(np.float32([-1, 0, 3, 9])) == [0, p.zero_point, 255, 255]).all()
    s = asymmetric(-1.0, 3.0, np.int8)
    assert s.zero_point == p.zero_point - 128
    assert asymmetric(0.0, 1.0).zero_point == 0
    sym = symmetric_u8(-2.0, 1.0)
    assert (sym.quantize(np.float32([-2, 0, 2])) == [1, 128, 255]).all()
    weight = np.float32([[1.0, -0.5], [0.0, 0.1]])
    per_row = quantize_weight(weight, np.zeros(2, np.float32), per_channel=True)
    assert (per_row.weight == [[127, -64], [0, 127]]).all()


def test_erf_against_the_standard_library() -> None:
    import math

    x = np.linspace(-4, 4, 801, dtype=np.float32)
    assert np.abs(erf(x) - [math.erf(v) for v in x]).max() < 5e-7


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    with pytest.raises(ValueError, match="multiple of heads"):
        EncoderConfig(hidden=10, heads=4)
    with pytest.raises(ValueError, match="opset 17"):
        Export(opset=14, fused=True)
    with pytest.raises(ValueError, match="quantized"):
        write(tmp_path / "m.onnx", SMALL, weights, "qdq")
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        write(tmp_path / "m.onnx", SMALL, weights, "fp32")


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    args = ["--form", "qdq", "--layers", "1", "--hidden", "32", "--heads", "2", "--head", "pooler"]
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "examples.encoders", *args, str(out)], check=True, cwd=root
    )
    names = [o.name for o in onnx.load(out).graph.output]
    assert names == ["last_hidden_state", "pooler_output"]
