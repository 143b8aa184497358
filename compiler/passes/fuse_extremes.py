"""Recognize the range of a tensor that is quantized at run time.

    x ─ reduce_max (rows) ─ [where(real, ., lowest)] ─ reduce_max (all) ─ max 0 ── high
    x ─ reduce_min (rows) ─ [where(real, ., highest)] ─ reduce_min (all) ─ min 0 ── low
    ->
    extremes(x, [real]) ── low, high

The kernel that makes x finds both on the way, where `real` is what the sequences' lengths say.
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Match, rewrite
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes.patterns import with_constant


def fuse_extremes(graph: Graph) -> Graph:
    """Apply the rules of this file until none fires."""
    return rewrite(graph, [_extreme])


def _extreme(m: Match, node: Node) -> bool:
    """An extreme of all elements and 0."""
    which = {"min": 0, "max": 1}.get(node.op)
    pair = with_constant(m, node) if which is not None else None
    if which is None or pair is None or pair[1].shape != () or pair[1] != 0:
        return False
    operands = _rows(m, pair[0], f"reduce_{node.op}")
    if operands is None:
        return False
    ends = m.edit.emit_multi("extremes", operands, source=node.source)
    m.edit.replace_uses(node.output, ends[which])
    return True


def _rows(m: Match, name: str, op: str) -> tuple[str, ...] | None:
    """x, and which of its rows are real, if the value is the extreme of all."""
    total = m.producer(name, op)
    if total is None or m.type(name).shape != ():
        return None
    inner = total.inputs[0]
    real: tuple[str, ...] = ()
    chosen = m.producer(inner, "where")
    if chosen is not None:
        fill = m.scalar(chosen.inputs[2])
        limits = np.finfo(np.float32)
        if fill is None or (fill > limits.min if op == "reduce_max" else fill < limits.max):
            return None
        inner, real = chosen.inputs[1], chosen.inputs[:1]
    rows = m.producer(inner, op)
    if rows is None or rows.attrs["keepdims"]:
        return None
    x = m.type(rows.inputs[0])
    whole = m.type(inner).shape == x.shape[:-1] and x.dtype == np.float32
    if not whole or tuple(rows.attrs["axes"]) != (len(x.shape) - 1,):
        return None
    if real and m.type(real[0]).shape != x.shape[:-1]:
        return None
    return (x.name, *real)
