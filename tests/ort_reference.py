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
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = _with_unsigned_weights(path)
    model = str(path) if exact is None else exact.SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _with_unsigned_weights(path: Path) -> onnx.ModelProto | None:
    """The model with its int8 weights as uint8, which means the same; None if it has none.

    Where the CPU has no VNNI, ONNX Runtime's sums of u8 times s8 saturate at 16 bits; those of u8
    times u8 are exact everywhere.
    """
    model = onnx.load(path)
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
    return model if made else None
