"""What the tests of the passes share: building graphs, and comparing before with after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BatchDim, Graph, bind_shape

BATCH_SIZE = 3


class Builder(Editor):
    """An editor that takes numbers and arrays as operands."""

    def __init__(self) -> None:
        super().__init__(name="test", length=0)

    def op(self, op: str, *operands: Any, **attrs: Any) -> str:
        names = [x if isinstance(x, str) else self.const(x) for x in operands]
        return self.emit(op, names, source=op, **attrs)

    def const(self, value: Any) -> str:
        array = np.asarray(value)
        return self.constant(array.astype(np.float32) if array.dtype == np.float64 else array)

    def graph(self, *outputs: str) -> Graph:
        self.outputs = list(outputs)
        return self.finish()


def arrays_for(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Random inputs: floats of both signs, bytes over their range, 0 and 1 for other integers."""
    rng = np.random.default_rng(seed)
    arrays = []
    for name in graph.inputs:
        value = graph.values[name]
        shape = bind_shape(value.shape, BATCH_SIZE)
        if value.dtype.kind == "f":
            arrays.append(rng.normal(size=shape).astype(value.dtype))
        elif value.dtype.itemsize == 1 and value.dtype.kind in "iu":
            info = np.iinfo(value.dtype)
            arrays.append(rng.integers(info.min, info.max + 1, shape).astype(value.dtype))
        else:
            arrays.append(rng.integers(0, 2, shape).astype(value.dtype))
    return arrays


def check(
    graph: Graph,
    transform: Callable[[Graph], Graph],
    inputs: Sequence[np.ndarray] | None = None,
    rtol: float | None = None,
) -> Graph:
    """The transformed graph, after its results were compared: bit by bit unless `rtol` is given."""
    inputs = arrays_for(graph) if inputs is None else inputs
    after = transform(graph)
    assert after.inputs == graph.inputs and after.output_names == graph.output_names
    for old, new, name in zip(graph.outputs, after.outputs, graph.output_names, strict=True):
        assert graph.values[old].shape == after.values[new].shape, name
    for want, got in zip(interpret(graph, inputs), interpret(after, inputs), strict=True):
        assert want.dtype == got.dtype and want.shape == got.shape
        if rtol is None:
            np.testing.assert_array_equal(got, want)
        else:
            scale = np.abs(want).max() if want.size else 1
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale)
    return after


def ops(graph: Graph) -> Counter[str]:
    """How often each op occurs."""
    return Counter(node.op for node in graph.nodes)


def has_batch(shape: Sequence[Any]) -> bool:
    return any(isinstance(d, BatchDim) for d in shape)
