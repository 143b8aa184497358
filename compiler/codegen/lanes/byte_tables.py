"""Quantized values that are functions of one byte, as tables of 256 bytes.

    q = quantize(x) -> dequantize(q) -> erf, add, mul by dequantize(q), ..., with more roundings
        between them -> quantize

is what exporters make of an activation that quantize each of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsec.compiler.interpreter import run_node
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.elements import BYTES
from sparsec.compiler.ops import OPS

Array = np.ndarray[Any, Any]

#: A table takes as long as a few operations: so many nodes must go, if none of them is slow.
FEWEST = 6


@dataclass(frozen=True)
class ByteTable:
    """A quantized value, as a function of another one.

    Attributes:
        source: name of the value that it is a function of.
        bytes: uint8 [256], what it is for each byte of the source; both by their bits.
    """

    source: str
    bytes: Array


@dataclass
class _Walk:
    """What values of a group of nodes are made of.

    Attributes:
        nodes: by the names of their outputs, those that are computed here.
        resolve: the value that a name stands for.
        known: by name, what :meth:`bases` has found.
    """

    graph: Graph
    nodes: Mapping[str, Node]
    resolve: Callable[[str], str]
    known: dict[str, frozenset[str]] = field(default_factory=dict)

    def is_byte(self, name: str) -> bool:
        """Whether a value is quantized here."""
        node = self.nodes.get(name)
        quantized = node is not None and node.op == "quantize"
        return quantized and self.graph.values[name].dtype in BYTES

    def bases(self, name: str) -> frozenset[str]:
        """The values that one is a function of, down to what is quantized first."""
        name = self.resolve(name)
        if name not in self.known:
            self.known[name] = self._bases(name)
        return self.known[name]

    def _bases(self, name: str) -> frozenset[str]:
        constant = self.graph.constants.get(name)
        if constant is not None and constant.size == 1:
            return frozenset()
        node = self.nodes.get(name)
        if node is None or len(node.outputs) > 1 or not _is_elementwise(node):
            return frozenset({name})
        below = frozenset[str]().union(*(self.bases(n) for n in node.inputs if n))
        if self.is_byte(name) and not (len(below) == 1 and self.is_byte(next(iter(below)))):
            return frozenset({name})
        return below

    def compute(self, name: str, arrays: dict[str, Array], nodes: list[Node]) -> Array:
        """A value for given arrays; appends the nodes that it took."""
        name = self.resolve(name)
        if name not in arrays:
            node = self.nodes.get(name)
            if node is None:
                return self.graph.constants[name].reshape(())
            operands = [self.compute(n, arrays, nodes) if n else None for n in node.inputs]
            (arrays[name],) = run_node(node, operands)
            nodes.append(node)
        return arrays[name]


def _is_elementwise(node: Node) -> bool:
    return OPS[node.op].elementwise is not None or node.op in ("quantize", "dequantize")


def find(
    name: str, graph: Graph, nodes: Mapping[str, Node], resolve: Callable[[str], str]
) -> ByteTable | None:
    """The table of a value, or None where it has none or computing it is no slower.

    Args:
        name: of the value.
        graph: where it lives.
        nodes: by the names of their outputs, those that are computed in one loop.
        resolve: gives the value that a name stands for.
    """
    walk = _Walk(graph, nodes, resolve)
    name = resolve(name)
    while name in nodes and nodes[name].op == "gather":  # the order of channels
        name = resolve(nodes[name].inputs[0])
    if not walk.is_byte(name):
        return None
    bases = walk.bases(name)
    source = next(iter(bases), "")
    if len(bases) != 1 or source == name:
        return None
    levels = np.arange(256).astype(np.uint8).view(graph.values[source].dtype)
    taken: list[Node] = []
    with np.errstate(all="ignore"):
        found = walk.compute(name, {source: levels}, taken)
    rows = (OPS[node.op].elementwise for node in taken)
    slow = any(row is not None and row.inexact for row in rows)
    if not slow and len(taken) < FEWEST:
        return None
    return ByteTable(source, np.ascontiguousarray(found).view(np.uint8))
