"""Compute at compile time what depends on constants only.

const a ─┐
         op ── y      ->      const y
const b ─┘
"""

from __future__ import annotations

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import compute
from sparsec.compiler.ir import BatchDim, Graph, Node, element_count

# A result may be this much larger than what it is made from before it is left to run time.
_GROWTH, _SMALL = 4, 1 << 16


def fold_constants(graph: Graph) -> Graph:
    """Replace nodes whose inputs are all constants by their values."""
    edit = Editor(graph)
    for node in graph.nodes:
        names = [edit.resolve(n) if n else "" for n in node.inputs]
        if not _foldable(graph, edit, node, names):
            continue
        args = [edit.constants[n] if n else None for n in names]
        results = compute(node, args)
        for out, result in zip(node.outputs, results, strict=True):
            edit.replace_uses(out, edit.constant(np.ascontiguousarray(result), out))
    return edit.finish()


def _foldable(graph: Graph, edit: Editor, node: Node, names: list[str]) -> bool:
    if not any(names) or not all(n in edit.constants for n in names if n):
        return False
    made = 0
    for out in node.outputs:
        count = element_count(graph.values[out].shape)
        if isinstance(count, BatchDim):
            return False
        made += count
    read = sum(edit.constants[n].size for n in names if n)
    return made <= max(_GROWTH * read, _SMALL)
