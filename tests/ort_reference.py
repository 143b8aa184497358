"""ONNX Runtime as the reference of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

#: Positions of the weights and of their zero point, by op.
_WEIGHTS = {
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "QAttention": (1, 7),
    "QGemm": (3, 5),
}


def session(path: Path, optimize: bool = False) -> ort.InferenceSession:
    """A session on one thread that computes what the file says, unless it may `optimize`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # What the optimizer makes of int8 weights, likewise.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = onnx.load(path)
    changed = _unsigned_weights(model)
    if not optimize:
        changed |= _wide_products(model)
    source = model.SerializeToString() if changed else str(path)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _wide_products(model: onnx.ModelProto) -> bool:
    """Make products of dequantized numbers float64; False if there are none.

    They are products of integers and a scale.  Summed up in float32, in an order that depends on
    the CPU, they round every second batch's bytes another way than the exact sum.
    """
    graph = model.graph
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type not in ("MatMul", "Gemm") or made.isdisjoint(node.input):
            continue
        wide = [f"{node.output[0]}.wide{i}" for i in range(len(node.input))]
        casts = [
            onnx.helper.make_node("Cast", [name], [to], to=onnx.TensorProto.DOUBLE)
            for name, to in zip(node.input, wide, strict=True)
        ]
        result = node.output[0]
        nodes[-1:] = [*casts, node]
        del node.input[:]
        node.input.extend(wide)
        node.output[0] = f"{result}.wide"
        narrow = onnx.helper.make_node(
            "Cast", [node.output[0]], [result], to=onnx.TensorProto.FLOAT
        )
        nodes.append(narrow)
    changed = len(nodes) > len(graph.node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return changed


def _unsigned_weights(model: onnx.ModelProto) -> bool:
    """Make int8 weights uint8, which means the same; False if there are none.

    Where the CPU has no VNNI, ONNX Runtime's sums of u8 times s8 saturate at 16 bits; those of u8
    times u8 are exact everywhere.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    made: dict[str, str] = {}

    def shifted(name: str) -> str:
        if name not in made:
            array = numpy_helper.to_array(stored[name])
            made[name] = f"{name}.unsigned"
            wide = (array.astype(np.int16) + 128).astype(np.uint8)
            model.graph.initializer.append(numpy_helper.from_array(wide, made[name]))
        return made[name]

    for node in model.graph.node:
        weights, zero = _WEIGHTS.get(node.op_type, (0, 0))
        given = [*node.input, *[""] * (zero + 1 - len(node.input))]
        tensor = stored.get(given[weights]) if zero else None
        if tensor is None or tensor.data_type != onnx.TensorProto.INT8:
            continue
        if given[zero] and given[zero] not in stored:
            continue
        if given[zero]:
            given[zero] = shifted(given[zero])
        else:
            given[zero] = made[""] = "unsigned.zero"
        given[weights] = shifted(given[weights])
        del node.input[:]
        node.input.extend(given)
    if "" in made:
        zero_point = numpy_helper.from_array(np.uint8(128), made[""])
        model.graph.initializer.append(zero_point)
    return bool(made)
