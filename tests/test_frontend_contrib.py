"""ONNX Runtime's own ops: every form of them against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from sparsec.compiler.frontend import import_graph, load_model, signature
from sparsec.compiler.passes import run
from sparsec.errors import UnsupportedError
from tests.frontend_support import FLOAT, check, model_proto, node, ops, save

INT32, UINT8, INT8 = TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8
MS = {"domain": "com.microsoft"}
C, HEADS, VOCAB = 16, 2, 100
RNG = np.random.default_rng(3)
TOKENS: list[Any] = ["batch", "sequence"]
HIDDEN = [("x", FLOAT, [*TOKENS, C])]
OUT = [("y", FLOAT, [0, 0, 0])]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


MASKS = {
    "no mask": [],
    "two-dimensional": [("mask", INT32, TOKENS)],
    "lengths": [("mask", INT32, TOKENS)],
}


BIAS = ("bias", FLOAT, ["batch", HEADS, "sequence", "sequence"])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("sizes", [None, [8, 8, 24]], ids=["even", "wide values"])
def test_attention(tmp_path: Path, mask: str, sizes: list[int] | None) -> None:
    width = sum(sizes) if sizes else 3 * C
    attrs: dict[str, Any] = {"num_heads": HEADS, **({"qkv_hidden_sizes": sizes} if sizes else {})}
    name = {"no mask": "_", "two-dimensional": "mask", "lengths": "ends"}[mask]
    nodes = [node("Attention", f"x w b {name}", "y", **MS, **attrs)]
    if mask == "lengths":
        nodes.insert(0, node("ReduceSum", "mask axes", "ends", keepdims=0))
    constants = {"w": floats(C, width), "b": floats(width), "axes": np.asarray([1])}
    model = save(tmp_path, nodes, [*HIDDEN, *MASKS[mask]], OUT, constants)
    graph = check(model)
    assert ops(graph)["linear"] == 3
    if sizes is None:
        assert ops(run(graph))["attention"] == 1


@pytest.mark.parametrize("mask_filter_value", [-10000.0, -3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_adds_its_mask_and_bias(
    tmp_path: Path, mask_filter_value: float, bias: bool
) -> None:
    inputs = "x w b mask" + (" _ bias" if bias else "")
    attrs = {"num_heads": HEADS, "mask_filter_value": mask_filter_value, "scale": 0.3}
    model = save(
        tmp_path,
        [node("Attention", inputs, "y", **MS, **attrs)],
        [*HIDDEN, *MASKS["two-dimensional"], *([BIAS] if bias else [])],
        OUT,
        {"w": floats(C, 3 * C), "b": floats(3 * C)},
    )
    graph = check(model)
    assert ops(run(graph))["attention"] == 1


@pytest.mark.parametrize(
    "inputs",
    ["q k v", "q k v b", "q k v _ mask", "q k v b mask bias"],
    ids=lambda s: s.replace(" ", "-"),
)
def test_multi_head_attention(tmp_path: Path, inputs: str) -> None:
    given = [(n, FLOAT, [*TOKENS, C]) for n in "qkv"]
    given += MASKS["two-dimensional"] if "mask" in inputs else []
    given += [BIAS] if "bias" in inputs else []
    model = save(
        tmp_path,
        [node("MultiHeadAttention", inputs, "y", num_heads=HEADS, **MS)],
        given,
        OUT,
        {"b": floats(3 * C)},
    )
    assert ops(run(check(model)))["attention"] == 1


def test_multi_head_attention_of_split_keys(tmp_path: Path) -> None:
    apart = {"shape": np.asarray([0, 0, HEADS, C // HEADS])}
    nodes = [
        node("Reshape", "x shape", "r"),
        node("Transpose", "r", "k", perm=[0, 2, 1, 3]),
        node("MultiHeadAttention", "x k k", "y", num_heads=HEADS, **MS),
    ]
    check(save(tmp_path, nodes, HIDDEN, OUT, apart))


@pytest.mark.parametrize("kind", [np.uint8, np.int8], ids=["u8", "s8"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_quantized_attention(tmp_path: Path, kind: Any, per_channel: bool) -> None:
    info = np.iinfo(kind)
    constants = {
        "w": RNG.integers(info.min, info.max + 1, (C, 3 * C)).astype(kind),
        "b": floats(3 * C),
        "sx": scalar(0.02),
        "zx": np.asarray(120, np.uint8),
        "sw": (np.abs(floats(3 * C)) * 0.004 if per_channel else scalar(0.004)),
        "zw": np.full(3 * C, 128 * (kind == np.uint8)).astype(kind),
    }
    if not per_channel:
        constants["zw"] = constants["zw"][0]
    nodes = [
        node("QuantizeLinear", "x sx zx", "q"),
        node("QAttention", "q w b sx sw mask zx zw", "y", num_heads=HEADS, **MS),
    ]
    model = save(tmp_path, nodes, [*HIDDEN, *MASKS["two-dimensional"]], OUT, constants)
    graph = check(model)
    assert ops(graph)["qlinear"] == 3
    assert ops(run(graph))["attention"] == 1


IDS = [(name, INT32, TOKENS) for name in ("ids", "types", "mask", "positions")]
TABLES = {
    "words": floats(VOCAB, C),
    "places": floats(VOCAB, C),
    "kinds": floats(2, C),
    "gamma": floats(C),
    "beta": floats(C),
}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ("ids types words places kinds gamma beta mask", "y ends sum"),
        ("ids types words places kinds gamma beta", "y ends"),
        ("ids _ words places _ gamma beta mask positions", "y ends"),
    ],
    ids=["all", "no mask", "positions"],
)
def test_embeddings(tmp_path: Path, inputs: str, outputs: str) -> None:
    given = [i for i in IDS if i[0] in inputs.split()]
    model = save(
        tmp_path,
        [node("EmbedLayerNormalization", inputs, outputs, epsilon=1e-5, **MS)],
        given,
        [("y", FLOAT, [0, 0, 0]), ("ends", INT32, [0])][: 1 if "mask" not in inputs else 2],
        TABLES,
    )
    check(model)


def test_quantized_embeddings(tmp_path: Path) -> None:
    names = ("words", "places", "kinds", "gamma", "beta")
    constants: dict[str, Any] = {}
    for i, name in enumerate(names):
        shape = TABLES[name].shape
        constants[name] = RNG.integers(0, 256, shape).astype(np.uint8)
        constants[f"s_{name}"] = scalar(0.01 * (i + 1))
        constants[f"z_{name}"] = np.asarray(100 + 10 * i, np.uint8)
    inputs = ["ids types", *names, "mask", *(f"{p}_{n}" for p in "sz" for n in names)]
    model = save(
        tmp_path,
        [node("QEmbedLayerNormalization", " ".join(inputs), "y ends", **MS)],
        IDS[:3],
        [("y", FLOAT, [0, 0, 0]), ("ends", INT32, [0])],
        constants,
    )
    check(model)


def quantized(op: str, inputs: str, **attrs: Any) -> list[Any]:
    """x -> bytes q, r -> the op -> float y; everything in steps of 0.05 around 120."""
    return [
        node("QuantizeLinear", "x s z", "q"),
        node("QuantizeLinear", "x s2 z2", "r"),
        node(op, inputs, "t", **MS, **attrs),
        node("DequantizeLinear", "t s z", "y"),
    ]


QUANTIZED = {
    "s": scalar(0.05),
    "z": np.asarray(120, np.uint8),
    "s2": scalar(0.031),
    "z2": np.asarray(7, np.uint8),
    "so": scalar(1 / 256),
    "zo": np.asarray(0, np.uint8),
    "some": RNG.random((1, 1, C)) < 0.5,
    "constant": RNG.integers(0, 256, C).astype(np.uint8),
}


@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("QLinearAdd", "q s z r s2 z2 s z", {}),
        ("QLinearAdd", "constant s2 z2 q s z s z", {}),
        ("QLinearMul", "q s z r s2 z2 s z", {}),
        ("QLinearSigmoid", "q s z s z", {}),
        ("QLinearLeakyRelu", "q s z s z", {"alpha": 0.3}),
        ("QLinearSoftmax", "q s z so zo", {"axis": -1, "opset": 13}),
        ("QLinearSoftmax", "q s z so zo", {"axis": 1, "opset": 12}),
        ("QLinearConcat", "s z q s z r s2 z2", {"axis": 2}),
        ("QLinearWhere", "some q s z r s2 z2 s z", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_ops_on_bytes(tmp_path: Path, op: str, inputs: str, attrs: dict[str, Any]) -> None:
    model = save(tmp_path, quantized(op, inputs, **attrs), HIDDEN, OUT, QUANTIZED)
    # ONNX Runtime folds the scales, or uses tables: a result halfway between two bytes may go to
    # either, which is one step of 0.05 of at most 6.75.
    check(model, tolerance=0.0501 / 0.5)
    exact = check_shares(model)
    assert exact > 0.97


def check_shares(model: Any) -> float:
    """The share of results that are equal to ONNX Runtime's."""
    from sparsec.compiler.interpreter import interpret
    from tests.frontend_support import feeds
    from tests.ort_reference import session

    given = feeds(model, 4, 16)
    (want,) = session(model.path).run(None, given)
    graph = import_graph(model, 16)
    (got,) = interpret(graph, [given[n] for n in graph.inputs])
    return float(np.mean(np.abs(got - want) < 1e-6))


