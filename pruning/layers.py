"""The linear layers of a model, found by what the graph does with its stored matrices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sparsec.compiler.ir import Graph, Node

_CARRIES = ("transpose", "reshape", "cast")
"""What may stand between a stored matrix and the product that it is used in."""


@dataclass(frozen=True)
class Use:
    """A place where a layer is computed.

    Attributes:
        node: index of the product in the graph.
        operand: which of its operands is the layer's input.
        x: the value that is multiplied.
        y: the result, behind the bias if the layer has one.
        end: index of the node that makes `y`.
        source: name of the ONNX node.
    """

    node: int
    operand: int
    x: str
    y: str
    end: int
    source: str


@dataclass(frozen=True)
class Layer:
    """A stored matrix that rows of channels are multiplied with: ``y = x W^T + b``.

    Attributes:
        name: of the stored matrix.
        outputs, inputs: its channels.
        transposed: stored as [in, out]; else as [out, in].
        bias: name of the stored vector that is added, "" without one.
        uses: where it is computed, in order: several times where layers share it.
        shared: who else reads the matrix, an embedding for example; "" if nobody does.
    """

    name: str
    outputs: int
    inputs: int
    transposed: bool
    bias: str
    uses: tuple[Use, ...]
    shared: str = ""

    @property
    def label(self) -> str:
        """What reports call it: the node that computes it first; stored matrices often have
        numbers for names."""
        return self.uses[0].source or self.name


def linear_layers(graph: Graph, weights: Iterable[str]) -> list[Layer]:
    """The linear layers of a graph, in the order in which they are first computed.

    Args:
        graph: with weights as inputs (:func:`~sparsec.pruning.engine.opened.open_model`).
        weights: names of the inputs that are weights.

    A matrix is a layer's if each reader of it multiplies a value that depends on the model's
    inputs with it, from the right, in the same orientation.
    """
    names = set(weights)
    search = _Search(graph, names)
    found = {}
    for name in names:
        if len(graph.values[name].shape) == 2:
            layer = search.layer(name)
            if layer is not None:
                found[name] = layer
    return sorted(found.values(), key=lambda layer: layer.uses[0].node)


class _Search:
    def __init__(self, graph: Graph, weights: set[str]) -> None:
        self.graph = graph
        self.readers: dict[str, list[int]] = {}
        for i, node in enumerate(graph.nodes):
            for name in dict.fromkeys(filter(None, node.inputs)):
                self.readers.setdefault(name, []).append(i)
        self.makers = {out: node for node in graph.nodes for out in node.outputs}
        self.weights = weights
        self.moving = self._depending(set(graph.inputs) - weights)

    def _depending(self, start: set[str]) -> set[str]:
        found = set(start)
        for node in self.graph.nodes:
            if not found.isdisjoint(node.inputs):
                found |= set(node.outputs)
        return found

    def layer(self, name: str) -> Layer | None:
        """The layer of a stored matrix; None if it is not one's."""
        uses: list[Use] = []
        flips: set[bool] = set()
        biases: set[str] = set()
        shared = ""
        todo = [(name, False)]
        while todo:
            value, flipped = todo.pop()
            for i in self.readers.get(value, ()):
                node = self.graph.nodes[i]
                carried = self._carried(node, value, flipped)
                if carried is not None:
                    todo.append((node.output, carried))
                elif self._is_product(node, value):
                    use, bias = self._use(i)
                    uses.append(use)
                    biases.add(bias)
                    # matmul wants [in, out], linear [out, in].
                    flips.add(flipped if node.op == "matmul" else not flipped)
                else:
                    shared = shared or node.source or node.op
        if not uses or len(flips) > 1:
            return None
        transposed = not flips.pop()
        rows, columns = (int(str(d)) for d in self.graph.values[name].shape)
        outputs, inputs = (columns, rows) if transposed else (rows, columns)
        uses.sort(key=lambda use: use.node)
        bias = biases.pop() if len(biases) == 1 else ""
        return Layer(name, outputs, inputs, transposed, bias, tuple(uses), shared)

    def _carried(self, node: Node, value: str, flipped: bool) -> bool | None:
        """Whether the matrix is turned behind a node that only moves it; None for other nodes."""
        if node.op not in _CARRIES:
            return None
        if self.graph.values[node.output].shape == self.graph.values[value].shape and (
            node.op != "transpose"
        ):
            return flipped
        if node.op == "transpose" and tuple(node.attrs["perm"]) == (1, 0):
            return not flipped
        return None

    def _is_product(self, node: Node, value: str) -> bool:
        return (
            node.op in ("matmul", "linear")
            and node.inputs[1] == value
            and node.inputs[0] in self.moving
        )

    def _use(self, i: int) -> tuple[Use, str]:
        """The place where a product is, and the bias that is added to it."""
        node = self.graph.nodes[i]
        y, end = node.output, i
        bias = ""
        after = self.readers.get(y, [])
        if len(after) == 1 and y not in self.graph.outputs:
            add = self.graph.nodes[after[0]]
            other = [n for n in add.inputs if n != y]
            if add.op == "add" and len(other) == 1 and self._is_vector(other[0], y):
                bias, y, end = other[0], add.output, after[0]
        return Use(i, 0, node.inputs[0], y, end, node.source), bias

    def _is_vector(self, name: str, like: str) -> bool:
        shape = self.graph.values[name].shape
        return name in self.weights and shape == self.graph.values[like].shape[-1:]


def products(layers: Iterable[Layer]) -> Mapping[int, tuple[str, int]]:
    """Index of a node -> (layer, position of the operand that it multiplies)."""
    return {use.node: (layer.name, use.operand) for layer in layers for use in layer.uses}
