"""Ending a model early: at the output of an encoder layer, or of any node.

Layers are found by what they compute, not by names: in an encoder that normalizes after each
residual, a layer is two of

    x ─┬─ ... ─ add ─ layernorm ─ x'
       └─────────┘

the first around attention (a softmax), the second around the feed-forward block.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
from onnx import helper

from sparsec.compiler.frontend import Model, import_graph, signature
from sparsec.compiler.frontend.load import tensor_bytes, tensors
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes import PIPELINE
from sparsec.errors import InputError, ModelError

# Length to look at a graph with; any would do.
_PROBE = 8

# Ops through which a residual may pass on its way to the sum.
_TRANSPARENT = ("add", "quantize", "dequantize", "cast", "reshape")

# A model above this keeps its weights in a file of its own.
_INLINE_LIMIT = 1 << 30


def encoder_layers(model: Model) -> list[str]:
    """The ONNX tensors that hold the encoder layers' outputs, first layer first.

    Raises:
        ModelError: the model is not an encoder that normalizes after each residual.
    """
    sig = signature(model)
    length = sig.fixed_length or (_PROBE if sig.has_sequence else 0)
    graph = import_graph(model, length)
    for name, transform in PIPELINE:
        graph = transform(graph)
        if name == "fuse_layernorm":
            break
    makers = {value: node for node in graph.nodes for value in node.outputs}
    above = _ancestors(graph)
    norms = [node for node in graph.nodes if node.op == "layernorm"]
    residual = [node for node in norms if _skipped(node, makers, above)]
    softmaxes = sum(node.op == "softmax" for node in graph.nodes)
    chained = all(
        earlier.output in _summands(later.inputs[0], makers)
        for earlier, later in itertools.pairwise(residual)
    )
    if not residual or not chained or len(residual) != 2 * softmaxes:
        raise ModelError(
            f"{model.path}: no encoder layers were found (it has {len(norms)} layer "
            f"normalizations, {len(residual)} after a residual, and {softmaxes} softmaxes; a layer "
            f"of BERT's kind has 2, 2 and 1): give the name of an ONNX node, or None for the "
            f"model's own output"
        )
    labels: dict[str, list[str]] = {}
    for index, proto in enumerate(model.proto.graph.node):
        labels.setdefault(proto.name or f"{proto.op_type}_{index}", []).append(proto.output[0])
    found = []
    for node in residual[1::2]:
        known = labels.get(node.source.rpartition(", ")[2], [])
        if len(known) != 1:
            raise ModelError(
                f"{model.path}: the ONNX node {node.source} cannot be told from others: give the "
                f"nodes names of their own"
            )
        found.append(known[0])
    return found


def _ancestors(graph: Graph) -> dict[str, frozenset[str]]:
    """For each value, the sums and norms that it depends on."""
    above: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        merged: frozenset[str] = frozenset()
        for name in node.inputs:
            merged |= above.get(name, frozenset())
        if node.op in ("layernorm", "add"):
            merged |= {node.output}
        for output in node.outputs:
            above[output] = merged
    return above


def _summands(value: str, makers: dict[str, Node]) -> set[str]:
    """A value and all that it is a sum of."""
    found: set[str] = set()
    todo = [value]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        node = makers.get(name)
        if node is not None and node.op in _TRANSPARENT:
            todo += node.inputs if node.op == "add" else node.inputs[:1]
    return found


def _skipped(norm: Node, makers: dict[str, Node], above: dict[str, frozenset[str]]) -> bool:
    """Whether a norm's input is a sum of x and of something computed from x."""
    parts = _summands(norm.inputs[0], makers)
    leaves = [p for p in parts if p in makers and makers[p].op not in _TRANSPARENT]
    return any(
        one != other and one in above.get(other, frozenset()) for one in parts for other in leaves
    )


def tensor_of(model: Model, name: str) -> str:
    """The first output of the ONNX node of that name, or the tensor itself.

    Raises:
        InputError: there is neither.
    """
    for node in model.proto.graph.node:
        if name in (node.name, *node.output):
            return str(node.output[0] if node.name == name else name)
    raise InputError(f"{model.path} has neither a node nor a tensor called {name!r}")


def cut(model: Model, tensor: str, output: Path) -> None:
    """Write the part of a model that computes a float32 tensor ``[batch, sequence, channels]``.

    Args:
        model: the whole model.
        tensor: what the new model gives.
        output: the .onnx file to write.
    """
    old = model.proto
    makers = {name: node for node in old.graph.node for name in node.output}
    needed: set[str] = set()
    todo = [tensor]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in makers:
            todo += _reads(makers[name])
    new = onnx.ModelProto()
    new.CopyFrom(old)
    graph = new.graph
    keep = [node for node in graph.node if set(node.output) & needed]
    constants = [t for t in graph.initializer if t.name in needed]
    sparse = [t for t in graph.sparse_initializer if t.values.name in needed]
    inputs = [v for v in graph.input if v.name in needed]
    dims = [
        d.dim_param or (d.dim_value if d.HasField("dim_value") else None)
        for d in (inputs or graph.input)[0].type.tensor_type.shape.dim[:2]
    ]
    shape = [*dims, None] if len(dims) == 2 else None
    value = helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, shape)
    for field, items in (
        ("node", keep), ("initializer", constants), ("sparse_initializer", sparse),
        ("input", inputs), ("output", [value]), ("value_info", []),
    ):  # fmt: skip
        kept = [type(item).FromString(item.SerializeToString()) for item in items]
        graph.ClearField(field)
        getattr(graph, field).extend(kept)
    for constant in tensors(new):
        if constant.data_location == onnx.TensorProto.EXTERNAL:
            constant.raw_data = tensor_bytes(constant, model.folder)
            constant.data_location = onnx.TensorProto.DEFAULT
            del constant.external_data[:]
    size = sum(len(t.raw_data) for t in graph.initializer)
    onnx.save(new, output, save_as_external_data=size > _INLINE_LIMIT, location="weights")


def _reads(node: onnx.NodeProto) -> list[str]:
    """All names that a node reads, those of nested graphs included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        nested = [attribute.g] if attribute.HasField("g") else []
        for graph in [*nested, *attribute.graphs]:
            for inner in graph.node:
                names += _reads(inner)
            names += [value.name for value in graph.output]
    return names