@pytest.mark.parametrize("result", ["float", "bytes"])
@pytest.mark.parametrize("kind", [np.uint8, np.int8], ids=["u8", "s8"])
def test_quantized_gemm(tmp_path: Path, result: str, kind: Any) -> None:
    info = np.iinfo(kind)
    n = 12
    constants = {
        **QUANTIZED,
        "w": RNG.integers(info.min, info.max + 1, (n, C)).astype(kind),
        "sw": np.abs(floats(n)) * 0.004,
        "zw": np.full(n, 128 * (kind == np.uint8)).astype(kind),
        "c": RNG.integers(-500, 500, n).astype(np.int32),
        "first": np.asarray(0),
    }
    tail = "" if result == "float" else " s z"
    nodes = [
        node("Gather", "x first", "row", axis=1),
        node("QuantizeLinear", "row s z", "q"),
        node("QGemm", f"q s z w sw zw c{tail}", "t", transB=1, **MS),
        node("Identity", "t", "y") if result == "float" else node("DequantizeLinear", "t s z", "y"),
    ]
    model = save(tmp_path, nodes, HIDDEN, [("y", FLOAT, [0, 0])], constants)
    graph = check(model, tolerance=1e-5 if result == "float" else 0.02)
    assert ops(graph)["qlinear"] == 1 and ops(graph)["add"] == 0


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_fused_gemm(tmp_path: Path, activation: str) -> None:
    nodes = [
        node("Gather", "x first", "row", axis=1),
        node("FusedGemm", "row w b", "y", activation=activation, transB=1, **MS),
    ]
    constants = {"w": floats(8, C), "b": floats(8), "first": np.asarray(0)}
    check(save(tmp_path, nodes, HIDDEN, [("y", FLOAT, [0, 0])], constants))


