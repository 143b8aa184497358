"""Compute equal things once.

x ── op ── y                 x ── op ── y
x ── op ── z      ->                    └── readers of z
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import Graph, Node


def eliminate_common(graph: Graph) -> Graph:
    """Merge equal constants, then nodes with equal op, inputs and attributes."""
    edit = Editor(graph)
    _merge_constants(graph, edit)
    first: dict[Hashable, Node] = {}
    for node in graph.nodes:
        key = _key(edit, node)
        twin = first.setdefault(key, node)
        # Two results of the model stay two values, each with a buffer of its own.
        if twin is node or any(out in graph.outputs for out in node.outputs):
            continue
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            edit.replace_uses(old, new)
    return edit.finish()


def _key(edit: Editor, node: Node) -> Hashable:
    attrs = tuple(
        (name, id(value) if isinstance(value, Graph) else repr(value))
        for name, value in sorted(node.attrs.items())
    )
    return node.op, tuple(edit.resolve(n) if n else "" for n in node.inputs), attrs


def _merge_constants(graph: Graph, edit: Editor) -> None:
    # A sample of the elements sorts constants into groups, so that few are compared in full.
    groups: dict[Hashable, list[str]] = {}
    for name, array in graph.constants.items():
        flat = array.reshape(-1)
        sample = flat[:: max(1, flat.size // 64)].tobytes()
        seen = groups.setdefault((array.dtype.str, array.shape, sample), [])
        twin = next((s for s in seen if _same_bytes(graph.constants[s], array)), None)
        if twin is None:
            seen.append(name)
        elif name not in graph.outputs:
            edit.replace_uses(name, twin)


def _same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    if a.size <= 64:
        return True  # the sample was everything
    x, y = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return bool(np.array_equal(x.reshape(-1).view(np.uint8), y.reshape(-1).view(np.uint8)))
