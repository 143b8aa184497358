"""Which channels belong together: attention heads, and channels of feed-forward parts.

What a channel of one layer computes may be removed with it as long as nobody else reads it.  Found
by what the graph does, not by names: every output channel of every layer gets a number, and the
numbers go through the graph with the values.  Where two meet, or where an op cannot do without one
of them, their channels belong together: the scores of attention bring together the channels of a
head, and the residual stream brings together everything that is added to it (as the dependency
graph of Fang et al., "DepGraph", arXiv:2301.12900).  What then is in no larger group than one that
a single layer reads can go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.compiler.ir import Graph, Node, bind_shape
from sparsec.compiler.ops import OPS
from sparsec.pruning.layers import Layer

#: The number of what must stay.
_KEPT = 0

Labels = np.ndarray
"""int64, of a value's shape: the number of the channel that each element belongs to."""


@dataclass(frozen=True)
class Unit:
    """Channels that go together.

    Attributes:
        rows: output channels by layer: those that make them.
        inputs: the channels of the layer that reads them.
    """

    rows: Mapping[str, tuple[int, ...]]
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """A layer whose inputs can be removed in units: the end of an attention or a feed-forward part.

    Attributes:
        reader: the layer that reads them.
        makers: the layers that make them.
        units: in the order of the reader's inputs; equally large.
    """

    reader: str
    makers: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def size(self) -> int:
        """Inputs of a unit: more than one for heads."""
        return len(self.units[0].inputs)


def sites(graph: Graph, layers: Sequence[Layer]) -> list[Site]:
    """Where whole heads and channels can go, in the order in which the readers are computed.

    Args:
        graph: with weights as inputs (:func:`~sparsec.pruning.engine.opened.open_model`).
        layers: those that may change; each is used once.
    """
    usable = [layer for layer in layers if len(layer.uses) == 1 and not layer.shared]
    flow = _Flow(graph, usable)
    flow.run()
    return flow.found()


def feeds(graph: Graph, layers: Sequence[Layer]) -> dict[str, list[tuple[str, int]]]:
    """By layer, the output channel of another layer that each of its inputs comes from, where all
    do: on their way from there, channels of a head or of a feed-forward part may have become
    others', but each is made of that one.

    Args:
        graph, layers: as for :func:`sites`.
    """
    usable = [layer for layer in layers if len(layer.uses) == 1 and not layer.shared]
    flow = _Flow(graph, usable)
    flow.run()
    rows = {
        flow.first[layer.name] + row: (layer.name, row)
        for layer in usable
        for row in range(layer.outputs)
    }
    return {
        name: [rows[number] for number in labels.tolist()]
        for name, labels in flow.read.items()
        if _KEPT not in labels
    }


