"""Integer products with constant weights whose activations are quantized at run time.

    x u8, zero point z at run time --.
                                      matmul_integer   =>   linear_integer(x, W - zw) - z * sums
    W [K, N] ------------------------'

`sums` int32 [N] are those of W - zw for each output channel.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match
from sparsec.compiler.frontend.dialects.matmul_integer import integer_sums, weights
from sparsec.compiler.ir import Node


def _is_number(m: Match, name: str) -> bool:
    return all(d == 1 for d in m.type(name).shape)


def to_linear_integer(m: Match, node: Node) -> bool:
    """matmul_integer with weights and a run-time zero point => linear_integer - z * sums."""
    if node.op != "matmul_integer" or len(node.inputs) < 3 or not node.inputs[2]:
        return False
    x, b, za = node.inputs[:3]
    zb = node.inputs[3] if len(node.inputs) > 3 else ""
    if m.constant(za) is not None or not _is_number(m, za) or m.constant(x) is not None:
        return False
    if zb and m.constant(zb) is None:
        return False
    w = weights(m.constant(b), m.constant(zb) if zb else None, len(m.type(x).shape))
    if w is None:
        return False
    layer = integer_sums(m, x, w, b, node.source)
    sums = m.edit.constant(w.sum(axis=1, dtype=np.int32), "sums")
    point = m.edit.emit("cast", (za,), source=node.source, to=np.dtype(np.int32))
    shift = m.edit.emit("reshape", (point,), source=node.source, shape=())
    part = m.edit.emit("mul", (sums, shift), source=node.source)
    m.edit.replace_uses(node.output, m.edit.emit("sub", (layer, part), source=node.source))
    return True


RULES = [to_linear_integer]
