"""A model made ready: each linear layer has a bias of its own.

What pruning does to a layer's outputs on the average goes into its bias, so a layer without one
gets one, and a stored vector that several layers add is copied.  The results stay the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import onnx
from onnx import helper

from sparsec.compiler.frontend import Model
from sparsec.compiler.frontend.load import tensor_bytes
from sparsec.pruning.engine.opened import node_labels, open_model, stored
from sparsec.pruning.layers import Layer, linear_layers


def prepared(model: Model) -> Model:
    """The model, with a bias for each linear layer that nobody else reads.

    Raises:
        ModelError, UnsupportedError: as the front end does.
    """
    opened = open_model(model)
    layers = linear_layers(opened.graph(opened.probe), opened.weights)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    edit = _Biases(proto, model, stored(model))
    for layer in layers:
        if not layer.shared:
            edit.own(layer)
    edit.finish()
    return replace(model, proto=proto, cache={})


class _Biases:
    def __init__(
        self, proto: onnx.ModelProto, model: Model, tensors: Mapping[str, onnx.TensorProto]
    ) -> None:
        self.proto = proto
        self.model = model
        self.tensors = tensors
        labels = node_labels(proto)
        self.nodes = dict(zip(labels, proto.graph.node, strict=True))
        # New nodes behind those that are there, by label.
        self.behind: dict[str, onnx.NodeProto] = {}
        self.labels = labels
        self.taken = {name for node in proto.graph.node for name in (*node.input, *node.output)}
        self.taken |= set(tensors)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if name in node.input]

    def fresh(self, hint: str) -> str:
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name

    def own(self, layer: Layer) -> None:
        """Give a layer a bias of its own, if it has none."""
        if layer.bias:
            if len(self.readers(layer.bias)) > len(layer.uses):
                self._copy(layer)
            return
        products = [self.nodes.get(use.source) for use in layer.uses]
        if any(not _extensible(node) for node in products):
            return
        weight = self.tensors[layer.name]
        bias = self.fresh(f"{layer.name}_bias")
        zeros = bytes(layer.outputs * _size(weight.data_type))
        self.proto.graph.initializer.append(
            onnx.TensorProto(
                name=bias, data_type=weight.data_type, dims=[layer.outputs], raw_data=zeros
            )
        )
        for use, node in zip(layer.uses, products, strict=True):
            assert node is not None
            if node.op_type == "Gemm":
                del node.input[2:]
                node.input.append(bias)
            else:
                result = node.output[0]
                node.output[0] = self.fresh(f"{result}_product")
                name = f"{use.source}_bias"
                self.behind[use.source] = helper.make_node(
                    "Add", [node.output[0], bias], [result], name=name
                )

    def _copy(self, layer: Layer) -> None:
        """A copy of the bias, which this layer alone reads."""
        old = self.tensors[layer.bias]
        new = onnx.TensorProto()
        if old.data_location == onnx.TensorProto.EXTERNAL:
            new.data_type = old.data_type
            new.dims.extend(old.dims)
            new.raw_data = tensor_bytes(old, self.model.folder)
        else:
            new.CopyFrom(old)
        new.name = self.fresh(layer.bias)
        for reader in self._adders(layer):
            reader.input[list(reader.input).index(layer.bias)] = new.name
        self.proto.graph.initializer.append(new)

    def _adders(self, layer: Layer) -> Iterable[onnx.NodeProto]:
        """The nodes that add the layer's bias: its Gemms, or what reads its products."""
        for use in layer.uses:
            node = self.nodes[use.source]
            if layer.bias in node.input:
                yield node
            else:
                made = set(node.output)
                yield from (n for n in self.readers(layer.bias) if not made.isdisjoint(n.input))

    def finish(self) -> None:
        """Put new nodes where they belong."""
        graph = self.proto.graph
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        del graph.node[:]
        for label, node in zip(self.labels, nodes, strict=True):
            graph.node.append(node)
            if label in self.behind:
                graph.node.append(self.behind[label])


def _extensible(node: onnx.NodeProto | None) -> bool:
    """Whether a bias can be added right behind a product."""
    if node is None or node.op_type not in ("MatMul", "Gemm"):
        return False
    attributes = {a.name: a.f for a in node.attribute if a.name in ("alpha", "beta")}
    return set(attributes.values()) <= {1.0} and (len(node.input) < 3 or not node.input[2])


def _size(data_type: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
