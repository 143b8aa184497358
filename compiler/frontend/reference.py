"""Nodes without an importer, computed by ONNX's own reference where all that they read is known."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import helper

from sparsec.compiler.frontend.tensor import Fail

ELEMENT_LIMIT = 2**22
"""A node is not computed whose inputs or results have more elements than this together."""

# Not the same every time.
_RANDOM = frozenset(
    (
        "Bernoulli",
        "Dropout",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)
# Decoders of files are no arithmetic.
_FOREIGN = frozenset(("ImageDecoder",))
# What is refused of these is an index outside, and the reference takes some of those.
_INDEXED = frozenset(
    ("Gather", "GatherElements", "GatherND", "Scatter", "ScatterElements", "ScatterND")
)
# Results whose extents depend on values, but are bounded by those of the inputs.
_NO_LARGER = frozenset(("Compress", "NonZero", "Unique"))


def evaluate(
    node: onnx.NodeProto,
    inputs: Sequence[np.ndarray | None],
    opsets: Mapping[str, int],
    cache: dict[str, list[np.ndarray]],
) -> list[np.ndarray]:
    """Results of a node of the default domain.

    Args:
        node: without references to a calling function's attributes.
        inputs: its inputs, None where an optional one is absent.
        opsets: version of each operator set.
        cache: keeps results; imports for several lengths compute the same things.

    Raises:
        Fail: it is random, has graphs inside, is too large, or the reference cannot compute it.
    """
    if node.op_type in _RANDOM | _FOREIGN | _INDEXED or node.domain not in ("", "ai.onnx"):
        raise Fail("it cannot be computed at compile time")
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        raise Fail("it has graphs inside")
    if any(a.t.data_location == onnx.TensorProto.EXTERNAL for a in node.attribute):
        raise Fail("its attributes are in another file")
    given = [array for array in inputs if array is not None]
    _check_count(sum(array.size for array in given))
    digest = hashlib.sha256(node.SerializeToString())
    for array in given:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    key = digest.hexdigest()
    if key not in cache:
        cache[key] = _evaluate(node, inputs, opsets.get("", 1))
    return cache[key]


def _evaluate(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray | None], opset: int
) -> list[np.ndarray]:
    local = onnx.NodeProto()
    local.CopyFrom(node)
    names = [f"x{i}" if array is not None else "" for i, array in enumerate(inputs)]
    outputs = [f"y{i}" if name else "" for i, name in enumerate(node.output)]
    del local.input[:], local.output[:]
    local.input.extend(names)
    local.output.extend(outputs)
    feeds = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    wanted = [name for name in outputs if name]
    graph = helper.make_graph(
        [local],
        "node",
        [],
        [onnx.ValueInfoProto(name=name) for name in wanted],
        [onnx.numpy_helper.from_array(array, name) for name, array in feeds.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        _check_sizes(node, typed)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = onnx.reference.ReferenceEvaluator(model).run(wanted, {})
    except Fail:
        raise
    except Exception as error:  # whatever an implementation of some op raises
        raise Fail(f"ONNX's reference cannot compute it: {error}") from None
    if not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        raise Fail("its result is no tensor")
    made = iter(np.asarray(result) for result in results)
    return [next(made) if name else np.zeros(0) for name in outputs]


def _check_sizes(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    """Refuse what would be gigantic before it is computed."""
    if node.op_type in _NO_LARGER:
        return
    for value in model.graph.output:
        shape = value.type.tensor_type.shape
        if not value.type.tensor_type.HasField("shape") or any(
            not d.HasField("dim_value") for d in shape.dim
        ):
            raise Fail("how large its result is depends on values")
        _check_count(math.prod(d.dim_value for d in shape.dim))


def _check_count(count: Any) -> None:
    if count > ELEMENT_LIMIT:
        raise Fail(f"computing {count} elements at compile time is absurd")
