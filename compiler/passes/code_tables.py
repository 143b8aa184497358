"""Tables whose rows are looked up stay bytes where they were bytes, however the file writes them.

    gather(float table [V, C], ids)
    ->
    mul(sub(cast(gather(bytes [V, C], ids)), zero), gather(scales [V, 1], ids))

or, where a row has a scale for each block of channels, the same with both sides as ``[.., blocks,
channels of a block]``, in kernels that are row-major.

An export that multiplies a stored table by its scales (Cast and Mul, DequantizeLinear, a rounded
table that was saved as floats) has it expanded as a constant.  The table is recognized by what it
holds, as weights are (``lowering/codes.py``): whole numbers times float32 scales, bit by bit, so
that results are the same and a quarter of the bytes is kept.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.codes import find_codes


def code_tables(graph: Graph) -> Graph:
    """Apply the rule of this file until it no longer fires."""
    return rewrite(graph, [_table])


def _table(m: Match, node: Node) -> bool:
    """A lookup of rows in a constant float table."""
    if node.op != "gather" or int(node.attrs.get("axis", 0)) != 0:
        return False
    table = m.constant(node.inputs[0])
    if table is None or table.ndim != 2 or table.dtype != np.float32 or table.shape[1] < 2:
        return False
    codes = find_codes(table)
    if codes is None or (codes.zero != codes.zero[0, 0]).any():
        return False
    zero = codes.zero[0, 0]
    emit, constant = m.edit.emit, m.edit.constant
    if zero == 128:
        stored, zero = (codes.code.astype(np.int16) - 128).astype(np.int8), np.float32(0)
    else:
        stored = codes.code

    def looked_up(array: np.ndarray, name: str) -> str:
        values = constant(array, f"{node.inputs[0]}.{name}")
        return emit("gather", [values, node.inputs[1]], source=node.source, axis=0)

    y, scale = looked_up(stored, "bytes"), looked_up(codes.scale, "scales")
    shape = m.type(node.output).shape
    blocks = (*shape[:-1], codes.scale.shape[1])
    if codes.block < table.shape[1]:
        y = emit("reshape", [y], source=node.source, shape=(*blocks, codes.block))
        scale = emit("reshape", [scale], source=node.source, shape=(*blocks, 1))
    y = emit("cast", [y], to="float32", source=node.source)
    if zero:
        y = emit("sub", [y, constant(zero)], source=node.source)
    y = emit("mul", [y, scale], source=node.source)
    if codes.block < table.shape[1]:
        y = emit("reshape", [y], source=node.source, shape=shape)
    m.edit.replace_uses(node.output, y)
    return True
