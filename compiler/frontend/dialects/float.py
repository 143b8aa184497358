"""Float linear layers.

matmul(x, W [K, N])   =>   linear(x, W^T)        for constant W
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.ir import Node


def to_linear(m: Match, node: Node) -> bool:
    """matmul with a constant matrix on the right => linear."""
    if node.op != "matmul":
        return False
    x, w = m.type(node.inputs[0]), m.constant(node.inputs[1])
    if w is None or w.dtype != np.float32 or m.constant(x.name) is not None:
        return False
    if w.ndim < 2 or w.ndim > max(2, len(x.shape)) or any(d != 1 for d in w.shape[:-2]):
        return False
    rows = np.ascontiguousarray(w.reshape(w.shape[-2:]).T)
    weights = m.edit.constant(rows, node.inputs[1])
    out = m.edit.emit("linear", (x.name, weights), source=node.source)
    m.edit.replace_uses(node.output, out)
    return True


RULES = [to_linear]
