"""Weights of float layers that are stored as bytes or nibbles, however a quantizer wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering.codes import (
    LEAST,
    Codes,
    find_codes,
    fits_bfloat16,
    fits_tiles,
    pack_code_tiles,
    pack_codes,
)
from sparsec.compiler.lowering.linear import Plans
from tests.lane_harness import _target, compile_graph, target_params


def quantized(
    rng: np.random.Generator,
    n: int,
    k: int,
    bits: int,
    block: int,
    shifted: bool = False,
    far: int = 0,
) -> np.ndarray:
    """Weights float32 [N, K] after a round trip through `bits`.

    Args:
        shifted: with zero points.
        far: steps that all are further from zero.
    """
    w = (rng.standard_normal((n, k)) + shifted).astype(np.float32).reshape(-1, block)
    if shifted:
        low = np.minimum(w.min(axis=1, keepdims=True), 0)
        scale = ((np.maximum(w.max(axis=1, keepdims=True), 0) - low) / (2**bits - 1)).astype("f4")
        zero = np.rint(-low / scale)
        whole = np.clip(np.rint(w / scale) + zero, 0, 2**bits - 1) - zero
    else:
        most = 2 ** (bits - 1)
        scale = (np.abs(w).max(axis=1, keepdims=True) / (most - 1)).astype(np.float32)
        whole = np.clip(np.rint(w / scale), -most, most - 1)
    if far:
        scale /= far  # as large as without, or rounding is
    return ((whole + far).astype(np.float32) * scale).reshape(n, k)


def product(codes: Codes) -> np.ndarray:
    """The weights that codes stand for."""
    n, k = codes.code.shape
    wide = codes.code.reshape(n, -1, codes.block).astype(np.float32)
    return ((wide - codes.zero[..., None]) * codes.scale[..., None]).reshape(n, k)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_codes_are_the_weights_bit_by_bit(data: st.DataObject) -> None:
    bits, shifted = data.draw(st.sampled_from((4, 8))), data.draw(st.booleans())
    k = 32 * data.draw(st.integers(1, 8))
    block = data.draw(st.sampled_from([b for b in (k, 16, 32, 128) if k % b == 0]))
    n = -(-LEAST // k) + data.draw(st.integers(0, 3))
    w = quantized(np.random.default_rng(data.draw(st.integers(0, 999))), n, k, bits, block, shifted)
    w[data.draw(st.integers(0, n - 1))] = 0
    codes = find_codes(w)
    assert codes is not None and codes.bits <= bits and codes.block % block == 0
    np.testing.assert_array_equal(product(codes), w)


@pytest.mark.parametrize("spoil", ["floats", "one float", "nan", "small"])
def test_other_weights_have_no_codes(spoil: str) -> None:
    rng = np.random.default_rng(0)
    w = quantized(rng, 128, 256, 8, 256)
    if spoil == "floats":
        w = rng.standard_normal(w.shape).astype(np.float32)
    elif spoil == "small":
        w = w[:4]
    else:
        w[77, 5] = np.nan if spoil == "nan" else 0.123456
    assert find_codes(w) is None


CASES = [  # n, k, bits, block, shifted
    (128, 128, 8, 128, False),
    (67, 257, 8, 257, True),
    (131, 128, 4, 32, False),
    (66, 256, 4, 64, True),
    (71, 242, 4, 242, False),
    (64, 256, 8, 256, False, 700),
    (33, 900, 8, 900, False),
]


def layers(case: tuple[Any, ...], tokens: int) -> Graph:
    """One layer and what follows it."""
    n, k, *form = case
    rng = np.random.default_rng(n)
    e = Editor(name="coded", length=tokens)
    x = e.input("x", np.float32, (BATCH, tokens, k))
    y = e.emit("linear", [x, e.constant(quantized(rng, n, k, *form))], source="layer")
    shift = e.constant(rng.standard_normal(n).astype(np.float32))
    e.outputs.append(e.emit("relu", [e.emit("add", [y, shift])]))
    return e.finish()


@pytest.mark.parametrize("target", target_params())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_coded_layers(tmp_path: Path, target: str, case: tuple[Any, ...]) -> None:
    """Kernels expand codes to the very weights: results are those of the dense kernel, of one
    block of rows and of many, and where there is infinity or no number."""
    n, k, bits = case[:3]
    for tokens in (9, 19):
        graph = layers(case, tokens)
        (node,) = (n for n in graph.nodes if n.op == "linear")
        plan = Plans(_target(target), [tokens]).get(node, graph)
        assert plan.coded is not None and plan.coded.bits == bits
        whole = -(-n // 32) * -(-k // 32) * 1024 if plan.matrix else n * k * 1.1
        assert plan.weights.nbytes <= whole / 8 * bits
        (tmp_path / str(tokens)).mkdir()
        library = compile_graph(tmp_path / str(tokens), graph, target)
        rng = np.random.default_rng(0)
        for batch in (1, 14):
            x = rng.standard_normal((batch, tokens, k)).astype(np.float32)
            # With whole numbers for weights, a sum of the second would be infinite.
            most = 3e38 / max(1.0, float(np.abs(graph.constants[node.inputs[1]]).max()))
            for odd in (0.0, most, np.inf, np.nan):
                x[batch // 2, 3, 5] = odd
                (want,), (have,) = interpret(graph, [x]), library.run([x])
                np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tiles_of_codes_are_all_there(case: tuple[Any, ...]) -> None:
    n, k, *form = case
    codes = find_codes(quantized(np.random.default_rng(1), n, k, *form))
    assert codes is not None and fits_tiles(codes)
    packed = pack_code_tiles(codes)
    wide = packed.codes
    if packed.bits == 4:
        wide = np.concatenate([wide & 15, wide >> 4], axis=3)
    groups, steps = wide.shape[:2]
    rows = wide.reshape(groups, steps, 32, 2, 16).transpose(0, 2, 1, 4, 3).reshape(groups * 32, -1)
    signed = packed.codes.dtype == np.int8
    want = codes.code - codes.zero if signed else codes.code
    np.testing.assert_array_equal(rows[:n, :k], want)
    scale = packed.scale.transpose(0, 2, 1).reshape(groups * 32, -1)
    np.testing.assert_array_equal(scale[:n], codes.scale)


def _codes(numbers: list[int], scales: int = 1) -> Codes:
    """Codes of a channel of 64 inputs whose first numbers are these."""
    number = np.resize(np.array(numbers, np.int32), (1, 64))
    return Codes(
        bits=8,
        block=64 // scales,
        code=(number - number.min()).astype(np.uint8),
        zero=np.full((1, scales), -number.min(), np.float32),
        scale=np.full((1, scales), 0.01, np.float32),
    )


@pytest.mark.parametrize(
    ("codes", "whole", "dtype"),
    [
        (_codes([-128, 127, 0]), True, np.int8),
        (_codes([-128, 100], scales=2), False, np.uint8),
        (_codes([1, 256]), True, np.uint8),
        (_codes([-255, 0]), True, np.uint8),
        (_codes([2, 257]), False, np.uint8),  # 257 has nine bits
    ],
)
def test_which_codes_bfloat16_has(codes: Codes, whole: bool, dtype: type) -> None:
    assert fits_bfloat16(codes) == whole
    packed = pack_code_tiles(codes)
    assert packed.whole == whole and packed.codes.dtype == dtype
    if whole:
        number = (codes.code - codes.zero).astype(np.float32)
        assert not (number.view(np.uint32) & 0xFFFF).any()


def test_a_tile_needs_one_scale() -> None:
    codes = find_codes(quantized(np.random.default_rng(1), 64, 256, 4, 16, False))
    assert codes is not None and codes.block == 16 and not fits_tiles(codes)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packed_codes_are_all_there(case: tuple[Any, ...]) -> None:
    n, k, *form = case
    codes = find_codes(quantized(np.random.default_rng(1), n, k, *form))
    assert codes is not None
    packed = pack_codes(codes)
    if packed.bits == 4:
        halves = packed.codes.reshape(len(packed.codes), -1, 16)
        wide = np.stack([halves & 15, halves >> 4], axis=2)
    else:
        wide = packed.codes
    wide = wide.reshape(len(packed.codes), packed.inputs, 4).transpose(0, 2, 1)
    np.testing.assert_array_equal(wide.reshape(-1, packed.inputs)[:n, :k], codes.code)


def model(rng: np.random.Generator) -> onnx.ModelProto:
    """One input into layers whose weights are written in the ways of exporters."""
    n, k = 128, 256
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray, kind: int | None = None) -> str:
        if kind is None:
            constants.append(numpy_helper.from_array(array, name))
        else:
            constants.append(helper.make_tensor(name, kind, array.shape, array.reshape(-1)))
        return name

    def node(op: str, inputs: list[str], output: str, **attrs: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    whole = rng.integers(-127, 128, (k, n)).astype(np.int8)
    scale = rng.uniform(0.01, 0.02, (1, n)).astype(np.float32)
    wide = node("Cast", [constant("q0", whole)], "f0", to=TensorProto.FLOAT)
    node("MatMul", ["x", node("Mul", [wide, constant("s0", scale)], "w0")], "cast")
    names = [constant("q1", whole), constant("s1", scale[0]), constant("z1", np.zeros(n, np.int8))]
    node("MatMul", ["x", node("DequantizeLinear", names, "w1", axis=1)], "channel")
    nibbles = rng.integers(0, 16, (k, n))
    blocks = rng.uniform(0.01, 0.02, (k // 32, n)).astype(np.float32)
    names = [constant("q2", nibbles, TensorProto.UINT4), constant("s2", blocks)]
    names.append(constant("z2", rng.integers(0, 16, blocks.shape), TensorProto.UINT4))
    node("MatMul", ["x", node("DequantizeLinear", names, "w2", axis=0, block_size=32)], "blocked")
    stored = rng.integers(0, 256, (n, k // 32, 16)).astype(np.uint8)
    names = ["x", constant("q3", stored), constant("s3", blocks.T.reshape(-1).copy())]
    form = {"K": k, "N": n, "bits": 4, "block_size": 32, "domain": "com.microsoft"}
    node("MatMulNBits", names, "nbits", **form)
    outputs = ["cast", "channel", "blocked", "nbits"]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16, size])
        for name, size in [("x", k), *((name, n) for name in outputs)]
    ]
    graph = helper.make_graph(nodes, "weights", values[:1], values[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_weights_only_stay_as_small_as_in_the_file(tmp_path: Path) -> None:
    """In whatever way they are written; results are ONNX Runtime's."""
    path = tmp_path / "model.onnx"
    onnx.save(model(np.random.default_rng(0)), path)
    artifact = sparsec.compile(str(path), output=str(tmp_path / "model.sparsec"), buckets=[])
    engine = sparsec.Engine(str(artifact.path))
    kernels = [layer.kernel for layer in engine.artifact.manifest.layers]
    assert len(kernels) == 4 and all("linear_f32_coded" in name for name in kernels)
    (weights,) = Path(artifact.path).glob("weights-*.so")
    assert weights.stat().st_size < 1.1 * path.stat().st_size + 16384
    options = onnxruntime.SessionOptions()
    # Else it makes MatMulNBits of a blocked DequantizeLinear, and rounds activations to bytes.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options)
    x = np.random.default_rng(1).standard_normal((3, 16, 256)).astype(np.float32)
    for have, want in zip(engine.run([x]), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
