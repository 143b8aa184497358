"""A model whose stored weights are inputs of the core IR.

The front end folds what it knows: a stored matrix that the file transposes, casts or scales would
come out as another matrix.  As inputs, weights keep their names and layouts, and what is done to
them stays in the graph, where gradients go through it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from sparsec.compiler.frontend import Model, Signature, declared, import_raw, signature
from sparsec.compiler.frontend.importer import (
    InputShape,
    import_nodes,
    node_label,
    onnx_values,
)
from sparsec.compiler.frontend.tensor import Tensor
from sparsec.compiler.ir import BATCH, Dim, Graph
from sparsec.compiler.passes.fuse_gelu import fuse_gelu
from sparsec.compiler.passes.fuse_layernorm import fuse_layernorm
from sparsec.errors import UnsupportedError

PROBE = 8
"""Length to look at a graph with; any would do."""

_FLOATS = frozenset(
    (
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    )
)

_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Opened:
    """A model with weights as inputs.

    Attributes:
        model: as it was loaded.
        signature: what it takes and gives, without its weights.
        weights: the stored tensors that became inputs, by name.
        extra: tensors that are outputs besides, by their ONNX names.
    """

    model: Model
    signature: Signature
    weights: Mapping[str, onnx.TensorProto]
    extra: tuple[str, ...]
    _bare: Model = field(repr=False)
    _graphs: dict[int, Graph] = field(default_factory=dict, repr=False)

    @property
    def probe(self) -> int:
        """A sequence length that the model takes; 0 without a sequence axis."""
        if not self.signature.has_sequence:
            return 0
        return self.signature.fixed_length or PROBE

    def array(self, name: str) -> np.ndarray:
        """The contents of a weight; half floats are widened to float32.

        Raises:
            ModelError: its data cannot be read.
        """
        array = self.model.array(self.weights[name])
        return array if array.dtype == np.float64 else array.astype(np.float32)

    def graph(self, length: int) -> Graph:
        """The core IR for a sequence length, with weights among its inputs.  Raw, but for GELU and
        LayerNorm, whose parts would take a third of the time of a training.

        Raises:
            InputError, UnsupportedError: as :func:`~sparsec.compiler.frontend.import_graph`.
        """
        if length not in self._graphs:
            raw = import_nodes(self._bare, self._shapes(length), length)
            self._graphs[length] = fuse_gelu(fuse_layernorm(raw))
        return self._graphs[length]

    def values(self, length: int) -> dict[str, Tensor]:
        """What each value of the file's own graph is for a sequence length, by its name there."""
        return onnx_values(self._bare, self._shapes(length), length)

    def _shapes(self, length: int) -> list[InputShape]:
        kinds = {value.name: value.type.tensor_type.elem_type for value in self.model.inputs()}
        given = [
            InputShape(spec.name, kinds[spec.name], tuple(_extent(d, length) for d in spec.shape))
            for spec in self.signature.inputs
        ]
        return given + [
            InputShape(name, tensor.data_type, tuple(tensor.dims))
            for name, tensor in self.weights.items()
        ]


def _extent(dim: str | int, length: int) -> Dim:
    return BATCH if dim == "batch" else length if dim == "sequence" else int(dim)


def open_model(model: Model, extra: Sequence[str] = ()) -> Opened:
    """A model with its weights as inputs.

    Weights are the stored floats of more than one element that the core IR holds as they are: what
    the front end computes with (tables of angles, masks of positions) stays known.

    Args:
        extra: ONNX tensors that are to be outputs besides.

    Raises:
        ModelError, UnsupportedError: as the front end does.
    """
    found = signature(model)
    length = (found.fixed_length or PROBE) if found.has_sequence else 0
    weights = _held(model, import_raw(model, length))
    for _ in range(_ROUNDS):
        opened = Opened(model, found, weights, tuple(extra), _bare(model, weights, extra))
        try:
            opened.graph(length)
        except UnsupportedError as error:
            # An op that has to know a weight while it is imported.
            stuck = _read_by(model, {name for name, _, _ in error.nodes})
            if stuck.isdisjoint(weights):
                raise
            weights = {name: t for name, t in weights.items() if name not in stuck}
        else:
            return opened
    raise UnsupportedError(f"{model.path.name}: its weights cannot be told from its shapes", [])


def stored(model: Model) -> dict[str, onnx.TensorProto]:
    """A graph's stored tensors by the names of their values: initializers and constants."""
    graph = model.proto.graph
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def node_labels(proto: onnx.ModelProto) -> list[str]:
    """A name for each node of a graph, by which the core IR's ``source`` is told: its own, with its
    index where it shares it."""
    labels = [node_label(node, i) for i, node in enumerate(proto.graph.node)]
    counts = Counter(labels)
    return [label if counts[label] == 1 else f"{label}#{i}" for i, label in enumerate(labels)]


def _held(model: Model, graph: Graph) -> dict[str, onnx.TensorProto]:
    """Stored floats that are constants of an imported graph, whole."""
    candidates = stored(model)
    found: set[str] = set()
    for name, array in graph.constants.items():
        known = name if name in candidates else re.sub(r"(\.\d+)+$", "", name)
        tensor = candidates.get(known)
        if tensor is None or tensor.data_type not in _FLOATS:
            continue
        if 1 < array.size == np.prod(tensor.dims, dtype=np.int64):
            found.add(known)
    return {name: tensor for name, tensor in candidates.items() if name in found}


def _read_by(model: Model, labels: set[str]) -> set[str]:
    return {
        name
        for node, label in zip(model.proto.graph.node, node_labels(model.proto), strict=True)
        if label in labels
        for name in node.input
    }


def _bare(model: Model, weights: Mapping[str, onnx.TensorProto], extra: Iterable[str]) -> Model:
    """The model with weights as inputs, and tensors as outputs besides."""
    old = model.proto
    new = onnx.ModelProto()
    new.ir_version = old.ir_version
    new.opset_import.extend(old.opset_import)
    graph = new.graph
    graph.name = old.graph.name
    for node, label in zip(old.graph.node, node_labels(old), strict=True):
        if node.op_type != "Constant" or node.output[0] not in weights:
            graph.node.append(node)
            graph.node[-1].name = label
    graph.initializer.extend(t for t in old.graph.initializer if t.name not in weights)
    graph.sparse_initializer.extend(old.graph.sparse_initializer)
    named = {value.name for value in old.graph.input}
    graph.input.extend(old.graph.input)
    graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
        for name, tensor in weights.items()
        if name not in named
    )
    graph.output.extend(old.graph.output)
    given = {row["name"] for row in declared(old.graph.output)}
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in extra if n not in given)
    return Model(
        new, model.path, model.name, model.folder, model.bundle, model.sha256, model.opset,
        model.opsets,
    )  # fmt: skip
