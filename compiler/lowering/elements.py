"""Element types that lanes hold, and the elementwise nodes that are computed on them."""

from __future__ import annotations

import numpy as np

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS

F32 = np.dtype(np.float32)
I32 = np.dtype(np.int32)
U8 = np.dtype(np.uint8)
S8 = np.dtype(np.int8)
BOOL = np.dtype(np.bool_)
BYTES = (U8, S8)
LANE_DTYPES = (F32, I32, U8, S8)

_COMPARISONS = {"equal", "less", "less_equal", "greater", "greater_equal"}

#: Ops that are computed on lanes of float32, of int32, and of booleans.
_FLOAT = _COMPARISONS | {
    *("add", "sub", "mul", "div", "neg", "abs", "sqrt", "exp", "erf", "tanh", "sigmoid", "relu"),
    *("reciprocal", "floor", "ceil", "round", "min", "max", "isnan"),
}
_INT = _COMPARISONS | {"add", "sub", "mul"}
_BOOL = {"and", "or", "not"}


def supported(node: Node, graph: Graph) -> bool:
    """Whether a node can be part of a lane program, whatever its operands' shapes."""
    if not OPS[node.op].elementwise or len(node.outputs) != 1:
        return False
    types = [graph.values[n].dtype for n in node.inputs if n]
    out = graph.values[node.output].dtype
    if any(t not in (*LANE_DTYPES, BOOL) for t in (*types, out)):
        return False
    first = types[0]
    if node.op == "gelu":
        return first == F32
    if node.op == "cast":
        return (first, out) in {(I32, F32), (U8, F32), (S8, F32), (U8, I32), (S8, I32), (BOOL, F32)}
    if node.op == "where":
        return out in (F32, I32)
    if node.op == "pow":
        power = graph.constants.get(node.inputs[1])
        return (
            first == F32 and power is not None and power.size == 1 and float(power.flat[0]) == 2.0
        )
    if node.op in ("quantize", "dequantize"):
        scale = graph.constants.get(node.inputs[1])
        computed = [n for n in node.inputs[1:] if n and n not in graph.constants]
        if any(graph.values[n].shape not in ((), (1,)) for n in computed):
            return False
        if node.op == "dequantize" and first not in (*BYTES, I32):
            return False
        if node.op == "quantize" and (first != F32 or out not in BYTES):
            return False
        zero = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
        if node.op == "quantize" and zero is not None and np.unique(zero).size != 1:
            return False
        if scale is not None and scale.size != 1:
            rank = len(graph.values[node.inputs[0]].shape)
            return int(node.attrs.get("axis", 1)) % max(rank, 1) == rank - 1
        return True
    if first == F32:
        return node.op in _FLOAT
    if first == I32:
        return node.op in _INT
    return first == BOOL and node.op in _BOOL
