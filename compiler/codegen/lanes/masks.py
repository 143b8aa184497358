"""What masks the keys of an attention: found in the graph between its products and its softmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.interpreter import run_node
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.elements import F32

Array = np.ndarray[Any, Any]

#: What takes a score down by as much or more masks its key, unless scores differ by as much.
MASKS = -1000.0


@dataclass(frozen=True)
class KeyMask:
    """How a score comes of ``scale * product`` and a tensor that does not depend on the query.

    Attributes:
        extra: position of that tensor among the node's extras.
        scale: the size of what the product is multiplied by.
        constant: None: the tensor is added; else this takes a score's place where the tensor says.
        when: the truth value that says so.
    """

    extra: int
    scale: float
    constant: float | None = None
    when: bool = True


def find(node: Node, graph: Graph) -> KeyMask | None:
    """The mask of an `attention` node's keys; None where scores are of another form."""
    score: Graph = node.attrs["score"]
    made = score.producers()
    extra, below = added(node, graph, score, made)
    if extra is not None:
        scale = _scale(score, made, below)
        return None if scale is None else KeyMask(extra, scale)
    last = made.get(score.outputs[0])
    if last is None or last.op != "where":
        return None
    position = _extra(last.inputs[0], np.dtype(np.bool_), node, graph, score)
    for when, (constant, below) in ((True, last.inputs[1:]), (False, last.inputs[:0:-1])):
        number = score.constants.get(constant)
        scale = _scale(score, made, below)
        if position is None or number is None or number.size != 1 or scale is None:
            continue
        if float(number.reshape(-1)[0]) <= MASKS:
            return KeyMask(position, scale, float(number.reshape(-1)[0]), when)
    return None


def added(node: Node, graph: Graph, score: Graph, made: dict[str, Node]) -> tuple[int | None, str]:
    """Which extra is added last to the scores, a number for each key, and what it is added to."""
    top = score.outputs[0]
    last = made.get(top)
    if last is None or last.op != "add":
        return None, top
    for name, other in (last.inputs, last.inputs[::-1]):
        position = _extra(name, F32, node, graph, score)
        if position is not None:
            return position, other
    return None, top


def _extra(name: str, dtype: np.dtype[Any], node: Node, graph: Graph, score: Graph) -> int | None:
    """Which extra an input of the scores is, if it is the same for all queries."""
    if name not in score.inputs[1:]:
        return None
    position = score.inputs.index(name) - 1
    value = graph.values[node.inputs[3 + position]]
    same = len(value.shape) < 2 or value.shape[-2] == 1
    return position if value.dtype == dtype and same else None


def path(score: Graph, made: dict[str, Node], top: str) -> list[Node] | None:
    """The nodes from the scores up to `top`, if each takes one number besides; else None."""
    nodes: list[Node] = []
    while top != score.inputs[0]:
        node = made.get(top)
        if node is None:
            return None
        rest = [score.constants.get(n) for n in node.inputs[1:]]
        if any(array is None or array.size != 1 for array in rest):
            return None
        nodes.insert(0, node)
        top = node.inputs[0]
    return nodes


def run(nodes: list[Node], source: str, array: Array, graph: Graph) -> Array:
    """What a chain of nodes with constant operands makes of an array."""
    for node in nodes:
        assert node.inputs[0] == source
        rest = [graph.constants[n].reshape(()) for n in node.inputs[1:]]
        array = run_node(node, [array, *rest])[0]
        source = node.output
    return array


def _scale(score: Graph, made: dict[str, Node], top: str) -> float | None:
    """The size of what scores are multiplied by up to `top`, if that is all; else None."""
    nodes = path(score, made, top)
    if nodes is None or {n.op for n in nodes} - {"mul", "div"}:
        return None
    scale = abs(float(run(nodes, score.inputs[0], np.ones(1, np.float32), score)[0]))
    return scale if np.isfinite(scale) else None


__all__ = ["MASKS", "KeyMask", "added", "find", "path", "run"]
