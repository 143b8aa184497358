"""Each dialect's linear layers become qlinear or linear, and mean what ONNX Runtime computes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sparsec.compiler.frontend import dialect_name, import_graph
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph
from sparsec.errors import UnsupportedError
from tests.frontend_support import FLOAT, INT64, check, feeds, node, ops, save
from tests.ort_reference import session

K, N = 12, 5
X = ("x", FLOAT, ["batch", "sequence", K])
Y = ("y", FLOAT, [0, 0, 0])
RNG = np.random.default_rng(11)
W8 = RNG.integers(-127, 128, (K, N)).astype(np.int8)
QUANTIZE = node("QuantizeLinear", "x xs xz", "q")
BASE = {"xs": np.float32(0.03), "xz": np.uint8(117)}


def the(graph: Graph, op: str) -> Any:
    """The only node of an op."""
    (found,) = (n for n in graph.nodes if n.op == op)
    return found


ZEROS = {
    "u8 128": (W8.view(np.uint8) ^ 128, np.uint8(128)),
    "u8 128 [1]": (W8.view(np.uint8) ^ 128, np.uint8([128])),
    "u8 128 [N]": (W8.view(np.uint8) ^ 128, np.uint8([128] * N)),
    "s8 0": (W8, np.int8(0)),
    "s8 [N]": (W8 // 2, np.arange(N, dtype=np.int8)),
    "s8": (W8, None),
}


@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("bias", ["i32", "i32 first", "float", "none"])
def test_matmul_integer(tmp_path: Path, zero: str, bias: str) -> None:
    w, zw = ZEROS[zero]
    per_channel = "[N]" in zero
    scale = RNG.uniform(0.001, 0.01, N if per_channel else ()).astype(np.float32)
    constants = {**BASE, "w": w, "s": scale, "b": RNG.integers(-9000, 9000, N).astype(np.int32)}
    if zw is not None:
        constants["zw"] = zw
    constants["f"] = RNG.standard_normal(N).astype(np.float32)
    nodes = [QUANTIZE, node("MatMulInteger", f"q w xz {'zw' if zw is not None else ''}", "i")]
    last = "i"
    if bias.startswith("i32"):
        nodes.append(node("Add", "b i" if "first" in bias else "i b", "ib"))
        last = "ib"
    nodes.append(node("Cast", last, "c", to=FLOAT))
    nodes.append(node("Mul", "s c" if "first" in bias else "c s", "m"))
    nodes.append(node("Add", "m f", "y") if bias == "float" else node("Identity", "m", "y"))
    model = save(tmp_path, nodes, [X], [Y], constants)
    graph = check(model, tolerance=0)
    layer = the(graph, "qlinear")
    assert layer.attrs["x_zp"] == 117
    assert len(layer.inputs) == (4 if bias.startswith("i32") else 3)
    shifted = w.astype(np.int32) - (0 if zw is None else zw.astype(np.int32))
    assert np.array_equal(graph.constants[layer.inputs[1]], shifted.T)
    assert ops(graph) == {"quantize": 1, "qlinear": 1, **({"add": 1} if bias == "float" else {})}
    assert dialect_name(model) == "sparseml"


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_scales_that_are_no_numbers_are_refused(tmp_path: Path, scale: float) -> None:
    nodes = [QUANTIZE, node("DequantizeLinear", "q xs xz", "y")]
    model = save(tmp_path, nodes, [X], [Y], {**BASE, "xs": np.float32(scale)})
    with pytest.raises(UnsupportedError, match="damaged"):
        import_graph(model, 8)


def test_scales_in_two_steps(tmp_path: Path) -> None:
    constants = {**BASE, "w": W8, "a": np.float32(0.5), "b": np.float32([0.25] * N)}
    product = [QUANTIZE, node("MatMulInteger", "q w xz", "i"), node("Cast", "i", "c", to=FLOAT)]
    for tail in (
        [node("Mul", "a b", "s"), node("Mul", "c s", "y")],
        [node("Mul", "c a", "d"), node("Mul", "b d", "y")],
    ):
        graph = check(save(tmp_path, [*product, *tail], [X], [Y], constants), tolerance=0)
        assert ops(graph) == {"quantize": 1, "qlinear": 1}


def test_weights_that_do_not_fit_int8_are_several_layers(tmp_path: Path) -> None:
    w = RNG.integers(0, 256, (K, N)).astype(np.uint8)
    w[0, 0], w[1, 0] = 0, 255
    constants = {**BASE, "w": w, "zw": np.uint8(123), "s": np.float32(0.01)}
    nodes = [
        QUANTIZE,
        node("MatMulInteger", "q w xz zw", "i"),
        node("Cast", "i", "c", to=FLOAT),
        node("Mul", "c s", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph)["linear_integer"] == 2
    constants["w"] = np.clip(w, 0, 250)
    assert ops(check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0))["qlinear"] == 1
    constants |= {"w": w, "zw": np.uint8(0)}  # 255 is more than two int8 make
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph)["linear_integer"] == 3


def test_products_of_activations_stay(tmp_path: Path) -> None:
    # Scales whose ratio is no short fraction: no result lies halfway between two integers.
    constants = {"xs": np.float32(0.0317), "xz": np.uint8(117)}
    constants |= {"s": np.float32(0.0123), "z8": np.uint8(128)}
    head = [QUANTIZE, node("Transpose", "q", "t", perm=[0, 2, 1])]
    nodes = [
        *head,
        node("MatMulInteger", "t q xz z8", "i"),
        node("Cast", "i", "c", to=FLOAT),
        node("Mul", "c s", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph)["matmul_integer"] == 1
    nodes = [
        *head,
        node("QLinearMatMul", "t xs xz q xs z8 s z8", "o"),
        node("DequantizeLinear", "o s z8", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph)["matmul_integer"] == 1


def test_qlinear_matmul_with_weights(tmp_path: Path) -> None:
    for scale in (np.float32(0.02), RNG.uniform(0.01, 0.03, N).astype(np.float32)):
        constants = {
            **BASE,
            "w": W8.view(np.uint8) ^ 128,
            "ws": scale,
            "wz": np.full(scale.shape, 128, np.uint8),
            "ys": np.float32(0.2),
            "yz": np.uint8(130),
        }
        nodes = [
            QUANTIZE,
            node("QLinearMatMul", "q xs xz w ws wz ys yz", "o"),
            node("DequantizeLinear", "o ys yz", "y"),
        ]
        model = save(tmp_path, nodes, [X], [Y], constants)
        graph = check(model, tolerance=0)
        assert ops(graph) == {"quantize": 2, "qlinear": 1, "dequantize": 1}
        assert dialect_name(model) == "qoperator"


def test_dynamic_quantization(tmp_path: Path) -> None:
    constants = {"w": W8, "ws": np.float32(0.02), "wz": np.int8(0)}
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q w z wz", "i"),
        node("Cast", "i", "c", to=FLOAT),
        node("Mul", "s ws", "sw"),
        node("Mul", "c sw", "y"),
    ]
    model = save(tmp_path, nodes, [X], [Y], constants)
    graph = check(model, tolerance=1e-6)
    assert ops(graph)["linear_integer"] == 1
    assert dialect_name(model) == "dynamic"


QDQ_X = [QUANTIZE, node("DequantizeLinear", "q xs xz", "d")]


@pytest.mark.parametrize(
    ("activation", "weight", "form"),
    list(
        itertools.product(
            ["u8", "s8"], ["u8", "s8", "channel"], ["matmul", "gemm", "transpose", "float"]
        )
    ),
)
def test_qdq(tmp_path: Path, activation: str, weight: str, form: str) -> None:
    zero = {"u8": np.uint8(128), "s8": np.int8(0), "channel": np.zeros(N, np.int8)}[weight]
    w = W8.view(np.uint8) ^ 128 if weight == "u8" else W8
    scale = RNG.uniform(0.001, 0.01, zero.shape).astype(np.float32)
    constants: dict[str, Any] = {"xs": np.float32(0.03), "w": w, "ws": scale, "wz": zero}
    constants["xz"] = np.uint8(117) if activation == "u8" else np.int8(-11)
    nodes = [*QDQ_X]
    x, y = X, Y
    if form == "matmul":
        nodes += [node("DequantizeLinear", "w ws wz", "e", axis=1), node("MatMul", "d e", "y")]
    elif form == "float":
        axis = (slice(None),) * 0 if not scale.shape else (None, slice(None))
        real = (w.astype(np.float32) - zero.astype(np.float32)) * scale[axis]
        constants["w"] = real.astype(np.float32)
        nodes += [node("QuantizeLinear", "w ws wz", "r", axis=1)]
        nodes += [node("DequantizeLinear", "r ws wz", "e", axis=1), node("MatMul", "d e", "y")]
    elif form == "transpose":
        constants["w"] = np.ascontiguousarray(w.T)
        nodes += [node("DequantizeLinear", "w ws wz", "e", axis=0)]
        nodes += [node("Transpose", "e", "t", perm=[1, 0]), node("MatMul", "d t", "y")]
    else:
        x, y = ("x", FLOAT, ["batch", K]), ("y", FLOAT, [0, 0])
        constants["w"] = np.ascontiguousarray(w.T)
        constants["b"] = RNG.integers(-900, 900, N).astype(np.int32)
        constants["bs"] = (constants["xs"] * np.broadcast_to(scale, (N,))).astype(np.float32)
        constants["bz"] = np.zeros(N, np.int32)
        nodes += [node("DequantizeLinear", "w ws wz", "e", axis=0)]
        nodes += [node("DequantizeLinear", "b bs bz", "f", axis=0)]
        nodes += [node("Gemm", "d e f", "y", transB=1)]
    model = save(tmp_path, nodes, [x], [y], constants)
    graph = check(model, lengths=(0,) if form == "gemm" else (1, 7), tolerance=2e-6)
    assert ops(graph) == {"quantize": 1, "qlinear": 1}
    layer = the(graph, "qlinear")
    assert layer.attrs["x_zp"] == (117 if activation == "u8" else -11)
    assert np.array_equal(graph.constants[layer.inputs[1]], W8.T)
    assert len(layer.inputs) == (4 if form == "gemm" else 3)
    assert dialect_name(model) == "qdq"


def test_qdq_bias_of_another_scale_stays_float(tmp_path: Path) -> None:
    constants = {**BASE, "w": W8, "ws": np.float32(0.01), "wz": np.int8(0)}
    constants |= {"b": np.arange(N, dtype=np.int32), "bs": np.float32([0.5]), "bz": np.int32([0])}
    nodes = [
        *QDQ_X,
        node("DequantizeLinear", "w ws wz", "e"),
        node("MatMul", "d e", "m"),
        node("DequantizeLinear", "b bs bz", "f", axis=0),
        node("Add", "f m", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=1e-6)
    assert ops(graph) == {"quantize": 1, "qlinear": 1, "add": 1}


def test_qdq_around_layout_ops(tmp_path: Path) -> None:
    """Quantized again with the same parameters after each move: one quantize is left."""
    constants = {**BASE, "w": W8, "ws": np.float32(0.01), "wz": np.int8(0), "to": [0, -1, 4, 3]}
    nodes = [*QDQ_X]
    last = "d"
    for i, move in enumerate(
        [
            node("Reshape", "d to", "m0"),
            node("Transpose", "d1", "m1", perm=[0, 2, 1, 3]),
            node("Transpose", "d2", "m2", perm=[0, 2, 1, 3]),
        ]
    ):
        nodes += [
            move,
            node("QuantizeLinear", f"m{i} xs xz", f"q{i + 1}"),
            node("DequantizeLinear", f"q{i + 1} xs xz", f"d{i + 1}"),
        ]
        last = f"d{i + 1}"
    nodes += [
        node("Shape", "x", "s"),
        node("Reshape", f"{last} s", "r"),
        node("DequantizeLinear", "w ws wz", "e"),
        node("MatMul", "r e", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=1e-6)
    assert ops(graph)["quantize"] == 1
    assert ops(graph)["qlinear"] == 1
    assert ops(graph)["dequantize"] == 0


def test_requantization_with_other_parameters_stays(tmp_path: Path) -> None:
    constants = {**BASE, "s2": np.float32(0.05)}
    nodes = [
        *QDQ_X,
        node("QuantizeLinear", "d s2 xz", "q2"),
        node("DequantizeLinear", "q2 s2 xz", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph) == {"quantize": 2, "dequantize": 2}


def test_weights_quantized_along_k_are_dequantized(tmp_path: Path) -> None:
    constants = {**BASE, "w": W8, "wz": np.zeros(K, np.int8)}
    constants["ws"] = RNG.uniform(0.001, 0.01, K).astype(np.float32)
    nodes = [*QDQ_X, node("DequantizeLinear", "w ws wz", "e", axis=0), node("MatMul", "d e", "y")]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=1e-6)
    assert ops(graph) == {"quantize": 1, "dequantize": 1, "linear": 1}


@pytest.mark.parametrize("qdq", [False, True])
def test_quantized_embeddings_are_gathered_as_bytes(tmp_path: Path, qdq: bool) -> None:
    constants = {
        "table": RNG.integers(0, 256, (100, 6)).astype(np.uint8),
        "s": np.float32(0.1),
        "z": np.uint8(131),
    }
    ids = ("ids", INT64, ["batch", "sequence"])
    gather = [node("Gather", "table ids", "g"), node("DequantizeLinear", "g s z", "y")]
    before = [node("DequantizeLinear", "table s z", "t"), node("Gather", "t ids", "y")]
    model = save(tmp_path, before if qdq else gather, [ids], [Y], constants)
    graph = check(model, tolerance=0)
    assert ops(graph) == {"gather": 1, "dequantize": 1}
    assert graph.constants[the(graph, "gather").inputs[0]].dtype == np.uint8


def test_float_linears(tmp_path: Path) -> None:
    w = RNG.standard_normal((K, N)).astype(np.float32)
    constants = {"w": w, "wt": w.T.copy(), "w3": w[None], "v": w[:, 0].copy()}
    forms = [
        [node("MatMul", "x w", "y")],
        [node("Transpose", "wt", "t"), node("MatMul", "x t", "y")],
        [node("MatMul", "x w3", "y")],
    ]
    for nodes in forms:
        model = save(tmp_path, nodes, [X], [Y], constants)
        graph = check(model, tolerance=1e-6)
        assert ops(graph) == {"linear": 1}
        assert np.array_equal(graph.constants[the(graph, "linear").inputs[1]], w.T)
        assert dialect_name(model) == "fp32"
    for nodes, shape in [
        ([node("MatMul", "x v", "y")], [0, 0]),
        ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y")], [0, 0, 0]),
    ]:
        if len(shape) == 3:
            nodes = [*nodes[:1], node("MatMul", "wt t", "y")]
        graph = check(save(tmp_path, nodes, [X], [("y", FLOAT, shape)], constants), tolerance=1e-6)
        assert ops(graph)["matmul"] == 1


def test_results_read_twice_keep_their_scale(tmp_path: Path) -> None:
    """A product that something else reads too is not scaled away."""
    constants = {**BASE, "w": W8, "s": np.float32(0.01), "h": np.float32(0.5)}
    nodes = [
        QUANTIZE,
        node("MatMulInteger", "q w xz", "i"),
        node("Cast", "i", "c", to=FLOAT),
        node("Mul", "c s", "m"),
        node("Mul", "m h", "n"),
        node("Add", "m n", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants), tolerance=0)
    assert ops(graph) == {"quantize": 1, "qlinear": 1, "mul": 1, "add": 1}


def test_mixed_dialects_are_named(tmp_path: Path) -> None:
    constants = {**BASE, "w": W8, "ws": np.float32(0.01), "wz": np.int8(0), "w2": W8[:N, :].copy()}
    nodes: list[onnx.NodeProto] = [
        *QDQ_X,
        node("DequantizeLinear", "w ws wz", "e"),
        node("MatMul", "d e", "m"),
        node("DynamicQuantizeLinear", "m", "q2 s2 z2"),
        node("MatMulInteger", "q2 w2 z2 wz", "i"),
        node("Cast", "i", "y", to=FLOAT),
    ]
    model = save(tmp_path, nodes, [X], [Y], constants)
    assert dialect_name(model) == "mixed"
    given = feeds(model, 2, 3)
    got = interpret(import_graph(model, 3), [given["x"]])[0]
    want = session(model.path).run(None, given)[0]
    np.testing.assert_allclose(got, want, atol=np.abs(want).max() * 0.02)


WIDE = RNG.integers(0, 256, (K, N)).astype(np.uint8)


@pytest.mark.parametrize("zero", [np.uint8(131), RNG.integers(100, 156, N).astype(np.uint8)])
@pytest.mark.parametrize("form", ["integer", "qdq", "dynamic"])
def test_weights_of_nine_bits(tmp_path: Path, form: str, zero: Any) -> None:
    """uint8 weights less their zero point do not fit in a byte: two layers, whose sum is exact."""
    scale = RNG.uniform(0.001, 0.01, zero.shape).astype(np.float32)
    bias = RNG.integers(-900, 900, N).astype(np.int32)
    constants = {**BASE, "w": WIDE, "zw": zero, "s": scale, "b": bias}
    if form == "qdq":
        nodes = [
            QUANTIZE,
            node("DequantizeLinear", "q xs xz", "d"),
            node("DequantizeLinear", "w s zw", "dw", axis=1),
            node("MatMul", "d dw", "y"),
        ]
    elif form == "integer":
        nodes = [
            QUANTIZE,
            node("MatMulInteger", "q w xz zw", "i"),
            node("Add", "i b", "ib"),
            node("Cast", "ib", "c", to=FLOAT),
            node("Mul", "c s", "y"),
        ]
    else:
        nodes = [
            node("DynamicQuantizeLinear", "x", "q xr zr"),
            node("MatMulInteger", "q w zr zw", "i"),
            node("Cast", "i", "c", to=FLOAT),
            node("Mul", "xr s", "sr"),
            node("Mul", "c sr", "y"),
        ]
    graph = check(
        save(tmp_path, nodes, [X], [Y], constants), tolerance=0 if form != "qdq" else 1e-5
    )
    assert ops(graph)["linear_integer"] == 2
    few = [graph.constants[n.inputs[1]] for n in graph.nodes if n.op == "linear_integer"][1]
    assert np.mean(few != 0) < 0.2


def test_shared_weights_that_were_taken_for_activations(tmp_path: Path) -> None:
    """weight s8 -> DQ -> Q u8 -> DQ, as ONNX Runtime writes it for the second of two layers."""
    constants = {**BASE, "w": W8, "ws": np.float32(0.02), "wz": np.int8(0)}
    constants |= {"as": np.float32(0.0203), "az": np.uint8(126)}
    nodes = [
        *QDQ_X,
        node("DequantizeLinear", "w ws wz", "dw"),
        node("Identity", "dw", "same"),
        node("QuantizeLinear", "same as az", "qw"),
        node("DequantizeLinear", "qw as az", "dw2"),
        node("MatMul", "d dw2", "y"),
    ]
    graph = check(save(tmp_path, nodes, [X], [Y], constants))
    assert ops(graph)["linear"] == 0 and ops(graph)["qlinear"] + ops(graph)["linear_integer"] >= 1


def test_quantized_indices_out_of_range(tmp_path: Path) -> None:
    """ONNX Runtime's quantizer quantizes the numbers that MPNet's position buckets come from."""
    nodes = [
        node("DequantizeLinear", "q scale zero", "f"),
        node("Cast", "f", "i", to=INT64),
        node("Gather", "table i", "g"),
        node("Add", "x g", "y"),
    ]
    constants = {
        "q": np.array([200, 3], np.uint8),
        "scale": np.float32(1),
        "zero": np.uint8(0),
        "table": np.ones((32, 4), np.float32),
    }
    x, y = ("x", FLOAT, ["batch", 2, 4]), ("y", FLOAT, [0, 0, 0])
    with pytest.raises(UnsupportedError, match="index 200 is out of bounds") as caught:
        import_graph(save(tmp_path, nodes, [x], [y], constants), 0)
    assert [op for _, op, _ in caught.value.nodes] == ["gather"]
