"""Pruned and rounded layers written back into the user's own graph.

Nothing is traced: names, inputs, outputs and opset stay.  A layer in the dialect ``qdq``

    x -> QuantizeLinear -> DequantizeLinear -> MatMul or Gemm(DequantizeLinear(int8 weights)), bias

where the dequantized weights have the name of the stored matrix, and layers that read one value
share its pair; or in the dialect ``sparseml``

    x -> QuantizeLinear -> MatMulInteger(uint8 weights, 128) -> Add(int32 bias) -> Cast -> Mul

Where channels are brought to one size before they are rounded (`smoothing`), a Mul with a vector is
between x and its QuantizeLinear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sparsec.compiler.frontend import Model
from sparsec.compiler.frontend.load import tensor_bytes, tensors
from sparsec.errors import UnsupportedError
from sparsec.pruning.engine.opened import node_labels, stored
from sparsec.pruning.layers import Layer, Use
from sparsec.pruning.oneshot import Compressed, stored_form
from sparsec.pruning.ranges import Range, Rounding

DIALECTS = ("qdq", "sparseml")

#: Opsets in which the operators come: QuantizeLinear and MatMulInteger; scales along an axis.
LEAST_OPSET, AXIS_OPSET = 10, 13

#: A model above this keeps its weights in a file of its own.
INLINE_LIMIT = 1 << 30

MODEL, DATA = "model.onnx", "model.onnx.data"

_MICROSOFT = "com.microsoft"


def per_channel(model: Model, dialect: str) -> bool:
    """Whether weights may have a scale for each output."""
    return dialect == "sparseml" or model.opset >= AXIS_OPSET


def check_opset(model: Model) -> None:
    """Refuse models whose opset has no quantized operators.

    Raises:
        UnsupportedError: says which it would take.
    """
    if model.opset < LEAST_OPSET:
        why = (
            f"opset {model.opset} has no quantized operators: convert it to {AXIS_OPSET} or newer "
            "with onnx.version_converter.convert_version"
        )
        raise UnsupportedError(f"{model.path.name}: {why}", [(model.name, "model", why)])


def export(
    model: Model,
    layers: Sequence[Layer],
    made: Mapping[str, Compressed],
    dialect: str,
    others: Mapping[str, Tensor] | None = None,
) -> onnx.ModelProto:
    """The user's graph with some layers as they have become.

    Args:
        model: from :func:`~sparsec.pruning.prepare.prepared`.
        layers: its linear layers.
        made: what those that change have become.
        dialect: one of :data:`DIALECTS`.
        others: other stored tensors that have changed, in the layout in which they are stored.
    """
    edit = _Edit(model)
    write = edit.qdq if dialect == "qdq" else edit.sparseml
    for layer in layers:
        if layer.name not in made:
            continue
        new = made[layer.name]
        if new.scale is None or new.rounding is None:
            edit.floats(layer, new)
        else:
            write(layer, new, new.scale.numpy(), new.rounding)
    for name, value in (others or {}).items():
        edit.replace(name, value.detach().cpu().numpy())
    return edit.finish()


def save(proto: onnx.ModelProto, model: Model, folder: Path) -> Path:
    """Write a model, with weights in a file of their own where it is large or has been so before.

    Raises:
        OSError: the disk is full, or another failure to write.
    """
    external = False
    for tensor in tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            external = True
            tensor.raw_data = tensor_bytes(tensor, model.folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    path = folder / MODEL
    onnx.save(proto, path, save_as_external_data=external or size > INLINE_LIMIT, location=DATA)
    return path


class _Edit:
    """A copy of a model's graph that is being edited."""

    def __init__(self, model: Model) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(model.proto)
        self.proto.ir_version = max(self.proto.ir_version, 4)
        _restore_domains(self.proto, model)
        graph = self.graph = self.proto.graph
        self.labels = node_labels(self.proto)
        self.nodes = dict(zip(self.labels, graph.node, strict=True))
        self.tensors = stored(model)
        self.taken = {n for node in graph.node for n in (*node.input, *node.output)}
        self.taken |= {t.name for t in graph.initializer}
        # Nodes that come first, and those that come before others, by label.
        self.first: list[onnx.NodeProto] = []
        self.before: dict[str, list[onnx.NodeProto]] = {}
        self.gone: set[str] = set()
        self.added: list[onnx.TensorProto] = []
        self.dropped: set[str] = set()
        self.pairs: dict[tuple[str, Range], str] = {}

    def fresh(self, hint: str) -> str:
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name

    def constant(self, array: Any, hint: str) -> str:
        name = self.fresh(hint)
        self.added.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def kind(self, layer: Layer) -> int:
        """The element type that the layer is stored in."""
        return int(self.tensors[layer.name].data_type)

    # -- one layer --------------------------------------------------------------------------------

    def floats(self, layer: Layer, made: Compressed) -> None:
        """A layer whose weights stay floats."""
        self.replace(layer.name, stored_form(layer, made.weights.float()).numpy())
        self.bias(layer, made)

    def replace(self, name: str, array: np.ndarray) -> None:
        """Give a stored tensor other contents of the same shape, in its own element type."""
        tensor = self.tensors[name]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        new = numpy_helper.from_array(np.ascontiguousarray(array, dtype), name)
        self.dropped.add(name)
        self.added.append(new)

    def bias(self, layer: Layer, made: Compressed) -> None:
        if layer.bias:
            self.replace(layer.bias, made.bias.numpy())

    def qdq(self, layer: Layer, made: Compressed, scale: np.ndarray, found: Rounding) -> None:
        """Pairs around the layer's input and its weights."""
        half = self.kind(layer) != TensorProto.FLOAT
        weights = stored_form(layer, made.weights).numpy()
        operands = [
            self.constant(weights, f"{layer.name}_quantized"),
            self.constant(scale, f"{layer.name}_scale"),
            self.constant(np.zeros(scale.shape, np.int8), f"{layer.name}_zero_point"),
        ]
        axis: dict[str, Any] = {"axis": int(layer.transposed)} if scale.ndim else {}
        result = self.fresh(f"{layer.name}_float") if half else layer.name
        label = f"{layer.name}_DequantizeLinear"
        self.first.append(
            helper.make_node("DequantizeLinear", operands, [result], name=label, **axis)
        )
        if half:
            self.first.append(self.cast(result, layer.name, self.kind(layer)))
        self.dropped.add(layer.name)
        for use in layer.uses:
            node = self.nodes[use.source]
            node.input[use.operand] = self.pair(node.input[use.operand], use, found, layer)
        self.bias(layer, made)

    def cast(self, x: str, y: str, kind: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [x], [y], name=self.fresh(f"{y}_Cast"), to=kind)

    def quantized(self, x: str, use: Use, found: Rounding, layer: Layer) -> tuple[str, list[str]]:
        """(x as bytes, its scale and zero point); made before the node of a use."""
        key = (x, found.range)
        made = self.before.setdefault(use.source, [])
        ends = found.range
        dtype = np.int8 if ends.low < 0 else np.uint8
        parameters = [
            self.constant(np.float32(ends.scale), f"{x}_scale"),
            self.constant(np.asarray(ends.zero_point, dtype), f"{x}_zero_point"),
        ]
        source = x
        if self.kind(layer) != TensorProto.FLOAT:
            source = self.fresh(f"{x}_float")
            made.append(self.cast(x, source, TensorProto.FLOAT))
        if found.factors is not None:
            factors = self.constant(found.factors.numpy(), f"{x}_factors")
            even, label = self.fresh(f"{x}_even"), self.fresh(f"{x}_Mul")
            made.append(helper.make_node("Mul", [source, factors], [even], name=label))
            source = even
        q = self.fresh(f"{x}_quantized")
        label = self.fresh(f"{x}_QuantizeLinear")
        made.append(helper.make_node("QuantizeLinear", [source, *parameters], [q], name=label))
        self.pairs[key] = q
        return q, parameters

    def pair(self, x: str, use: Use, found: Rounding, layer: Layer) -> str:
        """x rounded; layers that read one value share it."""
        key = (x, found.range)
        if key not in self.pairs:
            q, parameters = self.quantized(x, use, found, layer)
            made = self.before[use.source]
            result = self.fresh(f"{x}_dequantized")
            label = self.fresh(f"{x}_DequantizeLinear")
            made.append(
                helper.make_node("DequantizeLinear", [q, *parameters], [result], name=label)
            )
            if self.kind(layer) != TensorProto.FLOAT:
                half = self.fresh(f"{x}_half")
                made.append(self.cast(result, half, self.kind(layer)))
                result = half
            self.pairs[key] = result
        return self.pairs[key]

    def sparseml(self, layer: Layer, made: Compressed, scale: np.ndarray, found: Rounding) -> None:
        """The layer as a product of integers."""
        wide = made.weights.numpy().astype(np.int16).T + 128
        weights = self.constant(wide.astype(np.uint8), f"{layer.name}_quantized")
        zero = self.constant(np.full(scale.shape, 128, np.uint8), f"{layer.name}_zero_point")
        both = np.float32(found.range.scale) * scale
        rescale = self.constant(both.astype(np.float32), f"{layer.name}_rescale")
        limit = 2**31 - 1
        steps = np.rint(made.bias.numpy().astype(np.float64) / both.astype(np.float64))
        bias = self.constant(
            np.clip(steps, -limit, limit).astype(np.int32), f"{layer.name}_bias_quantized"
        )
        for use in layer.uses:
            self._integer(layer, use, found, (weights, zero, bias, rescale))

    def _integer(
        self, layer: Layer, use: Use, found: Rounding, stored_as: tuple[str, str, str, str]
    ) -> None:
        node = self.nodes[use.source]
        weights, zero, bias, rescale = stored_as
        x = node.input[use.operand]
        key = (x, found.range)
        if key not in self.pairs:
            self.quantized(x, use, found, layer)
        q = self.pairs[key]
        made = self.before.setdefault(use.source, [])
        x_zero = next(n.input[2] for nodes in self.before.values() for n in nodes
                      if n.op_type == "QuantizeLinear" and n.output[0] == q)  # fmt: skip
        result, added = self._result(layer, node)
        product, biased, real = (
            self.fresh(f"{result}_{end}") for end in ("product", "biased", "real")
        )
        steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
            ("MatMulInteger", [q, weights, x_zero, zero], product, {}),
            ("Add", [product, bias], biased, {}),
            ("Cast", [biased], real, {"to": TensorProto.FLOAT}),
        ]
        half = self.kind(layer) != TensorProto.FLOAT
        last = self.fresh(f"{result}_float") if half else result
        steps.append(("Mul", [real, rescale], last, {}))
        if half:
            steps.append(("Cast", [last], result, {"to": self.kind(layer)}))
        for op, inputs, output, attributes in steps:
            label = self.fresh(f"{use.source}_{op}")
            made.append(helper.make_node(op, inputs, [output], name=label, **attributes))
        self.gone |= {use.source, *added}

    def _result(self, layer: Layer, node: onnx.NodeProto) -> tuple[str, list[str]]:
        """The value of a layer behind its bias, and the label of the node that adds it."""
        if layer.bias in node.input:
            return node.output[0], []
        for label, other in self.nodes.items():
            if other.op_type == "Add" and {node.output[0], layer.bias} == set(other.input):
                return other.output[0], [label]
        return node.output[0], []

    # -- the whole --------------------------------------------------------------------------------

    def finish(self) -> onnx.ModelProto:
        """The edited model; tensors and nodes that nobody needs any more are left out."""
        nodes = list(self.first)
        for label, node in zip(self.labels, self.graph.node, strict=True):
            nodes += self.before.get(label, [])
            if label not in self.gone and not self.dropped.intersection(node.output):
                nodes.append(node)
        graph = self.graph
        nodes = _needed(nodes, {v.name for v in graph.output})
        read = {name for node in nodes for name in _reads(node)}
        read |= {v.name for v in graph.output}
        kept = [t for t in graph.initializer if t.name in read and t.name not in self.dropped]
        stored_now = kept + [t for t in self.added if t.name in read]
        made = {name for node in nodes for name in node.output}
        infos = [v for v in graph.value_info if v.name in made]
        inputs = [v for v in graph.input if v.name not in self.dropped]
        for field, items in (
            ("node", nodes), ("initializer", stored_now), ("value_info", infos), ("input", inputs),
        ):  # fmt: skip
            copies = [type(item).FromString(item.SerializeToString()) for item in items]
            graph.ClearField(field)
            getattr(graph, field).extend(copies)
        return self.proto


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inside in inner.node:
                yield from _reads(inside)
            yield from (v.name for v in inner.output)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes that outputs need, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            needed.update(_reads(node))
            kept.append(node)
    return kept[::-1]


def _restore_domains(proto: onnx.ModelProto, model: Model) -> None:
    """Ops that the front end has moved to ONNX Runtime's domain are where the file has them."""
    for node in proto.graph.node:
        if node.domain == _MICROSOFT and node.op_type in (
            "LayerNormalization", "SimplifiedLayerNormalization",
        ):  # fmt: skip
            node.domain = ""
    if not any(node.domain == _MICROSOFT for node in proto.graph.node) and (
        _MICROSOFT not in model.opsets
    ):
        kept = [o for o in proto.opset_import if o.domain != _MICROSOFT]
        copies = [type(o).FromString(o.SerializeToString()) for o in kept]
        del proto.opset_import[:]
        proto.opset_import.extend(copies)
