"""Small ONNX files, and the check that the front end means what ONNX Runtime computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.frontend import Model, import_graph, import_raw, load_model, signature
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph
from tests.ort_reference import session

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

Info = tuple[str, int, Sequence[Any]]


def node(op: str, inputs: str, outputs: str, **attrs: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, ``_`` is an absent one."""
    sides = (["" if n == "_" else n for n in side.split()] for side in (inputs, outputs))
    return helper.make_node(op, *sides, **attrs)


def model_proto(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    constants: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; outputs are given by (name, element type, rank as a list of anything)."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(n, t, [None] * len(s)) for n, t, s in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def save(folder: Path, *args: Any, **kwargs: Any) -> Model:
    """Write a model and load it with the front end."""
    path = folder / "model.onnx"
    path.write_bytes(model_proto(*args, **kwargs).SerializeToString())
    return load_model(path)


def feeds(model: Model, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: ids below 100, masks of leading ones, floats of either sign."""
    rng = np.random.default_rng(seed)
    out = {}
    for spec in signature(model).inputs:
        named = {"batch": batch, "sequence": length}
        shape = tuple(named[d] if isinstance(d, str) else d for d in spec.shape)
        if "mask" in spec.name:
            real = rng.integers(1, length + 1, (batch, 1))
            array = np.broadcast_to(np.arange(length) < real, shape)
        elif "type" in spec.name:
            array = rng.integers(0, 2, shape)
        elif spec.dtype.kind == "f":
            array = rng.standard_normal(shape)
        else:
            array = rng.integers(2, 100, shape)
        out[spec.name] = np.array(array, spec.dtype, order="C")
    return out


def check(
    model: Model,
    lengths: Sequence[int] = (1, 7, 16),
    batches: Sequence[int] = (1, 3),
    tolerance: float = 1e-5,
) -> Graph:
    """Compare the imported graphs with ONNX Runtime; returns the canonical one of the last length.

    Args:
        tolerance: relative to the largest element of an output; 0 asks for equality.
    """
    reference = session(model.path)
    specs = signature(model).outputs
    for length in lengths:
        graph = import_graph(model, length)
        forms = [graph] if length != lengths[-1] else [import_raw(model, length), graph]
        for batch in batches:
            given = feeds(model, batch, length)
            want = reference.run(None, given)
            for form in forms:
                got = interpret(form, [given[name] for name in form.inputs])
                for spec, a, b in zip(specs, got, want, strict=True):
                    named = {"batch": batch, "sequence": length}
                    shape = tuple(named[d] if isinstance(d, str) else d for d in spec.shape)
                    assert a.shape == b.shape == shape
                    assert a.dtype == b.dtype == spec.dtype
                    scale = np.abs(b).max() if b.dtype != np.bool_ else 1
                    np.testing.assert_allclose(
                        a.astype(np.float64),
                        b.astype(np.float64),
                        rtol=0,
                        atol=tolerance * float(scale),
                        err_msg=f"{spec.name} at length {length}, batch {batch}",
                    )
    return graph


def ops(graph: Graph) -> Counter[str]:
    """How often each op occurs."""
    return Counter(n.op for n in graph.nodes)
