"""Constants that the dialects left alone are computed.

op(constant, ...)   =>   constant
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.interpreter import compute
from sparsec.compiler.ir import BatchDim, Node
from sparsec.compiler.ops import OPS


def fold_constant(m: Match, node: Node) -> bool:
    """Compute a node whose inputs are all constants and whose results have a fixed shape."""
    arrays = [m.constant(name) if name else None for name in node.inputs]
    if not arrays or any(a is None and n for a, n in zip(arrays, node.inputs, strict=True)):
        return False
    if any(isinstance(d, BatchDim) for out in node.outputs for d in m.type(out).shape):
        return False
    if node.op == "expand":
        return False
    results = compute(node, arrays)
    hint = node.inputs[0] if OPS[node.op].layout else node.outputs[0]
    for out, array in zip(node.outputs, results, strict=True):
        m.edit.replace_uses(
            out, m.edit.constant(np.ascontiguousarray(array).reshape(array.shape), hint)
        )
    return True


RULES = [fold_constant]