class _Flow:
    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.graph = graph
        self.layers = {layer.uses[0].node: layer for layer in layers}
        self.first: dict[str, int] = {}
        count = 1
        for layer in layers:
            self.first[layer.name] = count
            count += layer.outputs
        self.parent = np.arange(count)
        self.labels: dict[str, Labels] = {}
        self.read: dict[str, Labels] = {}
        # Of values without labels: their extents, 1 where they only repeat.
        self.extents: dict[str, tuple[int, ...]] = {}
        self.biases = {layer.bias for layer in layers if layer.bias}

    # -- groups -----------------------------------------------------------------------------------

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = int(self.parent[number])
        return number

    def join(self, a: Labels, b: Labels) -> None:
        pairs = np.unique(np.stack([a.ravel(), b.ravel()], 1), axis=0)
        for one, two in pairs.tolist():
            x, y = sorted((self.find(one), self.find(two)))
            self.parent[y] = x

    def together(self, labels: Labels, axis: int) -> Labels:
        """Join what differs along an axis; the labels, of extent 1 there."""
        first = np.take(labels, [0], axis)
        if labels.shape[axis] > 1:
            self.join(labels, np.broadcast_to(first, labels.shape))
        return first

    # -- the walk ---------------------------------------------------------------------------------

    def run(self) -> None:
        for i, node in enumerate(self.graph.nodes):
            labelled = [n for n in node.inputs if n in self.labels]
            if i in self.layers:
                self._layer(self.layers[i], node)
            elif labelled:
                made = self._through(node)
                for name, labels in zip(node.outputs, made, strict=True):
                    self.labels[name] = labels
            else:
                self._repeats(node)
        for name in self.graph.outputs:
            if name in self.labels:
                self._keep(self.labels[name])

    def _shape(self, name: str) -> tuple[int, ...]:
        return bind_shape(self.graph.values[name].shape, 1)

    def _extents(self, name: str) -> tuple[int, ...]:
        return self.extents.get(name) or self._shape(name)

    def _repeats(self, node: Node) -> None:
        """Note along which axes a value without labels only repeats: a mask for all heads."""
        row = OPS[node.op]
        if node.op != "expand" and (row.elementwise is None or row.quantizes):
            return
        shape = self._shape(node.output)
        found = [1] * len(shape)
        for name in node.inputs:
            for back, extent in enumerate(reversed(self._extents(name)), 1):
                found[-back] = max(found[-back], extent)
        self.extents[node.output] = tuple(found)

    def _layer(self, layer: Layer, node: Node) -> None:
        x = node.inputs[0]
        if x in self.labels:
            labels = self.labels[x]
            for axis in range(labels.ndim - 1):
                labels = self.together(labels, axis)
            self.read[layer.name] = labels.reshape(-1)
        shape = self._shape(node.output)
        numbers = self.first[layer.name] + np.arange(layer.outputs)
        self.labels[node.output] = np.broadcast_to(numbers, shape)

    def _keep(self, labels: Labels) -> None:
        self.join(labels, np.full_like(labels, _KEPT))

    def _through(self, node: Node) -> list[Labels]:
        row = OPS[node.op]
        if node.op == "matmul":
            return [self._product(node)]
        if node.op in ("softmax", "cumsum", "layernorm") or node.op.startswith("reduce_"):
            return [self._along(node)]
        if row.elementwise is not None and not row.quantizes:
            return [self._elementwise(node)]
        if row.layout and node.op != "concat" and node.inputs[0] in self.labels:
            return self._moved(node)
        if node.op == "concat" and all(name in self.labels for name in node.inputs):
            return self._moved(node)
        for name in node.inputs:
            if name in self.labels:
                self._keep(self.labels[name])
        return [np.zeros(self._shape(name), np.int64) for name in node.outputs]

    def _moved(self, node: Node) -> list[Labels]:
        """A layout op on labels; indices that are data may be any."""
        operands = []
        for name in node.inputs:
            if name in self.labels:
                operands.append(self.labels[name])
            elif name in self.graph.constants:
                operands.append(self.graph.constants[name])
            else:
                axis = int(node.attrs["axis"])
                operands[0] = np.broadcast_to(self.together(operands[0], axis), operands[0].shape)
                operands.append(np.zeros(self._shape(name), np.int64))
        made = OPS[node.op].reference({**node.attrs, "_batch": 1}, *operands)
        return [np.asarray(array, np.int64) for array in made]

    def _elementwise(self, node: Node) -> Labels:
        shape = self._shape(node.output)
        result: Labels | None = None
        for name in node.inputs:
            if name in self.labels:
                labels = np.broadcast_to(self.labels[name], shape)
                if result is not None:
                    self.join(result, labels)
                result = labels
        assert result is not None
        for name in node.inputs:
            if name not in self.labels and name not in self.biases:
                result = self._beside(result, self._extents(name))
        return result

    def _beside(self, labels: Labels, other: tuple[int, ...]) -> Labels:
        """Labels beside a value without: along its axes nothing can go apart."""
        for back, extent in enumerate(reversed(other), 1):
            if extent > 1:
                axis = labels.ndim - back
                labels = np.broadcast_to(self.together(labels, axis), labels.shape)
        return labels

    def _along(self, node: Node) -> Labels:
        labels = self.labels.get(node.inputs[0])
        shape = self._shape(node.output)
        if labels is None:
            for name in node.inputs:
                if name in self.labels:
                    self._keep(self.labels[name])
            return np.zeros(shape, np.int64)
        attrs = node.attrs
        axes = tuple(attrs["axes"]) if "axes" in attrs else (attrs.get("axis", labels.ndim - 1),)
        for axis in axes:
            labels = self.together(labels, axis)
        if node.op.startswith("reduce_"):
            return labels.reshape(shape)
        return np.broadcast_to(labels, shape)

    def _product(self, node: Node) -> Labels:
        shape = self._shape(node.output)
        a, b = (self.labels.get(name) for name in node.inputs)
        if len(shape) < 2 or any(len(self._shape(name)) < 2 for name in node.inputs):
            for labels in (a, b):
                if labels is not None:
                    self._keep(labels)
            return np.zeros(shape, np.int64)
        left = None if a is None else np.broadcast_to(self.together(a, a.ndim - 1), shape)
        right = None if b is None else np.broadcast_to(self.together(b, b.ndim - 2), shape)
        if left is not None and right is not None:
            self.join(left, right)
            return right
        if left is not None:
            return self._beside(left, (*self._extents(node.inputs[1])[:-2], 1, 1))
        assert right is not None
        return self._beside(right, (*self._extents(node.inputs[0])[:-2], 1, 1))

    # -- what comes out ---------------------------------------------------------------------------

    def found(self) -> list[Site]:
        """The sites, once the walk is done."""
        roots = np.array([self.find(number) for number in range(len(self.parent))])
        makers: dict[int, dict[str, list[int]]] = {}
        for layer in self.layers.values():
            first = self.first[layer.name]
            for row in range(layer.outputs):
                rows = makers.setdefault(int(roots[first + row]), {})
                rows.setdefault(layer.name, []).append(row)
        readers: dict[int, set[str]] = {}
        for name, labels in self.read.items():
            for root in np.unique(roots[labels]):
                readers.setdefault(int(root), set()).add(name)
        made = []
        for layer in self.layers.values():
            if layer.name in self.read:
                inputs = roots[self.read[layer.name]]
                alone = all(readers[int(root)] == {layer.name} for root in np.unique(inputs))
                site = _site(layer.name, inputs, makers) if alone else None
                made += [] if site is None else [site]
        return made


def _site(
    reader: str, roots: np.ndarray, makers: Mapping[int, Mapping[str, list[int]]]
) -> Site | None:
    """The units of a layer's inputs, of which each has a group; None if they cannot go apart."""
    starts = np.flatnonzero(np.diff(roots, prepend=-1))
    size = len(roots) // len(starts)
    neat = len(np.unique(roots)) == len(starts) and bool(np.all(np.diff(starts) == size))
    if _KEPT in roots or len(starts) < 2 or not neat or size * len(starts) != len(roots):
        return None
    units = []
    for start in starts.tolist():
        rows = makers.get(int(roots[start]), {})
        made = {name: tuple(numbers) for name, numbers in rows.items()}
        units.append(Unit(made, tuple(range(start, start + size))))
    names = tuple(units[0].rows)
    if not names or any(tuple(unit.rows) != names for unit in units):
        return None
    return Site(reader, names, tuple(units))
