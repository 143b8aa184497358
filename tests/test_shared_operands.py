"""One tensor as several operands or outputs: every operand is read where it was put."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec import targets
from sparsec.runtime import cpu
from tests import ort_reference
from tests.frontend_support import node

LENGTH = 16
RUNNABLE = [t.name for t in targets.TARGETS if not t.missing(cpu.detect().features)]
RNG = np.random.default_rng(11)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


#: Which of three tensors are query, key and value.
PATTERNS = ("aaa", "aab", "aba", "abb", "abc")


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    constants: dict[str, np.ndarray],
) -> Path:
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    graph = helper.make_graph(
        list(nodes),
        "shared",
        [ids],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    path = folder / "model.onnx"
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def attention_model(folder: Path, which: str, quantized: bool) -> Path:
    """softmax(q k^T) v, of an embedding (a), a layer (b) and arithmetic (c), as `which` says.

    Of the embedding alone these are five nodes; quantized there are 8 bits in front and behind.
    """
    nodes = [
        node("Gather", "table ids", "a"),
        node("MatMul", "a weights", "b"),
        node("Neg", "a", "c"),
    ]
    nodes = [n for n in nodes if n.output[0] in ("a", *which)]

    def byte(tensor: str, scale: str, zero: str) -> str:
        nodes.append(node("QuantizeLinear", f"{tensor} {scale} {zero}", f"{tensor}_q"))
        nodes.append(node("DequantizeLinear", f"{tensor}_q {scale} {zero}", f"{tensor}_d"))
        return f"{tensor}_d"

    read = {t: byte(t, "scale", "middle") if quantized else t for t in dict.fromkeys(which)}
    q, k, v = (read[t] for t in which)
    nodes.append(node("Transpose", k, "t", perm=[0, 2, 1]))
    nodes.append(node("MatMul", f"{q} t", "s"))
    nodes.append(node("Softmax", "s", "p", axis=-1))
    nodes.append(node("MatMul", f"{byte('p', 'share', 'none') if quantized else 'p'} {v}", "y"))
    constants = {
        "table": numbers(50, 8),
        "weights": numbers(8, 8) / 3,
        "scale": np.asarray(np.float32(1 / 32)),
        "middle": np.asarray(np.uint8(128)),
        "share": np.asarray(np.float32(1 / 255)),
        "none": np.asarray(np.uint8(0)),
    }
    used = {name for n in nodes for name in n.input}
    constants = {name: array for name, array in constants.items() if name in used}
    return save(folder, nodes, ["y"], constants)


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "quantized"])
@pytest.mark.parametrize("target", RUNNABLE)
def test_query_key_and_value_may_be_one(tmp_path: Path, target: str, quantized: bool) -> None:
    """Attention pooling has K = V."""
    for which in PATTERNS:
        path = attention_model(tmp_path, which, quantized)
        output = tmp_path / f"{which}.sparsec"
        artifact = sparsec.compile(path, buckets=[LENGTH], target=target, output=output)
        kernels = [k.kernel for k in artifact.manifest.buckets[0].kernels]
        form = "attention_i8_i8" if quantized else "attention_f32_f32"
        assert any(k.startswith(form) for k in kernels), which
        session = ort_reference.session(path)
        with sparsec.Engine(artifact.path, num_cores=2) as engine:
            for batch in (1, 5):
                ids = RNG.integers(0, 50, (batch, LENGTH))
                (got,), (want,) = engine.run([ids]), session.run(None, {"ids": ids})
                off = np.abs(got - want)
                # A probability that is rounded the other way is one 255th of a value.
                assert off.max() < (0.05 if quantized else 1e-4), which
                assert np.median(off) < 1e-5, which


def other_nodes() -> tuple[list[onnx.NodeProto], list[str]]:
    """Ops that read one tensor more than once, and tensors that are read and given out."""
    nodes = [
        node("Gather", "table ids", "a"),
        node("Gather", "table ids", "again"),
        node("Add", "a again", "twice"),
        node("LayerNormalization", "twice gamma gamma", "normal"),  # gamma is beta too
        node("MatMul", "normal weights", "b"),
        node("Add", "b b", "b_b"),
        node("Add", "b normal", "residual"),  # the layer's own input
        node("LayerNormalization", "residual gamma beta", "c"),
        node("Sub", "c c", "nothing"),
        node("Mul", "c c", "square"),
        node("Mul", "square c", "cube"),
        node("Greater", "c zero", "above"),
        node("Where", "above c c", "same"),
        node("Concat", "c c", "double", axis=-1),
        node("Concat", "c c", "longer", axis=1),
        node("ReduceMax", "longer axis", "long", keepdims=0),
        node("Transpose", "c", "c_t", perm=[0, 2, 1]),
        node("MatMul", "c c_t", "gram"),
        node("MatMul", "double weights2", "d"),
        node("Tanh", "d", "e"),
        node("Mul", "d e", "f"),  # f and e and d are outputs
        node("Identity", "f", "f2"),
        node("Min", "f f f", "f3"),
        node("QuantizeLinear", "f scale middle", "f_q"),
        node("DequantizeLinear", "f_q scale middle", "f_d"),
        node("MatMul", "f_d weights", "g"),
        node("Add", "g f_d", "h"),
    ]
    shown = "twice normal b b_b residual c nothing square cube same double long gram d e f f2 f3 h"
    return nodes, shown.split()


@pytest.mark.parametrize("target", RUNNABLE)
def test_any_operand_may_repeat_and_any_value_be_an_output(tmp_path: Path, target: str) -> None:
    nodes, outputs = other_nodes()
    constants = {
        "table": numbers(50, 12),
        "gamma": numbers(12),
        "beta": numbers(12),
        "weights": numbers(12, 12) / 4,
        "weights2": numbers(24, 12) / 4,
        "axis": np.array([1], np.int64),
        "zero": np.asarray(np.float32(0)),
        "scale": np.asarray(np.float32(1 / 64)),
        "middle": np.asarray(np.uint8(128)),
    }
    path = save(tmp_path, nodes, outputs, constants)
    artifact = sparsec.compile(path, buckets=[LENGTH], target=target)
    session = ort_reference.session(path)
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        for batch in (1, 5):
            ids = RNG.integers(0, 50, (batch, LENGTH))
            made, wanted = engine.run([ids]), session.run(None, {"ids": ids})
            for name, got, want in zip(outputs, made, wanted, strict=True):
                off = np.abs(got - want) / np.maximum(np.abs(want), 1)
                # What went through 8 bits may be rounded the other way, one 64th times a weight.
                assert off.max() < (0.05 if name == "h" else 1e-4), name
                assert np.median(off) < 1e-5, name