def test_quick_gelu(tmp_path: Path) -> None:
    check(save(tmp_path, [node("QuickGelu", "x", "y", alpha=1.7, **MS)], HIDDEN, OUT))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("op", ["LayerNormalization", "SimplifiedLayerNormalization"])
def test_normalizations_in_opsets_without_them(tmp_path: Path, op: str, external: bool) -> None:
    """ONNX Runtime's optimizer writes them into graphs of any opset."""
    import onnx

    inputs = "x gamma beta" if op == "LayerNormalization" else "x gamma"
    nodes = [node(op, inputs, "y", epsilon=1e-6)]
    constants = {"gamma": floats(C), "beta": floats(C)}
    proto = model_proto(nodes, HIDDEN, OUT, constants, opset=12)
    del proto.opset_import[1:]
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=external, size_threshold=0)
    graph = check(load_model(path))
    assert ops(run(graph))["layernorm"] == int(op == "LayerNormalization")


def test_caches_of_decoders_are_refused(tmp_path: Path) -> None:
    nodes = [node("Attention", "x w b _ past", "y", num_heads=HEADS, **MS)]
    past = ("past", FLOAT, [2, "batch", HEADS, "sequence", C // HEADS])
    constants = {"w": floats(C, 3 * C), "b": floats(3 * C)}
    model = save(tmp_path, nodes, [*HIDDEN, past], OUT, constants)
    with pytest.raises(UnsupportedError, match="past: caches are not supported"):
        signature(model)
    causal = node("Attention", "x w b", "y", unidirectional=1, num_heads=2, **MS)
    model = save(tmp_path, [causal], HIDDEN, OUT, constants)
    with pytest.raises(UnsupportedError, match="unidirectional"):
        signature(model)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_tables_in_blocks(tmp_path: Path, bits: int, points: bool, axis: int) -> None:
    rows, columns, size = 100, 48, 16
    blocks = columns // size
    constants: dict[str, Any] = {
        "t": RNG.integers(0, 256, (rows, columns * bits // 8)).astype(np.uint8),
        "s": np.abs(floats(rows, blocks)) * 0.1,
        "z": RNG.integers(0, 256, (rows, -(-blocks * bits // 8))).astype(np.uint8),
    }
    attrs = {"bits": bits, "block_size": size, "quantize_axis": axis, "gather_axis": 0}
    inputs = "t ids s" + (" z" if points else "")
    if not points:
        del constants["z"]
    nodes = [node("GatherBlockQuantized", inputs, "y", **MS, **attrs)]
    check(save(tmp_path, nodes, [("ids", TensorProto.INT64, TOKENS)], OUT, constants), tolerance=0)


def test_tables_in_blocks_that_do_not_fit(tmp_path: Path) -> None:
    constants = {"t": np.zeros((9, 16), np.uint8), "s": np.ones((9, 3), np.float32)}
    nodes = [node("GatherBlockQuantized", "t ids s", "y", **MS, bits=4, block_size=16)]
    model = save(tmp_path, nodes, [("ids", TensorProto.INT64, TOKENS)], OUT, constants)
    with pytest.raises(UnsupportedError, match=r"a table of shape \[9, 16\] with scales of shape"):
        import_graph(model, 4)


@pytest.mark.parametrize(
    ("bits", "zero"),
    # ONNX Runtime has no float zero points for 8 bits.
    [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")],
)
@pytest.mark.parametrize("bias", [False, True])
def test_weights_in_blocks(tmp_path: Path, bits: int, zero: str, bias: bool) -> None:
    n, k, size = 10, 40, 16  # the last block is not full
    blocks = -(-k // size)
    constants: dict[str, Any] = {
        "w": RNG.integers(0, 256, (n, blocks, size * bits // 8)).astype(np.uint8),
        "s": np.abs(floats(n, blocks)) * 0.1,
        "b": floats(n),
    }
    if zero == "packed":
        constants["z"] = RNG.integers(0, 256, (n, -(-blocks * bits // 8))).astype(np.uint8)
    elif zero == "float":
        constants["z"] = RNG.uniform(0, 15, (n, blocks)).astype(np.float32)
    inputs = f"x w s {'_' if zero == 'none' else 'z'}" + (" _ b" if bias else "")
    attrs = {"K": k, "N": n, "bits": bits, "block_size": size}
    nodes = [node("MatMulNBits", inputs, "y", **MS, **attrs)]
    model = save(tmp_path, nodes, [("x", FLOAT, [*TOKENS, k])], OUT, constants)
    assert ops(check(model))["linear"] == 1
