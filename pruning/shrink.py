"""Removed heads and channels taken out of a model's matrices, and out of its shapes.

What goes is zero in every layer that it touches, so the results stay the same with it or without.
The rows and columns of a site's layers are cut, and where heads go, the numbers of heads and of
their channels in the reshapes between the layers change with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from sparsec.compiler.frontend import Model
from sparsec.pruning.engine.opened import node_labels, stored
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed, Form
from sparsec.pruning.structure import Site

_SHAPED = ("Reshape", "Expand")


def cut(made: Mapping[str, Compressed], forms: Mapping[str, Form]) -> dict[str, Compressed]:
    """Layers without the rows and columns that are gone."""
    found = {}
    for name, layer in made.items():
        form = forms.get(name)
        weights, scale, bias, factors = layer.weights, layer.scale, layer.bias, layer.factors
        if form is not None and form.keep_outputs is not None:
            rows = list(form.keep_outputs)
            weights, bias = weights[rows], bias[rows]
            scale = scale[rows] if scale is not None and scale.ndim else scale
        if form is not None and form.keep_inputs is not None:
            inputs = list(form.keep_inputs)
            weights = weights[:, inputs]
            factors = factors[inputs] if factors is not None else None
        found[name] = replace(
            layer, weights=weights.contiguous(), scale=scale, bias=bias, factors=factors
        )
    return found


def fewer_heads(
    model: Model,
    layers: Sequence[Layer],
    sites: Sequence[Site],
    kept: Mapping[str, Sequence[int]],
) -> Model:
    """The model with as many heads in its shapes as stay; its matrices are cut elsewhere."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    edit = _Shapes(model, proto)
    by_name = {layer.name: layer for layer in layers}
    for site in sites:
        stay = kept.get(site.reader)
        if stay is None or site.size == 1 or len(stay) == len(site.units):
            continue
        makers = [by_name[name].uses[0].source for name in site.makers]
        reader = by_name[site.reader].uses[0].source
        edit.between(makers, reader, len(site.units), site.size, len(stay))
    return replace(model, proto=proto, cache={})


class _Shapes:
    def __init__(self, model: Model, proto: onnx.ModelProto) -> None:
        self.model, self.proto = model, proto
        self.tensors = stored(model)
        self.labels = dict(zip(node_labels(proto), proto.graph.node, strict=True))
        self.makers = {out: node for node in proto.graph.node for out in node.output}
        self.count = 0

    def between(self, makers: Iterable[str], reader: str, heads: int, size: int, stay: int) -> None:
        """Change the shapes between layers, which are given by the labels of their products."""
        behind = self._behind([out for label in makers for out in self.labels[label].output])
        for node in self._before(self.labels[reader].input[0]):
            if node.op_type in _SHAPED and not behind.isdisjoint(node.output):
                self._edit(node, 1, {heads: stay, heads * size: stay * size})

    def _behind(self, values: Sequence[str]) -> set[str]:
        """Values that are computed from some."""
        found = set(values)
        for node in self.proto.graph.node:
            if not found.isdisjoint(node.input):
                found.update(node.output)
        return found

    def _before(self, value: str) -> list[onnx.NodeProto]:
        """Nodes that a value is computed from."""
        found: list[onnx.NodeProto] = []
        seen: set[str] = set()
        todo = [value]
        while todo:
            name = todo.pop()
            node = self.makers.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            found.append(node)
            todo += node.input
        return found

    def _known(self, name: str) -> np.ndarray | None:
        """A stored vector of integers, unsqueezed or not."""
        node = self.makers.get(name)
        if node is not None and node.op_type in ("Unsqueeze", "Reshape", "Cast"):
            name = node.input[0]
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.INT64:
            return None
        return np.atleast_1d(self.model.array(tensor))

    def _edit(self, node: onnx.NodeProto, place: int, changes: Mapping[int, int]) -> None:
        name = node.input[place]
        known = self._known(name)
        if known is None:
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == "Concat":
                for i in range(len(maker.input)):
                    self._edit_piece(maker, i, changes)
            return
        self._put(node, place, known, changes)

    def _edit_piece(self, node: onnx.NodeProto, place: int, changes: Mapping[int, int]) -> None:
        known = self._known(node.input[place])
        if known is not None:
            self._put(node, place, known, changes)

    def _put(
        self, node: onnx.NodeProto, place: int, known: np.ndarray, changes: Mapping[int, int]
    ) -> None:
        new = np.array([changes.get(int(n), int(n)) for n in known], np.int64)
        if np.array_equal(new, known):
            return
        name = f"{node.input[place]}_fewer_{self.count}"
        self.count += 1
        self.proto.graph.initializer.append(numpy_helper.from_array(new, name))
        node.input[place] = name
