"""Move reshapes and transposes towards the readers, and shorten the chains they form.

    x ── reshape ── transpose ── gelu ── quantize ── matmul
    ->
    x ── gelu ── quantize ── reshape ── transpose ── matmul

Elementwise ops whose other operands are single numbers (or moved in the same way) commute with a
layout op; so do ops over the last axis where the layout op leaves that axis alone.  What is left at
the end are chains directly in front of matrix products and outputs, where ``fuse_attention`` takes
them up; chains that cancel are gone.  ``expand`` sinks too: less is computed before it than after.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsec.compiler.ir import Graph, Match, Node, Shape, rewrite
from sparsec.compiler.ops import OPS
from sparsec.compiler.passes.layout_chain import Step, chain_above, shorten
from sparsec.compiler.passes.patterns import last_axis_vector

_MOVES = ("reshape", "transpose", "expand")


def sink_layout(graph: Graph) -> Graph:
    """Apply the rules of this file until none fires."""
    return rewrite(graph, [_shorten, _below_elementwise, _below_last_axis])


def _shorten(m: Match, node: Node) -> bool:
    """layout(layout(x)) -> the shortest chain that does the same."""
    if node.op not in ("reshape", "transpose"):
        return False
    root, chain = chain_above(m, node.output)
    steps = [Step.of(n) for n in chain]
    shorter = shorten(m.type(root).shape, steps, m.type(node.output).shape)
    if shorter == steps:
        return False
    for step in shorter:
        root = step.emit(m.edit, root, node.source)
    m.edit.replace_uses(node.output, root)
    return True


def _move(layout: Node, m: Match, name: str, shape: Shape | None = None) -> str:
    """The layout op, applied to another value (reshape: to another shape)."""
    attrs: dict[str, Any] = dict(layout.attrs)
    if shape is not None and "shape" in attrs:
        attrs["shape"] = shape
    return m.edit.emit(layout.op, [name], source=layout.source, **attrs)


def _below_elementwise(m: Match, node: Node) -> bool:
    """op(layout(x), number) -> layout(op(x, number))."""
    if not OPS[node.op].elementwise:
        return False
    layouts = [m.producer(name, *_MOVES) for name in node.inputs]
    layout = next((n for n in layouts if n is not None), None)
    if layout is None or m.type(node.output).shape != m.type(layout.output).shape:
        return False
    before = m.type(layout.inputs[0]).shape
    makers: list[Callable[[], str]] = []
    for name, other in zip(node.inputs, layouts, strict=True):
        if other is not None:
            same = other.op == layout.op and dict(other.attrs) == dict(layout.attrs)
            if not same or m.type(other.inputs[0]).shape != before:
                return False
            makers.append(lambda other=other: other.inputs[0])  # type: ignore[misc]
            continue
        maker = _alongside(m, node, layout, name)
        if maker is None:
            return False
        makers.append(maker)
    inner = m.edit.emit(node.op, [make() for make in makers], source=node.source, **node.attrs)
    m.edit.replace_uses(node.output, _move(layout, m, inner))
    return True


def _alongside(m: Match, node: Node, layout: Node, name: str) -> Callable[[], str] | None:
    """How an operand that the layout op does not move looks in front of it; None if it cannot."""
    shape, array = m.type(name).shape, m.constant(name)
    if shape == () or (node.op.endswith("quantize") and shape == (1,)):
        return lambda: name
    if node.op.endswith("quantize") or array is None:
        return None
    if array.size == 1:
        return lambda: m.edit.constant(array.reshape(()), name)
    if layout.op == "expand" or not _keeps_last_axis(m, layout):
        return None
    vector = last_axis_vector(array, m.type(layout.output).shape[-1])
    return None if vector is None else lambda: m.edit.constant(vector, name)


def _keeps_last_axis(m: Match, layout: Node) -> bool:
    before, after = m.type(layout.inputs[0]).shape, m.type(layout.output).shape
    if not before or not after:
        return False
    if layout.op == "transpose":
        return bool(layout.attrs["perm"][-1] == len(after) - 1)
    return layout.op == "reshape" and before[-1] == after[-1]


def _below_last_axis(m: Match, node: Node) -> bool:
    """linear(layout(x)) -> layout(linear(x)), and the like, if the last axis stays where it is."""
    if node.op not in ("linear", "qlinear", "layernorm", "softmax"):
        return False
    layout = m.producer(node.inputs[0], *_MOVES)
    if layout is None or not _keeps_last_axis(m, layout):
        return False
    attrs = dict(node.attrs)
    after = m.type(node.output).shape
    if node.op == "softmax":
        if attrs["axis"] != len(after) - 1:
            return False
        attrs["axis"] = len(m.type(layout.inputs[0]).shape) - 1
    inputs = [layout.inputs[0], *node.inputs[1:]]
    inner = m.edit.emit(node.op, inputs, source=node.source, **attrs)
    m.edit.replace_uses(node.output, _move(layout, m, inner, after))
    return True
