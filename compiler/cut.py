"""Ending a model early: at the output of an encoder layer, or of any node.

Layers are found by what they compute, not by names.  A layer begins with attention, which has a
softmax.  Everything that comes from it goes through the sums of the residual stream, and so through
the layer's output, which is the last such value that the next layer's softmax is computed from:

    x ─┬─ softmax ... ─ add ─┬─ ... ─ add ─ x'        norms stand behind the sums (BERT, DeBERTa),
       └─────────────────────┘ └───────┘              or before what they skip (ModernBERT)

The last layer has no next one: it ends after as many sums as the others have, with what the others
have behind those, and with the norm that ends an encoder which normalizes before.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
from onnx import helper

from sparsec.compiler.frontend import Model, import_graph, signature
from sparsec.compiler.frontend.load import needed_values, tensor_bytes, tensors
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.compiler.passes import PIPELINE
from sparsec.errors import InputError, ModelError

# Length to look at a graph with; any would do.
_PROBE = 8

# Ops that change how a value is stored, not what it is.
_TRANSPARENT = ("quantize", "dequantize", "cast", "reshape")

# Ops that mix channels or tokens: behind an encoder's end there is none of them but for its heads.
_PRODUCTS = {"gather", *(name for name, op in OPS.items() if op.terms)}

# Sums of a layer, where there is only one layer to judge by.
_SUMS = 2

# A model above this keeps its weights in a file of its own.
_INLINE_LIMIT = 1 << 30


def encoder_layers(model: Model) -> list[str]:
    """The ONNX tensors that hold the encoder layers' outputs, first layer first.

    The last one is what an encoder calls its last hidden state: behind its final norm, if it has
    one.

    Raises:
        ModelError: the model is not an encoder of layers with attention, one after the other.
    """
    sig = signature(model)
    length = sig.fixed_length or (_PROBE if sig.has_sequence else 0)
    graph = import_graph(model, length)
    for name, transform in PIPELINE:
        graph = transform(graph)
        if name == "fuse_layernorm":
            break
    ends = _Flow(graph).ends()
    if not ends:
        softmaxes = sum(node.op == "softmax" for node in graph.nodes)
        raise ModelError(
            f"{model.path}: no encoder layers were found (it has {softmaxes} softmaxes; each layer "
            f"must have attention and a residual sum behind it, and be computed from the layer "
            f"before): give the name of an ONNX node or tensor, or None for the model's own output"
        )
    labels: dict[str, list[str]] = {}
    for index, proto in enumerate(model.proto.graph.node):
        labels.setdefault(proto.name or f"{proto.op_type}_{index}", []).append(proto.output[0])
    found = []
    for node in ends:
        known = labels.get(node.source.rpartition(", ")[2], [])
        if len(known) != 1:
            raise ModelError(
                f"{model.path}: the ONNX node {node.source} cannot be told from others: give the "
                f"nodes names of their own"
            )
        found.append(known[0])
    return found


class _Flow:
    """What a graph's values go through."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = graph.nodes
        self.makers = {value: i for i, node in enumerate(graph.nodes) for value in node.outputs}
        self.readers: list[list[int]] = [[] for _ in graph.nodes]
        for i, node in enumerate(graph.nodes):
            for made in {self.makers[name] for name in node.inputs if name in self.makers}:
                self.readers[made].append(i)
        # Scores of attention may be an output too, and are no hidden states.
        self.outputs = {
            self.makers[name]
            for name in graph.outputs
            if name in self.makers and len(graph.values[name].shape) <= 3
        }
        self.next = self._all_go_through()

    def _all_go_through(self) -> list[int]:
        """For each node the first one behind it that all paths from it to the outputs go through;
        the number of nodes where there is none, -1 where no path leads to an output."""
        end = len(self.nodes)
        after = [-1] * end + [end]
        depth = [0] * (end + 1)
        for i in range(end - 1, -1, -1):
            ways = [j for j in self.readers[i] if after[j] >= 0]
            ways += [end] if i in self.outputs else []
            if not ways:
                continue
            meet = ways[0]
            for other in ways[1:]:
                while meet != other:
                    if depth[meet] < depth[other]:
                        meet, other = other, meet
                    meet = after[meet]
            after[i], depth[i] = meet, depth[meet] + 1
        return after

    def _behind(self, i: int) -> list[int]:
        """The nodes that everything computed from a node goes through, in order."""
        found = []
        while 0 <= (i := self.next[i]) < len(self.nodes):
            found.append(i)
        return found

    def _above(self, i: int) -> set[int]:
        """The nodes that a node is computed from."""
        found: set[int] = set()
        todo = [i]
        while todo:
            for name in self.nodes[todo.pop()].inputs:
                made = self.makers.get(name)
                if made is not None and made not in found:
                    found.add(made)
                    todo.append(made)
        return found

    def _is_sum(self, i: int) -> bool:
        """Whether a node adds two values that are both computed at run time."""
        node = self.nodes[i]
        return node.op == "add" and all(name in self.makers for name in node.inputs)

    def ends(self) -> list[Node]:
        """The nodes that end the layers; none if this is no encoder."""
        weighted = [
            i
            for i, node in enumerate(self.nodes)
            if node.op == "softmax" and any(self.nodes[j].op in _PRODUCTS for j in self._behind(i))
        ]
        ends: list[int] = []
        counts: list[int] = []
        tail: list[str] = []
        for one, two in itertools.pairwise(weighted):
            above = self._above(two)
            behind = [j for j in self._behind(one) if j in above]
            if one not in above or not any(map(self._is_sum, behind)):
                return []
            sums = [k for k, j in enumerate(behind) if self._is_sum(j)]
            counts.append(len(sums))
            tail = [self.nodes[j].op for j in behind[sums[-1] + 1 :]]
            ends.append(behind[-1])
        if weighted:
            last = self._last(self._behind(weighted[-1]), min(counts, default=_SUMS), tail)
            if last is None:
                return []
            ends.append(last)
        return [self._plain(i) for i in ends]

    def _last(self, behind: list[int], count: int, tail: list[str]) -> int | None:
        """Where the last layer ends, of the nodes that its attention goes through."""
        sums = [k for k, j in enumerate(behind) if self._is_sum(j)]
        if not sums:
            return None
        at = sums[min(count, len(sums)) - 1]
        for op in tail:
            if at + 1 < len(behind) and self.nodes[behind[at + 1]].op == op:
                at += 1
        rest = behind[at + 1 :]
        # The final norm, as one node or in pieces that lead to an output of hidden states.
        shape = self._shape(behind[at])
        for k, j in enumerate(rest):
            if self.nodes[j].op in _PRODUCTS:
                break
            if j in self.outputs and self._shape(j) == shape:
                return j
            if self.nodes[j].op == "layernorm" and not k:
                return j
        return behind[at]

    def _shape(self, i: int) -> object:
        return self.graph.values[self.nodes[i].outputs[0]].shape

    def _plain(self, i: int) -> Node:
        """A node, or the one whose result it stores in another form."""
        while self.nodes[i].op in _TRANSPARENT and self.nodes[i].inputs[0] in self.makers:
            i = self.makers[self.nodes[i].inputs[0]]
        return self.nodes[i]


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
    """Write the part of a model that computes a float32 tensor ``[batch, sequence, channels]``, or
    one of its outputs.

    Args:
        model: the whole model.
        tensor: what the new model gives.
        output: the .onnx file to write.
    """
    old = model.proto
    needed = needed_values(old.graph, {tensor})
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
    value = next((known for known in graph.output if known.name == tensor), value)
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
